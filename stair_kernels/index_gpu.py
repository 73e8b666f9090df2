"""A search index on a GPU: its arrays as tensors, and the search that stair::search does over them."""

from __future__ import annotations

from collections.abc import Mapping

import numpy as np
import torch
from torch import Tensor

from stair_kernels import cuda
from stair_kernels.rows import SparseRows

MAX_RESULTS = 2048  # of a query: csrc/cuda/select.cuh
MAX_SLOTS = 1024  # of a query: csrc/cuda/bounds.cuh
COPIED = ("row_starts", "row_terms", "row_weights", "term_starts", "segments", "documents", "codes", "units")
_NO_TERM = 2**31 - 1  # sorts behind every term


def on_device(arrays: Mapping[str, np.ndarray], device: torch.device) -> dict[str, Tensor]:
    """The arrays copied to a CUDA device.

    Raises:
        ValueError: for a device that is not CUDA's.
        RuntimeError: without _C_cuda.so.
    """
    if device.type != "cuda":
        raise ValueError(f"device: expected cpu or a CUDA device, got {device}")
    cuda.require_library("SparseIndex.search")
    return as_tensors(arrays, device)


def as_tensors(arrays: Mapping[str, np.ndarray], device: torch.device) -> dict[str, Tensor]:
    """What stair::search takes of an index, in its order: copies of the arrays, and the ids with their ranks."""
    ids = np.asarray(arrays["ids"])
    order = np.argsort(ids)
    ranks = np.empty(len(ids), np.int32)
    ranks[order] = np.arange(len(ids))
    if (order == np.arange(len(ids))).all():
        ranks = ranks[:0]
    copied = {"ids": ids[order], "ranks": ranks, **{name: np.asarray(arrays[name]) for name in COPIED}}
    for name in ("documents", "codes"):  # which are read in pairs
        copied[name] = np.pad(copied[name], (0, len(copied[name]) % 2))
    return {name: torch.tensor(array, device=device) for name, array in copied.items()}


def search(arrays: dict[str, Tensor], queries: object, k: int) -> tuple[Tensor, Tensor]:
    """SparseIndex.search with the arrays of as_tensors, on their device: scores [Q, k] float32, ids [Q, k] int64.

    Does not wait for the device.

    Raises:
        ValueError: on queries of another kind, device or vocabulary, k outside of 1 .. 2,048, over 1,024 slots a query.
    """
    device, V = arrays["units"].device, len(arrays["units"])
    if not isinstance(queries, SparseRows):
        raise ValueError(f"queries: expected SparseRows for an index on {device}, got {type(queries).__name__}")
    if queries.device != device:
        raise ValueError(f"queries: expected device {device} like the index, got {queries.device}")
    if queries.vocab_size != V:
        raise ValueError(f"queries: expected vocab_size {V} like the index, got {queries.vocab_size}")
    if queries.k > MAX_SLOTS:
        raise ValueError(f"queries: expected at most {MAX_SLOTS} slots a query on a GPU, got {queries.k}")
    if k > MAX_RESULTS:
        raise ValueError(f"k: expected at most {MAX_RESULTS} on a GPU, got {k}")
    terms = torch.where(queries.indices < 0, _NO_TERM, queries.indices)
    terms, order = terms.sort(dim=1, stable=True)
    weights = queries.values.detach().gather(1, order)
    terms = torch.where(terms == _NO_TERM, -1, terms)
    return torch.ops.stair.search(terms, weights, *arrays.values(), int(k))
