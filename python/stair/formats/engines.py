"""Files that search engines load: documents in the engine's own form, and beside them the mapping or schema.

The field is `terms`; the score that the engine computes is the inner product with a query's terms, as the engine rounds
it: OpenSearch and Elasticsearch keep 9 significant bits of a weight, Vespa's weighted sets hold integers, the others
float32.
"""

from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np

from stair.files import replacing
from stair.formats.documents import Documents, Meta, Progress, beside
from stair.formats.jsonl import scaled

FIELD = "terms"
VESPA_SCALE = 1000.0
PGVECTOR_MOST = 16_000  # entries of a sparsevec
VESPA_SCHEMA = """schema stair {
    document stair {
        field terms type weightedset<string> {
            indexing: summary | attribute
            attribute: fast-search
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
    empty = np.flatnonzero(np.diff(documents.rows.indptr) == 0)
    if len(empty):
        raise ValueError(
            f"rows: Milvus stores no empty vector; expected terms in each document, got none in {empty[0]}"
        )
    kind = {"type": "INT64"} if documents.integer_ids else {"type": "VARCHAR", "max_length": 65535}
    schema = {
        "fields": [{"name": "id", **kind, "primary": True}, {"name": FIELD, "type": "SPARSE_FLOAT_VECTOR"}],
        "index": {"field": FIELD, "type": "SPARSE_INVERTED_INDEX", "metric_type": "IP"},
    }
    _write_json(beside(path, "schema.json"), schema)
    with replacing(path) as stream:
        for number, columns, weights in documents.each(progress):
            name = number if documents.ids is None else _plain(documents.ids[number])
            row: dict[str, Any] = {"id": name, FIELD: {"indices": columns, "values": weights}}
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
    with replacing(beside(path, "sql")) as stream:
        stream.write(
            "CREATE EXTENSION IF NOT EXISTS vector;\n"
            f"CREATE TABLE stair (id {kind} PRIMARY KEY, {FIELD} sparsevec({V}));\n"
            f"\\copy stair (id, {FIELD}) FROM '{path.name}'\n"
            f"-- SELECT id, -({FIELD} <#> '{{1:0.5}}/{V}') AS score FROM stair"
            f" ORDER BY {FIELD} <#> '{{1:0.5}}/{V}' LIMIT 10;\n"
        )
    with replacing(path) as stream:
        for number, columns, weights in documents.each(progress):
            vector = ",".join(f"{column + 1}:{weight!r}" for column, weight in zip(columns, weights))
            stream.write(f"{_copy_text(names[number])}\t{{{vector}}}/{V}\n")
    return {"keys": "id"}


def _bulk(path: Path, documents: Documents, keys: str, progress: Progress, field: dict[str, Any]) -> Meta:
    """An action line and a document line each. A term with a dot, which both engines refuse, is written as #number."""
    names = documents.names()
    terms: Sequence[str] = [f"#{v}" if "." in term else term for v, term in enumerate(documents.terms(keys))]
    mapping = {"mappings": {"properties": {FIELD: field, "item": {"type": "object", "enabled": False}}}}
    _write_json(beside(path, "index.json"), mapping)
    with replacing(path) as stream:
        for number, columns, weights in documents.each(progress):
            source: dict[str, Any] = {FIELD: dict(zip((terms[column] for column in columns), weights))}
            if documents.items is not None:
                source["item"] = documents.items[number]
            _line(stream, {"index": {"_id": names[number]}})
            _line(stream, source)
    return {"keys": keys}


def _write_json(path: Path, value: Any) -> None:
    with replacing(path) as stream:
        json.dump(value, stream, indent=1)


def _line(stream: Any, value: Any) -> None:
    stream.write(json.dumps(value, ensure_ascii=False) + "\n")


def _plain(name: Any) -> Any:
    return name if isinstance(name, str) else int(name)


def _copy_text(name: str) -> str:
    """COPY's text format escapes the backslash and what separates."""
    return name.replace("\\", "\\\\").replace("\t", "\\t").replace("\n", "\\n").replace("\r", "\\r")
