"""Pictures to pixel values as an encoder wants them: the settings of its image processor, and what they mean."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from torch import Tensor

if TYPE_CHECKING:
    from PIL.Image import Image

FITS = ("pad", "crop", "stretch")
BICUBIC = 3  # Pillow's number


@dataclass(frozen=True)
class ImageSettings:
    """How a picture becomes S x S pixel values: (pixel - mean) / spread, pixel in 0 .. 255.

    Args:
        size: S.
        fit: "pad": put on a white square, then resized; "crop": the shorter side resized to `edge`, then the middle;
            "stretch": resized whatever its shape.
        edge: of "crop"; S when None.
        mean, spread: a channel each; the light tower's unless given.
        resample: Pillow's number of the filter.
    """

    size: int = 112
    fit: str = "pad"
    edge: int | None = None
    mean: tuple[float, ...] = (127.0, 127.0, 127.0)
    spread: tuple[float, ...] = (128.0, 128.0, 128.0)
    resample: int = BICUBIC

    def __post_init__(self) -> None:
        if self.fit not in FITS:
            raise ValueError(f"fit: expected one of {', '.join(FITS)}, got {self.fit!r}")
        if self.size < 1 or (self.edge is not None and self.edge < self.size):
            raise ValueError(f"size, edge: expected 0 < size <= edge, got {self.size}, {self.edge}")
        for name in ("mean", "spread"):
            object.__setattr__(self, name, tuple(float(value) for value in getattr(self, name)))
            if len(getattr(self, name)) != 3:
                raise ValueError(f"{name}: expected a value for each of 3 channels, got {getattr(self, name)}")

    def as_dict(self) -> dict[str, Any]:
        return asdict(self)

    @staticmethod
    def of_encoder(source: Path | str) -> ImageSettings:
        """Of the preprocessor_config.json of a published encoder; OSError when it has none."""
        from transformers.image_processing_base import ImageProcessingMixin

        return ImageSettings.of_dict(ImageProcessingMixin.get_image_processor_dict(source)[0])

    @staticmethod
    def of_dict(given: dict[str, Any]) -> ImageSettings:
        """Of an image processor's settings: CLIP's, ViT's, SigLIP's, DINOv2's and those of the same form."""
        size = given.get("size", 224)
        size = {"height": size, "width": size} if isinstance(size, int) else size
        shortest = size.get("shortest_edge")
        cropped = given.get("do_center_crop", shortest is not None)
        if cropped:
            crop = given.get("crop_size", shortest)
            side = crop.get("height") if isinstance(crop, dict) else crop
        else:
            side = size["height"] if size.get("height") == size.get("width") else None
        if side is None:
            raise ValueError(f"size: expected a square image processor, got {size}")
        scale = 1.0 / given.get("rescale_factor", 1 / 255) if given.get("do_rescale", True) else 1.0
        normal = given.get("do_normalize", True)
        mean, spread = (given.get(f"image_{name}") if normal else None for name in ("mean", "std"))
        return ImageSettings(
            size=side,
            fit="crop" if cropped else "stretch",
            edge=(shortest or side) if cropped else None,
            mean=tuple(scale * value for value in (mean or (0.0, 0.0, 0.0))),
            spread=tuple(scale * value for value in (spread or (1.0, 1.0, 1.0))),
            resample=given.get("resample", BICUBIC),
        )

    def fitted(self, image: Image) -> np.ndarray:
        """A picture on white as uint8 [S, S, 3]."""
        if self.fit == "pad":
            return fit_square(image, self.size, self.resample)
        image = _on_white(image)
        if self.fit == "stretch":
            return np.asarray(image.resize((self.size, self.size), self.resample))
        edge = self.edge or self.size
        short = min(image.size)
        width, height = (max(edge, int(edge * side / short)) for side in image.size)
        image = image.resize((width, height), self.resample)
        left, top = (width - self.size) // 2, (height - self.size) // 2
        return np.asarray(image.crop((left, top, left + self.size, top + self.size)))

    def normalize(self, pixels: np.ndarray | Sequence[np.ndarray]) -> Tensor:
        """uint8 pixels [B, S, S, 3] to float32 pixel_values [B, 3, S, S]."""
        stacked = torch.from_numpy(np.asarray(pixels)).permute(0, 3, 1, 2)
        mean, spread = (torch.tensor(values).view(3, 1, 1) for values in (self.mean, self.spread))
        return (stacked.float() - mean) / spread


def fit_square(image: Image, size: int, resample: int = BICUBIC) -> np.ndarray:
    """A picture on white, padded to a square and resized: uint8 [size, size, 3]."""
    from PIL import Image as Pillow

    image = _checked(image).convert("RGBA")
    side = max(image.size)
    square = Pillow.new("RGBA", (side, side), (255, 255, 255, 255))
    square.alpha_composite(image, ((side - image.width) // 2, (side - image.height) // 2))
    return np.asarray(square.convert("RGB").resize((size, size), resample))


def _on_white(image: Image) -> Image:
    from PIL import Image as Pillow

    image = _checked(image).convert("RGBA")
    white = Pillow.new("RGBA", image.size, (255, 255, 255, 255))
    white.alpha_composite(image)
    return white.convert("RGB")


def _checked(image: Any) -> Image:
    from PIL import Image as Pillow

    if not isinstance(image, Pillow.Image):
        raise ValueError(f"images: expected PIL pictures, got {type(image).__name__}")
    if image.width == 0 or image.height == 0:
        raise ValueError(f"images: expected a picture with pixels, got {image.width} x {image.height}")
    return image
