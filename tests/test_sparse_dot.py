"""sparse_dot: scores of two sparse batches, and the gradients of both."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from conftest import Implementation
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from on_device import require_kernel
from tolerance import assert_close
from torch import Tensor

import stair_kernels as sk
from stair_kernels import SparseRows, reference
from stair_kernels.rows import trusted_rows


def zipf_rows(B: int, K: int, V: int) -> SparseRows:
    """Ragged rows whose terms follow a Zipf law: a few hot terms, many rare ones."""
    if B == 0 or V == 0:
        return SparseRows(torch.zeros(B, K), torch.full((B, K), -1, dtype=torch.int32), None, V)
    weights = 1.0 / torch.arange(1, V + 1)
    values, indices = torch.zeros(B, K), torch.full((B, K), -1, dtype=torch.int32)
    for b in range(B):
        n = int(torch.randint(0, min(K, V) + 1, ()))
        if n:
            indices[b, :n] = torch.multinomial(weights, n, replacement=False).int()
            values[b, :n] = torch.rand(n).sort(descending=True).values + 0.01
    return SparseRows(values, indices, None, V)


def integer_rows(B: int, K: int, V: int) -> SparseRows:
    """Full rows of small integers, whose products and sums are exact in every order; every seventh slot is empty."""
    indices = torch.rand(B, V).argsort(dim=1)[:, :K].int()
    values = torch.randint(-8, 9, indices.shape).float()
    empty = torch.arange(indices.numel()).view_as(indices) % 7 == 6
    return SparseRows(values.masked_fill(empty, 0), indices.masked_fill(empty, -1), None, V)


def gradients(operators: Any, a: SparseRows, b: SparseRows, upstream: Tensor, **extra: Any) -> tuple[Tensor, ...]:
    """Those of both sides' values."""
    values = [rows.values.clone().requires_grad_() for rows in (a, b)]
    leaves = [trusted_rows(value, rows.indices, None, rows.vocab_size) for value, rows in zip(values, (a, b))]
    out = operators.sparse_dot(*leaves, **extra)
    return torch.autograd.grad((out * upstream.to(out.dtype)).sum(), values)


SHAPES = [
    (5, 7, 8, 100),
    (1, 1, 1, 1),
    (16, 33, 64, 300),
    (3, 2, 20, 1 << 20),
    (0, 4, 3, 10),
    (4, 0, 3, 10),
    (2, 2, 3, 0),
]


@pytest.mark.parametrize(("Q", "N", "K", "V"), SHAPES)
def test_matches_float64(impl: Implementation, Q: int, N: int, K: int, V: int) -> None:
    a, b = zipf_rows(Q, K, V), zipf_rows(N, K + 1, V)
    got = impl.operators.sparse_dot(a, b)
    truth = reference.sparse_dot(a, b, compute_dtype=torch.float64)
    assert_close(got, truth, reference.sparse_dot(a, b))


@pytest.mark.parametrize(("Q", "N", "K", "V"), SHAPES[:3])
def test_gradients_match_float64(impl: Implementation, Q: int, N: int, K: int, V: int) -> None:
    a, b, upstream = zipf_rows(Q, K, V), zipf_rows(N, K + 1, V), torch.randn(Q, N)
    truth = gradients(reference, a, b, upstream, compute_dtype=torch.float64)
    for got, want, eager in zip(gradients(impl.operators, a, b, upstream), truth, gradients(reference, a, b, upstream)):
        assert_close(got, want, eager)


def test_gradcheck_in_float32_steps(impl: Implementation) -> None:
    """The product is bilinear: a central difference is exact up to rounding."""
    a, b = zipf_rows(4, 6, 20), zipf_rows(5, 6, 20)
    values = a.values.clone().requires_grad_()
    upstream = torch.randn(4, 5)
    grad = torch.autograd.grad(
        (impl.operators.sparse_dot(SparseRows(values, a.indices, None, 20), b) * upstream).sum(), values
    )[0]
    for row, slot in (a.indices >= 0).nonzero().tolist():
        moved = []
        for step in (0.5, -0.5):
            shifted = a.values.clone()
            shifted[row, slot] += step
            moved.append((impl.operators.sparse_dot(SparseRows(shifted, a.indices, None, 20), b) * upstream).sum())
        torch.testing.assert_close(moved[0] - moved[1], grad[row, slot], rtol=1e-3, atol=1e-4)


def test_rows_that_are_not_finite_score_nan(impl: Implementation) -> None:
    a, b = zipf_rows(4, 6, 20), zipf_rows(5, 6, 20)
    a.values[1, 0], b.values[3, 0] = torch.nan, torch.inf
    a.indices[1, 0] = b.indices[3, 0] = 19
    got = impl.operators.sparse_dot(a, b)
    assert got[1].isnan().all()
    assert got[:, 3].isnan().all()
    assert got[[0, 2, 3]][:, [0, 1, 2, 4]].isfinite().all()
    assert torch.equal(got.isnan(), reference.sparse_dot(a, b).isnan())


def same_to_the_bit(impl: Implementation, a: SparseRows, b: SparseRows) -> None:
    assert torch.equal(impl.operators.sparse_dot(a, b), reference.sparse_dot(a, b))
    upstream = torch.randint(-4, 5, (len(a), len(b))).float()
    got, want = (gradients(operators, a, b, upstream) for operators in (impl.operators, reference))
    assert all(map(torch.equal, got, want))


def test_lists_of_more_documents_than_a_block_holds(impl: Implementation) -> None:
    """4,096 of them on a GPU; each list is longer than what the block reads at a time."""
    same_to_the_bit(impl, integer_rows(2, 4, 9), integer_rows(4099, 4, 9))


def test_lists_of_more_slots_than_threads(impl: Implementation) -> None:
    same_to_the_bit(impl, integer_rows(2, 300, 400), integer_rows(40, 300, 400))


def test_lists_with_repeated_terms_count_their_sum(impl: Implementation) -> None:
    """No SparseRows should have them; the meaning is that of to_dense()."""
    a, b = integer_rows(4, 6, 20), integer_rows(70, 6, 20)
    for rows in (a, b):
        rows.indices[::2, 3] = rows.indices[::2, 0]
        rows.indices[::4, 1:] = rows.indices[::4, :1]
    same_to_the_bit(impl, a, b)


def test_same_bits_for_any_number_of_threads(impl: Implementation, threads) -> None:  # type: ignore[no-untyped-def]
    a, b = zipf_rows(16, 20, 50), zipf_rows(12, 20, 50)
    want = impl.operators.sparse_dot(a, b)
    for n in (1, 3, 5):
        threads(n)
        assert torch.equal(impl.operators.sparse_dot(a, b), want)


def test_same_bits_whatever_else_is_in_the_batch(impl: Implementation) -> None:
    a, b = zipf_rows(16, 20, 50), zipf_rows(12, 20, 50)
    want = impl.operators.sparse_dot(a, b)
    assert torch.equal(impl.operators.sparse_dot(a[3:5], b[7:8]), want[3:5, 7:8])


def test_opcheck_and_compile(device: str) -> None:
    require_kernel("sparse_dot", device)
    a, b = zipf_rows(4, 6, 20).to(device), zipf_rows(5, 6, 20).to(device)
    a.values.requires_grad_()
    b.values.requires_grad_()
    torch.library.opcheck(torch.ops.stair.sparse_dot.default, (a.values, a.indices, b.values, b.indices, 20))
    got = torch.compile(sk.sparse_dot, fullgraph=True, backend="aot_eager")(a, b)
    assert torch.equal(got, sk.sparse_dot(a, b))


@settings(max_examples=40, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(st.integers(0, 6), st.integers(0, 6), st.integers(0, 9), st.integers(0, 60), st.integers(0, 2**16))
def test_any_shape_matches_the_reference(impl: Implementation, Q: int, N: int, K: int, V: int, seed: int) -> None:
    torch.manual_seed(seed)
    a, b = zipf_rows(Q, K, V), zipf_rows(N, K, V)
    torch.testing.assert_close(impl.operators.sparse_dot(a, b), reference.sparse_dot(a, b))


def test_bad_input_names_the_argument() -> None:
    with pytest.raises(ValueError, match=r"b: expected vocab_size 20 like a, got 21"):
        sk.sparse_dot(zipf_rows(1, 2, 20), zipf_rows(1, 2, 21))
    with pytest.raises(ValueError, match=r"b: expected device cpu like a, got meta"):
        sk.sparse_dot(zipf_rows(1, 2, 20), zipf_rows(1, 2, 20).to("meta"))


def test_an_index_changed_behind_our_back_is_caught() -> None:
    """The constructor checks indices; the CPU kernel, which can raise, checks again: memory safety rests on it."""
    a, b = zipf_rows(2, 3, 20), zipf_rows(2, 3, 20)
    b.indices[0, 0] = 20
    with pytest.raises(RuntimeError):
        sk.sparse_dot(a, b)
