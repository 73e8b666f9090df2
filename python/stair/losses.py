"""What is minimised, stage by stage; every formula over the vocabulary is an operator of stair_kernels."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import torch
import torch.distributed as dist
from torch import Tensor, nn
from torch.nn import functional as F

import stair_kernels as sk
from stair.head import eager_pool
from stair.parallel import spread
from stair_kernels.distributed import all_gather

if TYPE_CHECKING:
    from stair.model import STAIRModel

LIFT = 100.0  # raw logits below -100 read as -100


def joint_loss(
    text: sk.VocabHead,
    image: sk.VocabHead,
    logit_scale: Tensor | float,
    *,
    text_flops: float = 0.0,
    image_flops: float = 0.0,
    head: str = "fused",
    group: dist.ProcessGroup | None = None,
) -> sk.StairLoss:
    """sk.stair_loss on L2-normalised rows; with head="reference" the same in eager PyTorch, [B, L, V] and all.

    With `group` each process gives its part of the batch and has the loss of the whole (stair_kernels.distributed).
    """
    if group is not None:
        if head != "fused":
            raise ValueError(f"head: expected fused in several processes, got {head!r}")
        text, image = spread(text, group), spread(image, group)
    if head == "fused":
        return sk.stair_loss(
            text,
            image,
            logit_scale=logit_scale,
            text_flops=text_flops,
            image_flops=image_flops,
            normalize=True,
            group=group,
        )
    text_rows, image_rows = (eager_pool(side).float() for side in (text, image))
    return sk.reference.loss_of_rows(
        text_rows,
        image_rows,
        logit_scale=logit_scale,
        text_flops=text_flops,
        image_flops=image_flops,
        normalize=True,
    )


def raw_logits(head: sk.VocabHead) -> Tensor:
    """max_l hidden[b, l] . weight[v] + bias[v], [B, V] float32, without the activation; no lower than -LIFT."""
    assert head.bias is not None
    lifted = sk.vocab_pool(head.hidden, head.weight, head.bias.float() + LIFT, head.mask, activation="relu")
    return lifted - LIFT


def grounding_loss(image: sk.VocabHead, target: Tensor) -> Tensor:
    """Cross-entropy of softmax(raw image logits) [B, V] against `target` [B, V], rows that sum to 1 or are empty."""
    return -(target * F.log_softmax(raw_logits(image), dim=1)).sum(dim=1).mean()


@torch.no_grad()
def own_words(text: sk.VocabHead, input_ids: Tensor) -> Tensor:
    """[B, V]: each text's row, kept at the word-pieces that stand in the text, divided by its sum."""
    assert text.mask is not None
    row = sk.vocab_pool(*text)
    own = torch.zeros_like(row).scatter_(1, input_ids, text.mask.to(row.dtype))
    kept = row * (own > 0)
    return kept / kept.sum(dim=1, keepdim=True).clamp(min=1e-3)


@torch.no_grad()
def calibrate(model: STAIRModel, features: Tensor, active: float) -> float:
    """Shifts the image head's bias so that the images of `features` [B, L, 432] have `active` terms on average.

    Returns what was subtracted.
    """
    raw = raw_logits(model.image_head_inputs(image_features=features)).flatten()
    shift = float(raw.kthvalue(max(1, raw.numel() - round(active * len(features)))).values)
    model.image_head.bias.sub_(shift)
    return shift


def distinct(groups: list[dict[str, Any]]) -> list[dict[str, Any]]:
    """Parameter groups without what is frozen and without a tied parameter's second mention."""
    seen: set[Tensor] = set()
    for group in groups:
        group["params"] = [p for p in dict.fromkeys(group["params"]) if p.requires_grad and p not in seen]
        seen.update(group["params"])
    return [group for group in groups if group["params"]]


@dataclass
class StairObjective:
    """The two training stages of a STAIRModel as one function of the fraction of training done.

    Stage 1, up to `grounding`: the text tower is frozen and masked to the text's own words, and the images learn to
    name them by softmax. Then one shift of the bias that leaves `start_active` terms an image. Stage 2: InfoNCE on
    normalised rows plus FLOPS, whose weight rises with the square of the progress to half-way.
    """

    model: STAIRModel
    grounding: float = 0.05
    start_active: float = 200.0
    text_flops: float = 1e-3
    image_flops: float = 1e-3
    learning_rate: float = 2e-3
    text_learning_rate: float = 8e-4
    head: str = "fused"
    calibrated: bool = False
    group: dist.ProcessGroup | None = None  # of the processes that train together
    clip: float = 5.0

    @property
    def module(self) -> nn.Module:
        return self.model

    def groups(self) -> list[dict[str, Any]]:
        """AdamW's parameter groups; the vocabulary matrix of the images learns slower than the rest of their tower."""
        model = self.model
        text = [*model.text_tower.parameters(), *model.text_head.parameters()]
        matrix = model.image_head.weight
        image = [p for p in [*model.image_tower.parameters(), *model.image_head.parameters()] if p is not matrix]
        return distinct(
            [
                {"params": text, "lr": self.text_learning_rate, "weight_decay": 0.01},
                {"params": image, "lr": self.learning_rate, "weight_decay": 0.05},
                {"params": [matrix], "lr": self.learning_rate * 0.4, "weight_decay": 0.0},
                {"params": [model.log_scale], "lr": 1e-2, "weight_decay": 0.0},
            ]
        )

    def loss(self, texts: dict[str, Tensor], features: Tensor, fraction: float) -> tuple[Tensor, dict[str, float]]:
        """The loss of B texts and the features of their B pictures when `fraction` of training is done; what to log."""
        model = self.model
        if fraction < self.grounding:
            with torch.no_grad():
                target = own_words(model.text_head_inputs(**texts), texts["input_ids"])
            loss = grounding_loss(model.image_head_inputs(image_features=features), target)
            return loss, {"stage": 1, "loss": loss.item()}
        if not self.calibrated and self.grounding > 0:
            model.eval()
            every = features if self.group is None else all_gather(features, self.group)
            calibrate(model, every, self.start_active)
            model.train()
            self.calibrated = True
        ramp = min(1.0, fraction / 0.5) ** 2
        parts = joint_loss(
            model.text_head_inputs(**texts),
            model.image_head_inputs(image_features=features),
            model.logit_scale,
            text_flops=ramp * self.text_flops,
            image_flops=ramp * self.image_flops,
            head=self.head,
            group=self.group,
        )
        logged = {name: value.item() for name, value in parts._asdict().items()}
        return parts.loss, {"stage": 2, "scale": model.logit_scale.item(), **logged}
