"""topk of a dense matrix."""

from __future__ import annotations

import pytest
import torch
from conftest import Implementation
from heads import DTYPES, same_rows
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from on_device import require_kernel

import stair_kernels as sk
from stair_kernels import reference


def dense_case(kind: str, B: int, V: int, dtype: torch.dtype) -> torch.Tensor:
    dense = torch.randn(B, V).abs()
    if kind == "sparse":
        dense *= torch.rand(B, V) > 0.95
    if kind == "ties":
        dense = torch.randint(-2, 3, (B, V)).float()
    if kind == "negative":
        dense = -dense
    if kind == "special":
        dense[torch.rand(B, V) > 0.9] = torch.inf
        dense[torch.rand(B, V) > 0.9] = -torch.inf
        dense[torch.rand(B, V) > 0.9] = 1e-42  # denormal: still an entry
    if kind == "one value":
        dense = torch.full((B, V), 2.5)
    if kind == "ascending":
        dense = dense.sort(dim=1).values
    if kind == "zero":
        dense = torch.zeros(B, V) * torch.randn(B, V)  # both zeros
    return dense.to(dtype)


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize("kind", ["dense", "sparse", "ties", "negative", "special"])
@pytest.mark.parametrize(
    ("B", "V", "k"), [(7, 1000, 64), (1, 30522, 1), (3, 65, 64), (2, 10, 30), (0, 10, 3), (3, 0, 3)]
)
def test_equals_the_reference(impl: Implementation, B: int, V: int, k: int, kind: str, dtype: torch.dtype) -> None:
    dense = dense_case(kind, B, V, dtype)
    same_rows(impl.operators.topk(dense, k), reference.topk(dense, k))


@pytest.mark.parametrize("kind", ["dense", "ties", "one value", "ascending", "special", "zero"])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16], ids=str)
def test_shapes_that_break_kernels(impl: Implementation, dtype: torch.dtype, kind: str) -> None:
    """V around a warp, a block and a tile; k of 1, all but one, all, more than there are, and in between."""
    for V in (1, 31, 32, 33, 255, 256, 257, 4095, 4096, 4097, 8195):
        for k in {1, V - 1, V, V + 1, 64, 257} - {0}:
            if min(k, V) > 2048:
                continue
            dense = dense_case(kind, 3, V, dtype)
            same_rows(impl.operators.topk(dense, k), reference.topk(dense, k))
    dense = dense_case(kind, 2, 20000, dtype)
    same_rows(impl.operators.topk(dense, 2048), reference.topk(dense, 2048))


@pytest.mark.parametrize("V", [40, 5000, 9001])
def test_nan_anywhere(impl: Implementation, V: int) -> None:
    """One NaN, in any place and beside infinities, more of them than k, and a NaN with its sign set."""
    dense = dense_case("special", 6, V, torch.float32)
    for row, place in enumerate((0, V // 2, V - 1)):
        dense[row, place] = torch.nan
    dense[3] = torch.nan
    dense[4, V // 3] = torch.tensor(-1, dtype=torch.int32).view(torch.float32)
    same_rows(impl.operators.topk(dense, 9), reference.topk(dense, 9))
    view = dense.flatten()[3:].view(-1)[: 5 * V].view(5, V)  # rows that begin between two vectors
    same_rows(impl.operators.topk(view, 9), reference.topk(view, 9))


def test_nan_poisons_its_own_row_only(impl: Implementation) -> None:
    dense = dense_case("dense", 4, 100, torch.float32)
    dense[2, 99] = torch.nan
    got = impl.operators.topk(dense, 5)
    same_rows(got, reference.topk(dense, 5))
    assert got.values[2].isnan().all()
    assert got.values[[0, 1, 3]].isfinite().all()


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
def test_gradient_lands_on_the_entries(impl: Implementation, dtype: torch.dtype) -> None:
    dense = dense_case("sparse", 6, 200, dtype).requires_grad_()
    rows = impl.operators.topk(dense, 12)
    upstream = torch.randn(rows.values.shape)
    (rows.values * upstream).sum().backward()
    want = torch.zeros(6, 200)
    for b in range(6):
        for j in range(12):
            if rows.indices[b, j] >= 0:
                want[b, rows.indices[b, j]] = upstream[b, j]
    assert dense.grad.dtype == dtype
    assert torch.equal(dense.grad, want.to(dtype))


def test_gradient_of_an_empty_vocabulary(impl: Implementation) -> None:
    dense = torch.zeros(3, 0, requires_grad=True)
    impl.operators.topk(dense, 5).values.sum().backward()
    assert dense.grad.shape == (3, 0)


def test_opcheck_and_compile(device: str) -> None:
    require_kernel("topk", device)
    dense = dense_case("dense", 3, 50, torch.float32).to(device).requires_grad_()
    torch.library.opcheck(torch.ops.stair.topk.default, (dense, 4))
    rows = torch.compile(sk.topk, fullgraph=True, backend="aot_eager")(dense, 4)
    same_rows(rows.detach(), sk.topk(dense, 4).detach())


@settings(max_examples=60, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(st.integers(0, 5), st.integers(0, 400), st.integers(1, 410), st.integers(0, 2**16))
def test_any_shape_equals_the_reference(impl: Implementation, B: int, V: int, k: int, seed: int) -> None:
    torch.manual_seed(seed)
    dense = dense_case("ties" if seed % 2 else "special", B, V, torch.float32)
    same_rows(impl.operators.topk(dense, k), reference.topk(dense, k))


@pytest.mark.parametrize(
    ("dense", "k", "message"),
    [
        (torch.ones(3), 1, r"dense: expected \[B, V\] in float32, bfloat16, float16, got \[3\] torch.float32"),
        (torch.ones(3, 3).int(), 1, r"dense: expected .*, got \[3, 3\] torch.int32"),
        (torch.ones(3, 3), 0, r"k: expected an integer >= 1 and < 2\^31, got 0"),
    ],
    ids=["shape", "dtype", "k"],
)
def test_bad_input_names_the_argument(dense: torch.Tensor, k: int, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        sk.topk(dense, k)
