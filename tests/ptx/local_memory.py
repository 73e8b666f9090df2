"""Local memory: arrays of each lane's own, which nvcc makes for registers with a computed index."""

from __future__ import annotations

import numpy as np

from ptx.errors import LaneError
from ptx.memory import check_alignment
from ptx.scalars import Array

# Generic addresses of local memory begin here.
LOCAL_WINDOW = 1 << 45


class LocalMemory:
    """Bytes start out undefined."""

    def __init__(self, lanes: int, size_bytes: int) -> None:
        self.data = np.zeros((lanes, size_bytes), np.uint8)
        self.undefined = np.full((lanes, size_bytes), 0xFF, np.uint8)

    def load(self, address: Array, lanes: Array, size_bytes: int) -> tuple[Array, Array]:
        """[n, size_bytes] bytes of the `lanes` [n], and which of their bits are undefined."""
        place = self._place(address, lanes, size_bytes)
        return self.data[place], self.undefined[place]

    def store(self, address: Array, lanes: Array, data: Array, undefined: Array | None) -> None:
        place = self._place(address, lanes, data.shape[1])
        self.data[place] = data
        self.undefined[place] = 0 if undefined is None else undefined

    def _place(self, address: Array, lanes: Array, size_bytes: int) -> tuple[Array, Array]:
        address = address.astype(np.int64)
        outside = (address < 0) | (address + size_bytes > self.data.shape[1])
        if outside.any():
            bad = int(outside.argmax())
            place = f"{size_bytes} bytes at {int(address[bad]):#x} of {self.data.shape[1]}"
            raise LaneError(f"local access out of bounds: {place}", int(lanes[bad]))
        check_alignment(address, lanes, size_bytes, "local")
        return lanes[:, None], address[:, None] + np.arange(size_bytes)
