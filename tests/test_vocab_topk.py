"""vocab_topk: projection, max-pool, activation and top-k in one."""

from __future__ import annotations

import resource

import pytest
import torch
from conftest import Implementation
from heads import DTYPES, LAYOUTS, SHAPES, Head, chosen_values, make_head, same_rows
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from on_device import require_kernel
from tolerance import assert_close, max_error

import stair_kernels as sk
from stair_kernels import reference

ACTIVATIONS = tuple(reference.ACTIVATIONS)


def check(head: Head, rows: sk.SparseRows, k: int, activation: str) -> None:
    """Values, indices and positions against the float64 reference, allowing for near-ties that rounding may swap."""
    args, kwargs = head.args()
    single = reference.vocab_topk(*args, k=k, activation=activation, **kwargs)
    args, kwargs = head.double().args()
    truth = reference.vocab_topk(*args, k=k, activation=activation, compute_dtype=torch.float64, **kwargs)
    assert rows.values.shape == truth.values.shape
    assert_close(rows.values, truth.values, single.values, "values")
    assert torch.equal(rows.nnz(), truth.nnz())
    # every entry is what its index and position say
    eager = single.values, chosen_values(head, single, activation)
    assert_close(rows.values, chosen_values(head, rows, activation), eager, "entries")
    for b in range(len(rows)):
        kept = rows.indices[b][rows.indices[b] >= 0]
        assert kept.unique().numel() == kept.numel()
        assert (rows.indices[b][len(kept) :] == -1).all(), "empty slots stand last"
    assert (rows.values[:, 1:] <= rows.values[:, :-1]).all() or activation == "elu1p"


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize("activation", ACTIVATIONS)
@pytest.mark.parametrize("layout", LAYOUTS)
@pytest.mark.parametrize("shape", SHAPES, ids=str)
def test_matches_float64(
    impl: Implementation, shape: tuple[int, ...], layout: str, activation: str, dtype: torch.dtype
) -> None:
    B, L, D, V, k = shape
    head = make_head(layout, dtype, B, L, D, V)
    args, kwargs = head.args()
    check(head, impl.operators.vocab_topk(*args, k=k, activation=activation, **kwargs), k, activation)


@pytest.mark.parametrize("activation", ACTIVATIONS)
@pytest.mark.parametrize("layout", LAYOUTS)
def test_ties_go_to_the_lower_index_and_position(impl: Implementation, layout: str, activation: str) -> None:
    head = make_head(layout, torch.float32, 5, 9, 4, 300, integers=True)  # logits in [-18, 18]: ties everywhere
    args, kwargs = head.args()
    got = impl.operators.vocab_topk(*args, k=40, activation=activation, **kwargs)
    same = reference.vocab_topk(*args, k=40, activation=activation, **kwargs)
    assert torch.equal(got.indices, same.indices)
    assert torch.equal(got.positions, same.positions)
    assert max_error(got.values, same.values) < 1e-5


@pytest.mark.parametrize("k", [1, 16, 300])
@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize("values", ["ties", "small", "negative", "ascending", "descending", "steps", "equal"])
def test_more_candidates_than_a_row_holds(impl: Implementation, values: str, dtype: torch.dtype, k: int) -> None:
    """Rows are cut back to the k best several times, whatever the order in which the columns come."""
    V = 5000
    ascending = torch.arange(V) * 256 // V / 256 + 0.5  # every value 19 or 20 times
    weight = {
        "ties": ascending[torch.randperm(V)],
        "small": ascending[torch.randperm(V)] * 2**-9,
        "negative": -ascending[torch.randperm(V)],
        "ascending": ascending,
        "descending": ascending.flip(0),
        "steps": torch.arange(V) // 1000 + 1.0,
        "equal": torch.ones(V),
    }[values][:, None]
    hidden = torch.tensor([[[1.0]], [[2.0]]]).to(dtype)
    activation = "elu1p" if values == "negative" else "relu"
    got = impl.operators.vocab_topk(hidden, weight.to(dtype), k=k, activation=activation)
    want = reference.vocab_topk(hidden, weight.to(dtype), k=k, activation=activation)
    assert torch.equal(got.indices, want.indices)
    assert torch.equal(got.positions, want.positions)
    assert_close(got.values, want.values, want.values)


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize("activation", ACTIVATIONS)
@pytest.mark.parametrize("layout", LAYOUTS)
def test_gradients_match_float64(impl: Implementation, layout: str, activation: str, dtype: torch.dtype) -> None:
    head = make_head(layout, dtype, 4, 6, 16, 200).leaves()
    args, kwargs = head.args()
    rows = impl.operators.vocab_topk(*args, k=24, activation=activation, **kwargs)
    upstream = torch.randn(rows.values.shape)
    (rows.values * upstream).sum().backward()
    truth, single = head.double().leaves(), head.leaves()
    (chosen_values(truth, rows, activation) * upstream.double()).sum().backward()
    args, kwargs = single.args()
    same = reference.vocab_topk(*args, k=24, activation=activation, **kwargs)
    (same.values * upstream).sum().backward()
    for (name, got), (_, want), (_, eager) in zip(head.grads(), truth.grads(), single.grads()):
        assert got.dtype == getattr(head, name).dtype
        assert_close(got, want, eager, f"gradient of {name}")


def test_nan_poisons_its_own_row_only(impl: Implementation) -> None:
    head = make_head("masked", torch.float32, 4, 6, 8, 200)
    clean = impl.operators.vocab_topk(*head.args()[0], k=10)
    seen = int(head.mask[1].nonzero()[-1])
    head.hidden[1, seen, 3] = torch.nan
    head.hidden[2][~head.mask[2]] = torch.nan  # masked: not seen
    got = impl.operators.vocab_topk(*head.args()[0], k=10)
    same_rows(got, sk.SparseRows.cat([clean[:1], got[1:2], clean[2:]]))
    same_rows(got[1:2], reference.vocab_topk(*head.args()[0], k=10)[1:2])
    assert got.values[1].isnan().all()


def test_nan_in_the_weight_or_bias_reaches_every_row(impl: Implementation) -> None:
    for name in ("weight", "bias"):
        head = make_head("padded", torch.float32, 3, 2, 8, 300)
        getattr(head, name)[257] = torch.nan
        rows = impl.operators.vocab_topk(*head.args()[0], k=5)
        assert rows.values.isnan().all()
        same_rows(rows, reference.vocab_topk(*head.args()[0], k=5))


def test_nan_gradient_is_not_lost(impl: Implementation) -> None:
    head = make_head("padded", torch.float32, 2, 3, 8, 50).leaves()
    with torch.no_grad():
        head.hidden[0, 1, 0] = torch.nan
    impl.operators.vocab_topk(*head.args()[0], k=5).values.sum().backward()
    assert head.weight.grad.isnan().any()
    assert head.hidden.grad[1].isfinite().all()


def test_infinities(impl: Implementation) -> None:
    hidden = torch.tensor([[[1.0, 0.0]]])
    weight = torch.tensor([[torch.inf, 1.0], [-torch.inf, 1.0], [3.0, 1.0], [3e38, 1.0]])
    hidden[0, 0, 1] = 1.0  # inf * 1 + 1: no inf * 0
    rows = impl.operators.vocab_topk(hidden, weight, k=4)
    assert rows.indices.tolist() == [[0, 3, 2, -1]]
    assert rows.values[0, 0] == torch.inf
    banned = impl.operators.vocab_topk(hidden, weight[2:], torch.tensor([-torch.inf, 0.0]), k=2)
    assert banned.indices.tolist() == [[1, -1]]


@pytest.mark.parametrize("shape", [(0, 3, 4, 10), (2, 0, 4, 10), (2, 3, 4, 0), (2, 3, 0, 10)], ids=str)
def test_empty_sizes(impl: Implementation, shape: tuple[int, ...]) -> None:
    B, L, D, V = shape
    head = Head(torch.randn(B, L, D), torch.randn(V, D), torch.randn(V)).leaves()
    rows = impl.operators.vocab_topk(*head.args()[0], k=3)
    same_rows(rows, reference.vocab_topk(*head.args()[0], k=3))
    rows.values.sum().backward()
    assert all(grad.isfinite().all() for _, grad in head.grads())


def test_same_bits_for_any_number_of_threads(impl: Implementation, threads) -> None:  # type: ignore[no-untyped-def]
    head = make_head("masked", torch.float32, 5, 7, 24, 2000).leaves()
    results = []
    for n in (1, 2, 3, 7, 40):  # 40: rows are split, too
        threads(n)
        fresh = head.leaves()
        rows = impl.operators.vocab_topk(*fresh.args()[0], k=20)
        rows.values.square().sum().backward()
        results.append((rows, fresh.grads()))
    for rows, grads in results[1:]:
        same_rows(rows, results[0][0])
        assert all(torch.equal(a, b) for (_, a), (_, b) in zip(grads, results[0][1]))


def test_same_bits_whatever_else_is_in_the_batch(impl: Implementation) -> None:
    head = make_head("masked", torch.float32, 6, 11, 24, 500)
    whole = impl.operators.vocab_topk(*head.args()[0], k=20)
    for b in range(6):
        alone = impl.operators.vocab_topk(head.hidden[b : b + 1], head.weight, head.bias, head.mask[b : b + 1], k=20)
        same_rows(alone, whole[b : b + 1])
    lengths = head.mask.sum(1)
    cu_seqlens = torch.nn.functional.pad(lengths.cumsum(0), (1, 0)).int()
    packed = impl.operators.vocab_topk(head.hidden[head.mask], head.weight, head.bias, k=20, cu_seqlens=cu_seqlens)
    assert torch.equal(packed.values, whole.values)
    assert torch.equal(packed.indices, whole.indices)


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
def test_views_of_any_stride(impl: Implementation, dtype: torch.dtype) -> None:
    base = make_head("padded", dtype, 4, 6, 16, 200)
    plain = impl.operators.vocab_topk(base.hidden, base.weight, base.bias, k=8)
    transposed = base.weight.t().contiguous().t()
    sliced = torch.stack([base.hidden, base.hidden], dim=-1)[..., 0]
    expanded = base.hidden[:1].expand(4, 6, 16)
    mask = torch.ones(6, 4, dtype=torch.bool).t()
    same_rows(impl.operators.vocab_topk(sliced, transposed, base.bias, mask, k=8), plain)
    repeated = impl.operators.vocab_topk(expanded, base.weight, base.bias, k=8)
    for b in range(4):
        same_rows(repeated[b : b + 1], plain[:1])
    head = Head(sliced, transposed, base.bias).leaves()
    wide = head.weight.t().contiguous().t()
    rows = impl.operators.vocab_topk(head.hidden, wide, head.bias, k=8)
    rows.values.sum().backward()
    straight = base.leaves()
    impl.operators.vocab_topk(*straight.args()[0], k=8).values.sum().backward()
    assert all(torch.equal(a, b) for (_, a), (_, b) in zip(head.grads(), straight.grads()))


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
def test_packed_vocabulary_gives_the_same_bits(impl: Implementation, dtype: torch.dtype) -> None:
    head = make_head("masked", dtype, 3, 5, 20, 333)
    packed = impl.operators.pack_vocab(head.weight, head.bias)
    assert packed.shape == (333, 20)
    want = impl.operators.vocab_topk(*head.args()[0], k=9)
    same_rows(impl.operators.vocab_topk(head.hidden, packed, mask=head.mask, k=9), want)
    with pytest.raises(ValueError, match=r"weight: expected a tensor where gradients are wanted"):
        impl.operators.vocab_topk(head.hidden.requires_grad_(), packed, k=9)


def test_a_packed_vocabulary_of_other_sizes_is_refused() -> None:
    """Its memory is read as its shape says."""
    panels = sk.pack_vocab(torch.randn(300, 8)).panels
    turned = panels.transpose(0, 2).contiguous().transpose(0, 2)
    with pytest.raises(ValueError, match=r"panels: expected contiguous \[24, 8, 16\] .* got \[8, 8, 16\]"):
        sk.PackedVocab(panels[:8], None, (300, 8))
    with pytest.raises(ValueError, match=r"panels: expected contiguous .*, not contiguous"):
        sk.PackedVocab(turned, None, (300, 8))
    with pytest.raises(ValueError, match=r"bias: expected \[300\] in float32, .* got \[5\]"):
        sk.PackedVocab(panels, torch.ones(5), (300, 8))
    hidden = torch.randn(1, 2, 8)
    for weight, bias in ((panels[:8], None), (turned, None), (panels, torch.ones(5))):
        with pytest.raises(RuntimeError, match="expected"):
            torch.ops.stair.vocab_topk(hidden, weight, bias, None, None, 300, 3, "relu", False)


def test_packed_vocabulary_keeps_its_dtype_under_autocast(impl: Implementation) -> None:
    head = make_head("padded", torch.float32, 3, 5, 20, 333)
    packed = impl.operators.pack_vocab(head.weight, head.bias)
    with torch.autocast(impl.device_type, dtype=torch.bfloat16):
        rows = impl.operators.vocab_topk(head.hidden, packed, k=9)
    same_rows(rows, impl.operators.vocab_topk(head.hidden, head.weight, head.bias, k=9))


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
def test_sparse_weight_gradient(impl: Implementation, dtype: torch.dtype) -> None:
    head = make_head("masked", dtype, 4, 6, 16, 500)
    dense, sparse = head.leaves(), head.leaves()
    for each in (dense, sparse):
        rows = impl.operators.vocab_topk(*each.args()[0], k=9, sparse_grad=each is sparse)
        rows.values.square().sum().backward()
    got = sparse.weight.grad
    assert got.layout == torch.sparse_coo
    assert got.dtype == dtype
    assert torch.equal(got._indices()[0], rows.indices[rows.indices >= 0].unique().long())
    assert torch.equal(got.to_dense(), dense.weight.grad)
    assert torch.equal(sparse.hidden.grad, dense.hidden.grad)
    assert torch.equal(sparse.bias.grad, dense.bias.grad)


def test_sparse_weight_gradient_of_nothing(impl: Implementation) -> None:
    head = make_head("single", torch.float32, 2, 1, 4, 50).leaves()
    with torch.no_grad():
        head.bias.fill_(-1e9)
    impl.operators.vocab_topk(*head.args()[0], k=3, sparse_grad=True).values.sum().backward()
    assert head.weight.grad._nnz() == 0
    assert head.weight.grad.shape == (50, 4)


def test_sparse_weight_gradient_trains_with_sparse_adam(impl: Implementation) -> None:
    head = make_head("padded", torch.float32, 4, 6, 16, 300).leaves()
    before = head.weight.detach().clone()
    optimizer = torch.optim.SparseAdam([head.weight], lr=0.1)
    rows = impl.operators.vocab_topk(*head.args()[0], k=5, sparse_grad=True)
    rows.values.sum().backward()
    optimizer.step()
    moved = (head.weight != before).any(dim=1).nonzero()[:, 0]
    assert torch.equal(moved, rows.indices.unique().long())


@pytest.mark.parametrize("frozen", ["hidden", "weight", "bias"])
def test_a_frozen_input_has_no_gradient_and_changes_no_other(impl: Implementation, frozen: str) -> None:
    for operator in (lambda *args: impl.operators.vocab_topk(*args, k=9).values, impl.operators.vocab_pool):
        head = make_head("masked", torch.float32, 4, 6, 16, 300)
        whole, part = head.leaves(), head.leaves()
        getattr(part, frozen).requires_grad_(False)
        for each in (whole, part):
            operator(*each.args()[0]).square().sum().backward()
        assert getattr(part, frozen).grad is None
        for name in {"hidden", "weight", "bias"} - {frozen}:
            assert torch.equal(getattr(part, name).grad, getattr(whole, name).grad)


def test_offsets_of_any_stride(impl: Implementation) -> None:
    head = make_head("packed", torch.float32, 6, 5, 8, 100)
    spread = torch.full((14,), 2**30, dtype=torch.int32)
    spread[::2] = head.cu_seqlens
    results = []
    for cu_seqlens in (head.cu_seqlens, spread[::2]):
        fresh = head.leaves()
        rows = impl.operators.vocab_topk(fresh.hidden, fresh.weight, fresh.bias, k=9, cu_seqlens=cu_seqlens)
        dense = impl.operators.vocab_pool(fresh.hidden, fresh.weight, fresh.bias, cu_seqlens=cu_seqlens)
        (rows.values.sum() + dense.square().sum()).backward()
        results.append([rows.values, dense, *(grad for _, grad in fresh.grads())])
    assert all(torch.equal(a, b) for a, b in zip(*results))


def test_many_threads_do_not_keep_more_candidates_than_the_dense_row(impl: Implementation, threads) -> None:  # type: ignore[no-untyped-def]
    head = make_head("single", torch.float32, 2048, 1, 4, 30522)
    want = impl.operators.vocab_topk(*head.args()[0], k=256)
    threads(48)
    before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    same_rows(impl.operators.vocab_topk(*head.args()[0], k=256), want)
    grown = (resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before) * 1024
    assert grown < 2048 * 30522 * 4


def test_opcheck(device: str) -> None:
    require_kernel("vocab_topk", device)
    for layout in LAYOUTS:
        head = make_head(layout, torch.float32, 3, 4, 8, 60).to(device).leaves()
        hidden = head.hidden if layout != "single" else head.hidden.detach().unsqueeze(1).requires_grad_()
        args = (hidden, head.weight, head.bias, head.mask, head.cu_seqlens, None, 7, "log_relu", False)
        torch.library.opcheck(torch.ops.stair.vocab_topk.default, args)


def test_compiles_into_one_graph(device: str) -> None:
    require_kernel("vocab_topk", device)
    head = make_head("masked", torch.float32, 3, 4, 8, 60).to(device).leaves()

    def step(hidden: torch.Tensor, weight: torch.Tensor, bias: torch.Tensor) -> tuple[torch.Tensor, sk.SparseRows]:
        rows = sk.vocab_topk(hidden, weight, bias, head.mask, k=6)
        return rows.to_dense().square().sum(), rows

    want, want_rows = step(head.hidden, head.weight, head.bias)
    want.backward()
    compiled = head.leaves()
    got, rows = torch.compile(step, fullgraph=True, backend="aot_eager")(
        compiled.hidden, compiled.weight, compiled.bias
    )
    got.backward()
    assert isinstance(rows, sk.SparseRows)
    same_rows(rows.detach(), want_rows.detach())
    torch.testing.assert_close(got, want)
    for (_, a), (_, b) in zip(compiled.grads(), head.grads()):
        torch.testing.assert_close(a, b)


def test_autocast_runs_in_its_dtype(impl: Implementation) -> None:
    head = make_head("padded", torch.float32, 3, 4, 8, 60).leaves()
    with torch.autocast(impl.device_type, dtype=torch.bfloat16):
        rows = impl.operators.vocab_topk(head.hidden, head.weight, head.bias, k=6)
    low = impl.operators.vocab_topk(head.hidden.bfloat16(), head.weight.bfloat16(), head.bias, k=6)
    same_rows(rows.detach(), low.detach())
    rows.values.sum().backward()
    assert head.weight.grad.dtype == torch.float32


def test_second_derivative_is_refused(impl: Implementation) -> None:
    head = make_head("padded", torch.float32, 2, 3, 4, 30).leaves()
    rows = impl.operators.vocab_topk(*head.args()[0], k=5)
    (grad,) = torch.autograd.grad(rows.values.square().sum(), head.hidden, create_graph=True)
    with pytest.raises(NotImplementedError, match="differentiable once"):
        grad.sum().backward()


@settings(max_examples=60, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(
    B=st.integers(0, 5),
    L=st.integers(0, 14),
    D=st.integers(0, 20),
    V=st.integers(0, 300),
    k=st.integers(1, 310),
    layout=st.sampled_from(LAYOUTS),
    activation=st.sampled_from(ACTIVATIONS),
    nan=st.booleans(),
    seed=st.integers(0, 2**16),
)
def test_any_shape_equals_the_reference(
    impl: Implementation, B: int, L: int, D: int, V: int, k: int, layout: str, activation: str, nan: bool, seed: int
) -> None:
    """Integer inputs: every sum is exact, so indices and positions must be equal, not only close."""
    torch.manual_seed(seed)
    head = make_head(layout, torch.float32, max(B, 1), L, D, V, integers=True)
    if layout == "padded" and B == 0:
        head = Head(head.hidden[:0], head.weight, head.bias)
    if nan and head.hidden.numel():
        head.hidden.view(-1)[seed % head.hidden.numel()] = torch.nan
    args, kwargs = head.args()
    got = impl.operators.vocab_topk(*args, k=k, activation=activation, **kwargs)
    want = reference.vocab_topk(*args, k=k, activation=activation, **kwargs)
    assert torch.equal(got.indices, want.indices)
    assert torch.equal(got.positions, want.positions)
    assert max_error(got.values, want.values) <= 1e-5


GOOD = {
    "hidden": torch.ones(2, 3, 4),
    "weight": torch.ones(5, 4),
    "bias": torch.ones(5),
    "mask": torch.ones(2, 3).bool(),
    "k": 2,
}


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"hidden": torch.ones(2, 3, 4, 5)}, r"hidden: expected \[B, L, D\] or \[B, D\], got \[2, 3, 4, 5\]"),
        ({"hidden": torch.ones(2, 3, 4).double()}, r"hidden: expected float32, bfloat16, float16, got torch.float64"),
        ({"hidden": torch.ones(2, 3, 4).bfloat16()}, r"weight: expected torch.bfloat16 like hidden, got torch.float32"),
        ({"hidden": torch.ones(2, 3, 6)}, r"weight: expected \[V, 6\] like hidden, got \[V, 4\]"),
        ({"weight": torch.ones(5)}, r"weight: expected \[V, D\]"),
        ({"bias": torch.ones(4)}, r"bias: expected \[5\] in .*, got \[4\] torch.float32"),
        ({"bias": torch.ones(5).int()}, r"bias: expected \[5\] in .*, got \[5\] torch.int32"),
        ({"mask": torch.ones(2, 3)}, r"mask: expected \[2, 3\] bool like hidden, got \[2, 3\] torch.float32"),
        ({"mask": torch.ones(3, 2).bool()}, r"mask: expected \[2, 3\] bool like hidden, got \[3, 2\] torch.bool"),
        ({"hidden": torch.ones(2, 4)}, r"mask: expected None with hidden \[B, D\]"),
        ({"k": 0}, r"k: expected an integer >= 1 and < 2\^31, got 0"),
        ({"k": 2**62}, r"k: expected an integer >= 1 and < 2\^31"),
        ({"k": 2.5}, r"k: expected an integer .*, got 2.5"),
        ({"hidden": [1.0]}, r"hidden: expected a dense tensor, got list"),
        ({"weight": torch.tensor(1.0)}, r"weight: expected \[V, D\]"),
        ({"weight": torch.ones(5, 4).to_sparse()}, r"weight: expected a dense tensor, got torch.sparse_coo"),
        ({"activation": ["relu"]}, r"activation: expected one of"),
        ({"activation": "gelu"}, r"activation: expected one of log_relu, .*, got 'gelu'"),
        ({"cu_seqlens": torch.tensor([0, 2]).int()}, r"hidden: expected packed \[T, D\] with cu_seqlens"),
        (
            {"hidden": torch.ones(6, 4), "cu_seqlens": torch.tensor([0, 6]).int()},
            r"mask: expected None with cu_seqlens",
        ),
        (
            {"hidden": torch.ones(6, 4), "mask": None, "cu_seqlens": torch.tensor([0, 6])},
            r"cu_seqlens: expected \[B \+ 1\] int32, got \[2\] torch.int64",
        ),
        (
            {"hidden": torch.ones(6, 4), "mask": None, "cu_seqlens": torch.tensor([0, 4, 3, 6]).int()},
            r"cu_seqlens: expected ascending offsets from 0 to T = 6, got \[0, 4, 3, 6\]",
        ),
        (
            {"hidden": torch.ones(6, 4), "mask": None, "cu_seqlens": torch.tensor([0, 7]).int()},
            r"cu_seqlens: expected ascending offsets from 0 to T = 6, got \[0, 7\]",
        ),
        (
            {"weight": torch.ones(5, 4, device="meta"), "bias": None},
            r"weight: expected device cpu like hidden, got meta",
        ),
    ],
    ids=lambda value: ",".join(value) if isinstance(value, dict) else "",
)
def test_bad_input_names_the_argument(change: dict, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        sk.vocab_topk(**{**GOOD, **change})
