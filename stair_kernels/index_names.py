"""Byte strings back to back in two flat arrays: the string ids of documents and their payloads."""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple

import numpy as np

from stair_kernels.index_layout import _index


class Strings(NamedTuple):
    """n byte strings: number i is data[starts[i] : starts[i + 1]]."""

    starts: np.ndarray  # int64 [n + 1]
    data: np.ndarray  # uint8

    @staticmethod
    def of(strings: Sequence[bytes]) -> Strings:
        starts = np.zeros(len(strings) + 1, np.int64)
        np.cumsum([len(string) for string in strings], out=starts[1:])
        return Strings(starts, np.frombuffer(b"".join(strings), np.uint8))

    @property
    def n(self) -> int:
        return len(self.starts) - 1

    def tolist(self) -> list[bytes]:
        data, starts = self.data.tobytes(), self.starts.tolist()
        return [data[first:end] for first, end in zip(starts[:-1], starts[1:])]

    def take(self, numbers: np.ndarray) -> Strings:
        """These of them, in this order. A damaged file may place one anywhere: it is cut to the data."""
        return Strings(*_index.take_names(*self, numbers))

    @staticmethod
    def cat(parts: Sequence[Strings]) -> Strings:
        lengths = np.concatenate([np.diff(part.starts) for part in parts])
        return Strings(np.concatenate([[0], np.cumsum(lengths)]), np.concatenate([part.data for part in parts]))
