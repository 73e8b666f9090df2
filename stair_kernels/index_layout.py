"""The arrays of a segment: its counts fix their types, their shapes and where they lie in its file."""

from __future__ import annotations

import math
from typing import NamedTuple

import numpy as np

try:
    from stair_kernels import _index
except ImportError as error:
    raise ImportError(
        f"stair_kernels: the search engine _index is not built for this Python ({error}); "
        "run `make setup` or `pip install -e .` in the checkout"
    ) from error

ALIGNMENT = 64  # of an array in a file


class Counts(NamedTuple):
    """What fixes every array; csrc/index/layout.h says what those of the engine hold."""

    documents: int
    vocab_size: int
    postings: int
    frequent: int  # terms with block maxima
    compact: int  # 1: row_weights are float16
    numbered: int  # 1: ids are 0 .. N-1 and not kept
    name_bytes: int | None  # of string ids, None: ids are integers
    payload_bytes: int | None  # None: documents have no payloads

    def arrays(self) -> dict[str, tuple[str, tuple[int, ...]]]:
        """The dtype and shape of each array, in the order of the file."""
        N, V, P, F = self.documents, self.vocab_size, self.postings, self.frequent
        chunks = -(-N // _index.CHUNK)
        arrays: dict[str, tuple[str, tuple[int, ...]]] = {
            "ids": ("<i8", (N,)),  # for string ids numbers in the order in which they were added
            "row_starts": ("<u4" if P <= _index.NARROW_POSTINGS else "<i8", (N + 1,)),
            "row_terms": ("<u2" if V <= _index.NARROW_TERMS else "<i4", (P,)),
            "row_weights": ("<f2" if self.compact else "<f4", (P,)),
            "term_starts": ("<i8", (V + 1,)),
            "segments": ("<u4", (V, -(-N // _index.RANGE) + 1)),
            "documents": ("<u2", (P,)),
            "codes": ("|u1", (P,)),
            "units": ("<f4", (V,)),
            "frequent_terms": ("<i4", (F,)),
            "frequent_means": ("<f4", (F,)),
            "block_max": ("|u1", (F, chunks * _index.CHUNK_BLOCKS)),
            "groups": ("<u8", (F, chunks * _index.CHUNK_GROUPS, 2)),
        }
        if self.numbered:
            del arrays["ids"]
        if self.name_bytes is not None:  # UTF-8, back to back; name_order: documents in the order of these bytes
            arrays["name_starts"] = ("<i8", (N + 1,))
            arrays["name_order"] = ("<i4", (N,))
            arrays["name_bytes"] = ("|u1", (self.name_bytes,))
        if self.payload_bytes is not None:
            arrays["payload_starts"] = ("<i8", (N + 1,))
            arrays["payload_bytes"] = ("|u1", (self.payload_bytes,))
        return arrays

    def offsets(self) -> tuple[dict[str, int], int]:
        """Where each array starts in the file, and the file's size."""
        offsets, end = {}, 0
        for name, (dtype, shape) in self.arrays().items():
            offsets[name] = -(-end // ALIGNMENT) * ALIGNMENT
            end = offsets[name] + math.prod(shape) * np.dtype(dtype).itemsize
        return offsets, end
