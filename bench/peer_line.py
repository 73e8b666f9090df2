"""What bench/peers.py measures: a setting of an engine, ready to answer."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import scipy.sparse

K = 10
Search = Callable[[scipy.sparse.csr_matrix], np.ndarray]  # a row to the ids of its best


@dataclass(frozen=True)
class Line:
    """One setting of an engine."""

    engine: str
    setting: str
    search: Search
    build_s: float
    size_bytes: int | None  # on disk, None where it is not saved


def size(path: Path, pattern: str | None = None) -> int:
    """Bytes of a file, of a folder, or of what matches in a folder."""
    files = [path] if path.is_file() else path.rglob("*") if pattern is None else path.glob(pattern)
    return sum(file.stat().st_size for file in files if file.is_file())
