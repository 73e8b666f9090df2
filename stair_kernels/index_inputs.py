"""What callers of SparseIndex may pass, checked once and brought to the forms that the engine takes."""

from __future__ import annotations

from typing import Any, TypeAlias

import numpy as np
import scipy.sparse
import torch
from torch import Tensor

from stair_kernels.index_files import _index
from stair_kernels.rows import SparseRows

Rows: TypeAlias = SparseRows | scipy.sparse.csr_matrix | scipy.sparse.csr_array | Tensor


def checked_rows(rows: Rows, name: str, dtype: type[np.floating[Any]] = np.float32) -> _index.Rows:
    """The engine's form of the rows: rounded to dtype, checked, columns ascending, entries of weight 0 left out."""
    starts: np.ndarray
    terms: np.ndarray
    weights: np.ndarray
    if isinstance(rows, SparseRows):
        starts = np.arange(len(rows) + 1) * rows.k
        terms, weights, vocab_size = rows.indices.cpu().numpy(), _numpy(rows.values), rows.vocab_size
    elif isinstance(rows, Tensor) and rows.layout == torch.sparse_csr and rows.dim() == 2:
        starts, terms, weights = (_numpy(part) for part in (rows.crow_indices(), rows.col_indices(), rows.values()))
        vocab_size = rows.shape[1]
    elif not isinstance(rows, Tensor) and scipy.sparse.issparse(rows) and rows.format == "csr" and rows.ndim == 2:
        starts, terms, weights, vocab_size = rows.indptr, rows.indices, rows.data, rows.shape[1]
    else:
        kind = f"{type(rows).__name__} {getattr(rows, 'layout', '')}{getattr(rows, 'format', '')}".strip()
        raise ValueError(f"{name}: expected SparseRows, a SciPy CSR matrix or a torch sparse CSR tensor, got {kind}")
    if weights.dtype.kind not in "fiub":
        raise ValueError(f"{name}: expected real weights, got {weights.dtype}")
    try:
        with np.errstate(over="ignore"):  # what overflows is refused as infinite
            weights = weights.astype(dtype, copy=False).astype(np.float32, copy=False)
            return _index.Rows(starts, terms.ravel(), weights.ravel(), vocab_size, isinstance(rows, SparseRows))
    except ValueError as error:
        message = str(error).replace("in float32", f"in {np.dtype(dtype)}")
        raise ValueError(f"{name}: {message}") from None


def _numpy(tensor: Tensor) -> np.ndarray:
    tensor = tensor.detach().cpu()
    return (tensor.float() if tensor.dtype == torch.bfloat16 else tensor).numpy()


def as_array(values: Any) -> np.ndarray:
    return np.asarray(values.detach().cpu() if isinstance(values, Tensor) else values)


def checked_ids(ids: Any, N: int) -> np.ndarray:
    if ids is None:
        return np.arange(N, dtype=np.int64)
    array = as_array(ids)
    if array.shape != (N,) or (array.dtype.kind not in "iu" and N):
        raise ValueError(f"ids: expected {N} integers, one a row, got {list(array.shape)} {array.dtype}")
    if array.dtype == np.uint64 and N and array.max() > np.iinfo(np.int64).max:
        raise ValueError(f"ids: expected integers that fit int64, got {array.max()}")
    array = array.astype(np.int64)
    unique, counts = np.unique(array, return_counts=True)
    if len(unique) < N:
        raise ValueError(f"ids: expected unique integers, got {unique[counts > 1][0]} more than once")
    if (array == -1).any():
        raise ValueError("ids: expected integers other than -1, which pads the results, got -1")
    return array


def checked_allowed(allowed: Any, N: int) -> np.ndarray:
    """bool [N] or int64 ids."""
    array = as_array(allowed)
    if array.dtype == bool and array.shape == (N,):
        return array
    if array.ndim == 1 and (array.dtype.kind in "iu" or not array.size):
        return array.astype(np.int64)
    raise ValueError(f"allowed: expected a bool [{N}] or integer ids, got {list(array.shape)} {array.dtype}")
