"""Dense CLIP with the same towers: what STAIR is measured against."""

from __future__ import annotations

import copy
import math
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from stair.losses import Stage
from stair.model import STAIRModel


class DenseCLIP(nn.Module):
    """unit(mean over positions of the tower's output @ projection), [B, width], for texts and images.

    Starts from the towers of an untrained STAIRModel, copied; the vocabulary heads are left out.
    """

    def __init__(self, start: STAIRModel, width: int = 256) -> None:
        super().__init__()
        self.text_tower = copy.deepcopy(start.text_tower)
        self.image_tower = copy.deepcopy(start.image_tower)
        self.text_projection = nn.Linear(start.text_head.dense.in_features, width)
        self.image_projection = nn.Linear(start.image_head.dense.in_features, width)
        self.log_scale = nn.Parameter(torch.tensor(math.log(1 / 0.07)))

    @property
    def logit_scale(self) -> Tensor:
        """The learned multiplier of the cosine, a scalar tensor, at most 100."""
        return self.log_scale.exp().clamp(max=100.0)

    def encode_text(self, input_ids: Tensor, attention_mask: Tensor) -> Tensor:  # [B, width]
        hidden = self.text_tower(input_ids=input_ids, attention_mask=attention_mask.long()).last_hidden_state
        use = attention_mask[..., None].float()
        return F.normalize(self.text_projection((hidden * use).sum(1) / use.sum(1)), dim=1)

    def encode_image(self, *, image_features: Tensor) -> Tensor:  # [B, width]
        return F.normalize(self.image_projection(self.image_tower(image_features.float()).mean(1)), dim=1)


@dataclass
class DenseObjective:
    """Symmetric InfoNCE of a DenseCLIP, for the same training loop as STAIR's."""

    model: DenseCLIP
    learning_rate: float = 2e-3
    text_learning_rate: float = 8e-4
    calibrated: bool = True
    clip: float = 1.0

    @property
    def module(self) -> nn.Module:
        return self.model

    def groups(self) -> list[dict[str, Any]]:
        """AdamW's parameter groups: the same rates and decays as STAIR's."""
        model = self.model
        image = [*model.image_tower.parameters(), *model.image_projection.parameters()]
        text = list(model.text_tower.parameters())
        return [
            {"params": text, "lr": self.text_learning_rate, "weight_decay": 0.01},
            {"params": [*image, *model.text_projection.parameters()], "lr": self.learning_rate, "weight_decay": 0.05},
            {"params": [model.log_scale], "lr": 1e-2, "weight_decay": 0.0},
        ]

    def loss(self, texts: dict[str, Tensor], features: Tensor, fraction: float) -> tuple[Tensor, dict[str, float]]:
        """The loss of B texts and the features of their B pictures; what to log."""
        model = self.model
        logit = model.logit_scale * (model.encode_text(**texts) @ model.encode_image(image_features=features).T)
        target = torch.arange(len(logit), device=logit.device)
        loss = (F.cross_entropy(logit, target) + F.cross_entropy(logit.T, target)) / 2
        accuracy = (logit.argmax(1) == target).float().mean()
        logged = {"loss": loss.item(), "accuracy": accuracy.item(), "scale": model.logit_scale.item()}
        return loss, {"stage": Stage.JOINT.value, **logged}
