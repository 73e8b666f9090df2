"""What callers of SparseIndex may pass, checked once and brought to the forms that the engine takes."""

from __future__ import annotations

from typing import Any, TypeAlias

import numpy as np
import scipy.sparse
import torch
from torch import Tensor

from stair_kernels.index_layout import _index
from stair_kernels.index_names import Strings
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


def as_ids(ids: Any, name: str = "ids", padding: bool = False) -> tuple[np.ndarray | Strings, tuple[int, ...]]:
    """Integers as they are or strings as UTF-8, flat, and their shape; with `padding` None is an empty string."""
    array = ids if isinstance(ids, (np.ndarray, Tensor)) else np.asarray(ids, object)
    if isinstance(array, Tensor) or array.dtype.kind not in "OU":
        return as_array(array).ravel(), tuple(array.shape)
    flat = array.ravel().tolist()
    is_padding = padding and flat and all(value is None for value in flat)
    if array.dtype.kind != "U" and not is_padding and not any(isinstance(value, str) for value in flat):
        array = as_array(ids)
        return array.ravel(), array.shape
    encoded = []
    for value in flat:
        if not isinstance(value, str) and not (padding and value is None):
            raise ValueError(f"{name}: expected integers or strings, not both, got {value!r} among strings")
        try:
            encoded.append((value or "").encode())
        except UnicodeEncodeError:
            raise ValueError(f"{name}: expected strings that UTF-8 can hold, got {value!r}") from None
    return Strings.of(encoded), array.shape


def checked_ids(ids: Any, N: int) -> np.ndarray | Strings:
    """N unique ids: int64, or strings of at least one character."""
    if ids is None:
        return np.arange(N, dtype=np.int64)
    array, shape = as_ids(ids)
    if isinstance(array, Strings):
        if shape != (N,):
            raise ValueError(f"ids: expected {N} strings, one a row, got {list(shape)}")
        return checked_names(array)
    if shape != (N,) or (array.dtype.kind not in "iu" and N):
        raise ValueError(f"ids: expected {N} integers or strings, one a row, got {list(shape)} {array.dtype}")
    if array.dtype == np.uint64 and N and array.max() > np.iinfo(np.int64).max:
        raise ValueError(f"ids: expected integers that fit int64, got {array.max()}")
    array = array.astype(np.int64)
    unique, counts = np.unique(array, return_counts=True)
    if len(unique) < N:
        raise ValueError(f"ids: expected unique integers, got {unique[counts > 1][0]} more than once")
    if (array == -1).any():
        raise ValueError("ids: expected integers other than -1, which pads the results, got -1")
    return array


def checked_names(names: Strings) -> Strings:
    every = names.tolist()
    if b"" in every:
        raise ValueError("ids: expected strings of at least one character, got ''")
    if len(set(every)) < len(every):
        seen: set[bytes] = set()
        twice = next(name for name in every if name in seen or seen.add(name))  # type: ignore[func-returns-value]
        raise ValueError(f"ids: expected unique strings, got {twice.decode()!r} more than once")
    return names


def checked_allowed(allowed: Any, N: int) -> np.ndarray | Strings:
    """bool [N] or ids."""
    array, shape = as_ids(allowed, "allowed")
    if isinstance(array, Strings):
        if len(shape) == 1:
            return array
        raise ValueError(f"allowed: expected a bool [{N}] or ids, got {list(shape)} strings")
    if array.dtype == bool and shape == (N,):
        return array
    if len(shape) == 1 and (array.dtype.kind in "iu" or not array.size):
        return array.astype(np.int64)
    raise ValueError(f"allowed: expected a bool [{N}] or ids, got {list(shape)} {array.dtype}")


def checked_payloads(payloads: Any, N: int) -> Strings | None:
    """N byte strings, or None when there are to be none."""
    if payloads is None:
        return None
    every = list(payloads)
    if len(every) != N or not all(isinstance(payload, bytes) for payload in every):
        kinds = sorted({type(payload).__name__ for payload in every})
        raise ValueError(f"payloads: expected {N} bytes objects, one a row, got {len(every)} of {', '.join(kinds)}")
    return Strings.of(every)


def checked_timeout(timeout: Any) -> float:
    if isinstance(timeout, (int, float)) and timeout >= 0:
        return float(timeout)
    raise ValueError(f"timeout: expected seconds >= 0, got {timeout!r}")
