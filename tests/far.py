"""Tensors of more elements than memory holds."""

from __future__ import annotations

import math
from pathlib import Path

import torch
from torch import Tensor


def holes(folder: Path, *shape: int, dtype: torch.dtype) -> Tensor:
    """Zeros in a file of holes: they take no memory before somebody writes."""
    path = folder / "holes"
    tensor = torch.from_file(str(path), shared=True, size=math.prod(shape), dtype=dtype).view(shape)
    path.unlink()  # the memory stays mapped
    return tensor
