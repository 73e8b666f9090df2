"""VDR: elu(x) + 1 after the maximum over all positions, padding too; L2 norm; part of a vocabulary."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F

import stair_kernels as sk
from stair.adapters.splade import linear_dtype
from stair.adapters.swap import Swap, defines, kind


def _pool(hidden: Tensor, weight: Tensor) -> Tensor:  # [B, V]
    """elu(max_l hidden[b, l] . weight[v]) + 1; no mask: the published heads take the maximum over every position."""
    return sk.vocab_pool(hidden, weight, activation="elu1p").to(linear_dtype(hidden))


def _text(self: Any, inputs: dict[str, Tensor], rows: slice | Any) -> Tensor:
    hidden = self.ln(self.bert_model(**inputs).last_hidden_state)
    return _pool(hidden, self.bert_model.embeddings.word_embeddings.weight[rows])


def _encoder_forward(self: Any, **inputs: Tensor) -> Tensor:
    """[B, V - shift], the vocabulary from entry `shift_vocab_num` on; normalised where the configuration says so."""
    rows = _text(self, inputs, slice(self.config.shift_vocab_num, None))
    return F.normalize(rows) if self.config.norm else rows


def _text_encoder_forward(self: Any, **inputs: Tensor) -> Tensor:
    """[B, len(valid_token_ids)], normalised."""
    return F.normalize(_text(self, inputs, self.valid_token_ids))


def _image_encoder_embed(self: Any, image: Any, training: bool = False, topk: int | None = None) -> Tensor:
    """[B, V], normalised over all entries, the `topk` largest kept."""
    with torch.set_grad_enabled(training and torch.is_grad_enabled()):
        if isinstance(image, str):
            image = self.load_image_file(image)
        hidden = self(image.type(self.dtype).to(self.device))
        rows = F.normalize(_pool(hidden, self.proj))
        kept = rows.topk(topk or self.config.topk).indices
        return rows * torch.zeros_like(rows).scatter(1, kept, 1)


kind("vdr_encoder", forward=_encoder_forward)
kind("vdr_text_encoder", forward=_text_encoder_forward)
kind("vdr_image_encoder", embed=_image_encoder_embed)


def vdr(model: Any, positions: Any) -> list[Swap] | None:
    """The swap of VDREncoder (max pooling), VDRTextEncoder or VDRImageEncoder."""
    forward, embed = defines(model, "forward"), defines(model, "embed")
    if embed == "VDRImageEncoder" and isinstance(getattr(model, "proj", None), nn.Parameter):
        return [Swap(model, "vdr_image_encoder")]
    if not all(isinstance(getattr(model, name, None), nn.Module) for name in ("ln", "bert_model")):
        return None
    if forward == "VDREncoder" and getattr(model.config, "pooling", "max") == "max":
        return [Swap(model, "vdr_encoder")]
    return [Swap(model, "vdr_text_encoder")] if forward == "VDRTextEncoder" else None
