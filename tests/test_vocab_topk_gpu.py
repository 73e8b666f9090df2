"""vocab_topk's backward on a GPU: what its own tests' sizes leave out; tests/test_simt.py runs it without one."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from heads import DTYPES
from simt_on_cpu import needs_kernels
from torch import Tensor

import stair_kernels as sk
from stair_kernels import cuda

pytestmark = needs_kernels
backward = torch.ops.stair.vocab_topk_backward


def integers(*shape: int) -> Tensor:
    return torch.randint(-3, 4, shape).float()


def make_saved(bounds: list[int], D: int, V: int, K: int, dtype: torch.dtype) -> dict[str, Any]:
    """Rows of tokens between `bounds` whose survivors are random; the last slot is empty, in a row of nothing all."""
    B, lengths = len(bounds) - 1, torch.tensor(bounds).diff()[:, None]
    filled = (torch.arange(K) < K - 1) & (lengths > 0)
    indices = torch.where(filled, torch.stack([torch.randperm(V)[:K] for _ in range(B)]), -1).int()
    positions = torch.where(filled, (torch.rand(B, K) * lengths).long(), -1).int()
    return {
        "grad_values": integers(B, K),
        "values": torch.randint(1, 9, (B, K)).float() * filled,
        "indices": indices,
        "positions": positions,
        "hidden": integers(bounds[-1], D).to(dtype),
        "weight": integers(V, D).to(dtype),
        "cu_seqlens": torch.tensor(bounds, dtype=torch.int32),
    }


def run(saved: dict[str, Any], rows: Tensor | None = None, activation: str = "relu") -> tuple[Tensor, ...]:
    return backward(*saved.values(), rows, activation, True, True)


def expected(saved: dict[str, Any]) -> tuple[Tensor, ...]:
    """Of relu, by index_add_ in float64; each rounded once to its dtype."""
    hidden, weight, filled = saved["hidden"].double(), saved["weight"].double(), saved["indices"] >= 0
    token = (saved["cu_seqlens"][:-1, None] + saved["positions"])[filled].long()
    index, grad = saved["indices"][filled].long(), saved["grad_values"][filled].double()
    grad_hidden = torch.zeros_like(hidden).index_add_(0, token, grad[:, None] * weight[index])
    grad_weight = torch.zeros_like(weight).index_add_(0, index, grad[:, None] * hidden[token])
    grad_bias = torch.zeros(len(weight), dtype=torch.float64).index_add_(0, index, grad)
    dtype = saved["hidden"].dtype
    return grad_hidden.to(dtype), grad_weight.to(dtype), grad_bias.float()


@pytest.mark.parametrize(
    ("bounds", "D", "V", "K", "dtype"),
    [
        (list(range(121)), 20, 5, 5, torch.float32),  # columns of about 96 survivors, three warps each
        ([0, 1, 1, 2], 33, 300, 280, torch.float16),  # a token of 279 survivors, a row without a token, a tail of D
        ([0, 5, 12], 264, 40, 7, torch.bfloat16),  # two blocks along D
    ],
    ids=["long columns", "long tokens", "wide"],
)
def test_every_path_once(bounds: list[int], D: int, V: int, K: int, dtype: torch.dtype) -> None:
    """Integers, whose sums are exact: equal to the bit; with `rows`, the same rows of it."""
    saved = make_saved(bounds, D, V, K, dtype)
    for got, want in zip(run(saved), expected(saved)):
        assert torch.equal(got, want)
    rows = torch.tensor([0, 1, 4])
    assert torch.equal(run(saved, rows)[1], expected(saved)[1][rows])


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
def test_same_bits_wherever_memory_begins(dtype: torch.dtype) -> None:
    """With loads of 16 bytes, and where a row does not begin at a multiple of them."""
    saved = make_saved([0, 3, 9, 11], 48, 90, 80, dtype)
    saved["hidden"], saved["weight"] = torch.randn(11, 48).to(dtype), torch.randn(90, 48).to(dtype)
    want = run(saved)
    for name in ("hidden", "weight"):
        moved = torch.cat([torch.zeros(1, dtype=dtype), saved[name].flatten()])[1:].view_as(saved[name])
        assert all(map(torch.equal, run({**saved, name: moved}), want))


def test_gradient_of_a_token_does_not_depend_on_the_batch() -> None:
    """Of 4 survivors and of 100, which warps share."""
    saved = make_saved([0, 1, 26, 27], 40, 300, 101, torch.float32)
    saved["weight"] = torch.randn(300, 40)
    whole = run(saved)[0]
    for b, (first, end) in enumerate([(0, 1), (1, 26), (26, 27)]):
        alone = {name: saved[name][b : b + 1] for name in ("grad_values", "values", "indices", "positions")}
        alone |= {"hidden": saved["hidden"][first:end], "weight": saved["weight"]}
        alone["cu_seqlens"] = torch.tensor([0, end - first], dtype=torch.int32)
        assert torch.equal(run(alone)[0], whole[first:end])


def test_unknown_activation_is_refused() -> None:
    with pytest.raises(RuntimeError, match=r"activation: expected log_relu, .*, got gelu"):
        run(make_saved([0, 2], 4, 9, 3, torch.float32), activation="gelu")


def test_without_the_library_the_error_says_what_builds_it(monkeypatch: pytest.MonkeyPatch) -> None:
    """A CUDA tensor by its word only: without a GPU there is no other."""
    monkeypatch.setattr(cuda, "LIBRARY_BUILT", False)
    monkeypatch.setattr(Tensor, "is_cuda", True)
    with pytest.raises(RuntimeError, match=r"vocab_topk on CUDA tensors needs _C_cuda\.so, which is not built"):
        sk.vocab_topk(torch.ones(1, 2), torch.ones(3, 2), k=1)
