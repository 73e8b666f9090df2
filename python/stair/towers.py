"""The encoders in front of the vocabulary heads: any of transformers, or the light vision tower."""

from __future__ import annotations

import inspect
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F
from transformers import AutoModel, PretrainedConfig

from stair.configuration import LiteVisionConfig, STAIRConfig
from stair.vision import FEATURE_WIDTH, EfficientNetLite0, has_bfloat16

UNUSED = {"add_pooling_layer": False}  # parameters that no loss would reach
NO_POOLING_HEAD = "vision_use_head"  # SigLIP's name for it


def encoder_class(config: PretrainedConfig) -> Any:
    """The class that AutoModel makes of a configuration; ValueError when it knows none."""
    if type(config) not in AutoModel._model_mapping:
        raise ValueError(f"expected the configuration of an encoder that AutoModel knows, got {type(config).__name__}")
    return AutoModel._model_mapping[type(config)]


def encoder_options(config: PretrainedConfig) -> dict[str, Any]:
    """What leaves the pooler out where there is one: its parameters would get no gradient."""
    if hasattr(config, NO_POOLING_HEAD):
        setattr(config, NO_POOLING_HEAD, False)
    known = inspect.signature(encoder_class(config).__init__).parameters
    return {name: value for name, value in UNUSED.items() if name in known}


def make_encoder(config: PretrainedConfig) -> Any:
    """The encoder of a configuration, with random weights and without a pooler."""
    return AutoModel.from_config(config, **encoder_options(config))


def image_tower(config: STAIRConfig) -> LiteTower | EncoderTower:
    """The vision tower that a configuration asks for."""
    if isinstance(config.vision_config, LiteVisionConfig):
        return LiteTower(config.vision_config)
    return EncoderTower(config)


class LiteTower(nn.Module):
    """Frozen features [B, P, 432] to hidden states [B, L, D]: linear map, average pooling, pre-LN transformer."""

    def __init__(self, config: LiteVisionConfig) -> None:
        super().__init__()
        D = config.hidden_size
        self.side, self.pool = config.side, config.pool
        self.backbone = EfficientNetLite0()
        self.norm = nn.LayerNorm(FEATURE_WIDTH)
        self.dropout = nn.Dropout(config.dropout)
        self.project = nn.Linear(FEATURE_WIDTH, D)
        self.position = nn.Parameter(torch.randn((-(-config.side // config.pool)) ** 2, D) * 0.02)
        self.layers = nn.ModuleList(
            nn.TransformerEncoderLayer(
                D,
                config.num_attention_heads,
                config.intermediate_size,
                0.0,
                "gelu",
                batch_first=True,
                norm_first=True,
            )
            for _ in range(config.num_hidden_layers)
        )
        self.final_norm = nn.LayerNorm(D)

    @property
    def frozen(self) -> EfficientNetLite0:
        """pixel_values to the features that forward takes: what never learns, so that its output may be kept."""
        return self.backbone

    @property
    def feature_shape(self) -> tuple[int, ...]:
        """Of one picture's input to forward; -1 is any."""
        return self.side**2, FEATURE_WIDTH

    def forward(self, features: Tensor) -> Tensor:
        hidden = self.project(self.dropout(self.norm(features)))
        if self.pool > 1:
            square = hidden.transpose(1, 2).unflatten(2, (self.side, self.side))
            hidden = F.avg_pool2d(square, self.pool, ceil_mode=True).flatten(2).transpose(1, 2)
        hidden = hidden + self.position
        for layer in self.layers:
            hidden = layer(hidden)
        return self.final_norm(hidden)


class EncoderTower(nn.Module):
    """A vision encoder of transformers: pixel_values [B, 3, S, S] to hidden states [B, L, D].

    The picture's parts come first, row by row; CLS and register tokens follow them, or are left out. Frozen, it takes
    its own output: what `frozen` gives is kept by who trains, like the light tower's features.
    """

    def __init__(self, config: STAIRConfig) -> None:
        super().__init__()
        self.encoder = make_encoder(config.vision_config)
        self.parts, self.size = config.positions, config.image_size
        self.keep_special, self.is_frozen = config.pool_special_tokens, config.freeze_image

    @property
    def frozen(self) -> FrozenEncoder | None:
        return FrozenEncoder(self) if self.is_frozen else None

    @property
    def feature_shape(self) -> tuple[int, ...]:
        if not self.is_frozen:
            return 3, self.size, self.size
        return -1, self.encoder.config.hidden_size

    def forward(self, given: Tensor) -> Tensor:
        return given if given.dim() == 3 else self.encode(given)

    def encode(self, pixel_values: Tensor) -> Tensor:
        hidden = self.encoder(pixel_values=pixel_values).last_hidden_state
        special = hidden.shape[1] - self.parts
        if special < 0:
            raise ValueError(f"vision_config: expected at least {self.parts} positions, got {hidden.shape[1]}")
        if special == 0:
            return hidden
        parts = hidden[:, special:]
        return torch.cat([parts, hidden[:, :special]], dim=1) if self.keep_special else parts


class FrozenEncoder:
    """pixel_values to the hidden states of an EncoderTower, float32, without gradient."""

    def __init__(self, tower: EncoderTower) -> None:
        self.tower = tower

    @property
    def compute_dtype(self) -> torch.dtype:
        """bfloat16 where the hardware multiplies it, float32 elsewhere."""
        device = next(self.tower.parameters()).device.type
        return torch.bfloat16 if device != "cpu" or has_bfloat16() else torch.float32

    def state_dict(self) -> dict[str, Tensor]:
        return self.tower.state_dict()

    @torch.no_grad()
    def __call__(self, pixel_values: Tensor) -> Tensor:
        low = self.compute_dtype is torch.bfloat16
        with torch.autocast(pixel_values.device.type, torch.bfloat16, enabled=low):
            return self.tower.encode(pixel_values).float()
