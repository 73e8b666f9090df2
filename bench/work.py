"""What a case runs: its inputs, the rival implementations, and the arithmetic and memory traffic nobody can avoid.

Implementations: `ours`; `packed`, ours with pack_vocab; `eager`, PyTorch in its best order (pool first, activation on
the pooled row; SciPy for the search); `rival`, what else one may have (for the head, the activation on every logit
before the pool, as SPLADE and STAIR are published; for sparse_dot, SciPy's product); `matmul`, only the matrix product
inside, on the unmasked tokens (for the search: SciPy's product without the selection). `matmul` does less than the
operator and is not checked.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from statistics import NormalDist
from typing import Any

import numpy as np
import scipy.sparse
import torch
from cases import Case
from torch import Tensor
from torch.nn import functional as F

import stair_kernels as sk

ACTIVE = 64  # entries a row of a trained model
HOT_COLUMNS = 16  # terms that are active in every row of a trained model
PADDING = 0.1  # share of masked tokens of an untrained model


@dataclass(frozen=True)
class Work:
    """A case with its inputs made."""

    variants: dict[str, Callable[[], Any]]
    read: Callable[[Any], Sequence[Tensor]]  # a variant's result as tensors that must be close to `truth`
    truth: Sequence[Tensor]
    flops: float  # that no implementation can avoid
    mem_bytes: float  # inputs read once, outputs written once


def prepare(case: Case) -> Work:
    """Makes the inputs (always the same ones) and the variants."""
    torch.manual_seed(0)
    makers: dict[str, Callable[..., Work]] = {
        "vocab_topk": _vocab_topk,
        "vocab_topk_grad": _vocab_topk_grad,
        "vocab_pool": _vocab_pool,
        "vocab_pool_grad": _vocab_pool_grad,
        "topk": _topk,
        "sparse_dot": _sparse_dot,
        "sparse_dot_grad": _sparse_dot_grad,
        "stair_loss_grad": _stair_loss_grad,
        "search": _search,
    }
    return makers[case.op](getattr(torch, case.dtype), case.inputs, **case.sizes)


def make_head(dtype: torch.dtype, inputs: str, B: int, L: int, D: int, V: int) -> sk.VocabHead:
    """Logits are standard normal; a trained head's bias leaves about ACTIVE entries a row, and its texts are ragged."""
    hidden, weight, bias = torch.randn(B, L, D) / D**0.5, torch.randn(V, D), torch.zeros(V)
    mask = torch.rand(B, L) >= PADDING
    if inputs == "trained":
        quiet = 1 - min(ACTIVE / V, 0.5)  # P(the maximum over L positions stays below -bias)
        bias -= NormalDist().inv_cdf(quiet ** (1 / L))
        bias[torch.randperm(V)[:HOT_COLUMNS]] = 1.0
        hidden[:, 0] *= 1.25  # one token of each row wins more than its share
        mask = torch.arange(L) < torch.randint(max(1, L // 4), L + 1, (B, 1))
    return sk.VocabHead(hidden.to(dtype), weight.to(dtype), bias.to(dtype), mask)


def eager_pool(hidden: Tensor, weight: Tensor, bias: Tensor, mask: Tensor) -> Tensor:  # [B, V] float32
    """vocab_pool as one writes it in PyTorch: [B, L, V] is made."""
    logit = F.linear(hidden, weight, bias).masked_fill(~mask[..., None], -torch.inf)
    return logit.amax(dim=1).float().relu().log1p()


def published_pool(hidden: Tensor, weight: Tensor, bias: Tensor, mask: Tensor) -> Tensor:  # [B, V], dtype of hidden
    """The same in the order of the formula: the activation of all [B, L, V] logits, then mask and maximum."""
    return (F.linear(hidden, weight, bias).relu().log1p() * mask[..., None]).amax(dim=1)


def eager_loss(text: sk.VocabHead, image: sk.VocabHead, scale: Tensor) -> Tensor:
    """stair_loss with normalized rows, as one writes it in PyTorch."""
    rows = [eager_pool(*_full(head)) for head in (text, image)]
    logit = scale * F.normalize(rows[0], dim=1) @ F.normalize(rows[1], dim=1).T
    target = torch.arange(len(logit))
    penalties = [FLOPS_WEIGHT * row.mean(dim=0).square().sum() for row in rows]
    return (F.cross_entropy(logit, target) + F.cross_entropy(logit.T, target)) / 2 + penalties[0] + penalties[1]


FLOPS_WEIGHT = 1e-3


def _full(head: sk.VocabHead) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    assert head.bias is not None
    assert head.mask is not None
    return head.hidden, head.weight, head.bias, head.mask


def _product(head: sk.VocabHead) -> Callable[[], Any]:
    """The matrix product of a head on its unmasked tokens, into memory that is already there."""
    hidden, weight, _, mask = _full(head)
    tokens = hidden.detach()[mask]
    out = tokens.new_empty(len(tokens), len(weight))
    transposed = weight.detach().T
    return lambda: torch.mm(tokens, transposed, out=out)


def _head_flops(head: sk.VocabHead) -> float:
    V, D = head.weight.shape
    return 2.0 * int(_full(head)[3].sum()) * V * D


def _size(*tensors: Tensor) -> int:
    return sum(tensor.numel() * tensor.element_size() for tensor in tensors)


def _truth_pool(head: sk.VocabHead) -> Tensor:
    return eager_pool(*_full(_widened(head)))


@torch.no_grad()
def _vocab_topk(dtype: torch.dtype, inputs: str, B: int, L: int, D: int, V: int, k: int) -> Work:
    head = make_head(dtype, inputs, B, L, D, V)
    hidden, weight, bias, mask = _full(head)
    packed = sk.pack_vocab(weight, bias)
    dense = _truth_pool(head)
    truth = dense.topk(k, dim=1).values

    def read(result: Any) -> Sequence[Tensor]:
        """The values, and what stands in the true row at their indices."""
        values, indices = result.values, result.indices.long()
        return values, torch.where(values > 0, dense.gather(1, indices.clamp(min=0)), 0.0)

    variants = {
        "ours": lambda: sk.vocab_topk(hidden, weight, bias, mask, k=k),
        "packed": lambda: sk.vocab_topk(hidden, packed, None, mask, k=k),
        "eager": lambda: eager_pool(hidden, weight, bias, mask).topk(k, dim=1),
        "rival": lambda: published_pool(hidden, weight, bias, mask).topk(k, dim=1),
        "matmul": _product(head),
    }
    return Work(variants, read, (truth, truth), _head_flops(head), _size(hidden, weight, bias, mask) + 12 * B * k)


def _vocab_topk_grad(dtype: torch.dtype, inputs: str, B: int, L: int, D: int, V: int, k: int) -> Work:
    """Forward, and backward of sum(values^2) / 2: the incoming gradient follows an entry, not its slot."""
    head = _with_grad(make_head(dtype, inputs, B, L, D, V))
    hidden, weight, bias, mask = _full(head)

    def step(select: Callable[..., Tensor], *args: Tensor) -> tuple[Tensor, ...]:
        values = select(*args)
        return (values.detach(), *torch.autograd.grad(values, args[:3], values.detach()))

    def ours(*args: Tensor) -> Tensor:
        return sk.vocab_topk(*args, k=k).values

    def eager(*args: Tensor) -> Tensor:
        return eager_pool(*args).topk(k, dim=1).values

    variants = {
        "ours": lambda: step(ours, hidden, weight, bias, mask),
        "eager": lambda: step(eager, hidden, weight, bias, mask),
        "rival": lambda: step(lambda *args: published_pool(*args).topk(k, dim=1).values, hidden, weight, bias, mask),
        "matmul": _product(head),
    }
    truth = step(eager, *_full(_with_grad(_widened(head))))
    flops = _head_flops(head) + 4.0 * int((truth[0] > 0).sum()) * D
    return Work(variants, lambda result: result, truth, flops, 2 * _size(hidden, weight, bias) + 16 * B * k)


@torch.no_grad()
def _vocab_pool(dtype: torch.dtype, inputs: str, B: int, L: int, D: int, V: int) -> Work:
    head = make_head(dtype, inputs, B, L, D, V)
    packed = sk.pack_vocab(head.weight, head.bias)
    variants = {
        "ours": lambda: sk.vocab_pool(*head),
        "packed": lambda: sk.vocab_pool(head.hidden, packed, None, head.mask),
        "eager": lambda: eager_pool(*_full(head)),
        "rival": lambda: published_pool(*_full(head)),
        "matmul": _product(head),
    }
    truth = _truth_pool(head)
    return Work(variants, lambda out: (out,), (truth,), _head_flops(head), _size(*_full(head), truth))


def _with_grad(head: sk.VocabHead) -> sk.VocabHead:
    hidden, weight, bias, mask = _full(head)
    return sk.VocabHead(hidden.requires_grad_(), weight.requires_grad_(), bias.requires_grad_(), mask)


def _widened(head: sk.VocabHead) -> sk.VocabHead:
    """The same numbers in float32, outside any graph."""
    hidden, weight, bias, mask = _full(head)
    return sk.VocabHead(hidden.detach().float(), weight.detach().float(), bias.detach().float(), mask)


def _vocab_pool_grad(dtype: torch.dtype, inputs: str, B: int, L: int, D: int, V: int) -> Work:
    head = _with_grad(make_head(dtype, inputs, B, L, D, V))
    hidden, weight, bias, mask = _full(head)
    upstream = torch.randn(B, V)

    def step(pool: Callable[..., Tensor], *args: Tensor) -> tuple[Tensor, ...]:
        out = pool(*args)
        return (out.detach(), *torch.autograd.grad(out, args[:3], upstream))

    truth = step(eager_pool, *_full(_with_grad(_widened(head))))
    variants = {
        "ours": lambda: step(sk.vocab_pool, hidden, weight, bias, mask),
        "eager": lambda: step(eager_pool, hidden, weight, bias, mask),
        "rival": lambda: step(lambda *args: published_pool(*args).float(), hidden, weight, bias, mask),
        "matmul": _product(head),
    }
    flops = _head_flops(head) + 4.0 * int((truth[0] > 0).sum()) * D
    return Work(variants, lambda result: result, truth, flops, 2 * _size(hidden, weight, bias) + 2 * _size(upstream))


def _stair_loss_grad(dtype: torch.dtype, inputs: str, B: int, L: int, D: int, V: int) -> Work:
    heads = [_with_grad(make_head(dtype, inputs, B, L, D, V)) for _ in range(2)]
    scale = torch.tensor(20.0)

    def step(loss: Callable[..., Tensor], text: sk.VocabHead, image: sk.VocabHead) -> tuple[Tensor, ...]:
        value = loss(text, image, scale)
        return (value.detach(), *torch.autograd.grad(value, [*_full(text)[:3], *_full(image)[:3]]))

    def ours(text: sk.VocabHead, image: sk.VocabHead, scale: Tensor) -> Tensor:
        parts = sk.stair_loss(
            text, image, logit_scale=scale, text_flops=FLOPS_WEIGHT, image_flops=FLOPS_WEIGHT, normalize=True
        )
        return parts.loss

    wide = [_with_grad(_widened(head)) for head in heads]
    products = [_product(head) for head in heads]
    variants = {
        "ours": lambda: step(ours, *heads),
        "eager": lambda: step(eager_loss, *heads),
        "matmul": lambda: [product() for product in products],
    }
    active = sum(int((_truth_pool(head) > 0).sum()) for head in heads)
    flops = sum(_head_flops(head) for head in heads) + 3 * 2.0 * B * B * V + 4.0 * active * D
    mem_bytes = 2 * sum(_size(*_full(head)) for head in heads)
    return Work(variants, lambda result: result, step(eager_loss, *wide), flops, mem_bytes)


@torch.no_grad()
def _topk(dtype: torch.dtype, inputs: str, B: int, V: int, k: int) -> Work:
    dense = torch.randn(B, V)
    active = {"trained": min(ACTIVE / V, 0.5), "sparse": 0.05, "untrained": 0.5}[inputs]
    dense -= NormalDist().inv_cdf(1 - active)
    dense = dense.relu().log1p().to(dtype)
    truth = dense.float().topk(k, dim=1).values
    variants = {"ours": lambda: sk.topk(dense, k), "eager": lambda: dense.topk(k, dim=1)}

    def read(result: Any) -> Sequence[Tensor]:
        indices = result.indices.long()
        return result.values.float(), torch.where(indices >= 0, dense.float().gather(1, indices.clamp(min=0)), 0.0)

    return Work(variants, read, (truth, truth), float(B * V), _size(dense) + 8 * B * k)


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
def _sparse_dot(dtype: torch.dtype, inputs: str, Q: int, N: int, K: int, V: int) -> Work:
    csr = make_rows(Q, K, V, 1), make_rows(N, K, V, 2)
    a, b = (sk.SparseRows.from_csr(rows) for rows in csr)
    dense = a.to_dense(), b.to_dense()
    variants = {
        "ours": lambda: sk.sparse_dot(a, b),
        "eager": lambda: a.to_dense() @ b.to_dense().T,
        "rival": lambda: csr[0] @ csr[1].T,
        "matmul": lambda: dense[0] @ dense[1].T,
    }

    def read(out: Any) -> Sequence[Tensor]:
        return (out if isinstance(out, Tensor) else torch.from_numpy(out.toarray()),)

    return Work(variants, read, (dense[0] @ dense[1].T,), _match_flops(*csr), 8 * K * (Q + N) + 4 * Q * N)


def _sparse_dot_grad(dtype: torch.dtype, inputs: str, Q: int, N: int, K: int, V: int) -> Work:
    """Forward and backward, the gradients of the stored values; `matmul`: those of the dense matrices."""
    csr = make_rows(Q, K, V, 1), make_rows(N, K, V, 2)
    a, b = (sk.SparseRows.from_csr(rows) for rows in csr)
    dense = [rows.to_dense().requires_grad_() for rows in (a, b)]
    leaves = [rows.values.requires_grad_() for rows in (a, b)]
    upstream = torch.randn(Q, N)

    def step(out: Tensor, inputs: list[Tensor]) -> tuple[Tensor, ...]:
        return (out.detach(), *torch.autograd.grad(out, inputs, upstream))

    variants = {
        "ours": lambda: step(sk.sparse_dot(a, b), leaves),
        "eager": lambda: step(a.to_dense() @ b.to_dense().T, leaves),
        "matmul": lambda: step(dense[0] @ dense[1].T, dense),
    }
    flops, mem_bytes = 3 * _match_flops(*csr), 2 * 8 * K * (Q + N) + 2 * 4 * Q * N
    return Work(variants, lambda result: result, variants["eager"](), flops, mem_bytes)


@torch.no_grad()
def _search(dtype: torch.dtype, inputs: str, Q: int, N: int, K: int, V: int, k: int) -> Work:
    queries, documents = make_rows(Q, K, V, 1), make_rows(N, K, V, 2)
    index, transposed = sk.SparseIndex.build(documents), documents.T.tocsr()

    def eager() -> np.ndarray:
        score = (queries @ transposed).toarray()
        best = np.partition(score, -k, axis=1)[:, -k:]
        return -np.sort(-best, axis=1)

    variants = {
        "ours": lambda: index.search(queries, k)[0],
        "eager": eager,
        "matmul": lambda: queries @ transposed,
    }
    flops = _match_flops(queries, documents)
    truth = torch.from_numpy(eager())
    return Work(variants, lambda scores: (torch.as_tensor(scores),), (truth,), flops, 4 * flops + 8 * Q * K)


def _match_flops(a: scipy.sparse.csr_array, b: scipy.sparse.csr_array) -> float:
    """Two for each pair of entries in the same column: the multiplications and additions of the sparse product."""
    V = a.shape[1]
    return 2.0 * float(np.bincount(a.indices, minlength=V) @ np.bincount(b.indices, minlength=V))
