"""JSON lines {"id": ..., "vector": {term: weight}}, as Anserini and Pyserini read them: floats, or scaled integers.

Anserini cuts a float weight down to an integer: give it a scale.
"""

from __future__ import annotations

import json
import math
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from stair.files import replacing
from stair.formats.documents import Documents, Meta, Progress, gathered, known_keys, typed_ids

MOST = float(np.finfo(np.float32).max)  # of a weight


def write(path: Path, documents: Documents, keys: str, scale: float | None, progress: Progress) -> Meta:
    with replacing(path) as stream:
        stream.writelines(lines(documents, keys, scale, progress))
    return {"keys": keys, "scale": scale or 1.0}


def lines(
    documents: Documents, keys: str = "token", scale: float | None = None, progress: Progress = lambda done, total: None
) -> Iterator[str]:
    """A line a document, its heaviest term first."""
    terms, names = documents.terms(keys), documents.names()
    for number, columns, weights in documents.each(progress):
        found = sorted(zip(scaled(weights, scale), columns), key=lambda pair: (-pair[0], pair[1]))
        vector = {terms[column]: weight for weight, column in found if weight}
        yield json.dumps({"id": names[number], "vector": vector}, ensure_ascii=False) + "\n"


def scaled(weights: list[float], scale: float | None) -> list[Any]:
    """The weights, or integers round(weight * scale), halves up."""
    return weights if scale is None else [math.floor(weight * scale + 0.5) for weight in weights]


def read(path: Path, vocabulary: Sequence[str] | None, meta: Meta) -> Documents:
    names: list[str] = []
    entries: list[tuple[list[str], list[float]]] = []
    scale = float(meta.get("scale", 1.0))
    with open(path, encoding="utf-8") as stream:
        try:
            for line in stream:
                if line.strip():
                    name, vector = _parsed(line)
                    names.append(name)
                    entries.append((list(vector), [weight / scale for weight in vector.values()]))
        except (ValueError, RecursionError) as error:
            raise ValueError(f"{path}, document {len(names)}: {error}") from None
    rows, known = gathered(path, entries, known_keys(meta, vocabulary))
    ids = typed_ids(path, names, meta)
    try:
        return Documents(rows, ids, vocabulary if meta.get("keys") == "id" else known)
    except ValueError as error:
        raise ValueError(f"{path}: {error}") from None


def _parsed(line: str) -> tuple[str, dict[str, float]]:
    record = json.loads(line, object_pairs_hook=_distinct)
    if not isinstance(record, dict) or "id" not in record or not isinstance(record.get("vector"), dict):
        raise ValueError(f'expected {{"id": ..., "vector": {{term: weight}}}}, got {line.strip()[:60]}')
    vector: dict[str, Any] = record["vector"]
    for term, weight in vector.items():
        if isinstance(weight, bool) or not isinstance(weight, (int, float)) or not 0 <= weight <= MOST:
            raise ValueError(f"expected a finite weight >= 0 of {term!r}, got {str(weight)[:60]}")
    return str(record["id"]), vector


def _distinct(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    found = dict(pairs)
    if len(found) < len(pairs):
        names = [name for name, _ in pairs]
        raise ValueError(
            f"expected distinct names, got {next(name for name in names if names.count(name) > 1)!r} twice"
        )
    return found
