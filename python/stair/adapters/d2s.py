"""D2S: one dense vector, of a text or an image, to the vocabulary; there is no sequence to pool."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn

import stair_kernels as sk
from stair.adapters.splade import linear_dtype
from stair.adapters.swap import Swap, kind


def _forward(
    self: Any, dense_vec: Tensor, input_ids: Tensor | None = None, attention_mask: Tensor | None = None
) -> Tensor:
    """[B, V] = log(1 + relu(norm(proj(dense_vec)) . weight + bias)); with a text's tokens, zero outside of them."""
    hidden = self.vocab_layer_norm(self.proj(dense_vec))
    decoder = self.vocab_projector
    rows = sk.vocab_pool(hidden, decoder.weight, decoder.bias).to(linear_dtype(hidden))
    if input_ids is None or attention_mask is None:
        return rows
    own = torch.zeros(rows.shape, device=rows.device)
    row = torch.arange(len(rows), device=rows.device)[:, None]
    own[row, input_ids] = attention_mask.float()
    return rows * own


kind("d2s", forward=_forward)


def d2s(model: Any, positions: Any) -> list[Swap] | None:
    """The swap of a D2SModel."""
    parts = {"proj": nn.Linear, "vocab_layer_norm": nn.LayerNorm, "vocab_projector": nn.Linear}
    fits = all(type(getattr(model, name, None)) is kind for name, kind in parts.items())
    return [Swap(model, "d2s")] if fits else None
