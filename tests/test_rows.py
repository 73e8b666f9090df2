"""SparseRows: construction, conversion, slicing."""

from __future__ import annotations

import numpy as np
import pytest
import scipy.sparse
import torch
from heads import same_rows
from test_sparse_dot import zipf_rows

from stair_kernels import SparseRows


def example() -> SparseRows:
    values = torch.tensor([[3.0, 1.0, 1.0], [2.0, 0.0, 0.0], [0.0, 0.0, 0.0]])
    indices = torch.tensor([[4, 0, 2], [1, -1, -1], [-1, -1, -1]], dtype=torch.int32)
    return SparseRows(values, indices, indices.clone().clamp(max=7), 5)


def test_dense_and_back() -> None:
    rows = example()
    dense = rows.to_dense()
    assert dense.tolist() == [[1, 0, 1, 0, 3], [0, 2, 0, 0, 0], [0] * 5]
    back = SparseRows.from_dense(dense)
    assert torch.equal(back.values, rows.values)
    assert torch.equal(back.indices, rows.indices)
    assert SparseRows.from_dense(dense, k=1).indices.tolist() == [[4], [1], [-1]]
    assert SparseRows.from_dense(torch.zeros(2, 5)).nnz().tolist() == [0, 0]


def test_dense_is_differentiable() -> None:
    rows = example()
    rows.values.requires_grad_()
    weights = torch.arange(15.0).reshape(3, 5)
    (rows.to_dense() * weights).sum().backward()
    assert rows.values.grad.tolist() == [[4, 0, 2], [6, 0, 0], [0, 0, 0]]


def test_csr_and_back() -> None:
    torch.manual_seed(0)
    rows = zipf_rows(6, 9, 40)
    csr = rows.to_csr()
    assert torch.equal(csr.to_dense(), rows.to_dense())
    for source in (
        csr,
        scipy.sparse.csr_matrix(rows.to_dense().numpy()),
        scipy.sparse.csr_array(rows.to_dense().numpy()),
    ):
        same_rows(SparseRows.from_csr(source, k=9), rows)
    assert SparseRows.from_csr(csr).k == int(rows.nnz().max())


def test_slices_cat_len_and_nnz() -> None:
    rows = example()
    assert len(rows) == 3
    assert rows.shape == (3, 5)
    assert rows.nnz().tolist() == [3, 1, 0]
    same_rows(SparseRows.cat([rows[:1], rows[1:]]), rows)
    wide = SparseRows.cat([rows[1:2], SparseRows(rows.values[1:2, :1], rows.indices[1:2, :1], None, 5)])
    assert wide.indices.tolist() == [[1, -1, -1], [1, -1, -1]]
    assert wide.positions is None
    assert "B=3, K=3, V=5" in repr(rows)
    same_rows(rows.to("cpu"), rows)


def test_is_a_pytree() -> None:
    doubled = torch.utils._pytree.tree_map(lambda t: t * 2 if t.is_floating_point() else t, example())
    assert isinstance(doubled, SparseRows)
    assert torch.equal(doubled.values, example().values * 2)


ROWS = {"values": torch.ones(2, 3), "indices": torch.zeros(2, 3).int(), "positions": None, "vocab_size": 5}


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"values": torch.ones(3)}, r"values: expected \[B, K\] float32, got \[3\] torch.float32"),
        ({"values": torch.ones(2, 3).double()}, r"values: expected \[B, K\] float32, got \[2, 3\] torch.float64"),
        (
            {"indices": torch.zeros(2, 2).int()},
            r"indices: expected \[2, 3\] int32 like values, got \[2, 2\] torch.int32",
        ),
        (
            {"indices": torch.zeros(2, 3).long()},
            r"indices: expected \[2, 3\] int32 like values, got \[2, 3\] torch.int64",
        ),
        ({"positions": torch.zeros(2, 2).int()}, r"positions: expected \[2, 3\] int32"),
        ({"indices": torch.full((2, 3), 5).int()}, r"indices: expected values in \[-1, 5\), got values in \[5, 5\]"),
        ({"indices": torch.full((2, 3), -2).int()}, r"indices: expected values in \[-1, 5\), got values in \[-2, -2\]"),
        ({"vocab_size": -1}, r"vocab_size: expected a non-negative integer, got -1"),
        ({"indices": torch.zeros(2, 3, device="meta").int()}, r"indices: expected device cpu like values, got meta"),
    ],
    ids=lambda value: ",".join(value) if isinstance(value, dict) else "",
)
def test_bad_construction_names_the_argument(change: dict, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        SparseRows(**{**ROWS, **change})


def test_bad_conversions_name_the_argument() -> None:
    duplicate = scipy.sparse.csr_matrix((np.ones(2), [1, 1], [0, 2]), shape=(1, 3))
    for call, message in [
        (
            lambda: SparseRows.from_csr(np.ones((2, 2))),
            r"csr: expected a SciPy CSR matrix or a torch sparse CSR tensor",
        ),
        (lambda: SparseRows.from_csr(duplicate), r"csr: expected unique columns within a row, got duplicates"),
        (lambda: SparseRows.from_csr(example().to_csr(), k=2), r"k: expected at least 3, the longest row"),
        (lambda: SparseRows.from_dense(torch.ones(3)), r"dense: expected \[B, V\], got \[3\]"),
        (lambda: SparseRows.cat([]), r"batches: expected at least one SparseRows"),
        (lambda: SparseRows.cat([example(), zipf_rows(1, 1, 6)]), r"batches: expected one vocab_size, got \[5, 6\]"),
        (lambda: example()[0], r"rows: expected a slice such as rows\[i:j\], got int"),
    ]:
        with pytest.raises(ValueError, match=message):
            call()
