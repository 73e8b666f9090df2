"""vocab_topk and vocab_pool on any shape, dtype, stride and special value: equal to the reference to the bit.

Inputs are small integers and the activation is relu, so that every sum is exact in every order, forward and backward.
"""

from __future__ import annotations

import pytest
import torch
from conftest import Implementation
from heads import DTYPES, LAYOUTS, Head, make_head
from hypothesis import HealthCheck, assume, given, settings
from hypothesis import strategies as st
from torch import Tensor

import stair_kernels as sk
from stair_kernels import reference

VIEWS = ("plain", "transposed", "every_second", "offset", "expanded")
SPECIAL = (torch.nan, torch.inf, -torch.inf, -0.0)


def viewed(t: Tensor, view: str) -> Tensor:
    """The same values (`expanded`: the first row in place of all) with other strides or another offset."""
    if view == "transposed" and t.dim() > 1:
        return t.transpose(0, -1).contiguous().transpose(0, -1)
    if view == "every_second":
        return torch.stack([t, torch.full_like(t, 7)], dim=-1).flatten(-2)[..., ::2]
    if view == "offset":  # not on a boundary of 64, 16 or 8 bytes
        return torch.cat([t.new_full((3,), 7), t.flatten()])[3:].view(t.shape)
    if view == "expanded" and t.dim() > 1 and t.shape[0] > 0:
        return t[:1].expand(t.shape)
    return t


def scattered(t: Tensor, values: list[float], seed: int) -> Tensor:
    """`t` with `values` in pseudo-random places."""
    flat = t.flatten().clone()
    for i, value in enumerate(values if len(flat) else []):
        flat[(seed + 7919 * i) % len(flat)] = value
    return flat.view(t.shape)


heads = st.fixed_dictionaries(
    {
        "layout": st.sampled_from(LAYOUTS),
        "dtype": st.sampled_from(DTYPES),
        "B": st.integers(1, 6),
        "L": st.integers(0, 40),
        "D": st.integers(0, 70),
        "V": st.integers(0, 400),
        "views": st.tuples(*[st.sampled_from(VIEWS)] * 4),
        "special": st.lists(st.sampled_from(SPECIAL), max_size=3),
        "seed": st.integers(0, 2**16),
    }
)


def build(case: dict, special: bool = True) -> Head:
    torch.manual_seed(case["seed"])
    head = make_head(case["layout"], case["dtype"], case["B"], case["L"], case["D"], case["V"], integers=True)
    values = case["special"] if special else []
    hidden, weight = (scattered(t, values, case["seed"]) for t in (head.hidden, head.weight))
    hidden_view, weight_view, bias_view, mask_view = case["views"]
    mask = None if head.mask is None else viewed(head.mask, mask_view)
    bias = viewed(head.bias, bias_view)
    return Head(viewed(hidden, hidden_view), viewed(weight, weight_view), bias, mask, head.cu_seqlens)


def equal(got: Tensor, want: Tensor) -> bool:
    """To the bit, but for the sign of zero and the payload of NaN."""
    return bool(((got == want) | (got.isnan() & want.isnan())).all())


fixed = settings(max_examples=150, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])


@fixed
@given(case=heads, k=st.integers(1, 60))
def test_forward_equals_the_reference(impl: Implementation, case: dict, k: int) -> None:
    head = build(case)
    args, kwargs = head.args()
    got = impl.operators.vocab_topk(*args, k=k, activation="relu", **kwargs)
    want = reference.vocab_topk(*args, k=k, activation="relu", **kwargs)
    assert torch.equal(got.indices, want.indices)
    assert torch.equal(got.positions, want.positions)
    assert equal(got.values, want.values)
    pooled = impl.operators.vocab_pool(*args, activation="relu", **kwargs)
    assert equal(pooled, reference.vocab_pool(*args, activation="relu", **kwargs))


@fixed
@given(case=heads)
def test_a_packed_vocabulary_equals_its_weight(impl: Implementation, case: dict) -> None:
    head = build(case)
    args, kwargs = head.args()
    packed = impl.operators.pack_vocab(head.weight, head.bias)
    got = impl.operators.vocab_pool(head.hidden, packed, None, head.mask, activation="relu", **kwargs)
    assert equal(got, impl.operators.vocab_pool(*args, activation="relu", **kwargs))


@fixed
@given(case=heads, k=st.integers(1, 60), sparse_grad=st.booleans())
def test_gradients_equal_the_reference(impl: Implementation, case: dict, k: int, sparse_grad: bool) -> None:
    """Also where maxima tie: the gradient goes to the lowest position and, of tied columns, to the lowest index."""
    assume(case["V"] > 0 and case["L"] > 0)  # the reference of nothing has no graph
    head = build(case, special=False)
    upstream = {}

    def grads(operators: object, name: str, **extra: object) -> list[Tensor]:
        leaves = [t.detach().requires_grad_() for t in (head.hidden, head.weight, head.bias)]
        out = getattr(operators, name)(*leaves, head.mask, cu_seqlens=head.cu_seqlens, activation="relu", **extra)
        out = out.values if name == "vocab_topk" else out
        upstream.setdefault(name, torch.randint(-2, 3, out.shape).float())
        return [grad.to_dense() for grad in torch.autograd.grad(out, leaves, upstream[name])]

    for name, extra in (("vocab_topk", {"k": k}), ("vocab_pool", {})):
        ours = {"sparse_grad": sparse_grad} if name == "vocab_topk" else {}
        for got, want in zip(grads(impl.operators, name, **extra, **ours), grads(reference, name, **extra)):
            assert got.dtype == want.dtype == head.hidden.dtype
            assert equal(got, want)


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize("L", [1, 9])
def test_subnormal_numbers(impl: Implementation, L: int, dtype: torch.dtype) -> None:
    """They count, but for bfloat16 where the hardware's pair products take them for zero."""
    head = make_head("padded", dtype, 3, L, 20, 300, integers=True)
    smallest = {torch.float32: 2.0**-149, torch.bfloat16: 2.0**-133, torch.float16: 2.0**-24}[dtype]
    head.hidden = (head.hidden.float() * smallest).to(dtype)
    assert (head.hidden != 0).any()
    head.bias = None
    got = impl.operators.vocab_topk(*head.args()[0], k=30, activation="relu")
    if dtype == torch.bfloat16 and impl.device == "cpu" and sk.cpu_isa() in ("amx", "avx512_bf16"):
        assert (got.indices == -1).all()
        return
    want = reference.vocab_topk(*head.args()[0], k=30, activation="relu")
    assert torch.equal(got.indices, want.indices)
    assert torch.equal(got.values, want.values)
    assert (got.values[:, 0] > 0).all()


@pytest.mark.filterwarnings(
    "ignore:Input #. requires gradient"
)  # gradcheck prefers float64, which the kernels have not
@pytest.mark.parametrize("operator", ["vocab_topk", "vocab_pool"])
@pytest.mark.parametrize("activation", ["log_relu", "relu", "log_log_relu", "elu1p"])
def test_gradcheck(impl: Implementation, operator: str, activation: str) -> None:
    """Central differences of the float32 operator itself, at a point without ties."""
    torch.manual_seed(3)
    head = make_head("masked", torch.float32, 3, 4, 6, 12)
    upstream = torch.randn(3, 12)

    def loss(hidden: Tensor, weight: Tensor, bias: Tensor) -> Tensor:
        extra = {"k": 12} if operator == "vocab_topk" else {}
        out = getattr(impl.operators, operator)(hidden, weight, bias, head.mask, activation=activation, **extra)
        return ((out if operator == "vocab_pool" else out.to_dense()) * upstream).sum()

    leaves = [t.clone().requires_grad_() for t in (head.hidden, head.weight, head.bias)]
    assert torch.autograd.gradcheck(loss, tuple(leaves), eps=2.0**-9, atol=2e-2, rtol=2e-2, fast_mode=False)
