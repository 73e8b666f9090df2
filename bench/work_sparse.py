"""The cases of selection, sparse products and search."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from statistics import NormalDist
from typing import Any

import numpy as np
import scipy.sparse
import torch
from torch import Tensor
from variants import Variant, Work, size
from work_head import ACTIVE

import stair_kernels as sk


@torch.no_grad()
def topk(device: torch.device, dtype: torch.dtype, inputs: str, B: int, V: int, k: int) -> Work:
    dense = torch.randn(B, V)
    active = {"trained": min(ACTIVE / V, 0.5), "sparse": 0.05, "untrained": 0.5}[inputs]
    dense -= NormalDist().inv_cdf(1 - active)
    dense = dense.relu().log1p().to(dtype).to(device)
    truth = dense.float().topk(k, dim=1).values
    variants = {
        "ours": Variant(lambda: sk.topk(dense, k), ("topk",)),
        "eager": Variant(lambda: dense.topk(k, dim=1)),
    }

    def read(result: Any) -> Sequence[Tensor]:
        indices = result.indices.long()
        return result.values.float(), torch.where(indices >= 0, dense.float().gather(1, indices.clamp(min=0)), 0.0)

    return Work(variants, read, (truth, truth), float(B * V), size(dense), 8 * B * k)


def make_rows(N: int, K: int, V: int, seed: int) -> scipy.sparse.csr_array:
    """[N, V] with K entries a row (fewer when V is small); a term's frequency falls with its rank, as words do."""
    random = np.random.default_rng(seed)
    cumulative = np.cumsum(1 / (np.arange(V) + 10))
    drawn = np.searchsorted(cumulative / cumulative[-1], random.random((N, 2 * K))).clip(max=V - 1)
    drawn.sort(axis=1)
    repeated = np.diff(drawn, axis=1, prepend=-1) == 0
    chosen = np.argsort(random.random((N, 2 * K)) + repeated, axis=1)[:, :K]  # distinct terms first, in random order
    kept = ~np.take_along_axis(repeated, chosen, axis=1)
    columns = np.take_along_axis(drawn, chosen, axis=1)[kept]
    values = random.gamma(2.0, 0.4, len(columns)).astype(np.float32) + np.float32(0.01)
    return scipy.sparse.csr_array((values, columns, np.append(0, kept.sum(axis=1).cumsum())), shape=(N, V))


@torch.no_grad()
def sparse_dot(device: torch.device, dtype: torch.dtype, inputs: str, Q: int, N: int, K: int, V: int) -> Work:
    csr = make_rows(Q, K, V, 1), make_rows(N, K, V, 2)
    a, b = (sk.SparseRows.from_csr(rows).to(device) for rows in csr)
    dense = a.to_dense(), b.to_dense()
    variants = {
        "ours": Variant(lambda: sk.sparse_dot(a, b), ("sparse_dot",)),
        "eager": Variant(lambda: a.to_dense() @ b.to_dense().T),
        "rival": Variant(lambda: csr[0] @ csr[1].T, on_host=True),
        "matmul": Variant(lambda: dense[0] @ dense[1].T),
    }

    def read(out: Any) -> Sequence[Tensor]:
        return (out if isinstance(out, Tensor) else torch.from_numpy(out.toarray()),)

    return Work(variants, read, (dense[0] @ dense[1].T,), match_flops(*csr), 8 * K * (Q + N), 4 * Q * N)


def sparse_dot_grad(device: torch.device, dtype: torch.dtype, inputs: str, Q: int, N: int, K: int, V: int) -> Work:
    """Forward and backward, the gradients of the stored values; `matmul`: those of the dense matrices."""
    csr = make_rows(Q, K, V, 1), make_rows(N, K, V, 2)
    a, b = (sk.SparseRows.from_csr(rows).to(device) for rows in csr)
    dense = [rows.to_dense().requires_grad_() for rows in (a, b)]
    leaves = [rows.values.requires_grad_() for rows in (a, b)]
    upstream = torch.randn(Q, N).to(device)

    def step(out: Tensor, inputs: list[Tensor]) -> tuple[Tensor, ...]:
        return (out.detach(), *torch.autograd.grad(out, inputs, upstream))

    def eager() -> tuple[Tensor, ...]:
        return step(a.to_dense() @ b.to_dense().T, leaves)

    variants = {
        "ours": Variant(lambda: step(sk.sparse_dot(a, b), leaves), ("sparse_dot", "sparse_dot_backward")),
        "eager": Variant(eager),
        "matmul": Variant(lambda: step(dense[0] @ dense[1].T, dense)),
    }
    flops, scores, entries = 3 * match_flops(*csr), 4 * Q * N, K * (Q + N)
    return Work(variants, lambda result: result, eager(), flops, 8 * entries + scores, 4 * entries + scores)


@torch.no_grad()
def search(device: torch.device, dtype: torch.dtype, inputs: str, Q: int, N: int, K: int, V: int, k: int) -> Work:
    queries, documents = make_rows(Q, K, V, 1), make_rows(N, K, V, 2)
    index, transposed = sk.SparseIndex.build(documents), documents.T.tocsr()

    def eager() -> np.ndarray:
        score = (queries @ transposed).toarray()
        best = np.partition(score, -k, axis=1)[:, -k:]
        return -np.sort(-best, axis=1)

    variants = {
        "ours": Variant(lambda: index.search(queries, k)[0], on_host=True),
        "eager": Variant(eager, on_host=True),
        "matmul": Variant(lambda: queries @ transposed, on_host=True),
    }
    flops, truth = match_flops(queries, documents), torch.from_numpy(eager())
    # a matching pair is read as a posting: the document's number and its weight
    return Work(variants, lambda scores: (torch.as_tensor(scores),), (truth,), flops, 4 * flops + 8 * Q * K, 12 * Q * k)


def match_flops(a: scipy.sparse.csr_array, b: scipy.sparse.csr_array) -> float:
    """Two for each pair of entries in the same column: the multiplications and additions of the sparse product."""
    V = a.shape[1]
    return 2.0 * float(np.bincount(a.indices, minlength=V) @ np.bincount(b.indices, minlength=V))


MAKERS: dict[str, Callable[..., Work]] = {
    "topk": topk,
    "sparse_dot": sparse_dot,
    "sparse_dot_grad": sparse_dot_grad,
    "search": search,
}
