"""Frozen image features, computed once and kept: pictures, their augmented copies, and the cache on disk."""

from __future__ import annotations

import hashlib
import os
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Protocol

import numpy as np
import torch
from torch import Tensor
from torch.nn import functional as F

from stair.datasets.pairs import Picture, read_picture, state_of
from stair.files import settle
from stair.pictures import ImageSettings

BATCH = 64
VERSION = 2  # part of every cache key: raise it when augment() or the backbone's arithmetic changes


class Pictures(Protocol):
    """N square pictures that can be read piece by piece, and how their pixels become pixel values."""

    settings: ImageSettings

    def __len__(self) -> int: ...

    def pixels(self, start: int, stop: int) -> np.ndarray:
        """uint8 [stop - start, S, S, 3]"""
        ...

    def key(self) -> str:
        """The same pictures give the same key, others another."""
        ...


class Frozen(Protocol):
    """What never learns: pixel_values [B, 3, S, S] to features [B, L, W] float32."""

    @property
    def compute_dtype(self) -> torch.dtype: ...

    def state_dict(self) -> dict[str, Tensor]: ...

    def __call__(self, pixel_values: Tensor) -> Tensor: ...


class PixelPictures:
    """Pictures in memory, uint8 [N, S, S, 3]."""

    def __init__(self, array: np.ndarray) -> None:
        self.array, self.settings = array, ImageSettings(array.shape[1])

    def __len__(self) -> int:
        return len(self.array)

    def pixels(self, start: int, stop: int) -> np.ndarray:
        return self.array[start:stop]

    def key(self) -> str:
        return hashlib.sha256(self.array.tobytes() + str(self.array.shape).encode()).hexdigest()


class FilePictures:
    """Picture files and tar entries, fitted into squares when they are read."""

    def __init__(self, pictures: Sequence[Picture], settings: ImageSettings) -> None:
        self.pictures, self.settings = list(pictures), settings

    def __len__(self) -> int:
        return len(self.pictures)

    def pixels(self, start: int, stop: int) -> np.ndarray:
        return np.stack([self.settings.fitted(read_picture(picture)) for picture in self.pictures[start:stop]])

    def key(self) -> str:
        """Of names, sizes and times of change: reading every file would cost what the cache saves."""
        digest = hashlib.sha256(str(self.settings).encode())
        for picture in self.pictures:
            digest.update(state_of(picture).encode())
        return digest.hexdigest()


class PixelValues:
    """In the place of kept features where no part of the image tower is frozen: pixel values, made when asked for.

    values[n, c] is float32 [3, S, S] of picture n, as it is for c = 0, else of its altered copy c, the same every time.
    """

    def __init__(self, pictures: Pictures, augmented: int = 0, seed: int = 0) -> None:
        self.pictures, self.seed = pictures, seed
        size = pictures.settings.size
        self.shape = (len(pictures), 1 + augmented, 3, size, size)

    def __getitem__(self, at: tuple[int, int]) -> np.ndarray:
        number, copy = (int(part) for part in at)
        pixels = self.pictures.pixels(number, number + 1)
        if copy > 0:
            drawn = np.random.SeedSequence((self.seed, number, copy)).generate_state(1)[0]
            pixels = augment(pixels, torch.Generator().manual_seed(int(drawn)))
        return self.pictures.settings.normalize(pixels)[0].numpy()


def cache_dir() -> Path:
    """Where features are kept: $STAIR_CACHE, else ~/.cache/stair."""
    chosen = os.environ.get("STAIR_CACHE")
    return Path(chosen) if chosen else Path.home() / ".cache" / "stair"


def features_of(
    backbone: Frozen,
    pictures: Pictures,
    augmented: int = 0,
    *,
    seed: int = 0,
    cache: Path | None = None,
    done: Callable[[int], None] | None = None,
) -> np.ndarray:
    """float16 [N, 1 + augmented, L, W], memory-mapped from the cache: each picture as it is, then its altered copies.

    Args:
        cache: the folder of the cache; `cache_dir()` unless given. A file there is whole or absent.
        done: called with the number of pictures finished so far; of N * (1 + augmented).
    """
    folder = cache_dir() if cache is None else cache
    weights = hashlib.sha256(b"".join(t.float().numpy().tobytes() for t in backbone.state_dict().values())).hexdigest()
    dtype = backbone.compute_dtype
    name = hashlib.sha256(f"{VERSION}|{pictures.key()}|{weights}|{dtype}|{augmented}|{seed}".encode()).hexdigest()
    path = folder / f"features-{name[:24]}.npy"
    if not path.exists():
        folder.mkdir(parents=True, exist_ok=True)
        settle(path)
        temporary = path.with_name(f".{path.name}.{os.getpid()}.tmp")
        try:
            _compute(temporary, backbone, pictures, augmented, seed, done)
            os.replace(temporary, path)
        finally:
            temporary.unlink(missing_ok=True)
    if done is not None:
        done(len(pictures) * (1 + augmented))
    return load_cached(path)


def load_cached(path: Path) -> np.ndarray:
    """A memory-mapped array of the cache; ValueError naming the file when it is damaged."""
    try:
        return np.load(path, mmap_mode="r")
    except (ValueError, EOFError) as error:
        raise ValueError(f"{path}: a damaged file of the cache ({error}); delete it and try again") from error


def _compute(
    path: Path,
    backbone: Frozen,
    pictures: Pictures,
    augmented: int,
    seed: int,
    done: Callable[[int], None] | None,
) -> None:
    with open(path, "wb") as stream:
        generator = torch.Generator().manual_seed(seed)
        for start in range(0, len(pictures), BATCH):
            pixels = pictures.pixels(start, min(start + BATCH, len(pictures)))
            copies = [pixels] + [augment(pixels, generator) for _ in range(augmented)]
            maps = np.stack([backbone(pictures.settings.normalize(copy)).half().numpy() for copy in copies], axis=1)
            if start == 0:
                header = {"descr": "<f2", "fortran_order": False, "shape": (len(pictures), *maps.shape[1:])}
                np.lib.format.write_array_header_1_0(stream, header)
            stream.write(np.ascontiguousarray(maps).tobytes())
            if done is not None:
                done(min(start + BATCH, len(pictures)) * (1 + augmented))


def augment(pixels: np.ndarray, generator: torch.Generator) -> np.ndarray:
    """Turned, scaled, moved, mirrored copies, recoloured or drawn in ink: uint8 [B, S, S, 3] to the same, on white."""
    B = len(pixels)

    def uniform(low: float, high: float, *shape: int) -> Tensor:
        return torch.empty(B, *shape).uniform_(low, high, generator=generator)

    angle, scale = uniform(-0.3, 0.3), uniform(0.85, 1.25)
    mirror = torch.where(uniform(0, 1) < 0.4, -1.0, 1.0)
    cosine, sine = scale * angle.cos(), scale * angle.sin()
    rows = [torch.stack([cosine * mirror, -sine, uniform(-0.12, 0.12)], 1)]
    rows.append(torch.stack([sine * mirror, cosine, uniform(-0.12, 0.12)], 1))
    x = torch.from_numpy(np.array(pixels)).permute(0, 3, 1, 2).float() / 255
    grid = F.affine_grid(torch.stack(rows, 1), list(x.shape), align_corners=False)
    x = 1 - F.grid_sample(1 - x, grid, mode="bilinear", padding_mode="zeros", align_corners=False)
    drawn = uniform(0, 1) < 0.3
    lines = ink(x[drawn], uniform(0, 1)[drawn] < 0.5)
    grey = x.mean(1, keepdim=True)
    x = grey + (x - grey) * uniform(0, 1.6, 1, 1, 1)
    swapped = uniform(0, 1) < 0.2
    x[swapped] = x[swapped][:, torch.randperm(3, generator=generator)]
    x = x.clamp(0, 1) ** uniform(0.6, 1.6, 1, 1, 1) * uniform(0.7, 1.0, 1, 1, 1)
    x[drawn] = lines
    return (x * 255).clamp(0, 255).permute(0, 2, 3, 1).to(torch.uint8).numpy()


def ink(x: Tensor, bold: Tensor) -> Tensor:
    """The edges of pictures x [B, 3, S, S] in [0, 1] as black lines on white, thicker where `bold` [B] is True."""
    sobel = torch.tensor([[1.0, 2.0, 1.0], [0.0, 0.0, 0.0], [-1.0, -2.0, -1.0]]) / 4
    kernels = torch.stack([sobel, sobel.T])[:, None].repeat(3, 1, 1, 1)
    slopes = F.conv2d(F.pad(x, (1, 1, 1, 1), mode="replicate"), kernels, groups=3).unflatten(1, (3, 2))
    edges = slopes.square().sum(2).sqrt().amax(1, keepdim=True)
    edges = torch.where(bold[:, None, None, None], F.max_pool2d(edges, 3, 1, 1), edges)
    return (1 - (2.5 * edges - 0.3).clamp(0, 1)).expand(-1, 3, -1, -1)
