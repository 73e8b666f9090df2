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

if TYPE_CHECKING:
    from PIL.Image import Image

SETTINGS = "processor_config.json"
TOKENIZER = "tokenizer.json"
MEAN, SPREAD = 127.0, 128.0  # EfficientNet-lite's: (pixel - 127) / 128


class STAIRProcessor:
    """`processor(text=[...], images=[...])` gives input_ids, attention_mask [B, L] and pixel_values [B, 3, S, S].

    Args:
        tokenizer: a `tokenizers.Tokenizer` whose vocabulary is the model's.
        image_size: S, the side of the square that a picture is fitted into, on white.
        max_length: longest text in word-pieces; the rest is cut off.
    """

    def __init__(self, tokenizer: Tokenizer, image_size: int = 112, max_length: int = 32) -> None:
        self.tokenizer = tokenizer
        self.image_size = image_size
        self.max_length = max_length
        self.tokenizer.enable_padding()
        self.tokenizer.enable_truncation(max_length)

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
            tensors["pixel_values"] = self.normalize([fit_square(image, self.image_size) for image in listed])
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

    @staticmethod
    def normalize(pixels: np.ndarray | Sequence[np.ndarray]) -> Tensor:
        """uint8 pixels [B, S, S, 3] to float32 pixel_values [B, 3, S, S]."""
        stacked = torch.from_numpy(np.asarray(pixels)).permute(0, 3, 1, 2)
        return (stacked.float() - MEAN) / SPREAD

    @property
    def vocab_size(self) -> int:
        return self.tokenizer.get_vocab_size()

    def term(self, index: int) -> str:
        """The word-piece of a vocabulary entry; a piece that continues a word starts with '##'."""
        piece = self.tokenizer.id_to_token(index)
        if piece is None:
            raise ValueError(f"index: expected a vocabulary entry in [0, {self.vocab_size}), got {index}")
        return piece

    def vocabulary(self) -> list[str]:
        """Every word-piece by its entry."""
        return [self.term(index) for index in range(self.vocab_size)]

    def save_pretrained(self, folder: Path | str) -> None:
        folder = Path(folder)
        with replacing(folder / TOKENIZER) as stream:
            stream.write(self.tokenizer.to_str())
        with replacing(folder / SETTINGS) as stream:
            json.dump({"image_size": self.image_size, "max_length": self.max_length}, stream)

    @classmethod
    def from_pretrained(cls, folder: Path | str) -> STAIRProcessor:
        folder = Path(folder)
        for name in (SETTINGS, TOKENIZER):
            if not (folder / name).is_file():
                raise ValueError(f"{folder}: expected a STAIR checkpoint, but it has no {name}")
        settings: dict[str, Any] = json.loads((folder / SETTINGS).read_text(encoding="utf-8"))
        return cls(Tokenizer.from_file(str(folder / TOKENIZER)), **settings)


def fit_square(image: Image, size: int) -> np.ndarray:
    """A picture on white, padded to a square and resized: uint8 [size, size, 3]."""
    from PIL import Image as Pillow

    if not isinstance(image, Pillow.Image):
        raise ValueError(f"images: expected PIL pictures, got {type(image).__name__}")
    if image.width == 0 or image.height == 0:
        raise ValueError(f"images: expected a picture with pixels, got {image.width} x {image.height}")
    image = image.convert("RGBA")
    side = max(image.size)
    square = Pillow.new("RGBA", (side, side), (255, 255, 255, 255))
    square.alpha_composite(image, ((side - image.width) // 2, (side - image.height) // 2))
    return np.asarray(square.convert("RGB").resize((size, size), Pillow.Resampling.BICUBIC))
