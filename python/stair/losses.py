"""What is minimised, stage by stage; every formula over the vocabulary is an operator of stair_kernels."""

from __future__ import annotations

from dataclasses import dataclass
from enum import IntEnum
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
MASKED_K = 512  # entries of an image's row that the masked stage looks at
RECIPES = ("single", "three")


class Stage(IntEnum):
    """Stages of training; 1 to 3 are the paper's (STAIR, arXiv 2301.13081, section 3.2)."""

    WARM = 0  # text frozen and masked to its own words; softmax over the images' raw logits
    MASKED = 1  # both towers, text masked to its own words
    EXPAND = 2  # images frozen; texts unmasked
    JOINT = 3  # both towers, unmasked


@dataclass(frozen=True)
class Schedule:
    """Shares of training, in order; what they leave of 1 is the joint stage's.

    Args:
        recipe: "single", warm start and joint stage; or "three", all stages.
        warm: share of the warm start; 0 leaves it out, and the calibration of the bias comes first.
        masked, expand: shares of stages 1 and 2 with recipe "three".
    """

    recipe: str = "single"
    warm: float = 0.15
    masked: float = 0.2
    expand: float = 0.1

    def __post_init__(self) -> None:
        if self.recipe not in RECIPES:
            raise ValueError(f"stages: expected one of {', '.join(RECIPES)}, got {self.recipe!r}")
        for name in ("warm", "masked", "expand"):
            if not 0 <= getattr(self, name) <= 1:
                raise ValueError(f"{name}: expected a share between 0 and 1, got {getattr(self, name)}")
        if self.recipe == "three" and self.warm + self.masked + self.expand > 1:
            total = self.warm + self.masked + self.expand
            raise ValueError(f"warm, masked, expand: expected shares of 1 at most together, got {total:g}")

    def at(self, fraction: float) -> Stage:
        """The stage when `fraction` of training is done."""
        end = 0.0
        for stage, share in ((Stage.WARM, self.warm), (Stage.MASKED, self.masked), (Stage.EXPAND, self.expand)):
            if stage == Stage.WARM or self.recipe == "three":
                end += share
                if fraction < end - 1e-9:  # three fifths are no less than 0.2 + 0.2 + 0.2
                    return stage
        return Stage.JOINT


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
            save="positions",
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


def own_rows(text: sk.VocabHead, input_ids: Tensor) -> sk.SparseRows:  # [B, L]
    """The texts' rows, masked to the word-pieces that stand in each: at most L entries; differentiable.

    The activation is pooled over the batch's distinct word-pieces only: [B, U] with U <= B * L, never [B, V].
    """
    assert text.mask is not None
    pieces, column = input_ids.unique(return_inverse=True)
    bias = None if text.bias is None else text.bias[pieces]
    pooled = sk.vocab_pool(text.hidden, text.weight[pieces], bias, text.mask)
    said = torch.zeros_like(pooled).scatter_add_(1, column, text.mask.to(pooled.dtype)) > 0
    kept = sk.topk(pooled * said, input_ids.shape[1])
    indices = torch.where(kept.indices >= 0, pieces[kept.indices.long().clamp(min=0)].int(), -1)
    return sk.SparseRows(kept.values, indices, None, len(text.weight))


def own_words(text: sk.VocabHead, input_ids: Tensor) -> Tensor:
    """[B, V]: each text's masked row, divided by its sum; without gradient."""
    row = own_rows(text, input_ids).detach().to_dense()
    return row / row.sum(dim=1, keepdim=True).clamp(min=1e-3)


def frozen(head: sk.VocabHead) -> sk.VocabHead:
    """The same head, to which no gradient flows."""
    bias = None if head.bias is None else head.bias.detach()
    return sk.VocabHead(head.hidden.detach(), head.weight.detach(), bias, head.mask)


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
    """The stages of a STAIRModel's training as one function of the fraction of training done.

    WARM: softmax cross-entropy between the images' raw logits and the words of their texts, which are frozen. Then one
    shift of the image bias that leaves `start_active` terms an image. Then InfoNCE on L2-normalised rows plus FLOPS:
    MASKED with the texts' rows masked to their own words and the images' cut to the MASKED_K largest entries, EXPAND
    with the images frozen, JOINT with all. The FLOPS weights rise with the square of the progress to half-way.
    """

    model: STAIRModel
    stages: Schedule = Schedule()
    start_active: float = 200.0
    text_flops: float = 1e-3
    image_flops: float = 1e-3
    learning_rate: float = 2e-3
    text_learning_rate: float = 8e-4
    matrix_rate: float = 0.4
    head: str = "fused"
    calibrated: bool = False
    group: dist.ProcessGroup | None = None  # of the processes that train together
    clip: float = 5.0

    @property
    def module(self) -> nn.Module:
        return self.model

    def groups(self) -> list[dict[str, Any]]:
        """AdamW's parameter groups; the images' vocabulary matrix learns at `matrix_rate` times their tower's rate."""
        model = self.model
        text = [*model.text_tower.parameters(), *model.text_head.parameters()]
        matrix = model.image_head.weight
        image = [p for p in [*model.image_tower.parameters(), *model.image_head.parameters()] if p is not matrix]
        return distinct(
            [
                {"params": text, "lr": self.text_learning_rate, "weight_decay": 0.01},
                {"params": image, "lr": self.learning_rate, "weight_decay": 0.05},
                {"params": [matrix], "lr": self.learning_rate * self.matrix_rate, "weight_decay": 0.0},
                {"params": [model.log_scale], "lr": 1e-2, "weight_decay": 0.0},
            ]
        )

    def loss(self, texts: dict[str, Tensor], features: Tensor, fraction: float) -> tuple[Tensor, dict[str, float]]:
        """The loss of B texts and the features of their B pictures when `fraction` of training is done; what to log."""
        model, stage = self.model, self.stages.at(fraction)
        if stage == Stage.WARM:
            with torch.no_grad():
                target = own_words(model.text_head_inputs(**texts), texts["input_ids"])
            loss = grounding_loss(model.image_head_inputs(image_features=features), target)
            return loss, {"stage": stage.value, "loss": loss.item()}
        if not self.calibrated:
            self._calibrate(features)
        text = model.text_head_inputs(**texts)
        with torch.set_grad_enabled(stage != Stage.EXPAND and torch.is_grad_enabled()):
            image = model.image_head_inputs(image_features=features)
        if stage == Stage.EXPAND:
            image = frozen(image)
        ramp = min(1.0, fraction / 0.5) ** 2
        text_flops, image_flops = ramp * self.text_flops, ramp * self.image_flops
        if stage == Stage.MASKED:
            parts = sk.loss_of_rows(
                own_rows(text, texts["input_ids"]),
                sk.vocab_topk(*image, k=MASKED_K) if self.head == "fused" else sk.topk(eager_pool(image), MASKED_K),
                logit_scale=model.logit_scale,
                text_flops=text_flops,
                image_flops=image_flops,
                normalize=True,
                group=self.group,
            )
        else:
            parts = joint_loss(
                text,
                image,
                model.logit_scale,
                text_flops=text_flops,
                image_flops=image_flops,
                head=self.head,
                group=self.group,
            )
        logged = {name: value.item() for name, value in parts._asdict().items()}
        return parts.loss, {"stage": stage.value, "scale": model.logit_scale.item(), **logged}

    def _calibrate(self, features: Tensor) -> None:
        """Once, when the contrastive stages begin."""
        self.model.eval()
        every = features if self.group is None else all_gather(features, self.group)
        calibrate(self.model, every, self.start_active)
        self.model.train()
        self.calibrated = True
