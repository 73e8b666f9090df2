"""SparseIndex.search's GPU kernels, to the bit; tests/test_simt.py runs them without a GPU."""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
import pytest
import scipy.sparse
import torch
from search_layout import RANGE, Arrays, best_of, layout
from simt_on_cpu import needs_kernels
from torch import Tensor

import stair_kernels as sk

Csr = scipy.sparse.csr_array
INF = float("inf")


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
        weights = (weights * np.float32(1e-22)).astype(np.float32)
    if kind == "huge":
        weights[:] = weights * np.float32(1e38)
        weights[random.random((N, M)) < 0.9] = 1
    entries = np.arange(N).repeat(M), terms.ravel()
    keys, first = np.unique(entries[0] * V + entries[1], return_index=True)
    return Csr((weights.ravel()[first], (keys // max(V, 1), keys % max(V, 1))), shape=(N, V))


def make_queries(kind: str, Q: int, V: int, K: int) -> tuple[Tensor, Tensor]:
    """Indices and values [Q, K] as the operator takes them; the last row of several is empty."""
    random = np.random.default_rng(Q + K)
    indices, values = np.full((Q, K), -1, np.int32), np.zeros((Q, K), np.float32)
    for q in range(Q if Q == 1 else Q - 1):
        n = min(K, V) if q == 0 else random.integers(0, min(K, V) + 1)
        indices[q, :n] = np.sort(random.choice(V, n, replace=False))
        values[q, :n] = random.gamma(2.0, 0.4, n) + 0.01
    if kind == "tiny":
        values = (values * np.float32(1e-22)).astype(np.float32)
    if kind == "ties":
        values[:] = values > 0
    return torch.from_numpy(indices), torch.from_numpy(values)


def searched(arrays: Arrays, queries: tuple[Tensor, Tensor], k: int) -> tuple[Tensor, Tensor]:
    return torch.ops.stair.search(*queries, *(arrays[name] for name in Arrays.__annotations__), k)


def same(got: tuple[Tensor, Tensor], want: tuple[Tensor, Tensor]) -> bool:
    return all(map(torch.equal, got, want))


@needs_kernels
@pytest.mark.parametrize(
    ("N", "V", "M", "Q", "K", "k", "kind"),
    [
        (0, 5, 1, 2, 3, 4, "words"),
        (1, 1, 1, 2, 1, 1, "words"),
        (5, 300, 4, 3, 70, 9, "words"),  # k > N, more terms than lanes
        (700, 40, 5, 3, 40, 10, "ties"),
        (RANGE - 1, 50, 3, 2, 9, 10, "words"),
        (RANGE, 2000, 2, 2, 300, 3, "words"),  # a warp looks up more pieces than one in 32
        (RANGE + 1, 9, 1, 2, 1, 5, "one term"),  # a term in all documents, the last of them alone in its range
        (3 * RANGE + 7, 40, 2, 2, 7, 100, "ties"),
        (5000, 3, 2, 2, 3, 2048, "ties"),
        (500, 70, 5, 3, 20, 10, "tiny"),  # scores that are subnormal, or 0
        (500, 70, 5, 3, 20, 10, "huge"),  # scores that are infinite
    ],
)
def test_shapes_that_break(N: int, V: int, M: int, Q: int, K: int, k: int, kind: str) -> None:
    rows, queries = documents(kind, N, V, M), make_queries(kind, Q, V, K)
    assert same(searched(layout(rows), queries, k), best_of(rows, queries, k))
