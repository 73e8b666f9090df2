"""Files of sparse rows: what is written is what is read, in each format's own bytes; damage is refused by name."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import scipy.sparse
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from stair.formats import FORMATS, Documents, read, write
from stair.formats.ciff import _messages

VOCABULARY = ["red", "##fruit", ".", "apple.pie", "zoé", "[unused]", "日本", "#3"]
READABLE = [name for name, kind in FORMATS.items() if kind.read]


def made(N: int = 5, V: int = len(VOCABULARY), seed: int = 0, **kwargs: Any) -> Documents:
    rows = scipy.sparse.random_array((N, V), density=0.6, rng=seed, format="csr", dtype=np.float32)
    return Documents(rows, **kwargs)


def same(one: Documents, other: Documents, tolerance: float = 0.0) -> None:
    assert one.rows.shape == other.rows.shape
    assert np.allclose(one.rows.toarray(), other.rows.toarray(), rtol=0, atol=tolerance)
    assert one.names() == other.names()
    assert (one.ids is None) == (other.ids is None)
    assert one.integer_ids == other.integer_ids


@pytest.mark.parametrize("keys", ["token", "id"])
@pytest.mark.parametrize(
    "ids", [None, np.array([7, -2, 2**60, 0, 5]), ["a", "b c", 'quote"', "ünï", "5"]], ids=["none", "integer", "string"]
)
@pytest.mark.parametrize("format", READABLE)
def test_what_is_written_is_read(tmp_path: Path, format: str, ids: Any, keys: str) -> None:
    documents = made(ids=ids, vocabulary=VOCABULARY)
    path = tmp_path / f"rows.{format}"
    meta = write(path, documents, keys=keys)
    found = read(path, vocabulary=VOCABULARY)
    same(documents, found, 0.5 / meta["scale"] + 1e-7 if format == "ciff" else 0.0)
    assert found.vocabulary == VOCABULARY
    assert meta["documents"] == 5
    assert sorted(file.name for file in tmp_path.iterdir() if file.suffix == ".tmp") == []


@pytest.mark.parametrize("format", READABLE)
@pytest.mark.parametrize("N", [0, 1])
def test_few_documents(tmp_path: Path, format: str, N: int) -> None:
    documents = made(N, vocabulary=VOCABULARY)
    write(tmp_path / "rows", documents, format=format)
    same(documents, read(tmp_path / "rows", format=format, vocabulary=VOCABULARY), 0.002 if format == "ciff" else 0.0)


@settings(max_examples=25, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(
    entries=st.dictionaries(
        st.tuples(st.integers(0, 6), st.integers(0, 7)),
        st.floats(2.0**-126, 2.0**100, width=32, allow_nan=False),
        max_size=30,
    ),
    names=st.lists(st.text(st.characters(codec="utf-8"), max_size=8), min_size=7, max_size=7, unique=True),
)
def test_any_weights_and_names_in_json_lines(tmp_path: Path, entries: dict[Any, float], names: list[str]) -> None:
    dense = np.zeros((7, 8), np.float32)
    for place, weight in entries.items():
        dense[place] = weight
    documents = Documents(scipy.sparse.csr_matrix(dense), names, VOCABULARY)
    write(tmp_path / "rows.jsonl", documents)
    same(documents, read(tmp_path / "rows.jsonl", vocabulary=VOCABULARY))


def test_without_a_vocabulary_terms_are_numbered_in_their_order(tmp_path: Path) -> None:
    documents = made(vocabulary=VOCABULARY)
    for format in ("jsonl", "ciff"):
        write(tmp_path / "rows", documents, format=format)
        (tmp_path / "rows.meta.json").unlink()
        found = read(tmp_path / "rows", format=format)
        assert found.vocabulary is not None
        assert list(found.vocabulary) == sorted(found.vocabulary)
        order = [found.vocabulary.index(term) for term in VOCABULARY]
        assert abs(found.rows[:, order] - documents.rows).max() < (0.002 if format == "ciff" else 1e-9)
        assert found.names() == ["0", "1", "2", "3", "4"]


def test_csr_has_the_bytes_of_big_ann(tmp_path: Path) -> None:
    rows = scipy.sparse.csr_matrix(np.array([[0, 1.5, 0], [0, 0, 0], [2, 0, 0.25]], np.float32))
    write(tmp_path / "a.csr", Documents(rows))
    expected = np.array([3, 3, 3, 0, 1, 1, 3], "<i8").tobytes() + np.array([1, 0, 2], "<i4").tobytes()
    assert (tmp_path / "a.csr").read_bytes() == expected + np.array([1.5, 2, 0.25], "<f4").tobytes()
    found = scipy.sparse.load_npz(_npz(tmp_path, Documents(rows)))
    assert abs(found - rows).max() == 0


def _npz(folder: Path, documents: Documents) -> Path:
    write(folder / "a.npz", documents)
    return folder / "a.npz"


def test_integers_are_rounded_and_the_scale_is_recorded(tmp_path: Path) -> None:
    rows = scipy.sparse.csr_matrix(np.array([[0.004, 0.125, 1.0, 0.0155]], np.float32))
    documents = Documents(rows, ["d"], ["a", "b", "c", "d"])
    write(tmp_path / "a.jsonl", documents, scale=100)
    assert json.loads((tmp_path / "a.jsonl").read_text()) == {"id": "d", "vector": {"b": 13, "c": 100, "d": 2}}
    found = read(tmp_path / "a.jsonl", vocabulary=["a", "b", "c", "d"])
    assert found.rows.toarray()[0] == pytest.approx([0, 0.13, 1, 0.02])
    meta = write(tmp_path / "a.ciff", documents)
    assert meta["scale"] == 255
    assert read(tmp_path / "a.ciff").rows.toarray()[0] * 255 == pytest.approx([1, 32, 255, 4])
    (tmp_path / "a.ciff.meta.json").unlink()  # the header says it as well
    assert read(tmp_path / "a.ciff").rows.toarray()[0] * 255 == pytest.approx([1, 32, 255, 4])
    assert read(tmp_path / "a.ciff", scale=1).rows.toarray()[0].tolist() == [1, 32, 255, 4]


def test_ciff_is_delimited_messages_with_gaps_in_the_order_of_terms(tmp_path: Path) -> None:
    from google.protobuf.proto import parse_length_prefixed

    dense = np.array([[0, 3, 1], [0, 0, 0], [2, 3, 0], [0, 3, 1]], np.float32)
    write(tmp_path / "a.ciff", Documents(scipy.sparse.csr_matrix(dense), None, ["unused", "b", "a"]), scale=1)
    kinds = _messages()
    with open(tmp_path / "a.ciff", "rb") as stream:
        header = parse_length_prefixed(kinds["Header"], stream)
        lists = [parse_length_prefixed(kinds["PostingsList"], stream) for _ in range(header.num_postings_lists)]
        records = [parse_length_prefixed(kinds["DocRecord"], stream) for _ in range(header.num_docs)]
        assert stream.read() == b""
    assert (header.num_docs, header.total_terms_in_collection, header.average_doclength) == (4, 13, 3.25)
    assert [message.term for message in lists] == ["a", "b", "unused"]
    assert [(posting.docid, posting.tf) for posting in lists[1].postings] == [(0, 3), (2, 3), (1, 3)]
    assert [(message.df, message.cf) for message in lists] == [(2, 2), (3, 9), (1, 2)]
    assert [(record.docid, record.collection_docid, record.doclength) for record in records] == [
        (0, "0", 4),
        (1, "1", 0),
        (2, "2", 5),
        (3, "3", 4),
    ]
    # Field 1 (term), wire type 2, of the first list: the numbers of the published .proto.
    assert b"\x0a\x01a\x10\x02\x18\x02" in (tmp_path / "a.ciff").read_bytes()


@pytest.mark.parametrize("format", READABLE)
def test_damage_is_refused_or_harmless(tmp_path: Path, format: str) -> None:
    documents = made(40, vocabulary=VOCABULARY, ids=[f"d{number}" for number in range(40)])
    path = tmp_path / f"rows.{format}"
    write(path, documents)
    whole = path.read_bytes()
    generator = np.random.default_rng(0)
    refused = 0
    for trial in range(120):
        damaged = bytearray(whole)
        if trial % 2:
            damaged = damaged[: generator.integers(len(whole))]
        else:
            damaged[generator.integers(len(whole))] ^= 1 << int(generator.integers(8))
        path.write_bytes(bytes(damaged))
        try:
            read(path, vocabulary=VOCABULARY)
        except ValueError as error:
            refused += str(path) in str(error)  # any other exception fails the test
    assert refused >= 60  # nearly every cut; a flipped bit of a weight cannot be seen in a format without checksums


REFUSED = {
    "csr": (
        np.array([1, 2, 1, 0, 1], "<i8").tobytes() + np.array([2], "<i4").tobytes() + np.ones(1, "<f4").tobytes(),
        "columns in 0 .. 1",
    ),
    "jsonl": (b'{"id": 1, "vector": {"red": -1}}\n', "document 0: expected a finite weight >= 0 of 'red', got -1"),
    "ciff": (b"\x03abc", "byte 0"),
    "npz": (b"PK\x03\x04", "CSR matrix"),
}


@pytest.mark.parametrize("format", REFUSED)
def test_foreign_content(tmp_path: Path, format: str) -> None:
    content, message = REFUSED[format]
    (tmp_path / "x").write_bytes(content)
    with pytest.raises(ValueError, match=message):
        read(tmp_path / "x", format=format)


@pytest.mark.parametrize(
    "line",
    [
        "[]",
        '{"id": 1}',
        '{"id": 1, "vector": {"red": "2"}}',
        '{"id": 1, "vector": {"red": NaN}}',
        '{"id": 1, "vector": {"red": true}}',
        f'{{"id": 1, "vector": {{"red": 1{"0" * 400}}}}}',
        '{"id": 1, "vector": {"red": 1e39}}',
        '{"id": 1, "vector": {"red": 1, "red": 2}}',
        '{"id": 1, "vector": {"blue": 1}}',
        '{"id": 1, "vector": {"red": 1}',
    ],
)
def test_bad_json_lines(tmp_path: Path, line: str) -> None:
    (tmp_path / "x.jsonl").write_text('{"id": 0, "vector": {"red": 1}}\n' + line + "\n")
    with pytest.raises(ValueError, match=r"x\.jsonl, document 1: "):
        read(tmp_path / "x.jsonl", vocabulary=["red"])


@pytest.mark.parametrize("format", READABLE)
@pytest.mark.parametrize("wrong", ["x", str(2**63)])
def test_an_id_that_is_no_integer_is_refused_by_its_document(tmp_path: Path, format: str, wrong: str) -> None:
    path = tmp_path / "x"
    write(path, made(ids=["1", "2", wrong, "4", "5"], vocabulary=VOCABULARY), format=format)
    meta = json.loads(Path(f"{path}.meta.json").read_text())
    Path(f"{path}.meta.json").write_text(json.dumps(meta | {"ids": "integer"}))
    with pytest.raises(ValueError, match=rf"{path}, document 2: expected an integer id of 64 bits, got '{wrong}'"):
        read(path, format=format, vocabulary=VOCABULARY)


@pytest.mark.parametrize("format", READABLE)
@pytest.mark.parametrize("scale", [0.0, -1.0, float("nan"), 2.0])
def test_a_scale_that_makes_no_sense_is_refused(tmp_path: Path, format: str, scale: float) -> None:
    write(tmp_path / "x", made(vocabulary=VOCABULARY), format=format)
    if scale == 2 and FORMATS[format].scaled:
        assert len(read(tmp_path / "x", format=format, scale=scale)) == 5
        return
    message = "expected a number > 0" if FORMATS[format].scaled else f"{format} keeps the weights as they are"
    with pytest.raises(ValueError, match=f"scale: {message}"):
        read(tmp_path / "x", format=format, scale=scale)


def test_a_term_with_two_postings_lists_is_refused(tmp_path: Path) -> None:
    from google.protobuf.proto import serialize_length_prefixed

    kinds = _messages()
    with open(tmp_path / "x.ciff", "wb") as stream:
        serialize_length_prefixed(kinds["Header"](version=1, num_postings_lists=2, num_docs=1), stream)
        for _ in range(2):
            one = kinds["PostingsList"](term="red", df=1, cf=1, postings=[kinds["Posting"](docid=0, tf=1)])
            serialize_length_prefixed(one, stream)
        serialize_length_prefixed(kinds["DocRecord"](docid=0, collection_docid="a", doclength=2), stream)
    with pytest.raises(ValueError, match=r"x\.ciff: expected a postings list a term, got two of 'red'"):
        read(tmp_path / "x.ciff")


def test_rows_are_copied_only_where_they_have_to_be() -> None:
    rows = scipy.sparse.csr_matrix(np.array([[0, 2, 1], [0, 0, 3]], np.float32))
    assert np.shares_memory(Documents(rows).rows.data, rows.data)
    unsorted = scipy.sparse.csr_matrix((np.array([1, 2, 0, 3], np.float32), [2, 1, 0, 2], [0, 2, 4]), (2, 3))
    kept = unsorted.copy()
    assert (Documents(unsorted).rows.indices.tolist(), Documents(unsorted).rows.data.tolist()) == ([1, 2, 2], [2, 1, 3])
    assert (unsorted.indices.tolist(), unsorted.data.tolist()) == (kept.indices.tolist(), kept.data.tolist())


def test_bad_arguments(tmp_path: Path) -> None:
    documents = made()
    for kwargs, message in (
        ({"format": "parquet"}, "format: expected one of csr"),
        ({"format": "jsonl"}, 'keys: expected "id", since'),
        ({"format": "jsonl", "keys": "word"}, "keys: expected one of token, id"),
        ({"format": "csr", "scale": 2.0}, "scale: csr keeps"),
        ({"format": "jsonl", "keys": "id", "scale": -1.0}, "scale: expected a number > 0, got -1"),
        ({"format": "ciff", "keys": "id", "scale": 1e6}, "scale: expected at most"),
    ):
        with pytest.raises(ValueError, match=message):
            write(tmp_path / "x", documents, **kwargs)
    assert list(tmp_path.iterdir()) == []
    with pytest.raises(ValueError, match="expected a name ending in"):
        read(tmp_path / "x")
    with pytest.raises(ValueError, match="no such file"):
        read(tmp_path / "x.csr")
    with pytest.raises(ValueError, match="qdrant is written for an engine"):
        read(tmp_path / "x", format="qdrant")
    with pytest.raises(ValueError, match="weights >= 0"):
        Documents(scipy.sparse.csr_matrix(np.array([[np.nan]])))
    with pytest.raises(ValueError, match="vocabulary: expected distinct"):
        made(2, V=2, vocabulary=["a", "a"])


ITEMS = [{"name": f"n{number}"} for number in range(5)]


def lines_of(path: Path) -> list[Any]:
    return [json.loads(line) for line in path.read_text(encoding="utf-8").splitlines()]


@pytest.mark.parametrize("engine", ["opensearch", "elasticsearch"])
def test_bulk_requests(tmp_path: Path, engine: str) -> None:
    documents = made(ids=["a", "b", "c", "d", "e"], vocabulary=VOCABULARY, items=ITEMS)
    meta = write(tmp_path / "x.ndjson", documents, format=engine)
    lines = lines_of(tmp_path / "x.ndjson")
    assert [line["index"]["_id"] for line in lines[::2]] == ["a", "b", "c", "d", "e"]
    renamed = {".": "#2", "apple.pie": "#3#"}  # no dot in a feature's name, and "#3" is taken
    assert meta["renamed"] == renamed
    for number, source in enumerate(lines[1::2]):
        row = documents.rows[[number]]
        expected = {renamed.get(VOCABULARY[v], VOCABULARY[v]): w for v, w in zip(row.indices, row.data)}
        assert {term: np.float32(weight) for term, weight in source["terms"].items()} == expected
        assert source["item"] == ITEMS[number]
        assert not any("." in term for term in source["terms"])
    mapping = json.loads((tmp_path / "x.ndjson.index.json").read_text())["mappings"]["properties"]["terms"]
    assert mapping == {"type": {"opensearch": "rank_features", "elasticsearch": "sparse_vector"}[engine]}


def test_vespa_feed(tmp_path: Path) -> None:
    documents = made(vocabulary=VOCABULARY, ids=["a", "b", "c", "d", "e"], items=ITEMS)
    meta = write(tmp_path / "x.jsonl", documents, format="vespa")
    line = lines_of(tmp_path / "x.jsonl")[1]
    assert line["put"] == "id:stair:stair::b"
    row = documents.rows[[1]]
    assert line["fields"]["terms"] == {VOCABULARY[v]: round(float(w) * 1000) for v, w in zip(row.indices, row.data)}
    assert json.loads(line["fields"]["item"]) == ITEMS[1]
    assert meta["scale"] == 1000
    assert "weightedset<string>" in (tmp_path / "x.jsonl.sd").read_text()


def test_points_and_rows(tmp_path: Path) -> None:
    documents = made(ids=["a", "b", "c", "d", "e"], items=ITEMS)
    write(tmp_path / "q.jsonl", documents, format="qdrant")
    write(tmp_path / "m.jsonl", documents, format="milvus")
    row = documents.rows[[2]]
    vector = lines_of(tmp_path / "q.jsonl")[2]["vector"]["terms"]
    assert vector["indices"] == row.indices.tolist()
    assert np.array_equal(np.array(vector["values"], np.float32), row.data)
    terms = lines_of(tmp_path / "m.jsonl")[2]["terms"]
    assert list(terms) == [str(v) for v in row.indices]
    assert np.array_equal(np.array(list(terms.values()), np.float32), row.data)
    assert lines_of(tmp_path / "q.jsonl")[2]["payload"] == {"id": "c", "item": ITEMS[2]}
    assert [line["id"] for line in lines_of(tmp_path / "m.jsonl")] == ["a", "b", "c", "d", "e"]
    numbered = made(ids=np.array([5, 6, 7, 8, 2**40]))
    write(tmp_path / "q.jsonl", numbered, format="qdrant")
    assert [line["id"] for line in lines_of(tmp_path / "q.jsonl")] == [5, 6, 7, 8, 2**40]
    write(tmp_path / "m.jsonl", numbered, format="milvus")
    assert [line["id"] for line in lines_of(tmp_path / "m.jsonl")] == [5, 6, 7, 8, 2**40]
    with pytest.raises(ValueError, match="Milvus stores no empty vector"):
        write(tmp_path / "m.jsonl", Documents(scipy.sparse.csr_matrix((2, 3), dtype=np.float32)), format="milvus")


def test_copy_of_pgvector(tmp_path: Path) -> None:
    rows = scipy.sparse.csr_matrix(np.array([[0, 1.5, 0], [0.1, 0, 2]], np.float32))
    write(tmp_path / "x.tsv", Documents(rows, ["a\tb", "c\\"]), format="pgvector")
    assert (tmp_path / "x.tsv").read_text() == "a\\tb\t{2:1.5}/3\nc\\\\\t{1:0.1,3:2.0}/3\n"
    assert "sparsevec(3)" in (tmp_path / "x.tsv.sql").read_text()


def test_statements_of_seekdb(tmp_path: Path) -> None:
    rows = scipy.sparse.csr_matrix(np.array([[0, 1.5, 0], [0.1, 0, 2]], np.float32))
    write(tmp_path / "x.sql", Documents(rows, ["it's\n", "c\\"]), format="seekdb")
    lines = (tmp_path / "x.sql").read_text().splitlines()
    values = r"('it''s\n', '{1:1.5}'), ('c\\', '{0:0.1,2:2.0}')"
    assert lines[1:] == [f"INSERT INTO stair (id, terms) VALUES {values};"]
    numbered = Documents(scipy.sparse.csr_matrix(np.ones((201, 1), np.float32)))
    write(tmp_path / "x.sql", numbered, format="seekdb")
    lines = (tmp_path / "x.sql").read_text().splitlines()
    assert "id BIGINT" in lines[0]
    assert [line.count("{0:1.0}") for line in lines[1:]] == [100, 100, 1]


ENGINES_REFUSE = {
    "id of 513 bytes": ("opensearch", {"ids": ["é" * 256 + "x"]}, {}, "ids: expected 1 to 512 bytes"),
    "no id": ("elasticsearch", {"ids": [""]}, {}, "ids: expected 1 to 512 bytes of UTF-8, got ''"),
    "subnormal": ("elasticsearch", {"rows": [[1e-39]]}, {}, "rows: expected weights >= 1.17549"),
    "control character": ("vespa", {"ids": ["a\x01"]}, {}, "ids: expected text without control characters"),
    "int32": ("vespa", {}, {"scale": 1e10}, "scale: expected at most 2.14748e\\+09"),
    "long id": ("milvus", {"ids": ["x" * 65_536]}, {}, "ids: expected at most 65,535 bytes"),
    "NUL": ("pgvector", {"ids": ["a\0"]}, {}, "ids: expected text without NUL"),
    "sparsevec": ("pgvector", {"rows": [[1.0] * 16_001]}, {}, "at most 16,000 terms"),
    "500,001 columns": (
        "seekdb",
        {"rows": scipy.sparse.csr_matrix((1, 500_001))},
        {"keys": "id"},
        "at most 500,000 columns",
    ),
    "spaces": ("seekdb", {"rows": [[1.0], [1.0]], "ids": ["a", "a "]}, {}, "ids: expected some that differ in more"),
    "513 characters": ("seekdb", {"ids": ["x" * 513]}, {}, "ids: expected at most 512 characters"),
}


@pytest.mark.parametrize("limit", ENGINES_REFUSE)
def test_what_an_engine_refuses_is_not_written(tmp_path: Path, limit: str) -> None:
    format, given, options, message = ENGINES_REFUSE[limit]
    rows = scipy.sparse.csr_matrix(given.get("rows", [[1.0]]), dtype=np.float32)
    vocabulary = [f"w{v}" for v in range(rows.shape[1])]
    with pytest.raises(ValueError, match=message):
        write(tmp_path / "x", Documents(rows, given.get("ids"), vocabulary), format=format, **options)
    assert list(tmp_path.iterdir()) == []
