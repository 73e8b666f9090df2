"""Files that search engines load: documents in the engine's own form, and beside them the mapping or schema.

The field is `terms`; the score that the engine computes is the inner product with a query's terms, as the engine rounds
it: OpenSearch and Elasticsearch keep 9 significant bits of a weight, Vespa's weighted sets hold integers, the others
float32. What an engine is known to refuse is refused here.
"""

from __future__ import annotations

import json
import re
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from stair.files import replacing
from stair.formats.documents import Documents, Meta, Progress, beside
from stair.formats.jsonl import scaled

FIELD = "terms"
VESPA_SCALE = 1000.0
PGVECTOR_MOST = 16_000  # entries of a sparsevec
MILVUS_NAME = 65_535  # bytes of a VARCHAR, the most there are
SEEKDB_NAME = 512  # characters of the key, whose collation does not see spaces at its end
SEEKDB_TERMS = 500_000  # a term's number is below
SEEKDB_ROWS = 100  # an INSERT
MILVUS_TYPES = {"INT64": 5, "VARCHAR": 21, "JSON": 23, "SPARSE_FLOAT_VECTOR": 104}  # pymilvus.DataType
BULK_NAME = 512  # bytes of an _id
BULK_LEAST = 2.0**-126  # Lucene's FeatureField takes normal floats
VESPA_MOST = 2**31 - 1  # weights are int32
NOT_TEXT = re.compile("[\x00-\x08\x0b\x0c\x0e-\x1f\ufffe\uffff]")  # Vespa's strings have none of these
VESPA_SCHEMA = """schema stair {
    document stair {
        field terms type weightedset<string> {
            indexing: summary | attribute
            attribute: fast-search
            match: cased
            dictionary {
                cased
            }
        }
        field item type string {
            indexing: summary
        }
    }
    rank-profile stair {
        first-phase {
            expression: rawScore(terms)
        }
    }
}
"""


def opensearch(path: Path, documents: Documents, keys: str, scale: float | None, progress: Progress) -> Meta:
    return _bulk(path, documents, keys, progress, {"type": "rank_features"})


def elasticsearch(path: Path, documents: Documents, keys: str, scale: float | None, progress: Progress) -> Meta:
    return _bulk(path, documents, keys, progress, {"type": "sparse_vector"})


def vespa(path: Path, documents: Documents, keys: str, scale: float | None, progress: Progress) -> Meta:
    """Puts for `vespa feed`; query with wand(terms, {...}) and weights scaled likewise."""
    terms, names, used = documents.terms(keys), documents.names(), scale or VESPA_SCALE
    for what, texts in (("ids", names), ("vocabulary", terms)):
        _require(texts, what, lambda text: not NOT_TEXT.search(text), "text without control characters for Vespa")
    heaviest = float(documents.rows.data.max(initial=0))
    if heaviest * used > VESPA_MOST:
        raise ValueError(
            f"scale: expected at most {VESPA_MOST / heaviest:.6g}, since weights are integers below 2^31, got {used}"
        )
    with replacing(beside(path, "sd")) as stream:
        stream.write(VESPA_SCHEMA)
    with replacing(path) as stream:
        for number, columns, weights in documents.each(progress):
            integers = zip((terms[column] for column in columns), scaled(weights, used))
            fields: dict[str, Any] = {FIELD: {term: weight for term, weight in integers if weight}}
            if documents.items is not None:
                fields["item"] = json.dumps(documents.items[number], ensure_ascii=False)
            _line(stream, {"put": f"id:stair:stair::{names[number]}", "fields": fields})
    return {"keys": keys, "scale": used}


def qdrant(path: Path, documents: Documents, keys: str, scale: float | None, progress: Progress) -> Meta:
    """Points: an id that is an integer >= 0 is the point's, any other is in its payload, and the point's is the row."""
    ids, own = (
        documents.ids,
        documents.integer_ids and (documents.ids is None or bool((np.asarray(documents.ids) >= 0).all())),
    )
    _write_json(beside(path, "collection.json"), {"sparse_vectors": {FIELD: {}}})
    with replacing(path) as stream:
        for number, columns, weights in documents.each(progress):
            payload: dict[str, Any] = {} if own or ids is None else {"id": _plain(ids[number])}
            if documents.items is not None:
                payload["item"] = documents.items[number]
            point = number if ids is None or not own else int(ids[number])
            vector = {FIELD: {"indices": columns, "values": weights}}
            _line(stream, {"id": point, "vector": vector, "payload": payload})
    return {"keys": "id"}


def milvus(path: Path, documents: Documents, keys: str, scale: float | None, progress: Progress) -> Meta:
    """Rows for MilvusClient.insert or a bulk import; a document without a term cannot be stored and is refused."""
    names, empty = documents.names(), np.flatnonzero(np.diff(documents.rows.indptr) == 0)
    if len(empty):
        raise ValueError(
            f"rows: Milvus stores no empty vector; expected terms in each document, got none in {names[empty[0]]!r}"
        )
    integers = documents.integer_ids
    _require(names, "ids", lambda name: len(name.encode()) <= MILVUS_NAME, f"at most {MILVUS_NAME:,} bytes for Milvus")
    key = (
        {"type": MILVUS_TYPES["INT64"]}
        if integers
        else {"type": MILVUS_TYPES["VARCHAR"], "params": {"max_length": MILVUS_NAME}}
    )
    fields = [{"name": "id", **key, "is_primary": True}, {"name": FIELD, "type": MILVUS_TYPES["SPARSE_FLOAT_VECTOR"]}]
    if documents.items is not None:
        fields.append({"name": "item", "type": MILVUS_TYPES["JSON"]})
    index = {"field_name": FIELD, "index_type": "SPARSE_INVERTED_INDEX", "metric_type": "IP"}
    _write_json(beside(path, "schema.json"), {"schema": {"auto_id": False, "fields": fields}, "index": index})
    with replacing(path) as stream:
        for number, columns, weights in documents.each(progress):
            row: dict[str, Any] = {"id": int(names[number]) if integers else names[number]}
            row[FIELD] = dict(zip(map(str, columns), weights))
            if documents.items is not None:
                row["item"] = documents.items[number]
            _line(stream, row)
    return {"keys": "id"}


def pgvector(path: Path, documents: Documents, keys: str, scale: float | None, progress: Progress) -> Meta:
    """Rows for COPY, terms counted from 1 as sparsevec does, and the SQL that makes the table and loads them."""
    most = int(np.diff(documents.rows.indptr).max()) if len(documents) else 0
    if most > PGVECTOR_MOST:
        raise ValueError(f"rows: a sparsevec holds at most {PGVECTOR_MOST:,} terms, got a document with {most:,}")
    V, names, kind = documents.vocab_size, documents.names(), "bigint" if documents.integer_ids else "text"
    _require(names, "ids", lambda name: "\0" not in name, "text without NUL for PostgreSQL")
    with replacing(beside(path, "sql")) as stream:
        stream.write(
            "CREATE EXTENSION IF NOT EXISTS vector;\n"
            f"CREATE TABLE stair (id {kind} PRIMARY KEY, {FIELD} sparsevec({V}));\n"
            f"\\copy stair (id, {FIELD}) FROM {_sql_text(path.name)}\n"
            f"-- SELECT id, -({FIELD} <#> '{{1:0.5}}/{V}') AS score FROM stair"
            f" ORDER BY {FIELD} <#> '{{1:0.5}}/{V}' LIMIT 10;\n"
        )
    with replacing(path) as stream:
        for number, columns, weights in documents.each(progress):
            vector = ",".join(f"{column + 1}:{weight!r}" for column, weight in zip(columns, weights))
            stream.write(f"{_copy_text(names[number])}\t{{{vector}}}/{V}\n")
    return {"keys": "id"}


def seekdb(path: Path, documents: Documents, keys: str, scale: float | None, progress: Progress) -> Meta:
    """SQL, a statement a line: the table with its index, then its rows, some at a time."""
    names = documents.names()
    _require(names, "ids", lambda name: len(name) <= SEEKDB_NAME, f"at most {SEEKDB_NAME} characters for seekdb")
    if documents.vocab_size > SEEKDB_TERMS:
        raise ValueError(f"rows: expected at most {SEEKDB_TERMS:,} columns for seekdb, got {documents.vocab_size:,}")
    if len({name.rstrip(" ") for name in names}) < len(names):
        raise ValueError("ids: expected some that differ in more than spaces at their end, for seekdb; got others")
    kind = "BIGINT" if documents.integer_ids else f"VARCHAR({SEEKDB_NAME}) CHARACTER SET utf8mb4 COLLATE utf8mb4_bin"
    with replacing(path) as stream:
        stream.write(
            f"CREATE TABLE stair (id {kind} PRIMARY KEY, {FIELD} SPARSEVECTOR, VECTOR INDEX stair_{FIELD} ({FIELD}) "
            "WITH (DISTANCE=inner_product, TYPE=sindi, LIB=vsag)) ORGANIZATION = HEAP;\n"
        )
        for number, columns, weights in documents.each(progress):
            vector = ",".join(f"{column}:{weight!r}" for column, weight in zip(columns, weights))
            first, last = number % SEEKDB_ROWS == 0, (number + 1) % SEEKDB_ROWS == 0 or number + 1 == len(names)
            name = names[number] if documents.integer_ids else _sql_text(names[number].replace("\\", "\\\\"))
            stream.write(f"INSERT INTO stair (id, {FIELD}) VALUES " if first else ", ")
            stream.write(f"({_one_line(name)}, '{{{vector}}}')" + (";\n" if last else ""))
    return {"keys": "id"}


def _bulk(path: Path, documents: Documents, keys: str, progress: Progress, field: dict[str, Any]) -> Meta:
    """An action line and a document line each. A term with a dot, which these engines refuse, gets another name."""
    names, terms, renamed = documents.names(), list(documents.terms(keys)), dict[str, str]()
    _require(names, "ids", lambda name: 0 < len(name.encode()) <= BULK_NAME, f"1 to {BULK_NAME} bytes of UTF-8")
    least = float(documents.rows.data.min(initial=1))
    if least < BULK_LEAST:
        raise ValueError(f"rows: expected weights >= {BULK_LEAST:.7g}, as the engine does, got {least:.7g}")
    taken = set(terms)
    for v, term in enumerate(terms):
        if "." in term:
            name = f"#{v}"
            while name in taken:
                name += "#"
            taken.add(name)
            terms[v] = renamed[term] = name
    mapping = {"mappings": {"properties": {FIELD: field, "item": {"type": "object", "enabled": False}}}}
    _write_json(beside(path, "index.json"), mapping)
    with replacing(path) as stream:
        for number, columns, weights in documents.each(progress):
            source: dict[str, Any] = {FIELD: dict(zip((terms[column] for column in columns), weights))}
            if documents.items is not None:
                source["item"] = documents.items[number]
            _line(stream, {"index": {"_id": names[number]}})
            _line(stream, source)
    return {"keys": keys, "renamed": renamed}


def _require(texts: Sequence[str], what: str, good: Callable[[str], bool], expected: str) -> None:
    for text in texts:
        if not good(text):
            raise ValueError(f"{what}: expected {expected}, got {text[:60]!r}")


def _write_json(path: Path, value: Any) -> None:
    with replacing(path) as stream:
        json.dump(value, stream, indent=1)


def _line(stream: Any, value: Any) -> None:
    stream.write(json.dumps(value, ensure_ascii=False) + "\n")


def _plain(name: Any) -> Any:
    return name if isinstance(name, str) else int(name)


def _copy_text(name: str) -> str:
    """COPY's text format escapes the backslash and what separates."""
    return _one_line(name.replace("\\", "\\\\"))


def _one_line(text: str) -> str:
    return text.replace("\t", "\\t").replace("\n", "\\n").replace("\r", "\\r")


def _sql_text(text: str) -> str:
    return "'" + text.replace("'", "''") + "'"
