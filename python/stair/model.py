"""STAIRModel: two towers, each followed by a vocabulary head."""

from __future__ import annotations

import math
from typing import Any

import torch
from torch import Tensor, nn
from transformers import AutoModel, AutoProcessor, PreTrainedModel

import stair_kernels as sk
from stair.configuration import STAIRConfig
from stair.head import TokenHead
from stair.processing import STAIRProcessor
from stair.towers import image_tower, make_encoder

__all__ = ["STAIRConfig", "STAIRModel"]
OLDER_KEYS = {r"^backbone\.": "image_tower.backbone."}  # where a checkpoint kept the backbone before


class STAIRModel(PreTrainedModel):
    """A text and an image become sparse rows over one vocabulary; their cosine says how well they fit.

    `image_features` are what the frozen part of the image tower makes of pixel_values, which training and evaluation
    keep instead of computing it again: the light tower's backbone, or a whole encoder with config.freeze_image. Without
    a frozen part they are pixel_values themselves.
    """

    config_class = STAIRConfig
    config: STAIRConfig
    base_model_prefix = "stair"
    main_input_name = "input_ids"

    def __init__(self, config: STAIRConfig) -> None:
        super().__init__(config)
        vocab_size = config.text_config.vocab_size
        self.text_tower = make_encoder(config.text_config)
        self.image_tower = image_tower(config)
        self.text_head = TokenHead(config.text_config.hidden_size, vocab_size, config.head, config.width)
        self.image_head = TokenHead(config.vision_config.hidden_size, vocab_size, config.head, config.width)
        self.log_scale = nn.Parameter(torch.tensor(math.log(config.logit_scale)))
        self._freeze()
        self._tied_weights_keys = self._ties()
        self.post_init()

    @classmethod
    def from_pretrained(cls, *args: Any, **kwargs: Any) -> Any:
        """As PreTrainedModel's; takes older checkpoints too."""
        made = super().from_pretrained(*args, **{"key_mapping": OLDER_KEYS, **kwargs})
        (made[0] if isinstance(made, tuple) else made)._freeze()  # the weights that are read are new parameters
        return made

    @classmethod
    def from_encoders(cls, text: Any, image: Any, **config: Any) -> STAIRModel:
        """A STAIR model on two encoders; their weights are kept, the heads start from the text's word embeddings.

        Args:
            text: an encoder of transformers, or a masked language model, whose head the text head then starts from; or
                a configuration, for random weights.
            image: a vision encoder, or a configuration.
            config: the rest of STAIRConfig: pool_special_tokens (False unless given), special_token_ids, freeze_image,
                tie_vocabulary, text_k, image_k, ...

        Raises:
            ValueError: an encoder that does not fit.
        """
        from stair.encoders import assemble

        return assemble(text, image, **config)

    def train(self, mode: bool = True) -> STAIRModel:
        super().train(mode)
        if self.config.freeze_image:
            self.image_tower.eval()
        return self

    def _freeze(self) -> None:
        if self.config.freeze_image:
            self.image_tower.requires_grad_(False).eval()

    def _ties(self) -> dict[str, str]:
        """Which matrices are the word embeddings, by name, as transformers saves and loads shared weights."""
        tied = {"none": (), "text": ("text_head",), "both": ("text_head", "image_head")}[self.config.tie_vocabulary]
        if not tied:
            return {}
        words = self.text_tower.get_input_embeddings().weight
        if words.shape != self.text_head.weight.shape:
            shapes = f"{list(self.text_head.weight.shape)}, got {list(words.shape)}"
            raise ValueError(f"tie_vocabulary: expected word embeddings {shapes}")
        (name,) = [name for name, p in self.text_tower.named_parameters() if p is words]
        return {f"{head}.weight": f"text_tower.{name}" for head in tied}

    def _init_weights(self, module: nn.Module) -> None:
        """Every module draws its own weights when it is made."""

    @property
    def vocab_size(self) -> int:
        return self.text_head.weight.shape[0]

    @property
    def backbone(self) -> Any:
        """The frozen part of the image tower, a stair.features.Frozen; None when all of it learns."""
        return self.image_tower.frozen

    @property
    def logit_scale(self) -> Tensor:
        """The learned multiplier of the cosine, a scalar tensor, at most 100."""
        return self.log_scale.exp().clamp(max=100.0)

    def image_features(self, pixel_values: Tensor) -> Tensor:
        """pixel_values [B, 3, S, S] of the processor to what the frozen part makes of them; themselves without one."""
        size = self.config.image_size
        if pixel_values.dim() != 4 or tuple(pixel_values.shape[1:]) != (3, size, size):
            raise ValueError(f"pixel_values: expected [B, 3, {size}, {size}], got {list(pixel_values.shape)}")
        frozen = self.backbone
        return pixel_values if frozen is None else frozen(pixel_values)

    def text_hidden(self, input_ids: Tensor, attention_mask: Tensor) -> Tensor:
        """The text tower's last hidden states [B, L, D]."""
        if input_ids.dim() != 2 or attention_mask.shape != input_ids.shape:
            shapes = f"{list(input_ids.shape)} and {list(attention_mask.shape)}"
            raise ValueError(f"input_ids, attention_mask: expected two [B, L], got {shapes}")
        return self.text_tower(input_ids=input_ids, attention_mask=attention_mask.long()).last_hidden_state

    def text_mask(self, input_ids: Tensor, attention_mask: Tensor) -> Tensor:
        """[B, L] bool: the positions that the text head pools over."""
        mask = attention_mask.bool()
        if self.config.pool_special_tokens:
            return mask
        for token in self.config.special_token_ids:
            mask = mask & (input_ids != token)
        return mask

    def text_head_inputs(self, input_ids: Tensor, attention_mask: Tensor) -> sk.VocabHead:
        """The texts' side of `sk.stair_loss`."""
        mask = self.text_mask(input_ids, attention_mask)
        return self.text_head.inputs(self.text_hidden(input_ids, attention_mask), mask)

    def image_head_inputs(
        self, pixel_values: Tensor | None = None, *, image_features: Tensor | None = None
    ) -> sk.VocabHead:
        """The images' side of `sk.stair_loss`, from pixel_values [B, 3, S, S] or image_features."""
        return self.image_head.inputs(self.image_tower(self._features(pixel_values, image_features)))

    def encode_text(
        self, input_ids: Tensor, attention_mask: Tensor, *, k: int | None = None
    ) -> sk.SparseRows:  # [B, k], k = config.text_k unless given
        """The sparse rows of texts: input_ids and attention_mask are [B, L], as the processor gives them."""
        hidden = self.text_hidden(input_ids, attention_mask)
        mask = self.text_mask(input_ids, attention_mask)
        return self.text_head(hidden, mask, k=self.config.text_k if k is None else k)

    def encode_image(
        self, pixel_values: Tensor | None = None, *, image_features: Tensor | None = None, k: int | None = None
    ) -> sk.SparseRows:  # [B, k], k = config.image_k unless given
        """The sparse rows of pictures: pixel_values [B, 3, S, S] of the processor, or kept image_features."""
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
        want = ["B", *("L" if size < 0 else size for size in self.image_tower.feature_shape)]
        got = list(image_features.shape)
        if len(got) != len(want) or any(isinstance(size, int) and size != had for size, had in zip(want, got)):
            raise ValueError(f"image_features: expected [{', '.join(map(str, want))}], got {got}")
        return image_features.float()


AutoModel.register(STAIRConfig, STAIRModel)
AutoProcessor.register(STAIRConfig, STAIRProcessor)
