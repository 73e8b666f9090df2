"""The cases of the head: vocab_topk, vocab_pool and stair_loss, forward or forward and backward."""

from __future__ import annotations

import functools
from collections.abc import Callable, Sequence
from statistics import NormalDist
from typing import Any

import torch
from torch import Tensor
from torch.nn import functional as F
from variants import Variant, Work, compiled, size

import stair_kernels as sk

ACTIVE = 64  # entries a row of a trained model
HOT_COLUMNS = 16  # terms that are active in every row of a trained model
PADDING = 0.1  # share of masked tokens of an untrained model
FLOPS_WEIGHT = 1e-3


def make_head(device: torch.device, dtype: torch.dtype, inputs: str, B: int, L: int, D: int, V: int) -> sk.VocabHead:
    """Logits are standard normal; a trained head's bias leaves about ACTIVE entries a row, and its texts are ragged."""
    hidden, weight, bias = torch.randn(B, L, D) / D**0.5, torch.randn(V, D), torch.zeros(V)
    mask = torch.rand(B, L) >= PADDING
    if inputs == "trained":
        quiet = 1 - min(ACTIVE / V, 0.5)  # P(the maximum over L positions stays below -bias)
        bias -= NormalDist().inv_cdf(quiet ** (1 / L))
        bias[torch.randperm(V)[:HOT_COLUMNS]] = 1.0
        hidden[:, 0] *= 1.25  # one token of each row wins more than its share
        mask = torch.arange(L) < torch.randint(max(1, L // 4), L + 1, (B, 1))
    floats = [tensor.to(dtype).to(device) for tensor in (hidden, weight, bias)]
    return sk.VocabHead(floats[0], floats[1], floats[2], mask.to(device))


def eager_pool(hidden: Tensor, weight: Tensor, bias: Tensor, mask: Tensor) -> Tensor:  # [B, V] float32
    """vocab_pool as one writes it in PyTorch: [B, L, V] is made."""
    logit = F.linear(hidden, weight, bias).masked_fill(~mask[..., None], -torch.inf)
    return logit.amax(dim=1).float().relu().log1p()


def published_pool(hidden: Tensor, weight: Tensor, bias: Tensor, mask: Tensor) -> Tensor:  # [B, V], dtype of hidden
    """The same in the order of the formula: the activation of all [B, L, V] logits, then mask and maximum."""
    return (F.linear(hidden, weight, bias).relu().log1p() * mask[..., None]).amax(dim=1)


def eager_loss(text: sk.VocabHead, image: sk.VocabHead, scale: Tensor) -> Tensor:
    """stair_loss with normalized rows, as one writes it in PyTorch."""
    rows = [eager_pool(*full(head)) for head in (text, image)]
    logit = scale * F.normalize(rows[0], dim=1) @ F.normalize(rows[1], dim=1).T
    target = torch.arange(len(logit), device=logit.device)
    penalties = [FLOPS_WEIGHT * row.mean(dim=0).square().sum() for row in rows]
    return (F.cross_entropy(logit, target) + F.cross_entropy(logit.T, target)) / 2 + penalties[0] + penalties[1]


def full(head: sk.VocabHead) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    assert head.bias is not None
    assert head.mask is not None
    return head.hidden, head.weight, head.bias, head.mask


def _product(head: sk.VocabHead) -> Variant:
    """The matrix product of a head on its unmasked tokens, into memory that is already there."""
    hidden, weight, _, mask = full(head)
    tokens = hidden.detach()[mask]
    out = tokens.new_empty(len(tokens), len(weight))
    transposed = weight.detach().T
    return Variant(lambda: torch.mm(tokens, transposed, out=out))


def _head_flops(head: sk.VocabHead) -> float:
    V, D = head.weight.shape
    return 2.0 * int(full(head)[3].sum()) * V * D


def _truth_pool(head: sk.VocabHead) -> Tensor:
    return eager_pool(*full(_widened(head)))


def _with_grad(head: sk.VocabHead) -> sk.VocabHead:
    hidden, weight, bias, mask = full(head)
    return sk.VocabHead(hidden.requires_grad_(), weight.requires_grad_(), bias.requires_grad_(), mask)


def _widened(head: sk.VocabHead) -> sk.VocabHead:
    """The same numbers in float32, outside any graph."""
    hidden, weight, bias, mask = full(head)
    return sk.VocabHead(hidden.detach().float(), weight.detach().float(), bias.detach().float(), mask)


@torch.no_grad()
def vocab_topk(device: torch.device, dtype: torch.dtype, inputs: str, B: int, L: int, D: int, V: int, k: int) -> Work:
    head = make_head(device, dtype, inputs, B, L, D, V)
    hidden, weight, bias, mask = args = full(head)
    packed = functools.cache(lambda: sk.pack_vocab(weight, bias))
    dense = _truth_pool(head)
    truth = dense.topk(k, dim=1).values

    def read(result: Any) -> Sequence[Tensor]:
        """The values, and what stands in the true row at their indices."""
        values, indices = result.values, result.indices.long()
        return values, torch.where(values > 0, dense.gather(1, indices.clamp(min=0)), 0.0)

    def eager(*args: Tensor) -> Any:
        return eager_pool(*args).topk(k, dim=1)

    compiled_eager = compiled(eager)
    variants = {
        "ours": Variant(lambda: sk.vocab_topk(*args, k=k), ("vocab_topk",)),
        "packed": Variant(lambda: sk.vocab_topk(hidden, packed(), None, mask, k=k), ("pack_vocab", "vocab_topk")),
        "eager": Variant(lambda: eager(*args)),
        "compiled": Variant(lambda: compiled_eager(*args)),
        "rival": Variant(lambda: published_pool(*args).topk(k, dim=1)),
        "matmul": _product(head),
    }
    return Work(variants, read, (truth, truth), _head_flops(head), size(*args), 12 * B * k)


def vocab_topk_grad(
    device: torch.device, dtype: torch.dtype, inputs: str, B: int, L: int, D: int, V: int, k: int
) -> Work:
    """Forward, and backward of sum(values^2) / 2: the incoming gradient follows an entry, not its slot."""
    head = _with_grad(make_head(device, dtype, inputs, B, L, D, V))
    args = full(head)

    def step(select: Callable[..., Tensor], *args: Tensor) -> tuple[Tensor, ...]:
        values = select(*args)
        return (values.detach(), *torch.autograd.grad(values, args[:3], values.detach()))

    def ours(*args: Tensor) -> Tensor:
        return sk.vocab_topk(*args, k=k).values

    def eager(*args: Tensor) -> Tensor:
        return eager_pool(*args).topk(k, dim=1).values

    compiled_eager = compiled(eager)
    variants = {
        "ours": Variant(lambda: step(ours, *args), ("vocab_topk", "vocab_topk_backward")),
        "eager": Variant(lambda: step(eager, *args)),
        "compiled": Variant(lambda: step(compiled_eager, *args)),
        "rival": Variant(lambda: step(lambda *args: published_pool(*args).topk(k, dim=1).values, *args)),
        "matmul": _product(head),
    }
    truth = step(eager, *full(_with_grad(_widened(head))))
    flops = _head_flops(head) + 4.0 * int((truth[0] > 0).sum()) * D
    gradients = size(*args[:3])
    return Work(variants, lambda result: result, truth, flops, gradients + 4 * B * k, gradients + 12 * B * k)


@torch.no_grad()
def vocab_pool(device: torch.device, dtype: torch.dtype, inputs: str, B: int, L: int, D: int, V: int) -> Work:
    head = make_head(device, dtype, inputs, B, L, D, V)
    hidden, weight, bias, mask = args = full(head)
    packed = functools.cache(lambda: sk.pack_vocab(weight, bias))
    compiled_eager = compiled(eager_pool)
    variants = {
        "ours": Variant(lambda: sk.vocab_pool(*args), ("vocab_pool",)),
        "packed": Variant(lambda: sk.vocab_pool(hidden, packed(), None, mask), ("pack_vocab", "vocab_pool")),
        "eager": Variant(lambda: eager_pool(*args)),
        "compiled": Variant(lambda: compiled_eager(*args)),
        "rival": Variant(lambda: published_pool(*args)),
        "matmul": _product(head),
    }
    truth = _truth_pool(head)
    return Work(variants, lambda out: (out,), (truth,), _head_flops(head), size(*args), size(truth))


def vocab_pool_grad(device: torch.device, dtype: torch.dtype, inputs: str, B: int, L: int, D: int, V: int) -> Work:
    head = _with_grad(make_head(device, dtype, inputs, B, L, D, V))
    args = full(head)
    upstream = torch.randn(B, V).to(device)

    def step(pool: Callable[..., Tensor], *args: Tensor) -> tuple[Tensor, ...]:
        out = pool(*args)
        return (out.detach(), *torch.autograd.grad(out, args[:3], upstream))

    compiled_eager = compiled(eager_pool)
    truth = step(eager_pool, *full(_with_grad(_widened(head))))
    variants = {
        "ours": Variant(lambda: step(sk.vocab_pool, *args), ("vocab_pool", "vocab_pool_backward")),
        "eager": Variant(lambda: step(eager_pool, *args)),
        "compiled": Variant(lambda: step(compiled_eager, *args)),
        "rival": Variant(lambda: step(lambda *args: published_pool(*args).float(), *args)),
        "matmul": _product(head),
    }
    flops = _head_flops(head) + 4.0 * int((truth[0] > 0).sum()) * D
    least = size(*args[:3], upstream)
    return Work(variants, lambda result: result, truth, flops, least, least)


def stair_loss_grad(device: torch.device, dtype: torch.dtype, inputs: str, B: int, L: int, D: int, V: int) -> Work:
    heads = [_with_grad(make_head(device, dtype, inputs, B, L, D, V)) for _ in range(2)]
    scale = torch.tensor(20.0).to(device)

    def step(loss: Callable[..., Tensor], text: sk.VocabHead, image: sk.VocabHead) -> tuple[Tensor, ...]:
        value = loss(text, image, scale)
        return (value.detach(), *torch.autograd.grad(value, [*full(text)[:3], *full(image)[:3]]))

    def ours(text: sk.VocabHead, image: sk.VocabHead, scale: Tensor, save: str = "none") -> Tensor:
        lam = FLOPS_WEIGHT
        return sk.stair_loss(
            text, image, logit_scale=scale, text_flops=lam, image_flops=lam, normalize=True, save=save
        ).loss

    keeping = functools.partial(ours, save="positions")
    called = "vocab_pool", "vocab_pool_backward", "matmul_nt"
    wide = [_with_grad(_widened(head)) for head in heads]
    products = [_product(head).run for head in heads]
    compiled_eager = compiled(eager_loss)
    variants = {
        "ours": Variant(lambda: step(ours, *heads), called),
        "positions": Variant(lambda: step(keeping, *heads), (*called, "vocab_pool_at")),
        "eager": Variant(lambda: step(eager_loss, *heads)),
        "compiled": Variant(lambda: step(compiled_eager, *heads)),
        "matmul": Variant(lambda: [product() for product in products]),
    }
    active = sum(int((_truth_pool(head) > 0).sum()) for head in heads)
    flops = sum(_head_flops(head) for head in heads) + 3 * 2.0 * B * B * V + 4.0 * active * D
    least = sum(size(*full(head)) for head in heads)
    truth = step(eager_loss, *wide)
    return Work(variants, lambda result: result, truth, flops, least, least, by_norm=True)


MAKERS: dict[str, Callable[..., Work]] = {
    "vocab_topk": vocab_topk,
    "vocab_topk_grad": vocab_topk_grad,
    "vocab_pool": vocab_pool,
    "vocab_pool_grad": vocab_pool_grad,
    "stair_loss_grad": stair_loss_grad,
}
