"""The documents of a file: sparse rows, what they are called, what their columns mean."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, TypeAlias

import numpy as np
import scipy.sparse

if TYPE_CHECKING:
    from stair_kernels import SparseRows

KEYS = ("token", "id")
Meta: TypeAlias = dict[str, Any]
Progress: TypeAlias = Callable[[int, int], None]
REPORT_EVERY = 1000  # documents


@dataclass(frozen=True)
class Documents:
    """N documents over V terms. Rows that are as said here are kept as they are given, without a copy.

    Raises:
        ValueError: on another number of ids, items or tokens, tokens that come twice, and weights that are negative,
            infinite or NaN.
    """

    rows: scipy.sparse.csr_matrix  # [N, V] float32, columns ascending, no zeros
    ids: np.ndarray | Sequence[str] | None = None  # N integers or strings; None: 0 .. N-1
    vocabulary: Sequence[str] | None = None  # V
    items: Sequence[dict[str, Any]] | None = None  # N, shown by engines that keep a payload

    def __post_init__(self) -> None:
        rows = scipy.sparse.csr_matrix(self.rows, dtype=np.float32)  # of the same arrays, which may be large
        if not (rows.has_canonical_format and rows.data.all()):
            rows = rows.copy()
            rows.sum_duplicates()
            rows.eliminate_zeros()
        if not (np.isfinite(rows.data).all() and (rows.data >= 0).all()):
            raise ValueError("rows: expected finite weights >= 0")
        object.__setattr__(self, "rows", rows)
        N, V = rows.shape
        for name, values, count in (("ids", self.ids, N), ("vocabulary", self.vocabulary, V), ("items", self.items, N)):
            if values is not None and len(values) != count:
                raise ValueError(f"{name}: expected {count}, got {len(values)}")
        if self.vocabulary is not None and len(set(self.vocabulary)) < V:
            raise ValueError("vocabulary: expected distinct terms, got some twice")

    def __len__(self) -> int:
        return int(self.rows.shape[0])

    @property
    def vocab_size(self) -> int:
        return int(self.rows.shape[1])

    @property
    def integer_ids(self) -> bool:
        return self.ids is None or isinstance(self.ids, np.ndarray)

    def names(self) -> list[str]:
        """The ids as strings."""
        return [str(number) for number in (range(len(self)) if self.ids is None else self.ids)]

    def terms(self, keys: str) -> Sequence[str]:
        """What the columns are called: tokens or numbers."""
        if keys == "id":
            return [str(number) for number in range(self.vocab_size)]
        if self.vocabulary is None:
            raise ValueError('keys: expected "id", since the documents have no vocabulary, got "token"')
        return self.vocabulary

    def each(self, progress: Progress) -> Iterator[tuple[int, list[int], list[float]]]:
        """(number, term numbers, weights) of each document; a float32 weight with the digits that tell it apart."""
        rows, N = self.rows, len(self)
        for number in range(N):
            part = slice(rows.indptr[number], rows.indptr[number + 1])
            weights = [float(str(weight)) for weight in rows.data[part]]
            yield number, rows.indices[part].tolist(), weights
            if number % REPORT_EVERY == REPORT_EVERY - 1 or number == N - 1:
                progress(number + 1, N)


Writer: TypeAlias = Callable[[Path, Documents, str, "float | None", Progress], Meta]


def gathered(
    path: Path, entries: Sequence[tuple[Sequence[Any], Sequence[float]]], vocabulary: Sequence[str] | None
) -> tuple[scipy.sparse.csr_matrix, Sequence[str]]:
    """Rows of (tokens, weights), and the vocabulary that numbers them: the one given, or the tokens in their order."""
    known = vocabulary if vocabulary is not None else sorted({token for tokens, _ in entries for token in tokens})
    number = {token: column for column, token in enumerate(known)}
    starts, columns, data = [0], list[int](), list[float]()
    for row, (tokens, weights) in enumerate(entries):
        for token in tokens:
            if token not in number:
                raise ValueError(f"{path}, document {row}: the vocabulary has no term {token!r}")
            columns.append(number[token])
        data += weights
        starts.append(len(columns))
    arrays = np.array(data, np.float32), np.array(columns, np.int64), np.array(starts, np.int64)
    return scipy.sparse.csr_matrix(arrays, shape=(len(entries), len(known))), known


def as_csr(rows: SparseRows) -> scipy.sparse.csr_matrix:
    """SciPy's [N, V] of sparse rows."""
    csr = rows.detach().to("cpu").to_csr()
    parts = (csr.values(), csr.col_indices(), csr.crow_indices())
    return scipy.sparse.csr_matrix(tuple(part.numpy() for part in parts), shape=tuple(csr.shape))


def beside(path: Path, ending: str) -> Path:
    """Where what belongs to a file lies: FILE.ending."""
    return path.with_name(f"{path.name}.{ending}")


def known_keys(meta: Meta, vocabulary: Sequence[str] | None) -> Sequence[str] | None:
    """What the columns are called in a file, where that is known before it is read."""
    if meta.get("keys") != "id":
        return vocabulary
    return [str(number) for number in range(meta.get("vocab_size", 0) if vocabulary is None else len(vocabulary))]


def typed_ids(path: Path, names: Sequence[str], meta: Meta) -> np.ndarray | list[str] | None:
    """Ids as strings back to what they were; ValueError naming the document whose id is no int64."""
    kind = meta.get("ids", "string")
    if kind == "none":
        return None
    if kind != "integer":
        return list(names)
    ids = np.zeros(len(names), np.int64)
    for number, name in enumerate(names):
        try:
            ids[number] = int(name)
        except (ValueError, OverflowError):
            raise ValueError(
                f"{path}, document {number}: expected an integer id of 64 bits, got {name[:60]!r}"
            ) from None
    return ids
