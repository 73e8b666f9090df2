"""Sparse rows in the files that other tools read and write: one function to read, one to write, a table of formats.

    documents = Documents(rows, ids, vocabulary)
    write("rows.ciff", documents)
    read("rows.ciff", vocabulary=vocabulary)

Beside PATH lies PATH.meta.json: the format, the numbers of documents and terms, what keys and ids are, the scale. A
weight is the stored number divided by the scale.
"""

from __future__ import annotations

import json
import math
import sys
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from stair.files import replacing
from stair.formats import arrays, ciff, engines, jsonl
from stair.formats.documents import KEYS, Documents, Meta, Progress, Writer, beside

META = "meta.json"
Reader = Callable[[Path, "Sequence[str] | None", Meta], Documents]


@dataclass(frozen=True)
class Format:
    """A kind of file. `scale` is what integer weights are made by unless one is given; None: floats, exact."""

    suffix: str
    what: str
    write: Writer
    read: Reader | None = None  # None: written for an engine that reads it
    scaled: bool = False  # whether a scale makes sense


FORMATS = {
    "csr": Format(
        ".csr", "big-ann's CSR: int64[3], int64 indptr, int32 indices, float32", arrays.write_csr, arrays.read_csr
    ),
    "npz": Format(".npz", "scipy.sparse.load_npz, with the array `names`", arrays.write_npz, arrays.read_npz),
    "jsonl": Format(".jsonl", '{"id", "vector": {term: weight}} a line', jsonl.write, jsonl.read, True),
    "ciff": Format(".ciff", "Common Index File Format, weights of 8 bits", ciff.write, ciff.read, True),
    "opensearch": Format(".ndjson", "_bulk requests, field type rank_features", engines.opensearch),
    "elasticsearch": Format(".ndjson", "_bulk requests, field type sparse_vector", engines.elasticsearch),
    "vespa": Format(".jsonl", "a feed of puts, weightedset<string>", engines.vespa, None, True),
    "qdrant": Format(".jsonl", "points with a sparse vector", engines.qdrant),
    "milvus": Format(".jsonl", "rows with a SPARSE_FLOAT_VECTOR", engines.milvus),
    "pgvector": Format(".tsv", "COPY of a table with a sparsevec", engines.pgvector),
    "seekdb": Format(".sql", "statements, a table with a SPARSEVECTOR", engines.seekdb),
}
BY_SUFFIX = {".csr": "csr", ".npz": "npz", ".jsonl": "jsonl", ".ciff": "ciff"}


def write(
    path: Path | str,
    documents: Documents,
    *,
    format: str | None = None,
    keys: str = "token",
    scale: float | None = None,
    progress: Progress = lambda done, total: None,
) -> Meta:
    """Writes PATH and what lies beside it, each whole or not at all; gives what PATH.meta.json says.

    Args:
        format: one of FORMATS; by PATH's ending when None.
        keys: "token" for the vocabulary's strings, "id" for term numbers, where the format has a choice.
        scale: integer weights round(weight * scale) in jsonl and vespa, where those of 0 are left out, and in ciff,
            where they are 1 to 255. None: floats in jsonl, 1,000 in vespa, 255 / the largest weight in ciff.
        progress: called as progress(documents done, all of them).

    Raises:
        ValueError: on an unknown format or kind of keys, tokens without a vocabulary, a scale that the format has
            not, or weights that it cannot hold.
    """
    path = Path(path)
    name = format_of(path, format)
    if keys not in KEYS:
        raise ValueError(f"keys: expected one of {', '.join(KEYS)}, got {keys!r}")
    _require_scale(name, scale)
    meta: Meta = {
        "format": name,
        "documents": len(documents),
        "vocab_size": documents.vocab_size,
        "ids": "none" if documents.ids is None else "integer" if documents.integer_ids else "string",
    }
    meta |= FORMATS[name].write(path, documents, keys, scale, progress)
    with replacing(beside(path, META)) as stream:
        json.dump(meta, stream, indent=1)
    return meta


def read(
    path: Path | str, *, format: str | None = None, vocabulary: Sequence[str] | None = None, scale: float | None = None
) -> Documents:
    """The documents of a csr, npz, jsonl or ciff file.

    Args:
        format: by PATH's ending when None.
        vocabulary: the terms in the order of their numbers. None: tokens get numbers in their own order, and
            `vocabulary` of the result says which.
        scale: what stored weights of jsonl and ciff are divided by; None: as PATH.meta.json says, or 1 without it.

    Raises:
        ValueError: naming the file and the place in it, when it is damaged, of another format, or has a term that the
            vocabulary has not; on a scale that the format has not.
    """
    path = Path(path)
    name = format_of(path, format)
    reader = FORMATS[name].read
    if reader is None:
        known = ", ".join(key for key, kind in FORMATS.items() if kind.read)
        raise ValueError(f"format: {name} is written for an engine and not read; expected one of {known}")
    _require_scale(name, scale)
    if not path.is_file():
        raise ValueError(f"{path}: no such file")
    meta = read_meta(path)
    if meta.get("format", name) != name:
        raise ValueError(f"{beside(path, META)}: expected format {name}, got {meta['format']!r}")
    if scale is not None:
        meta["scale"] = scale
    return reader(path, vocabulary, meta)


def format_of(path: Path, format: str | None = None) -> str:
    """The name of the format, given or by the file's ending."""
    if format is None and path.suffix not in BY_SUFFIX:
        endings = ", ".join(BY_SUFFIX)
        raise ValueError(f"{path}: expected a name ending in {endings}; `stair export --format` writes others")
    if format is not None and format not in FORMATS:
        raise ValueError(f"format: expected one of {', '.join(FORMATS)}, got {format!r}")
    return format or BY_SUFFIX[path.suffix]


def _require_scale(name: str, scale: float | None) -> None:
    """Raises ValueError where the format has no scale, or this is none."""
    if scale is not None and not FORMATS[name].scaled:
        raise ValueError(f"scale: {name} keeps the weights as they are; expected none, got {scale}")
    if scale is not None and not 0 < scale < math.inf:
        raise ValueError(f"scale: expected a number > 0, got {scale}")


def read_meta(path: Path) -> dict[str, Any]:
    """What lies beside a file, or nothing."""
    file = beside(path, META)
    if not file.is_file():
        return {}
    try:
        meta = json.loads(file.read_text(encoding="utf-8"))
    except ValueError as error:
        raise ValueError(f"{file}: not JSON ({error})") from None
    scale, V = (meta.get("scale", 1.0), meta.get("vocab_size", 0)) if isinstance(meta, dict) else (None, None)
    if not isinstance(scale, (int, float)) or not 0 < scale <= sys.float_info.max or type(V) is not int or V < 0:
        raise ValueError(f"{file}: expected an object with a scale > 0 and a vocab_size >= 0, got {str(meta)[:60]}")
    return meta


__all__ = ["FORMATS", "Documents", "format_of", "read", "write"]
