"""Documents and queries for the tests of search on a GPU, and what they are to find."""

from __future__ import annotations

import os

import numpy as np
import pytest
import scipy.sparse
import torch
from conftest import DEVICE
from torch import Tensor

from stair_kernels import SparseIndex, _index, index_gpu

RANGE = _index.RANGE  # documents
Csr = scipy.sparse.csr_array
Matrix = scipy.sparse.csr_array | scipy.sparse.csr_matrix
Queries = tuple[Tensor, Tensor]  # indices and values [Q, K], as stair::search takes them
# Where stair::search has a kernel: tests/test_simt.py puts it on CPU tensors.
HAS_KERNEL = "cpu" if "STAIR_SIMT_LIBRARY" in os.environ else DEVICE
on_gpu = pytest.mark.skipif(
    HAS_KERNEL is None or (HAS_KERNEL == "cpu" and "STAIR_SIMT_LIBRARY" not in os.environ),
    reason="a GPU kernel: tests/test_simt.py runs it on CPU tensors",
)


def documents(kind: str, N: int, V: int, M: int) -> Csr:
    """[N, V] with at most M entries a row."""
    random = np.random.default_rng(N + V)
    terms = (V * random.random((N, M)) ** 3).astype(np.int64)
    weights = random.gamma(2.0, 0.4, (N, M)).astype(np.float32) + np.float32(0.01)
    if kind == "ties":
        weights[:] = random.integers(1, 3, (N, 1))
    if kind == "one term":
        terms[:] = 0
    if kind == "tiny":
        weights *= np.float32(1e-22)
    if kind == "huge":
        weights *= np.where(random.random((N, M)) < 0.1, np.float32(3e37), np.float32(1))
    if kind == "half":
        weights = weights.astype(np.float16).astype(np.float32)
    keys, first = np.unique(np.arange(N).repeat(M) * V + terms.ravel(), return_index=True)
    return Csr((weights.ravel()[first], (keys // V, keys % V)), shape=(N, V))


def make_queries(kind: str, Q: int, V: int, K: int) -> Queries:
    """The first query has as many terms as there are, the others some; the last of several has none."""
    random = np.random.default_rng(Q + K)
    indices, values = np.full((Q, K), -1, np.int32), np.zeros((Q, K), np.float32)
    for q in range(Q if Q == 1 else Q - 1):
        n = min(K, V) if q == 0 else random.integers(0, min(K, V) + 1)
        indices[q, :n] = np.sort(random.choice(V, n, replace=False))
        values[q, :n] = random.gamma(2.0, 0.4, n) + 0.01
    values *= np.float32({"tiny": 1e-22, "huge": 30}.get(kind, 1))
    if kind == "ties":
        values[:] = values > 0
    return torch.from_numpy(indices), torch.from_numpy(values)


def arrays_of(rows: Csr, half: bool = False, ids: np.ndarray | None = None) -> dict[str, Tensor]:
    """The index's, as tensors on the CPU."""
    return index_gpu.as_tensors(SparseIndex.build(rows, ids, compact=half)._segments[0], torch.device("cpu"))


def searched(arrays: dict[str, Tensor], queries: Queries, k: int) -> tuple[Tensor, Tensor]:
    given = [tensor.to(str(HAS_KERNEL)) for tensor in (*queries, *arrays.values())]
    scores, ids = torch.ops.stair.search(*given, k)
    return scores.cpu(), ids.cpu()


def csr_of(queries: Queries, V: int) -> Csr:
    """For SparseIndex.search on the CPU."""
    indices, values = queries
    kept = indices >= 0
    starts = torch.nn.functional.pad(kept.sum(1).cumsum(0), (1, 0))
    return Csr((values[kept].numpy(), indices[kept].numpy(), starts.numpy()), shape=(len(indices), V))


def naive(documents: Matrix, queries: Matrix, k: int, ids: np.ndarray) -> tuple[torch.Tensor, torch.Tensor]:
    """The definition: float32 products added in float32, terms ascending; score descending, then id ascending."""
    columns = documents.tocsc()
    scores = np.full((queries.shape[0], k), -np.inf, np.float32)
    found = np.full((queries.shape[0], k), -1, np.int64)
    for q in range(queries.shape[0]):
        score = np.zeros(documents.shape[0], np.float32)
        row = queries[[q]].sorted_indices()
        for v, weight in zip(row.indices, row.data):
            part = slice(columns.indptr[v], columns.indptr[v + 1])
            with np.errstate(over="ignore"):
                score[columns.indices[part]] += weight * columns.data[part]
        order = np.lexsort((ids, -score))[: k + 1]
        best = order[score[order] > 0][:k]
        scores[q, : len(best)], found[q, : len(best)] = score[best], ids[best]
    return torch.from_numpy(scores), torch.from_numpy(found)


def best_of(rows: Csr, queries: Queries, k: int) -> tuple[Tensor, Tensor]:
    """Scores and document numbers [Q, k]: products and sums in float32, terms ascending; ties to the lower document."""
    return naive(rows, csr_of(queries, rows.shape[1]), k, np.arange(rows.shape[0]))
