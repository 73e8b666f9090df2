"""Pictures with their captions: where a picture's bytes are, and the sets of pairs that the loaders give."""

from __future__ import annotations

import io
import os
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np

if TYPE_CHECKING:
    from PIL.Image import Image

SUFFIXES = (".bmp", ".gif", ".jpeg", ".jpg", ".png", ".tif", ".tiff", ".webp")


@dataclass(frozen=True)
class TarPicture:
    """A picture inside an uncompressed tar file: read at its place, never unpacked to disk."""

    shard: Path
    name: str  # of the member
    offset: int  # of its first byte in the shard
    size: int

    def __str__(self) -> str:
        return f"{self.shard}, {self.name}"

    def read(self) -> bytes:
        with open(self.shard, "rb") as stream:
            stream.seek(self.offset)
            return stream.read(self.size)


Picture = Path | TarPicture


@dataclass
class Pairs:
    """N pictures, each with one or more captions.

    `labels` and `classes` are there where every picture shows one of a list of classes: picture n shows
    classes[labels[n]].
    """

    pictures: list[Picture]
    texts: list[list[str]]
    labels: list[int] | None = None
    classes: list[str] = field(default_factory=list)

    def __len__(self) -> int:
        return len(self.pictures)

    def part(self, numbers: Sequence[int]) -> Pairs:
        """The pictures of these numbers."""
        labels = None if self.labels is None else [self.labels[n] for n in numbers]
        return Pairs([self.pictures[n] for n in numbers], [self.texts[n] for n in numbers], labels, self.classes)

    def split(self, held_out: float = 0.1, seed: int = 0) -> tuple[Pairs, Pairs]:
        """(training, held-out) pictures, drawn by `seed`; at least one of each when there are two."""
        order = np.random.default_rng(seed).permutation(len(self))
        count = min(max(round(len(self) * held_out), 1), len(self) - 1)
        return self.part(sorted(order[count:].tolist())), self.part(sorted(order[:count].tolist()))


def read_picture(picture: Picture | str) -> Image:
    """A decoded picture, RGBA; ValueError naming the file (and tar entry) when it is missing or is none."""
    from PIL import Image, UnidentifiedImageError

    try:
        source = io.BytesIO(picture.read()) if isinstance(picture, TarPicture) else picture
        with Image.open(source) as image:
            image.load()
            return image.convert("RGBA")
    except FileNotFoundError:
        raise ValueError(f"{picture}: no such picture") from None
    except IsADirectoryError:
        raise ValueError(f"{picture}: expected a picture, got a folder") from None
    except (UnidentifiedImageError, SyntaxError, ValueError, EOFError, Image.DecompressionBombError) as error:
        raise ValueError(f"{picture}: not a readable picture ({error})") from None
    except OSError as error:
        if error.errno is not None:
            raise
        raise ValueError(f"{picture}: not a readable picture ({error})") from None


def state_of(picture: Picture) -> str:
    """Changes when the picture's file does: its place, size and time of change, without reading it."""
    path = picture.shard if isinstance(picture, TarPicture) else picture
    stat = os.stat(path)
    inside = f"|{picture.offset}|{picture.size}" if isinstance(picture, TarPicture) else ""
    return f"{path.resolve()}|{stat.st_size}|{stat.st_mtime_ns}{inside}\n"
