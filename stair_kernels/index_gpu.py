"""DeviceIndex: a search index on a GPU."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor

from stair_kernels import cuda
from stair_kernels.index_segments import Segment
from stair_kernels.rows import SparseRows

MAX_RESULTS = 2048  # of a query: csrc/cuda/select.cuh
MAX_SLOTS = 1024  # of a query: csrc/cuda/bounds.cuh
COPIED = ("row_starts", "row_terms", "row_weights", "term_starts", "segments", "documents", "codes", "units")
_NO_TERM = 2**31 - 1  # sorts behind every term


def checked_device(device: str | torch.device) -> torch.device:
    """A CUDA device, for which the kernels are there."""
    device = torch.device(device)
    if device.type != "cuda":
        raise ValueError(f"device: expected a CUDA device, got {device}")
    cuda.require_library("SparseIndex.to")
    return device


def as_tensors(segment: Segment, device: torch.device) -> dict[str, Tensor]:
    """What stair::search takes of a segment, in its order: copies of the arrays, and the ids with their ranks."""
    ids = segment.numbers
    order = np.argsort(ids)
    ranks = np.empty(len(ids), np.int32)
    ranks[order] = np.arange(len(ids))
    if (order == np.arange(len(ids))).all():
        ranks = ranks[:0]
    copied = {"ids": ids[order], "ranks": ranks, **{name: np.asarray(segment.arrays[name]) for name in COPIED}}
    copied["row_starts"] = copied["row_starts"].astype(np.int64)
    for name in ("documents", "codes"):  # which are read in pairs
        copied[name] = np.pad(copied[name], (0, len(copied[name]) % 2))
    return {name: torch.tensor(array, device=device) for name, array in copied.items()}


@dataclass(frozen=True)
class DeviceIndex:
    """A SparseIndex on a GPU, made by `SparseIndex.to`: the same results to the bit, from tensors that never change."""

    arrays: dict[str, Tensor]  # as_tensors'

    def search(self, queries: SparseRows, k: int) -> tuple[Tensor, Tensor]:
        """The k best documents for each query: (scores [Q, k] float32, ids [Q, k] int64), on the device.

        The host does not wait for them, so that nobody can raise an error for what only the device knows: a query with
        a weight that is negative or not finite, or with a term twice, has scores NaN and ids -1.

        Args:
            queries: Q rows on the device, over the index's vocabulary, of at most 1,024 slots.
            k: results a query, 1 to 2,048; a query with fewer matches is padded with score -inf and id -1.

        Raises:
            ValueError: on queries of another kind, device, vocabulary size or width, and on another k.
        """
        if not isinstance(queries, SparseRows):
            raise ValueError(
                f"queries: expected SparseRows for an index on {self.device}, got {type(queries).__name__}"
            )
        if queries.device != self.device:
            raise ValueError(f"queries: expected device {self.device} like the index, got {queries.device}")
        if queries.vocab_size != self.vocab_size:
            raise ValueError(f"queries: expected vocab_size {self.vocab_size} like the index, got {queries.vocab_size}")
        if queries.k > MAX_SLOTS:
            raise ValueError(f"queries: expected at most {MAX_SLOTS} slots a query on a GPU, got {queries.k}")
        if not isinstance(k, (int, np.integer)) or not 1 <= k <= MAX_RESULTS:
            raise ValueError(f"k: expected an integer from 1 to {MAX_RESULTS} on a GPU, got {k!r}")
        terms = torch.where(queries.indices < 0, _NO_TERM, queries.indices)
        terms, order = terms.sort(dim=1, stable=True)
        weights = queries.values.detach().gather(1, order)
        terms = torch.where(terms == _NO_TERM, -1, terms)
        return torch.ops.stair.search(terms, weights, *self.arrays.values(), int(k))

    @property
    def device(self) -> torch.device:
        """Where it is, and where `search` runs."""
        return self.arrays["units"].device

    @property
    def vocab_size(self) -> int:
        """V, the number of columns."""
        return len(self.arrays["units"])

    def __len__(self) -> int:
        """N, the number of documents."""
        return len(self.arrays["ids"])

    def __repr__(self) -> str:
        return f"DeviceIndex(N={len(self)}, V={self.vocab_size}, device={str(self.device)!r})"
