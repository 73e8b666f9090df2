"""The arrays of a search index by NumPy, and exact search in float32: what tests/test_search_gpu.py holds kernels to."""

from __future__ import annotations

from typing import TypedDict

import numpy as np
import scipy.sparse
import torch
from torch import Tensor

RANGE = 16384  # documents


class Arrays(TypedDict):
    """In the order of stair::search."""

    ids: Tensor
    row_starts: Tensor
    row_terms: Tensor
    row_weights: Tensor
    term_starts: Tensor
    segments: Tensor
    documents: Tensor
    codes: Tensor
    units: Tensor


def layout(rows: scipy.sparse.csr_array, half: bool = False, ids: np.ndarray | None = None) -> Arrays:
    """Of documents [N, V], columns ascending, weights > 0; `half`: of their weights rounded to float16."""
    N, V = rows.shape
    weights = rows.data.astype(np.float16 if half else np.float32)
    columns = scipy.sparse.csr_array((weights.astype(np.float64), rows.indices, rows.indptr), rows.shape).tocsc()
    columns.sort_indices()
    counts, ranges = np.diff(columns.indptr), -(-N // RANGE)
    largest = np.zeros(V)
    np.maximum.at(largest, rows.indices, weights)
    units = (largest / 255).astype(np.float32)
    units = np.where(255 * units.astype(np.float64) < largest, np.nextafter(units, np.float32(np.inf)), units)
    unit = units.astype(np.float64).repeat(counts)
    with np.errstate(divide="ignore", invalid="ignore"):
        codes = np.ceil(columns.data / unit)
    codes -= (codes - 1) * unit >= columns.data
    codes += codes * unit < columns.data
    assert ((codes >= 1) & (codes <= 255)).all()
    bounds = np.arange(ranges + 1) * RANGE
    lists = np.split(columns.indices, columns.indptr[1:-1]) if V else []
    segments = np.stack([np.searchsorted(of_term, bounds) for of_term in lists]).astype(np.uint32)
    arrays = {
        "ids": np.arange(N) if ids is None else ids,
        "row_starts": rows.indptr.astype(np.int64),
        "row_terms": rows.indices.astype(np.uint16 if V <= 2**16 else np.int32),
        "row_weights": weights,
        "term_starts": columns.indptr.astype(np.int64),
        "segments": segments,
        "documents": (columns.indices % RANGE).astype(np.uint16),
        "codes": codes.astype(np.uint8),
        "units": units,
    }
    return Arrays(**{name: torch.from_numpy(np.ascontiguousarray(array)) for name, array in arrays.items()})


def best_of(
    rows: scipy.sparse.csr_array, queries: tuple[Tensor, Tensor], k: int, half: bool = False
) -> tuple[Tensor, Tensor]:
    """Scores and document numbers [Q, k]: products and sums in float32, terms ascending; ties to the lower document."""
    N, V = rows.shape
    weights = rows.data.astype(np.float16).astype(np.float32) if half else rows.data
    columns = scipy.sparse.csr_array((weights, rows.indices, rows.indptr), rows.shape).tocsc()
    Q = len(queries[0])
    scores, found = torch.full((Q, k), -torch.inf), torch.full((Q, k), -1)
    for q, (terms, values) in enumerate(zip(*(part.numpy() for part in queries))):
        sums = np.zeros(N, np.float32)
        for term, value in zip(terms, values):
            if not 0 <= term < V:
                continue
            of_term = slice(columns.indptr[term], columns.indptr[term + 1])
            with np.errstate(over="ignore"):
                sums[columns.indices[of_term]] += value * columns.data[of_term]
        best = np.lexsort((np.arange(N), -sums))[:k]
        best = best[sums[best] > 0]
        scores[q, : len(best)], found[q, : len(best)] = torch.from_numpy(sums[best]), torch.from_numpy(best)
    return scores, found
