"""STAIRConfig: the two encoders, what follows them, and the light vision tower's own settings."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any

from transformers import AutoConfig, PretrainedConfig

from stair.head import HEADS, TIES
from stair.vision import STRIDE

TINY_BERT = {  # SPLADE-tiny's shape
    "model_type": "bert",
    "hidden_size": 128,
    "num_hidden_layers": 2,
    "num_attention_heads": 2,
    "intermediate_size": 512,
    "hidden_dropout_prob": 0.0,
    "attention_probs_dropout_prob": 0.0,
}
# What a checkpoint called the light tower's settings when there was no other tower.
OLDER_NAMES = {
    "image_size": "image_size",
    "image_pool": "pool",
    "image_layers": "num_hidden_layers",
    "image_heads": "num_attention_heads",
    "image_mlp": "intermediate_size",
    "image_dropout": "dropout",
}


class LiteVisionConfig(PretrainedConfig):
    """The light vision tower: frozen EfficientNet-lite0 features and a small transformer over them.

    Args:
        image_size: side of the square pictures; a multiple of 16. The features have (image_size / 16)^2 positions.
        pool: side of the squares of positions that the tower averages into one; 1 keeps all.
        hidden_size, num_hidden_layers, num_attention_heads, intermediate_size, dropout: of the transformer.
    """

    model_type = "stair_lite_vision"

    def __init__(
        self,
        image_size: int = 112,
        pool: int = 2,
        hidden_size: int = 128,
        num_hidden_layers: int = 2,
        num_attention_heads: int = 4,
        intermediate_size: int = 512,
        dropout: float = 0.1,
        **kwargs: Any,
    ) -> None:
        if image_size % STRIDE or image_size <= 0:
            raise ValueError(f"image_size: expected a positive multiple of {STRIDE}, got {image_size}")
        if pool < 1:
            raise ValueError(f"pool: expected at least 1, got {pool}")
        self.image_size = image_size
        self.pool = pool
        self.hidden_size = hidden_size
        self.num_hidden_layers = num_hidden_layers
        self.num_attention_heads = num_attention_heads
        self.intermediate_size = intermediate_size
        self.dropout = dropout
        super().__init__(**kwargs)

    @property
    def side(self) -> int:
        """Positions along a side of the feature map, before pooling."""
        return self.image_size // STRIDE


class STAIRConfig(PretrainedConfig):
    """Shapes of a STAIR model.

    Args:
        text_config: the text encoder's configuration (BERT and its kin, CLIPTextModel, ..) or its dictionary; one
            without "model_type" changes a BERT of SPLADE-tiny's shape. Its vocabulary is the one of the sparse rows.
        vision_config: the vision encoder's (CLIPVisionModel, ViT, SigLIP, DINOv2, ..) or its dictionary; one without
            "model_type" changes the light tower, LiteVisionConfig.
        pool_special_tokens: whether the maximum over positions takes in the text's special tokens (CLS, SEP, BOS, EOS)
            and the vision encoder's CLS and register tokens. Padding never counts.
        special_token_ids: the tokenizer's special tokens; needed where pool_special_tokens is False.
        tie_vocabulary: "none": each head has a vocabulary matrix of its own; "text": the text head uses the text
            encoder's word embeddings; "both": the image head too.
        freeze_image: the vision encoder gets no gradient and stays in evaluation mode; its head is trained.
        text_k, image_k: entries kept in a text's and an image's row.
        head: "fused" (stair_kernels) or "reference" (eager PyTorch).
        logit_scale: where the learned multiplier of the cosine starts.
    """

    model_type = "stair"
    sub_configs = {"text_config": AutoConfig, "vision_config": AutoConfig}  # noqa: RUF012 (transformers' convention)

    def __init__(
        self,
        text_config: PretrainedConfig | dict[str, Any] | None = None,
        vision_config: PretrainedConfig | dict[str, Any] | None = None,
        pool_special_tokens: bool = True,
        special_token_ids: Sequence[int] = (),
        tie_vocabulary: str = "none",
        freeze_image: bool = False,
        text_k: int = 64,
        image_k: int = 128,
        head: str = "fused",
        logit_scale: float = 20.0,
        **kwargs: Any,
    ) -> None:
        for name, value, known in (("head", head, HEADS), ("tie_vocabulary", tie_vocabulary, TIES)):
            if value not in known:
                raise ValueError(f"{name}: expected one of {', '.join(known)}, got {value!r}")
        if not pool_special_tokens and not special_token_ids:
            raise ValueError("special_token_ids: expected the tokenizer's with pool_special_tokens=False, got none")
        older = {new: kwargs.pop(old) for old, new in OLDER_NAMES.items() if old in kwargs}
        self.text_config = _as_config(text_config, TINY_BERT)
        lite = {"model_type": LiteVisionConfig.model_type, "hidden_size": self.text_config.hidden_size, **older}
        self.vision_config = _as_config(vision_config, lite)
        self.pool_special_tokens = pool_special_tokens
        self.special_token_ids = [int(token) for token in special_token_ids]
        self.tie_vocabulary = tie_vocabulary
        self.freeze_image = freeze_image
        self.text_k = text_k
        self.image_k = image_k
        self.head = head
        self.logit_scale = logit_scale
        super().__init__(**{**kwargs, "tie_word_embeddings": tie_vocabulary != "none"})

    @property
    def image_size(self) -> int:
        """S, the side of the square pictures."""
        return _square(self.vision_config.image_size, "image_size")

    @property
    def grid(self) -> int:
        """Positions along a side of the picture, as the image head sees it."""
        vision = self.vision_config
        if isinstance(vision, LiteVisionConfig):
            return math.ceil(vision.side / vision.pool)
        return self.image_size // _square(vision.patch_size, "patch_size")

    @property
    def positions(self) -> int:
        """Positions of the picture's parts, row by row, which `SparseRows.positions` number; special tokens follow."""
        return self.grid**2

    @property
    def width(self) -> int:
        """D of both heads' vocabulary matrices: that of the word embeddings."""
        return getattr(self.text_config, "embedding_size", None) or self.text_config.hidden_size


def _as_config(given: PretrainedConfig | dict[str, Any] | None, default: dict[str, Any]) -> PretrainedConfig:
    if isinstance(given, PretrainedConfig):
        return given
    settings = dict(given or {})
    if "model_type" not in settings:
        settings = {**default, **settings}
    return AutoConfig.for_model(settings.pop("model_type"), **settings)


def _square(size: Any, name: str) -> int:
    sides = set(size) if isinstance(size, (list, tuple)) else {size}
    if len(sides) != 1:
        raise ValueError(f"vision_config: expected a square {name}, got {list(size)}")
    return int(sides.pop())


AutoConfig.register(LiteVisionConfig.model_type, LiteVisionConfig)
AutoConfig.register(STAIRConfig.model_type, STAIRConfig)
