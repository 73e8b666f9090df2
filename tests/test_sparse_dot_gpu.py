"""sparse_dot's GPU kernels where they differ from the CPU's; tests/test_simt.py runs them without a GPU."""

from __future__ import annotations

import pytest
import torch
from simt_on_cpu import needs_kernels
from test_sparse_dot import gradients, integer_rows

import stair_kernels as sk
from stair_kernels import SparseRows, reference


@needs_kernels
@pytest.mark.parametrize(("Q", "N", "K", "V"), [(2, 19, 20, 30), (1, 3, 260, 300)])
def test_every_path_once(Q: int, N: int, K: int, V: int) -> None:
    """Few launches, for ThreadSanitizer, which makes each take a second."""
    a, b, upstream = integer_rows(Q, K, V), integer_rows(N, K, V), torch.randint(-4, 5, (Q, N)).float()
    assert torch.equal(sk.sparse_dot(a, b), reference.sparse_dot(a, b))
    assert all(map(torch.equal, gradients(sk, a, b, upstream), gradients(reference, a, b, upstream)))


@needs_kernels
def test_lists_leave_out_an_index_past_the_vocabulary() -> None:
    """A GPU cannot raise; it must not read past the lists either."""
    a, b = integer_rows(3, 4, 20), integer_rows(5, 4, 20)
    want = [SparseRows(rows.values, rows.indices.clone(), None, 20) for rows in (a, b)]
    for rows, kept in zip((a, b), want):
        rows.indices[:, 1], kept.indices[:, 1] = torch.tensor([20, 2**31 - 1, -5, 20, 99])[: len(rows)].int(), -1
    assert torch.equal(sk.sparse_dot(a, b), reference.sparse_dot(*want))
    upstream = torch.randint(-4, 5, (3, 5)).float()
    assert all(map(torch.equal, gradients(sk, a, b, upstream), gradients(reference, *want, upstream)))


@needs_kernels
def test_the_query_of_a_gradient_may_have_any_layout() -> None:
    a, b = integer_rows(4, 3, 20), integer_rows(7, 5, 20)
    upstream = torch.randint(-4, 5, (8, 9)).float()
    backward = torch.ops.stair.sparse_dot_backward
    got = backward(upstream[1::2, 1:8], a.indices[:, 1:], b.values[:, :4], b.indices[:, :4], 20)
    want = backward(upstream[1::2, 1:8].clone(), a.indices, b.values[:, :4].clone(), b.indices[:, :4].clone(), 20)
    assert torch.equal(got, want[:, 1:])


@needs_kernels
def test_refused_sizes_are_named() -> None:
    a, huge = integer_rows(1, 1, 20), torch.zeros(1).expand(2**21, 2**10)  # 4 bytes
    message = r"sparse_dot: expected at most 2147482623 slots and 268431360 rows on a GPU, got \[2097152, 1024\]"
    with pytest.raises(RuntimeError, match=message):
        torch.ops.stair.sparse_dot(a.values, a.indices, huge, a.indices.expand(2**21, 2**10), 20)
