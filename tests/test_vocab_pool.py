"""vocab_pool: the dense row [B, V] without [B, L, V]."""

from __future__ import annotations

import pytest
import torch
from conftest import Implementation
from heads import DTYPES, LAYOUTS, SHAPES, Head, make_head
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from on_device import require_kernel
from tolerance import assert_close, max_error

import stair_kernels as sk
from stair_kernels import reference

ACTIVATIONS = tuple(reference.ACTIVATIONS)


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize("activation", ACTIVATIONS)
@pytest.mark.parametrize("layout", LAYOUTS)
@pytest.mark.parametrize("shape", SHAPES, ids=str)
def test_matches_float64(
    impl: Implementation, shape: tuple[int, ...], layout: str, activation: str, dtype: torch.dtype
) -> None:
    B, L, D, V, _ = shape
    head = make_head(layout, dtype, B, L, D, V)
    args, kwargs = head.args()
    got = impl.operators.vocab_pool(*args, activation=activation, **kwargs)
    single = reference.vocab_pool(*args, activation=activation, **kwargs)
    args, kwargs = head.double().args()
    truth = reference.vocab_pool(*args, activation=activation, compute_dtype=torch.float64, **kwargs)
    assert got.dtype == torch.float32
    assert_close(got, truth, single)


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize("activation", ACTIVATIONS)
@pytest.mark.parametrize("layout", LAYOUTS)
def test_gradients_match_float64(impl: Implementation, layout: str, activation: str, dtype: torch.dtype) -> None:
    head = make_head(layout, dtype, 4, 6, 16, 200).leaves()
    upstream = torch.randn(4, 200) * (torch.rand(4, 200) > 0.3)  # a sparse gradient is skipped, not wrong
    truth, single = head.double().leaves(), head.leaves()
    for each, operators, extra in (
        (head, impl.operators, {}),
        (truth, reference, {"compute_dtype": torch.float64}),
        (single, reference, {}),
    ):
        args, kwargs = each.args()
        out = operators.vocab_pool(*args, activation=activation, **kwargs, **extra)
        (out * upstream.to(out.dtype)).sum().backward()
    for (name, got), (_, want), (_, eager) in zip(head.grads(), truth.grads(), single.grads()):
        assert got.dtype == getattr(head, name).dtype
        assert_close(got, want, eager, f"gradient of {name}")


def test_tied_positions_give_the_gradient_to_the_lowest(impl: Implementation) -> None:
    hidden = torch.ones(1, 4, 2, requires_grad=True)
    impl.operators.vocab_pool(hidden, torch.ones(3, 2)).sum().backward()
    assert (hidden.grad[0, 0] > 0).all()
    assert (hidden.grad[0, 1:] == 0).all()


def test_nan_stays_in_its_entries(impl: Implementation) -> None:
    head = make_head("masked", torch.float32, 4, 6, 8, 200)
    head.hidden[2][~head.mask[2]] = torch.nan
    head.weight[130, 0] = torch.nan
    out = impl.operators.vocab_pool(*head.args()[0])
    live = head.mask.any(dim=1)
    assert torch.equal(out.isnan().nonzero()[:, 0], live.nonzero()[:, 0])
    assert (out.isnan().nonzero()[:, 1] == 130).all()
    assert (out[~live] == 0).all()


def test_nan_gradient_is_not_lost(impl: Implementation) -> None:
    head = make_head("padded", torch.float32, 2, 3, 8, 50).leaves()
    with torch.no_grad():
        head.hidden[0, 1, 0] = torch.nan
    impl.operators.vocab_pool(*head.args()[0]).sum().backward()
    assert head.weight.grad.isnan().any()
    assert head.hidden.grad[1].isfinite().all()


@pytest.mark.parametrize("shape", [(0, 3, 4, 10), (2, 0, 4, 10), (2, 3, 4, 0), (2, 3, 0, 10)], ids=str)
def test_empty_sizes(impl: Implementation, shape: tuple[int, ...]) -> None:
    B, L, D, V = shape
    head = Head(torch.randn(B, L, D), torch.randn(V, D), torch.randn(V)).leaves()
    out = impl.operators.vocab_pool(*head.args()[0])
    torch.testing.assert_close(out, reference.vocab_pool(*head.args()[0]))
    out.sum().backward()
    assert all(grad.isfinite().all() for _, grad in head.grads())


def test_same_bits_for_any_number_of_threads(impl: Implementation, threads) -> None:  # type: ignore[no-untyped-def]
    head = make_head("masked", torch.float32, 5, 7, 24, 2000)
    results = []
    for n in (1, 2, 3, 7, 40):  # 40: rows are split, too
        threads(n)
        fresh = head.leaves()
        out = impl.operators.vocab_pool(*fresh.args()[0])
        out.square().sum().backward()
        results.append([out, *(grad for _, grad in fresh.grads())])
    assert all(torch.equal(a, b) for later in results[1:] for a, b in zip(later, results[0]))


def test_agrees_with_vocab_topk_to_the_bit(impl: Implementation) -> None:
    head = make_head("masked", torch.float32, 5, 7, 24, 1000)
    dense = impl.operators.vocab_pool(*head.args()[0])
    rows = impl.operators.vocab_topk(*head.args()[0], k=1000)
    assert torch.equal(rows.to_dense(), dense)


def test_packed_vocabulary_gives_the_same_bits(impl: Implementation) -> None:
    for dtype in DTYPES:
        head = make_head("masked", dtype, 3, 5, 20, 333)
        packed = impl.operators.pack_vocab(head.weight, head.bias)
        assert torch.equal(
            impl.operators.vocab_pool(head.hidden, packed, mask=head.mask), impl.operators.vocab_pool(*head.args()[0])
        )


def test_opcheck(device: str) -> None:
    require_kernel("vocab_pool", device)
    for layout in LAYOUTS:
        head = make_head(layout, torch.float32, 3, 4, 8, 60).to(device).leaves()
        hidden = head.hidden if layout != "single" else head.hidden.detach().unsqueeze(1).requires_grad_()
        args = (hidden, head.weight, head.bias, head.mask, head.cu_seqlens, None, "log_relu")
        torch.library.opcheck(torch.ops.stair.vocab_pool.default, args)


def test_compiles_into_one_graph(device: str) -> None:
    require_kernel("vocab_pool", device)
    head = make_head("masked", torch.float32, 3, 4, 8, 60).to(device).leaves()
    compiled = head.leaves()
    function = torch.compile(sk.vocab_pool, fullgraph=True, backend="aot_eager")
    for each, operator in ((head, sk.vocab_pool), (compiled, function)):
        operator(*each.args()[0]).square().sum().backward()
    for (_, a), (_, b) in zip(compiled.grads(), head.grads()):
        torch.testing.assert_close(a, b)


@pytest.mark.parametrize(("L", "dtype"), [(32767, torch.int16), (32768, torch.int32)])
def test_positions_are_as_narrow_as_the_length_allows(device: str, L: int, dtype: torch.dtype) -> None:
    require_kernel("vocab_pool", device)
    hidden = torch.zeros(1, L, 1, device=device)
    hidden[0, -1] = 1
    hidden.requires_grad_()
    weight = torch.ones(17, 1, device=device, requires_grad=True)
    out, positions = torch.ops.stair.vocab_pool(hidden, weight, None, None, None, None, "relu")
    assert positions.dtype == dtype
    assert (positions == L - 1).all()
    out.sum().backward()
    assert hidden.grad.sum() == hidden.grad[0, -1, 0] == 17
    fake = torch.ops.stair.vocab_pool(hidden.to("meta"), weight.to("meta"), None, None, None, None, "relu")
    assert fake[1].dtype == dtype


@settings(max_examples=40, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(
    B=st.integers(1, 5),
    L=st.integers(0, 14),
    D=st.integers(0, 20),
    V=st.integers(0, 300),
    layout=st.sampled_from(LAYOUTS),
    activation=st.sampled_from(ACTIVATIONS),
    seed=st.integers(0, 2**16),
)
def test_any_shape_equals_the_reference(
    impl: Implementation, B: int, L: int, D: int, V: int, layout: str, activation: str, seed: int
) -> None:
    torch.manual_seed(seed)
    head = make_head(layout, torch.float32, B, L, D, V, integers=True)
    args, kwargs = head.args()
    got = impl.operators.vocab_pool(*args, activation=activation, **kwargs)
    assert max_error(got, reference.vocab_pool(*args, activation=activation, **kwargs)) <= 1e-5
