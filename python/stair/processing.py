"""STAIRProcessor: texts and pictures to the model's tensors, and vocabulary entries back to words."""

from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from tokenizers import Tokenizer
from torch import Tensor

from stair.files import replacing
from stair.pictures import ImageSettings

if TYPE_CHECKING:
    from PIL.Image import Image

SETTINGS = "processor_config.json"
TOKENIZER = "tokenizer.json"


class STAIRProcessor:
    """`processor(text=[...], images=[...])` gives input_ids, attention_mask [B, L] and pixel_values [B, 3, S, S].

    Args:
        tokenizer: a `tokenizers.Tokenizer` whose vocabulary is the model's.
        image_size: S, the side of the square that a picture is fitted into, on white; the light tower's way.
        max_length: longest text in tokens; the rest is cut off.
        images: any other way from a picture to pixel values; image_size is then its size.
        pad_token: what fills the shorter texts of a batch; its attention mask is False.
        special_token_ids: the tokenizer's tokens that are no words: CLS, SEP, BOS, EOS, padding, mask.
    """

    def __init__(
        self,
        tokenizer: Tokenizer,
        image_size: int = 112,
        max_length: int = 32,
        *,
        images: ImageSettings | dict[str, Any] | None = None,
        pad_token: str = "[PAD]",
        special_token_ids: Sequence[int] = (),
    ) -> None:
        self.tokenizer = tokenizer
        self.images = ImageSettings(**images) if isinstance(images, dict) else images or ImageSettings(image_size)
        self.max_length = max_length
        self.pad_token = pad_token
        self.special_token_ids = list(special_token_ids)
        self.tokenizer.enable_padding(pad_id=tokenizer.token_to_id(pad_token) or 0, pad_token=pad_token)
        self.tokenizer.enable_truncation(max_length)

    @classmethod
    def from_tokenizer(cls, tokenizer: Any, images: ImageSettings, max_length: int = 64) -> STAIRProcessor:
        """With the (fast) tokenizer of a text encoder and the settings of a vision encoder's image processor."""
        inner = getattr(tokenizer, "backend_tokenizer", None)
        if not isinstance(inner, Tokenizer):
            raise ValueError(f"tokenizer: expected a fast tokenizer of transformers, got {type(tokenizer).__name__}")
        names = ("cls", "sep", "bos", "eos", "pad", "mask")
        tokens = {name: getattr(tokenizer, f"{name}_token", None) for name in names}
        pad = tokens["pad"] or tokens["eos"]
        if pad is None:
            raise ValueError("tokenizer: expected a padding or an end token, got none")
        special = sorted({tokenizer.convert_tokens_to_ids(token) for token in tokens.values() if token is not None})
        copied = Tokenizer.from_str(inner.to_str())
        return cls(copied, max_length=max_length, images=images, pad_token=pad, special_token_ids=special)

    @property
    def image_size(self) -> int:
        return self.images.size

    def __call__(
        self, text: str | Sequence[str] | None = None, images: Image | Sequence[Image] | None = None
    ) -> dict[str, Tensor]:
        """Raises ValueError on an empty text, on no input at all, and on anything that is neither text nor picture."""
        if text is None and images is None:
            raise ValueError("text, images: expected at least one of the two")
        tensors: dict[str, Tensor] = {}
        if text is not None:
            tensors.update(self.encode([text] if isinstance(text, str) else list(text)))
        if images is not None:
            listed: list[Any] = list(images) if isinstance(images, (list, tuple)) else [images]
            tensors["pixel_values"] = self.normalize([self.images.fitted(image) for image in listed])
        return tensors

    def encode(self, texts: Sequence[str]) -> dict[str, Tensor]:
        """input_ids int64 and attention_mask bool, both [B, L], L the longest text's."""
        for number, text in enumerate(texts):
            if not isinstance(text, str) or not text.strip():
                raise ValueError(f"text: expected words, got {text!r} (number {number + 1} of {len(texts)})")
        encoded = self.tokenizer.encode_batch(list(texts))
        ids = torch.tensor([entry.ids for entry in encoded], dtype=torch.int64).reshape(len(texts), -1)
        mask = torch.tensor([entry.attention_mask for entry in encoded], dtype=torch.bool).reshape(len(texts), -1)
        return {"input_ids": ids, "attention_mask": mask}

    def normalize(self, pixels: np.ndarray | Sequence[np.ndarray]) -> Tensor:
        """uint8 pixels [B, S, S, 3] to float32 pixel_values [B, 3, S, S]."""
        return self.images.normalize(pixels)

    @property
    def vocab_size(self) -> int:
        return self.tokenizer.get_vocab_size()

    def term(self, index: int) -> str:
        """The tokenizer's piece of a vocabulary entry: BERT's "##" continues a word, CLIP's "</w>" ends one."""
        piece = self.tokenizer.id_to_token(index)
        if piece is None:
            raise ValueError(f"index: expected a vocabulary entry in [0, {self.vocab_size}), got {index}")
        return piece

    def vocabulary(self) -> list[str]:
        """Every piece by its entry."""
        return [self.term(index) for index in range(self.vocab_size)]

    def save_pretrained(self, folder: Path | str) -> None:
        folder = Path(folder)
        settings = {
            "processor_class": type(self).__name__,
            "max_length": self.max_length,
            "images": self.images.as_dict(),
            "pad_token": self.pad_token,
            "special_token_ids": self.special_token_ids,
        }
        with replacing(folder / TOKENIZER) as stream:
            stream.write(self.tokenizer.to_str())
        with replacing(folder / SETTINGS) as stream:
            json.dump(settings, stream)

    @classmethod
    def from_pretrained(cls, folder: Path | str, **_: Any) -> STAIRProcessor:
        """Of a checkpoint's folder; options of transformers' Auto classes mean nothing to it."""
        folder = Path(folder)
        for name in (SETTINGS, TOKENIZER):
            if not (folder / name).is_file():
                raise ValueError(f"{folder}: expected a STAIR checkpoint, but it has no {name}")
        settings: dict[str, Any] = json.loads((folder / SETTINGS).read_text(encoding="utf-8"))
        settings.pop("processor_class", None)
        return cls(Tokenizer.from_file(str(folder / TOKENIZER)), **settings)
