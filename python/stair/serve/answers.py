"""A batch of queries to their answers: one encoding, one search and one look-up for all of them."""

from __future__ import annotations

import json
from collections.abc import Callable, Sequence
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any
from urllib.parse import urlencode

import numpy as np
import scipy.sparse

from stair.search import item_id, matches_of, rows_of
from stair.serve.source import Served

if TYPE_CHECKING:
    from stair_kernels import SparseRows

Row = tuple[np.ndarray, np.ndarray]  # weights float32 [K], vocabulary entries int32 [K]


@dataclass
class Query:
    """One of text, pixels (the square that the model sees) and row."""

    served: Served
    k: int
    matches: int  # matching terms shown with a hit
    text: str | None = None
    pixels: np.ndarray | None = None
    row: Row | None = None


class Numbers(Sequence[str]):
    """The vocabulary of an index without a model: an entry is called by its number."""

    def __getitem__(self, entry: Any) -> Any:
        return str(entry)

    def __len__(self) -> int:
        return np.iinfo(np.int64).max


def answer(
    queries: list[Query], stage: Callable[[str], AbstractContextManager[Any]] = lambda name: nullcontext()
) -> list[dict[str, Any]]:
    """{"terms", "hits"} of each query; `stage` wraps encode, search and explain."""
    answers: list[dict[str, Any]] = [{} for _ in queries]
    for served in {id(query.served): query.served for query in queries}.values():  # two of them around a reload
        at = [number for number, query in enumerate(queries) if query.served is served]
        for number, found in zip(at, _answer([queries[number] for number in at], served, stage)):
            answers[number] = found
    return answers


def _answer(
    queries: list[Query], served: Served, stage: Callable[[str], AbstractContextManager[Any]]
) -> list[dict[str, Any]]:
    with stage("encode"):
        rows = _rows(queries, served)
    with stage("search"):
        scores, ids = served.index.search(_as_csr(rows, served.index.vocab_size), max(query.k for query in queries))
        scores, ids = np.asarray(scores), np.asarray(ids)
    with stage("explain"):
        return _explained(queries, rows, scores, ids, served)


def _rows(queries: list[Query], served: Served) -> list[Row]:
    """Each query's row; of unit length where the documents' are, as `stair search` has them."""
    scaled = served.folder is not None
    rows: list[Row] = [(np.zeros(0, np.float32), np.zeros(0, np.int32)) for _ in queries]
    for number, query in enumerate(queries):
        if query.row is not None:
            rows[number] = _unit(query.row) if scaled else query.row
    if served.encoder is not None:
        from stair.evaluate import unit

        texts = [number for number, query in enumerate(queries) if query.text is not None]
        pictures = [number for number, query in enumerate(queries) if query.pixels is not None]
        if texts:
            made = served.encoder.texts([queries[number].text or "" for number in texts])
            _fill(rows, texts, unit(made) if scaled else made)
        if pictures:
            made = served.encoder.pictures([queries[number].pixels for number in pictures])
            _fill(rows, pictures, unit(made) if scaled else made)
    return rows


def _fill(rows: list[Row], at: list[int], made: SparseRows) -> None:
    for number, values, indices in zip(at, made.values.numpy(), made.indices.numpy()):
        rows[number] = values[indices >= 0], indices[indices >= 0]


def _unit(row: Row) -> Row:
    length = max(float(np.linalg.norm(row[0].astype(np.float64))), 1e-12)
    return (row[0] / length).astype(np.float32), row[1]


def _as_csr(rows: list[Row], V: int) -> scipy.sparse.csr_matrix:
    starts = np.cumsum([0, *(len(entries) for _, entries in rows)])
    weights, entries = (np.concatenate(parts) for parts in zip(*rows))
    return scipy.sparse.csr_matrix((weights, entries, starts), (len(rows), V))


def _explained(
    queries: list[Query], rows: list[Row], scores: np.ndarray, ids: np.ndarray, served: Served
) -> list[dict[str, Any]]:
    """What each query was read as and its hits, with their items and the terms that matched."""
    vocabulary: Sequence[str] = Numbers() if served.encoder is None else served.encoder.vocabulary
    found = [
        [(s, i) for s, i in zip(scores[q, : query.k].tolist(), ids[q, : query.k].tolist()) if s > -np.inf]
        for q, query in enumerate(queries)
    ]
    needed = list({i: None for q, query in enumerate(queries) if query.matches for _, i in found[q]})
    documents = dict(zip(needed, rows_of(served.index.rows(needed)))) if needed else {}
    every = list({i: None for hits in found for _, i in hits}) if served.folder is not None else []
    items = dict(zip(every, map(json.loads, served.index.payloads(every)))) if every else {}
    answers = []
    for query, row, hits in zip(queries, rows, found):
        order = np.argsort(-row[0], kind="stable")[: query.matches]
        terms = [{"term": vocabulary[int(row[1][j])], "weight": float(row[0][j])} for j in order]
        made = []
        for rank, (score, i) in enumerate(hits, 1):
            matched = matches_of(row, documents[i], vocabulary, query.matches) if query.matches else []
            made.append(
                {
                    "rank": rank,
                    "score": score,
                    "id": i,
                    **_shown(items.get(i)),
                    "matches": [vars(match) for match in matched],
                }
            )
        answers.append({"terms": terms, "hits": made})
    return answers


def _shown(item: dict[str, Any] | None) -> dict[str, Any]:
    """Of an item: its name, where its picture can be had, and all that is kept of it."""
    if item is None:
        return {}
    picture = f"v1/picture?{urlencode({'id': item_id(item)})}" if item.get("picture") else None
    return {"name": item["name"], "picture": picture, "item": item}
