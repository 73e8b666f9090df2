"""STAIRConfig and STAIRModel: two towers, each followed by a vocabulary head."""

from __future__ import annotations

import math
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F
from transformers import AutoConfig, AutoModel, BertConfig, BertModel, PretrainedConfig, PreTrainedModel

import stair_kernels as sk
from stair.head import HEADS, TokenHead
from stair.vision import FEATURE_WIDTH, STRIDE, EfficientNetLite0


class STAIRConfig(PretrainedConfig):
    """Shapes of a STAIR model.

    Args:
        text_config: a BertConfig or its dictionary; its vocabulary is the one of the sparse rows.
        image_size: side of the square pictures; a multiple of 16. The features have (image_size / 16)^2 positions.
        image_pool: side of the squares of positions that the image tower averages into one; 1 keeps all.
        image_layers, image_heads, image_mlp, image_dropout: the transformer over the frozen features.
        text_k, image_k: entries kept in a text's and an image's row.
        head: "fused" (stair_kernels) or "reference" (eager PyTorch).
        logit_scale: where the learned multiplier of the cosine starts.
    """

    model_type = "stair"

    def __init__(
        self,
        text_config: BertConfig | dict[str, Any] | None = None,
        image_size: int = 112,
        image_pool: int = 2,
        image_layers: int = 2,
        image_heads: int = 4,
        image_mlp: int = 512,
        image_dropout: float = 0.1,
        text_k: int = 64,
        image_k: int = 128,
        head: str = "fused",
        logit_scale: float = 20.0,
        **kwargs: Any,
    ) -> None:
        if isinstance(text_config, BertConfig):
            text_config = text_config.to_dict()
        if head not in HEADS:
            raise ValueError(f"head: expected one of {', '.join(HEADS)}, got {head!r}")
        if image_size % STRIDE or image_size <= 0:
            raise ValueError(f"image_size: expected a positive multiple of {STRIDE}, got {image_size}")
        self.text_config = dict(text_config) if text_config is not None else {}
        if image_pool < 1:
            raise ValueError(f"image_pool: expected at least 1, got {image_pool}")
        self.image_size = image_size
        self.image_pool = image_pool
        self.image_layers = image_layers
        self.image_heads = image_heads
        self.image_mlp = image_mlp
        self.image_dropout = image_dropout
        self.text_k = text_k
        self.image_k = image_k
        self.head = head
        self.logit_scale = logit_scale
        super().__init__(**kwargs)

    def bert(self) -> BertConfig:
        """The text tower's configuration; without one, SPLADE-tiny's shape."""
        tiny = {
            "hidden_size": 128,
            "num_hidden_layers": 2,
            "num_attention_heads": 2,
            "intermediate_size": 512,
            "hidden_dropout_prob": 0.0,
            "attention_probs_dropout_prob": 0.0,
        }
        known = {key: value for key, value in self.text_config.items() if key != "model_type"}
        return BertConfig(**{**tiny, **known})

    @property
    def side(self) -> int:
        """Positions along a side of the feature map."""
        return self.image_size // STRIDE

    @property
    def positions(self) -> int:
        """L of an image as its head sees it: a square, row by row, which `SparseRows.positions` number."""
        return math.ceil(self.side / self.image_pool) ** 2


class ImageTower(nn.Module):
    """Frozen features [B, P, 432] to hidden states [B, L, D]: linear map, average pooling, pre-LN transformer."""

    def __init__(self, config: STAIRConfig) -> None:
        super().__init__()
        D = config.bert().hidden_size
        self.side, self.pool = config.side, config.image_pool
        self.norm = nn.LayerNorm(FEATURE_WIDTH)
        self.dropout = nn.Dropout(config.image_dropout)
        self.project = nn.Linear(FEATURE_WIDTH, D)
        self.position = nn.Parameter(torch.randn(config.positions, D) * 0.02)
        self.layers = nn.ModuleList(
            nn.TransformerEncoderLayer(
                D, config.image_heads, config.image_mlp, 0.0, "gelu", batch_first=True, norm_first=True
            )
            for _ in range(config.image_layers)
        )
        self.final_norm = nn.LayerNorm(D)

    def forward(self, features: Tensor) -> Tensor:
        hidden = self.project(self.dropout(self.norm(features)))
        if self.pool > 1:
            square = hidden.transpose(1, 2).unflatten(2, (self.side, self.side))
            hidden = F.avg_pool2d(square, self.pool, ceil_mode=True).flatten(2).transpose(1, 2)
        hidden = hidden + self.position
        for layer in self.layers:
            hidden = layer(hidden)
        return self.final_norm(hidden)


class STAIRModel(PreTrainedModel):
    """A text and an image become sparse rows over one vocabulary; their cosine says how well they fit.

    The image backbone is frozen and part of the checkpoint. `image_features` are its output, which training and
    evaluation keep instead of computing them again.
    """

    config_class = STAIRConfig
    config: STAIRConfig
    base_model_prefix = "stair"
    main_input_name = "input_ids"

    def __init__(self, config: STAIRConfig) -> None:
        super().__init__(config)
        bert = config.bert()
        self.backbone = EfficientNetLite0()
        self.text_tower = BertModel(bert, add_pooling_layer=False)
        self.image_tower = ImageTower(config)
        self.text_head = TokenHead(bert.hidden_size, bert.vocab_size, config.head)
        self.image_head = TokenHead(bert.hidden_size, bert.vocab_size, config.head)
        self.log_scale = nn.Parameter(torch.tensor(math.log(config.logit_scale)))
        self.post_init()

    def _init_weights(self, module: nn.Module) -> None:
        """Every module draws its own weights when it is made."""

    @property
    def vocab_size(self) -> int:
        return self.text_head.weight.shape[0]

    @property
    def logit_scale(self) -> Tensor:
        """The learned multiplier of the cosine, a scalar tensor, at most 100."""
        return self.log_scale.exp().clamp(max=100.0)

    def image_features(self, pixel_values: Tensor) -> Tensor:
        """pixel_values [B, 3, S, S] of the processor to the frozen backbone's features [B, P, 432] float32."""
        size = self.config.image_size
        if pixel_values.dim() != 4 or tuple(pixel_values.shape[1:]) != (3, size, size):
            raise ValueError(f"pixel_values: expected [B, 3, {size}, {size}], got {list(pixel_values.shape)}")
        return self.backbone(pixel_values)

    def text_hidden(self, input_ids: Tensor, attention_mask: Tensor) -> Tensor:
        """The text tower's last hidden states [B, L, D]."""
        if input_ids.dim() != 2 or attention_mask.shape != input_ids.shape:
            shapes = f"{list(input_ids.shape)} and {list(attention_mask.shape)}"
            raise ValueError(f"input_ids, attention_mask: expected two [B, L], got {shapes}")
        return self.text_tower(input_ids=input_ids, attention_mask=attention_mask.long()).last_hidden_state

    def text_head_inputs(self, input_ids: Tensor, attention_mask: Tensor) -> sk.VocabHead:
        """The texts' side of `sk.stair_loss`."""
        return self.text_head.inputs(self.text_hidden(input_ids, attention_mask), attention_mask.bool())

    def image_head_inputs(
        self, pixel_values: Tensor | None = None, *, image_features: Tensor | None = None
    ) -> sk.VocabHead:
        """The images' side of `sk.stair_loss`, from pixel_values [B, 3, S, S] or image_features [B, P, 432]."""
        return self.image_head.inputs(self.image_tower(self._features(pixel_values, image_features)))

    def encode_text(
        self, input_ids: Tensor, attention_mask: Tensor, *, k: int | None = None
    ) -> sk.SparseRows:  # [B, k], k = config.text_k unless given
        """The sparse rows of texts: input_ids and attention_mask are [B, L], as the processor gives them."""
        hidden = self.text_hidden(input_ids, attention_mask)
        return self.text_head(hidden, attention_mask.bool(), k=self.config.text_k if k is None else k)

    def encode_image(
        self, pixel_values: Tensor | None = None, *, image_features: Tensor | None = None, k: int | None = None
    ) -> sk.SparseRows:  # [B, k], k = config.image_k unless given
        """The sparse rows of pictures: pixel_values [B, 3, S, S] of the processor, or kept features [B, P, 432]."""
        hidden = self.image_tower(self._features(pixel_values, image_features))
        return self.image_head(hidden, k=self.config.image_k if k is None else k)

    def forward(
        self,
        input_ids: Tensor,
        attention_mask: Tensor,
        pixel_values: Tensor | None = None,
        image_features: Tensor | None = None,
    ) -> sk.StairLoss:
        """The contrastive loss of B texts and their B images, without penalties; training uses `stair.losses`."""
        from stair.losses import joint_loss

        return joint_loss(
            self.text_head_inputs(input_ids, attention_mask),
            self.image_head_inputs(pixel_values, image_features=image_features),
            self.logit_scale,
            head=self.config.head,
        )

    def _features(self, pixel_values: Tensor | None, image_features: Tensor | None) -> Tensor:
        if (pixel_values is None) == (image_features is None):
            raise ValueError("pixel_values, image_features: expected exactly one of the two")
        if pixel_values is not None:
            return self.image_features(pixel_values)
        assert image_features is not None
        shape = (self.config.side**2, FEATURE_WIDTH)
        if image_features.dim() != 3 or tuple(image_features.shape[1:]) != shape:
            raise ValueError(f"image_features: expected [B, {shape[0]}, {shape[1]}], got {list(image_features.shape)}")
        return image_features.float()


AutoConfig.register(STAIRConfig.model_type, STAIRConfig)
AutoModel.register(STAIRConfig, STAIRModel)
