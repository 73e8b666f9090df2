"""This repository's STAIRModel with head="reference"."""

from __future__ import annotations

from typing import Any

from torch import Tensor

import stair_kernels as sk
from stair.adapters.swap import Swap, kind


def _head_forward(self: Any, hidden: Tensor, mask: Tensor | None = None, *, k: int) -> sk.SparseRows:
    """SparseRows [B, k] by sk.vocab_topk."""
    return sk.vocab_topk(*self.inputs(hidden, mask), k=k)


def _model_forward(self: Any, **inputs: Tensor) -> sk.StairLoss:
    """The contrastive loss by sk.stair_loss."""
    from stair.losses import joint_loss

    text = self.text_head_inputs(inputs["input_ids"], inputs["attention_mask"])
    image = self.image_head_inputs(inputs.get("pixel_values"), image_features=inputs.get("image_features"))
    return joint_loss(text, image, self.logit_scale, head="fused")


kind("stair_head", forward=_head_forward)
kind("stair", forward=_model_forward)


def reference(model: Any, positions: Any) -> list[Swap] | None:
    """The swaps of a STAIRModel; none where its head is fused already."""
    if model.config.head == "fused":
        return []
    return [Swap(model, "stair"), Swap(model.text_head, "stair_head"), Swap(model.image_head, "stair_head")]
