"""The GPU kernels from their PTX on integers, whose sums are exact: equal to the bit. Small, for a fault each."""

from __future__ import annotations

import pytest
import torch
from heads import Head, make_head
from simt_on_cpu import needs_kernels
from torch import Tensor

from stair_kernels import reference

pytest.importorskip("triton", reason="Triton is not installed: nothing compiles its kernels")
from triton_on_cpu import run_from_ptx

from stair_kernels._triton import vocab_pool, vocab_topk

ACTIVATIONS = tuple(reference.ACTIVATIONS)
B, L, D, V = 5, 20, 70, 70  # several tiles of each but L, and a tail


def make_ragged() -> Head:
    """Rows of 20 on average share a tile; one takes three, one is empty. Token 0, which tails point to, wins some."""
    head = make_head("packed", torch.float16, 1, 104, D, V, integers=True)
    head.hidden[0] *= 2
    head.cu_seqlens = torch.tensor([0, 70, 70, 83, 103, 104], dtype=torch.int32)
    return head


def run_pool(head: Head, activation: str = "raw") -> tuple[Tensor, Tensor]:
    return vocab_pool.vocab_pool(head.hidden, head.weight, head.bias, head.mask, head.cu_seqlens, None, activation)


def equals_reference(head: Head) -> None:
    values, positions = run_pool(head)
    args = head.hidden, head.weight, head.bias, head.mask, head.cu_seqlens
    want_values, want_positions = reference.pooled_logits(*args, torch.float32)
    assert torch.equal(positions.long(), want_positions)
    assert torch.equal(values.nan_to_num(nan=-7.0), want_values.nan_to_num(nan=-7.0))


@pytest.fixture(autouse=True)
def _ptx(monkeypatch: pytest.MonkeyPatch) -> None:
    run_from_ptx(monkeypatch)


def test_pool_of_ragged_rows() -> None:
    equals_reference(make_ragged())


def test_pool_of_masked_rows() -> None:
    """The last row is empty; another one's only token is its last."""
    head = make_head("masked", torch.float16, B, L, D, V, integers=True)
    head.mask[1] = torch.arange(L) == L - 1
    equals_reference(head)


def test_operands_begin_anywhere() -> None:
    """Slices that begin between two multiples of 16 bytes; gradients as well."""
    head = make_ragged()
    head = Head(head.hidden[:, 3:67], head.weight[:, 3:67], head.bias, None, head.cu_seqlens)
    for name in ("hidden", "weight"):
        matrix = getattr(head, name)
        buffer = torch.zeros(matrix.numel() + 1, dtype=matrix.dtype)
        setattr(head, name, buffer[1:].view(matrix.shape).copy_(matrix))
        assert vocab_pool.operand(getattr(head, name)).data_ptr() % 16 == 0
    equals_reference(head)
    for of in ("hidden", "weight"):
        gradients_equal(head, torch.randint(-2, 3, (B, V)).float(), of)


@pytest.mark.parametrize(
    ("positions", "masked"), [(L, False), (L, True), (140, False)], ids=["seen", "masked", "early"]
)
def test_nan_wins_unless_masked(positions: int, masked: bool) -> None:
    """Early: in the first of two tiles."""
    head = make_head("masked", torch.float16, 2, positions, 16, 16, integers=True)
    head.mask[:] = True
    head.mask[0, 3] = not masked
    head.hidden[0, 3, 0] = torch.nan
    head.hidden[1, 3, 0] = -torch.nan
    equals_reference(head)


def test_equal_tokens_go_to_the_first() -> None:
    """In a row of one tile and in one of three."""
    head = make_ragged()
    head.hidden[:] = head.hidden[0]
    equals_reference(head)


def test_bias_is_added_after_the_maximum() -> None:
    """1 + 2^26 and 2 + 2^26 round to the same; the position is still that of 2."""
    hidden = torch.tensor([[[1.0], [2.0]]], dtype=torch.float16)
    head = Head(hidden, torch.ones(3, 1, dtype=torch.float16), torch.full((3,), 2.0**26))
    values, positions = run_pool(head)
    assert (positions == 1).all()
    assert (values == 2.0**26).all()


@pytest.mark.parametrize(
    ("longest", "dtype"), [(2**15 - 1, torch.int16), (2**15 + 1, torch.int32)], ids=["int16", "int32"]
)
def test_positions_fit_their_type(longest: int, dtype: torch.dtype) -> None:
    head = Head(torch.empty(0, longest, 1), torch.empty(3, 1))
    assert run_pool(head)[1].dtype == dtype


@pytest.mark.parametrize("activation", ["raw", "relu"])
def test_values_at_known_positions(activation: str) -> None:
    """Those of the forward, under raw; 0 where there is no position: of a row and of a whole block of columns."""
    head = make_head("masked", torch.float16, B, L, D, V, integers=True)
    values, positions = run_pool(head, activation)
    dead = torch.rand(B, V) > 0.5
    dead[1:, :32] = True
    positions[dead] = -1
    got = vocab_pool.vocab_pool_at(head.hidden, head.weight, head.bias, positions, activation)
    assert torch.equal(got, values.masked_fill(positions < 0, 0.0))


def gradients_equal(head: Head, grad: Tensor, of: str) -> None:
    """Under relu, against the C++ operator."""
    raw, positions = reference.pooled_logits(*head.args()[0], head.cu_seqlens, torch.float32)
    out = torch.where(positions >= 0, raw.relu(), 0.0)
    saved = (
        grad,
        out,
        positions.short(),
        head.hidden,
        head.weight,
        head.cu_seqlens,
        "relu",
        of == "hidden",
        of == "weight",
    )
    wanted = torch.ops.stair.vocab_pool_backward(*saved)
    for got, want in zip(vocab_pool.vocab_pool_backward(*saved), wanted):
        assert torch.equal(got, want)


@pytest.mark.parametrize("of", ["hidden", "weight"])
def test_gradients_of_ragged_rows(of: str) -> None:
    gradients_equal(make_ragged(), torch.randint(-2, 3, (B, V)).float(), of)


def test_bias_gradient_beside_several_blocks_of_d() -> None:
    gradients_equal(make_head("padded", torch.float32, 2, 3, 40, 16, integers=True), torch.ones(2, 16), "weight")


@pytest.mark.parametrize("of", ["hidden", "weight"])
def test_gradients_of_long_rows(of: str) -> None:
    """Three tiles of positions, of which one is a tail: columns are sorted, tokens gathered."""
    head = make_head("padded", torch.float16, 2, 140, 20, 100, integers=True)
    gradients_equal(head, torch.randint(-2, 3, (2, 100)).float(), of)


@pytest.mark.parametrize("of", ["hidden", "weight"])
def test_negative_gradients(of: str) -> None:
    """A tile whose gradients are all negative is not one without gradients."""
    gradients_equal(make_head("padded", torch.float16, 2, 3, 16, 16, integers=True), torch.full((2, 16), -1.0), of)


@pytest.mark.parametrize("activation", ACTIVATIONS)
def test_slope_is_that_of_the_activation(activation: str) -> None:
    """The gradient of one token's bias against autograd's in float64; none where the row is empty or the entry 0."""
    raw = torch.tensor([[-3.0, -0.5, 0.25, 1.0, 6.0, 40.0]])
    x = raw.double().requires_grad_()
    reference.ACTIVATIONS[activation](x).sum().backward()
    out = reference.ACTIVATIONS[activation](raw)
    empty = torch.zeros_like(out)
    positions = torch.tensor([0, -1], dtype=torch.int16)[:, None].repeat(1, raw.shape[1])
    hidden, weight = torch.zeros(2, 1, 1), torch.zeros(raw.shape[1], 1)
    saved = torch.ones(2, raw.shape[1]), torch.cat([out, empty]), positions, hidden, weight, None, activation
    got = vocab_pool.vocab_pool_backward(*saved, False, False)[2]
    assert (got - x.grad[0]).abs().max() <= 1e-6


def test_a_gradient_of_zero_stops_at_nan() -> None:
    out, positions = torch.tensor([[torch.nan, torch.nan]]), torch.zeros(1, 2, dtype=torch.int16)
    saved = torch.tensor([[0.0, 1.0]]), out, positions, torch.zeros(1, 1, 1), torch.zeros(2, 1), None, "relu"
    got = vocab_pool.vocab_pool_backward(*saved, False, False)[2]
    assert got[0] == 0
    assert got[1].isnan()


@pytest.mark.parametrize("activation", ACTIVATIONS)
def test_activation(activation: str) -> None:
    """To 2e-7 of the float64 value (in elu1p, exp of a large negative number: of 1); NaN stays."""
    x = torch.cat([torch.logspace(-30, 30, 601), -torch.logspace(-5, 2, 50), torch.tensor([0.0, torch.inf, torch.nan])])
    got, want = vocab_pool.activated(x, activation).double(), reference.ACTIVATIONS[activation](x.double())
    assert torch.equal(got.isnan(), want.isnan())
    differs = (got != want) & ~want.isnan()
    scale = want[differs].abs().clamp(min=1.0 if activation == "elu1p" else 0.0)
    assert ((got - want)[differs].abs() <= 2e-7 * scale).all()


@needs_kernels
@pytest.mark.parametrize("case", ["relu", "elu1p", "nan"])
def test_topk_over_chunks(monkeypatch: pytest.MonkeyPatch, case: str) -> None:
    """Ties, and a row of nothing above 0; negative logits; a NaN in the first chunk."""
    monkeypatch.setattr(vocab_topk, "CHUNK", 64)
    activation = "relu" if case == "nan" else case
    head = make_head("masked", torch.float16, 3, 4, 8, 150, integers=True)
    if case == "relu":
        head.hidden[1] = 0
        head.bias.clamp_(max=0)
    if case == "nan":
        head.weight[5, 0] = torch.nan
    if case == "elu1p":
        head.bias -= 30
    got = vocab_topk.vocab_topk(head.hidden, head.weight, head.bias, head.mask, None, None, 40, activation, False)
    want = reference.vocab_topk(head.hidden, head.weight, head.bias, head.mask, k=40, activation=activation)
    assert torch.equal(got[1], want.indices)
    assert torch.equal(got[2], want.positions)
    assert torch.allclose(got[0], want.values, rtol=3e-7, atol=1e-9, equal_nan=True)
