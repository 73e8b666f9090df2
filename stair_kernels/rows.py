"""SparseRows: the fixed-width sparse batch that every operator gives and takes."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor

if TYPE_CHECKING:
    import numpy as np


class SparseRows:
    """B sparse vectors over a vocabulary, at most K entries each.

        dense[b, indices[b, j]] = values[b, j]   for every slot j with indices[b, j] >= 0

    Args:
        values: [B, K] float32, descending along a row, ties by lower index. NaN marks a row whose logits held a NaN.
        indices: [B, K] int32, the vocabulary entry of each slot, unique within a row; -1 in a slot without an entry.
        positions: [B, K] int32, the sequence position that won the maximum (-1 without an entry), or None.
        vocab_size: V, the number of columns of the dense matrix.

    A slot without an entry holds value 0, index -1 and position -1; such slots stand at the end of a row.

    Raises:
        ValueError: on a wrong shape, dtype or device, or (CPU tensors only: no hidden synchronisation) an index
            outside [-1, vocab_size).
    """

    __slots__ = ("indices", "positions", "values", "vocab_size")

    def __init__(self, values: Tensor, indices: Tensor, positions: Tensor | None, vocab_size: int) -> None:
        if values.dim() != 2 or values.dtype != torch.float32:
            raise ValueError(f"values: expected [B, K] float32, got {list(values.shape)} {values.dtype}")
        for name, tensor in (("indices", indices), ("positions", positions)):
            if tensor is None and name == "positions":
                continue
            if tensor is None or tensor.shape != values.shape or tensor.dtype != torch.int32:
                got = "None" if tensor is None else f"{list(tensor.shape)} {tensor.dtype}"
                raise ValueError(f"{name}: expected {list(values.shape)} int32 like values, got {got}")
            if tensor.device != values.device:
                raise ValueError(f"{name}: expected device {values.device} like values, got {tensor.device}")
        if vocab_size < 0:
            raise ValueError(f"vocab_size: expected a non-negative integer, got {vocab_size}")
        if _readable(indices) and indices.numel():
            low, high = (int(bound) for bound in torch.aminmax(indices))
            if low < -1 or high >= vocab_size:
                raise ValueError(f"indices: expected values in [-1, {vocab_size}), got values in [{low}, {high}]")
        self.values = values
        self.indices = indices
        self.positions = positions
        self.vocab_size = vocab_size

    @property
    def shape(self) -> tuple[int, int]:
        """(B, V), the shape of the dense matrix."""
        return self.values.shape[0], self.vocab_size

    @property
    def k(self) -> int:
        """K, the number of slots a row."""
        return self.values.shape[1]

    @property
    def device(self) -> torch.device:
        """Where the rows are."""
        return self.values.device

    def __len__(self) -> int:
        return self.values.shape[0]

    def __repr__(self) -> str:
        return f"SparseRows(B={len(self)}, K={self.k}, V={self.vocab_size}, device={self.device})"

    def __getitem__(self, rows: slice) -> SparseRows:
        """`rows[i:j]`: a view of the rows i to j."""
        if not isinstance(rows, slice):
            raise ValueError(f"rows: expected a slice such as rows[i:j], got {type(rows).__name__}")
        positions = None if self.positions is None else self.positions[rows]
        return trusted_rows(self.values[rows], self.indices[rows], positions, self.vocab_size)

    def nnz(self) -> Tensor:
        """[B] int64: the number of entries in each row."""
        return (self.indices >= 0).sum(dim=1)

    def to(self, device: torch.device | str) -> SparseRows:
        """The same rows on another device."""
        positions = None if self.positions is None else self.positions.to(device)
        return trusted_rows(self.values.to(device), self.indices.to(device), positions, self.vocab_size)

    def detach(self) -> SparseRows:
        """The same rows outside the autograd graph."""
        return trusted_rows(self.values.detach(), self.indices, self.positions, self.vocab_size)

    def to_dense(self) -> Tensor:
        """[B, V] float32; differentiable in values."""
        return scatter_rows(self.values, self.indices, self.vocab_size)

    def to_csr(self) -> Tensor:
        """The rows as a torch sparse CSR tensor [B, V], columns ascending, without the empty slots."""
        order = torch.where(self.indices >= 0, self.indices, self.vocab_size).argsort(dim=1, stable=True)
        indices, values = self.indices.gather(1, order), self.values.gather(1, order)
        filled = indices >= 0
        crow = torch.nn.functional.pad(filled.sum(dim=1).cumsum(0), (1, 0))
        return torch.sparse_csr_tensor(
            crow, indices[filled].long(), values[filled], size=self.shape, check_invariants=False
        )

    @staticmethod
    def from_csr(csr: Any, k: int | None = None) -> SparseRows:
        """The rows of a SciPy CSR matrix or a torch sparse CSR tensor; K is `k` or the longest row.

        Raises ValueError for anything else, for duplicate entries, and for a row with more than `k` entries.
        """
        import numpy as np

        crow, column, value, (B, V) = csr_arrays(csr)
        counts = np.diff(crow)
        longest = int(counts.max(initial=0))
        width = longest if k is None else k
        if longest > width:
            raise ValueError(f"k: expected at least {longest}, the longest row of the matrix, got {k}")
        row = np.repeat(np.arange(B), counts)
        order = np.lexsort((column, -value, row))
        slot = np.arange(len(row)) - np.repeat(crow[:-1], counts)
        values, indices = np.zeros((B, width), np.float32), np.full((B, width), -1, np.int32)
        values[row, slot], indices[row, slot] = value[order], column[order]
        return SparseRows(torch.from_numpy(values), torch.from_numpy(indices), None, V)

    @staticmethod
    def from_dense(dense: Tensor, k: int | None = None) -> SparseRows:
        """The positive entries of a dense [B, V]; K is `k` (the largest are kept) or the longest row's count."""
        from stair_kernels.ops import topk

        if dense.dim() != 2:
            raise ValueError(f"dense: expected [B, V], got {list(dense.shape)}")
        kept = int((~(dense <= 0)).sum(dim=1).max()) if dense.numel() else 0
        return topk(dense, max(1, kept) if k is None else k)

    @staticmethod
    def cat(batches: Sequence[SparseRows]) -> SparseRows:
        """The rows of several batches one after the other; narrower ones are widened with empty slots."""
        if not batches:
            raise ValueError("batches: expected at least one SparseRows, got none")
        if len({rows.vocab_size for rows in batches}) > 1:
            raise ValueError(f"batches: expected one vocab_size, got {[rows.vocab_size for rows in batches]}")
        K = max(rows.k for rows in batches)

        def joined(name: str, fill: int) -> Tensor:
            parts = [getattr(rows, name) for rows in batches]
            return torch.cat([torch.nn.functional.pad(part, (0, K - part.shape[1]), value=fill) for part in parts])

        positions = None if any(rows.positions is None for rows in batches) else joined("positions", -1)
        return SparseRows(joined("values", 0), joined("indices", -1), positions, batches[0].vocab_size)


def scatter_rows(values: Tensor, indices: Tensor, vocab_size: int) -> Tensor:
    """[B, V] in the dtype of values: each value in the column of its index, empty slots dropped."""
    dense = values.new_zeros(values.shape[0], vocab_size + 1)  # the last column takes the empty slots
    return dense.scatter_add(1, torch.where(indices >= 0, indices, vocab_size).long(), values)[:, :vocab_size]


def csr_arrays(csr: Any) -> tuple[np.ndarray, np.ndarray, np.ndarray, tuple[int, int]]:
    """(row pointers int64, columns int32, values float32, (B, V)) of a SciPy CSR matrix or torch sparse CSR tensor."""
    import numpy as np
    import scipy.sparse

    if isinstance(csr, Tensor) and csr.layout == torch.sparse_csr and csr.dim() == 2:
        csr = csr.detach().cpu()
        arrays = csr.crow_indices().numpy(), csr.col_indices().numpy(), csr.values().float().numpy()
    elif scipy.sparse.issparse(csr) and csr.format == "csr":
        arrays = csr.indptr, csr.indices, csr.data
    else:
        raise ValueError(
            f"csr: expected a SciPy CSR matrix or a torch sparse CSR tensor [B, V], got {type(csr).__name__}"
        )
    crow, column, value = (np.asarray(array, dtype) for array, dtype in zip(arrays, (np.int64, np.int64, np.float32)))
    B, V = int(csr.shape[0]), int(csr.shape[1])
    if column.size and (column.min() < 0 or column.max() >= V):
        raise ValueError(f"csr: expected columns in [0, {V}), got columns in [{column.min()}, {column.max()}]")
    row = np.repeat(np.arange(B), np.diff(crow))
    if np.unique(row * max(V, 1) + column).size != column.size:
        raise ValueError("csr: expected unique columns within a row, got duplicates (scipy: csr.sum_duplicates())")
    return crow, column.astype(np.int32), value, (B, V)


def trusted_rows(values: Tensor, indices: Tensor, positions: Tensor | None, vocab_size: int) -> SparseRows:
    """SparseRows of tensors that an operator has made, or that have been checked before: reading them again costs more
    than a small operator."""
    rows = SparseRows.__new__(SparseRows)
    rows.values, rows.indices, rows.positions, rows.vocab_size = values, indices, positions, vocab_size
    return rows


def _readable(tensor: Tensor) -> bool:
    """Whether values can be looked at without a device synchronisation and outside of tracing."""
    return tensor.device.type == "cpu" and type(tensor) is Tensor and not torch.compiler.is_compiling()


def _unflatten(tensors: Any, vocab_size: int) -> SparseRows:
    values, indices, positions = tensors
    return SparseRows(values, indices, positions, vocab_size)


torch.utils._pytree.register_pytree_node(
    SparseRows,
    lambda rows: ([rows.values, rows.indices, rows.positions], rows.vocab_size),
    _unflatten,
    serialized_type_name="stair_kernels.SparseRows",
)
