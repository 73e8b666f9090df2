"""SparseIndex: exact top-k retrieval over sparse rows, kept in memory or on disk."""

from __future__ import annotations

import os
from typing import Any, TypeAlias

import numpy as np
import scipy.sparse
import torch
from torch import Tensor

from stair_kernels import index_files, index_gpu
from stair_kernels.index_files import _index
from stair_kernels.rows import SparseRows

Rows: TypeAlias = SparseRows | scipy.sparse.csr_matrix | scipy.sparse.csr_array | Tensor


class SparseIndex:
    """Exact top-k maximum inner product over N sparse documents with non-negative weights.

        score[q, n] = sum_v query[q, v] * document[n, v]     in float32, v ascending

    That order and rounding (each product, then each sum, to float32) define the score: it has the same bits for any
    number of threads and after saving and opening. Documents are ranked by score descending, equal scores by the lower
    id; a document that shares no entry with the query (score 0) is not returned.

    Made by `SparseIndex.build` or `SparseIndex.open`; immutable, and safe to search from several threads at once.
    """

    def __init__(self, counts: index_files.Counts, arrays: dict[str, np.ndarray]) -> None:
        self._counts = counts
        self._arrays = arrays
        self._engine = _index.Index(arrays)
        self._tensors: dict[str, Tensor] | None = None  # the arrays on a GPU

    def to(self, device: str | torch.device) -> SparseIndex:
        """The index on a CUDA device, where `search` runs on it; or back on the CPU. Itself where it is there already.

        Raises:
            ValueError: for another kind of device.
            RuntimeError: for a CUDA device without the CUDA library.
        """
        device = torch.device(device)
        if device.type == "cuda" and device.index is None:
            device = torch.device("cuda", torch.cuda.current_device())
        if device == self.device:
            return self
        index = SparseIndex(self._counts, self._arrays)
        if device.type != "cpu":
            index._tensors = index_gpu.on_device(self._arrays, device)
        return index

    @property
    def device(self) -> torch.device:
        """Where `search` runs."""
        return torch.device("cpu") if self._tensors is None else self._tensors["units"].device

    @staticmethod
    def build(rows: Rows, ids: Any = None, *, reorder: bool = False, compact: bool = False) -> SparseIndex:
        """The index of the rows of a SparseRows, a SciPy CSR matrix or a torch sparse CSR tensor [N, V].

        Args:
            rows: N documents; weights finite and >= 0 in float32. Columns of a CSR may come in any order.
            ids: N unique integers other than -1 that `search` returns for the documents; 0 .. N-1 when None.
            reorder: lay documents that share terms side by side: search leaves more of them out, building takes
                longer. The results are the same.
            compact: round the weights to float16 (relative error <= 2^-11; below 6.1e-5 absolute error <= 3e-8), which
                makes the index smaller. The scores are exactly those of the rounded weights.

        Raises:
            ValueError: on negative, NaN or infinite weights (in float16 for a compact index), indices out of range or
                twice in a row, and on ids of another number or type or not unique.
        """
        documents = _checked_rows(rows, "rows", np.float16 if compact else np.float32)
        numbers = _checked_ids(ids, len(documents))
        order = _index.cluster(documents) if reorder else np.argsort(numbers)
        arrays = {"ids": numbers[order], **_index.build(documents, order, compact)}
        counts = index_files.Counts(
            *(len(documents), documents.vocab_size, len(arrays["codes"]), len(arrays["frequent_terms"])), int(compact)
        )
        return SparseIndex(counts, arrays)

    @staticmethod
    def open(path: str | os.PathLike[str], verify: bool = False) -> SparseIndex:
        """The index that `save` wrote at `path`, memory-mapped: search reads the files as it needs them.

        The manifest, the files' sizes and the structure that memory safety rests on are always checked; `verify=True`
        reads every file and compares its SHA-256 too.

        Raises:
            ValueError: when `path` holds no index, one of another version, or a damaged one.
        """
        counts, arrays = index_files.read(path, verify)
        try:
            return SparseIndex(counts, arrays)
        except ValueError as error:
            raise ValueError(f"path: expected a sound index, but {path} is damaged ({error}): rebuild it") from error

    def save(self, path: str | os.PathLike[str]) -> None:
        """Write the index as a directory, or replace the index that is at `path`.

        A kill or an error at any moment leaves what was there or the new index, never a mixture; an index that was
        opened from `path` keeps its files.

        Raises:
            ValueError: when `path` is a file or a directory that is neither empty nor an index.
            OSError: when it cannot be written (no permission, disk full); nothing half written is left.
        """
        index_files.write(path, self._counts, self._arrays)

    def search(self, queries: Rows, k: int, n_threads: int | None = None) -> tuple[Tensor, Tensor]:
        """The k best documents for each query: (scores [Q, k] float32, ids [Q, k] int64), on the index's device.

        On a GPU the results are the same to the bit, and the host does not wait for them. Nobody can raise an error for
        what only the device knows: a query with a weight that is negative or not finite, or with a term twice, has
        scores NaN and ids -1 there.

        Args:
            queries: Q rows over the index's vocabulary, of any type and with any weights that `build` takes; for an
                index on a GPU SparseRows there, of at most 1,024 slots.
            k: results a query, at least 1, on a GPU at most 2,048; a query with fewer matches is padded with score -inf
                and id -1.
            n_threads: threads over which the queries are spread; `torch.get_num_threads()` when None. CPU only.

        Raises:
            ValueError: on bad queries, another vocabulary size or device, k < 1 or n_threads < 1.
        """
        for name, number in (("k", k), ("n_threads", n_threads)):
            if (number is not None or name == "k") and (not isinstance(number, (int, np.integer)) or number < 1):
                raise ValueError(f"{name}: expected an integer >= 1, got {number!r}")
        if self._tensors is not None:
            if n_threads is not None:
                raise ValueError(f"n_threads: expected None for an index on {self.device}, got {n_threads}")
            return index_gpu.search(self._tensors, queries, k)
        rows = _checked_rows(queries, "queries")
        if rows.vocab_size != self.vocab_size:
            raise ValueError(f"queries: expected vocab_size {self.vocab_size} like the index, got {rows.vocab_size}")
        scores, ids = self._engine.search(rows, k, n_threads or torch.get_num_threads())
        return torch.from_numpy(scores), torch.from_numpy(ids)

    @property
    def vocab_size(self) -> int:
        """V, the number of columns."""
        return self._counts.vocab_size

    def __len__(self) -> int:
        """N, the number of documents."""
        return self._counts.documents

    def stats(self) -> dict[str, int]:
        """Documents, terms (columns with an entry), postings (entries), frequent (terms with block maxima) and bytes.

        The bytes are those of the arrays, here or on disk.
        """
        return {
            "documents": self._counts.documents,
            "terms": int(np.count_nonzero(np.diff(self._arrays["term_starts"]))),
            "postings": self._counts.postings,
            "frequent": self._counts.frequent,
            "bytes": sum(array.nbytes for array in self._arrays.values()),
        }

    def __repr__(self) -> str:
        return f"SparseIndex(N={len(self)}, V={self.vocab_size}, postings={self._counts.postings})"


def _checked_rows(rows: Rows, name: str, dtype: type[np.floating[Any]] = np.float32) -> _index.Rows:
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


def _checked_ids(ids: Any, N: int) -> np.ndarray:
    if ids is None:
        return np.arange(N, dtype=np.int64)
    array = np.asarray(ids.detach().cpu() if isinstance(ids, Tensor) else ids)
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
