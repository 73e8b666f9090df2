"""Arrays: big-ann's CSR and SciPy's .npz. The weights are exact; term numbers are the columns."""

from __future__ import annotations

import zipfile
import zlib
from collections.abc import Sequence
from pathlib import Path

import numpy as np
import scipy.sparse

from stair.files import replacing
from stair.formats.documents import Documents, Meta, Progress, beside, typed_ids

IDS = "ids"  # a line each
HEADER = 3  # rows, columns, entries


def write_csr(path: Path, documents: Documents, keys: str, scale: float | None, progress: Progress) -> Meta:
    """PATH, and the ids in PATH.ids, a line each."""
    rows = documents.rows
    if documents.ids is not None:
        _refuse_line_breaks(documents.names())
        with replacing(beside(path, IDS)) as stream:
            stream.write("".join(f"{name}\n" for name in documents.names()))
    else:
        beside(path, IDS).unlink(missing_ok=True)
    with replacing(path, "wb") as stream:
        np.array([*rows.shape, rows.nnz], "<i8").tofile(stream)
        for array, dtype in ((rows.indptr, "<i8"), (rows.indices, "<i4"), (rows.data, "<f4")):
            array.astype(dtype).tofile(stream)
    progress(len(documents), len(documents))
    return {}


def read_csr(path: Path, vocabulary: Sequence[str] | None, meta: Meta) -> Documents:
    size = path.stat().st_size
    with open(path, "rb") as stream:
        header = np.fromfile(stream, "<i8", HEADER)
        if len(header) < HEADER or (header < 0).any():
            raise ValueError(f"{path}: expected three int64 >= 0 (rows, columns, entries), got {header.tolist()}")
        N, V, entries = header.tolist()
        expected = 8 * HEADER + 8 * (N + 1) + 8 * entries
        if size != expected:
            raise ValueError(f"{path}: expected {expected} bytes for {N} rows and {entries} entries, got {size}")
        starts, columns = np.fromfile(stream, "<i8", N + 1), np.fromfile(stream, "<i4", entries)
        weights = np.fromfile(stream, "<f4", entries)
    _require_csr(path, starts, columns, V)
    names = None
    if beside(path, IDS).is_file():
        names = typed_ids(path, beside(path, IDS).read_text(encoding="utf-8").splitlines(), meta)
    return _checked(path, scipy.sparse.csr_matrix((weights, columns, starts), shape=(N, V)), names, vocabulary)


def write_npz(path: Path, documents: Documents, keys: str, scale: float | None, progress: Progress) -> Meta:
    rows = documents.rows
    parts = {
        "format": np.array(b"csr"),
        "shape": np.array(rows.shape),
        "indptr": rows.indptr,
        "indices": rows.indices,
        "data": rows.data,
        "names": np.array(documents.names()),
    }
    with replacing(path, "wb") as stream:
        np.savez_compressed(stream, **parts)
    progress(len(documents), len(documents))
    return {}


def read_npz(path: Path, vocabulary: Sequence[str] | None, meta: Meta) -> Documents:
    try:
        with np.load(path, allow_pickle=False) as archive:
            parts = {name: archive[name] for name in archive.files}
        if bytes(parts["format"].item()) != b"csr":
            raise ValueError(f"a matrix of format {parts['format'].item()!r}")
        N, V = (int(size) for size in parts["shape"])
        starts, columns, weights = parts["indptr"], parts["indices"], parts["data"]
    except (
        ValueError,
        KeyError,
        TypeError,
        OSError,
        EOFError,
        NotImplementedError,
        zipfile.BadZipFile,
        zlib.error,
    ) as error:
        raise ValueError(f"{path}: expected a CSR matrix as scipy.sparse.save_npz writes it, got {error}") from None
    if starts.shape != (N + 1,) or columns.shape != weights.shape or columns.ndim != 1:
        raise ValueError(f"{path}: expected a CSR matrix of {N} rows, got arrays of other sizes")
    if starts.dtype.kind not in "iu" or columns.dtype.kind not in "iu" or weights.dtype.kind not in "fiu":
        raise ValueError(f"{path}: expected integer indices and real weights, got {columns.dtype} and {weights.dtype}")
    _require_csr(path, starts, columns, V)
    names = typed_ids(path, parts["names"].tolist(), meta) if "names" in parts else None
    return _checked(path, scipy.sparse.csr_matrix((weights, columns, starts), shape=(N, V)), names, vocabulary)


def _require_csr(path: Path, starts: np.ndarray, columns: np.ndarray, V: int) -> None:
    if starts[0] != 0 or starts[-1] != len(columns) or (np.diff(starts.astype(np.int64)) < 0).any():
        raise ValueError(f"{path}: expected row starts that rise from 0 to {len(columns)}, got others")
    if len(columns) and not (columns.min() >= 0 and columns.max() < V):
        raise ValueError(f"{path}: expected columns in 0 .. {V - 1}, got {columns.min()} .. {columns.max()}")


def _checked(
    path: Path, rows: scipy.sparse.csr_matrix, names: np.ndarray | list[str] | None, vocabulary: Sequence[str] | None
) -> Documents:
    if not rows.has_sorted_indices:
        rows.sort_indices()
    row_of = np.repeat(np.arange(rows.shape[0]), np.diff(rows.indptr))
    twice = (np.diff(rows.indices) == 0) & (np.diff(row_of) == 0)
    if twice.any():
        place = int(np.argmax(twice))
        raise ValueError(f"{path}, document {row_of[place]}: column {rows.indices[place]} comes twice")
    try:
        return Documents(rows, names, vocabulary)
    except ValueError as error:
        raise ValueError(f"{path}: {error}") from None


def _refuse_line_breaks(names: Sequence[str]) -> None:
    for name in names:
        if name.splitlines() != [name]:
            raise ValueError(f"ids: expected a line each, which csr keeps beside it, got {name!r}")
