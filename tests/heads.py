"""Inputs of the vocabulary head in every layout, and the checks that vocab_topk and vocab_pool share."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from stair_kernels import SparseRows, reference

DTYPES = (torch.float32, torch.bfloat16, torch.float16)
LAYOUTS = ("padded", "masked", "single", "packed")
SHAPES = [  # B, L, D, V, k
    (3, 5, 7, 50, 4),
    (4, 33, 64, 1000, 64),
    (1, 1, 16, 129, 200),  # k > V, one token
    (2, 13, 130, 128, 1),  # V of exactly one block
    (9, 2, 1, 17, 16),
]


@dataclass
class Head:
    """Arguments of vocab_topk and vocab_pool."""

    hidden: Tensor
    weight: Tensor
    bias: Tensor | None = None
    mask: Tensor | None = None
    cu_seqlens: Tensor | None = None

    def args(self) -> tuple[tuple[Any, ...], dict[str, Any]]:
        return (self.hidden, self.weight, self.bias, self.mask), {"cu_seqlens": self.cu_seqlens}

    def to(self, device: str) -> Head:
        return Head(*(None if t is None else t.to(device) for t in vars(self).values()))

    def double(self) -> Head:
        bias = None if self.bias is None else self.bias.double()
        return Head(self.hidden.double(), self.weight.double(), bias, self.mask, self.cu_seqlens)

    def leaves(self) -> Head:
        """The same inputs as leaves of a new graph."""

        def leaf(t: Tensor | None) -> Tensor | None:
            return None if t is None else t.detach().clone().requires_grad_()

        return Head(leaf(self.hidden), leaf(self.weight), leaf(self.bias), self.mask, self.cu_seqlens)

    def grads(self) -> list[tuple[str, Tensor]]:
        return [(name, getattr(self, name).grad) for name in ("hidden", "weight", "bias")]

    def tokens(self, positions: Tensor) -> Tensor:
        """[B, K, D]: the tokens at each row's `positions` [B, K]."""
        row = torch.arange(len(positions))[:, None]
        if self.cu_seqlens is not None:
            return self.hidden[self.cu_seqlens[:-1, None].long() + positions]
        return self.hidden[row, positions] if self.hidden.dim() == 3 else self.hidden[row.expand_as(positions)]


def make_head(layout: str, dtype: torch.dtype, B: int, L: int, D: int, V: int, integers: bool = False) -> Head:
    """Random inputs; `integers` makes every sum exact, so that ties are ties in any order of summation."""

    def random(*shape: int) -> Tensor:
        values = torch.randint(-2, 3, shape).float() if integers else torch.randn(shape)
        return values.to(dtype)

    weight, bias = random(V, D), random(V)
    if layout == "single":
        return Head(random(B, D), weight, bias)
    if layout == "packed":
        lengths = torch.randint(0, L + 1, (B,))
        lengths[0] = L
        cu_seqlens = torch.nn.functional.pad(lengths.cumsum(0), (1, 0)).int()
        return Head(random(int(cu_seqlens[-1]), D), weight, bias, cu_seqlens=cu_seqlens)
    mask = None
    if layout == "masked":
        mask = torch.rand(B, L) > 0.4
        mask[0] = True
        mask[-1] = B == 1
    return Head(random(B, L, D), weight, bias, mask)


def chosen_values(head: Head, rows: SparseRows, activation: str) -> Tensor:
    """[B, K] float64, differentiable: activation(logit) at the indices and positions of `rows`; 0 in empty slots."""
    double, filled = head.double(), rows.indices >= 0
    if not filled.any():
        return rows.values.double()
    index, position = rows.indices.clamp(min=0).long(), rows.positions.clamp(min=0).long()
    if head.cu_seqlens is not None:  # an empty last row starts past the end of the tokens
        position = torch.where(filled, position, -head.cu_seqlens[:-1, None].long())
    elif head.hidden.dim() == 3 and head.hidden.shape[1] == 0:
        return rows.values.double()
    logits = (double.tokens(position) * double.weight[index]).sum(dim=-1)
    if double.bias is not None:
        logits = logits + double.bias[index]
    return torch.where(filled, reference.ACTIVATIONS[activation](torch.where(filled, logits, 0.0)), 0.0)


def same_rows(a: SparseRows, b: SparseRows) -> None:
    """Equal to the bit."""
    assert torch.equal(a.indices, b.indices)
    assert torch.equal(a.values.nan_to_num(nan=-7.0), b.values.nan_to_num(nan=-7.0))
    assert (a.positions is None) == (b.positions is None)
    assert a.positions is None or torch.equal(a.positions, b.positions)
