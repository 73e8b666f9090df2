"""The GPU kernels from their PTX on tensors of more than 2^31 elements: files of holes, few pages touched."""

from __future__ import annotations

import math
from collections import defaultdict
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from far import holes
from torch import Tensor

from stair_kernels import reference

pytest.importorskip("triton", reason="Triton is not installed: nothing compiles its kernels")
from triton_on_cpu import run_from_ptx

from stair_kernels._triton import vocab_pool

Far = Callable[..., Tensor]
SMALL = 2**20
FEW = 3  # tokens, rows or columns at the far end


@pytest.fixture
def far(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Far:
    """far(*shape, dtype=) is zeros that take no memory; what a launcher allocates is made so as well."""
    new_empty = Tensor.new_empty

    def make(*shape: int, dtype: torch.dtype = torch.float16) -> Tensor:
        return holes(tmp_path, *shape, dtype=dtype)

    def make_new(like: Tensor, shape: Any, dtype: torch.dtype | None = None) -> Tensor:
        small = math.prod(shape) <= SMALL
        return new_empty(like, shape, dtype=dtype) if small else make(*shape, dtype=dtype or like.dtype)

    monkeypatch.setattr(Tensor, "new_empty", make_new)
    return make


def integers(*shape: int) -> Tensor:
    return torch.randint(-2, 3, shape).half()


def run_pool(hidden: Tensor, weight: Tensor, cu_seqlens: Tensor | None = None) -> tuple[Tensor, Tensor]:
    return vocab_pool.vocab_pool(hidden, weight, None, None, cu_seqlens, None, "raw")


def equal_parts(got: tuple[Tensor, Tensor], hidden: Tensor, weight: Tensor) -> None:
    """Values and positions of rows of one sequence each."""
    values, positions = reference.pooled_logits(hidden, weight, None, None, None, torch.float32)
    assert torch.equal(got[0], values)
    assert torch.equal(got[1].long(), positions)


def test_tokens_past_2_to_the_31(monkeypatch: pytest.MonkeyPatch, far: Far) -> None:
    """T * D: the only row starts there. Forward and both gradients."""
    run_from_ptx(monkeypatch)
    D, V = 64, 8
    T = 2**31 // D + 2 * FEW
    hidden, weight = far(T, D), integers(V, D)
    hidden[-FEW:] = integers(FEW, D)
    cu_seqlens = torch.tensor([T - FEW, T], dtype=torch.int32)
    out, positions = run_pool(hidden, weight, cu_seqlens)
    equal_parts((out, positions), hidden[None, -FEW:], weight)
    grad, out = integers(1, V).float(), torch.ones(1, V)
    needs = None, "relu", True, True
    wanted = torch.ops.stair.vocab_pool_backward(grad, out, positions, hidden[None, -FEW:], weight, *needs)
    saved = grad, out, positions, hidden, weight, cu_seqlens, *needs[1:]
    of_hidden, of_weight, _ = vocab_pool.vocab_pool_backward(*saved)
    assert torch.equal(of_hidden[-FEW:], wanted[0][0])
    assert torch.equal(of_weight, wanted[1])


def test_entries_past_2_to_the_31(monkeypatch: pytest.MonkeyPatch, far: Far) -> None:
    """B * V: the last program of the forward and of hidden's gradient, which own the last rows."""
    run_from_ptx(monkeypatch, only_last=True)
    monkeypatch.setattr(vocab_pool, "_multiprocessors", lambda device: 2**31)  # one a tile
    monkeypatch.setattr(vocab_pool, "weight_kernel", defaultdict(lambda: lambda *args, **constants: None))
    D, V = 16, 80
    B = 2**31 // V + 2 * FEW
    hidden, weight = far(B, 1, D), integers(V, D)
    hidden[-FEW:, 0] = integers(FEW, D)
    out, positions = run_pool(hidden, weight)
    last_block = slice(64, V)
    got = out[-FEW:, last_block], positions[-FEW:, last_block]
    equal_parts(got, hidden[-FEW:], weight[last_block])
    grad, out = far(B, V, dtype=torch.float32), far(B, V, dtype=torch.float32)
    grad[-FEW:], out[-FEW:] = integers(FEW, V).float(), 1.0
    of_hidden, _, _ = vocab_pool.vocab_pool_backward(grad, out, positions, hidden, weight, None, "relu", True, False)
    assert torch.equal(of_hidden[-FEW:, 0], grad[-FEW:] @ weight.float())


def test_weights_past_2_to_the_31(monkeypatch: pytest.MonkeyPatch, far: Far) -> None:
    """V * D: the last program of the forward and of the weight's gradient, which own the last columns."""
    run_from_ptx(monkeypatch, only_last=True)
    monkeypatch.setattr(vocab_pool, "_multiprocessors", lambda device: 2**31)
    D = 64
    V = 2**31 // D + 2 * FEW
    hidden, weight = integers(1, 1, D), far(V, D)
    weight[-FEW:] = integers(FEW, D)
    out, positions = run_pool(hidden, weight)
    equal_parts((out[:, -FEW:], positions[:, -FEW:]), hidden, weight[-FEW:])
    grad, out = far(1, V, dtype=torch.float32), far(1, V, dtype=torch.float32)
    grad[0, -FEW:], out[0, -FEW:] = torch.tensor([1.0, -1.0, 2.0]), 1.0
    saved = grad, out, far(1, V, dtype=torch.int16), hidden, weight, None, "relu", False, True
    _, of_weight, _ = vocab_pool.vocab_pool_backward(*saved)
    assert torch.equal(of_weight[-FEW:].float(), grad[0, -FEW:, None] * hidden[0].float())


def test_long_weights_past_2_to_the_31(monkeypatch: pytest.MonkeyPatch, far: Far) -> None:
    """V * D with three columns: the last program of hidden's gradient, which owns the end of D."""
    run_from_ptx(monkeypatch, only_last=True)
    V, D = 3, 2**30 + 16
    hidden, weight = far(1, 1, D), far(V, D)
    weight[:, -FEW:] = integers(V, FEW)
    grad, out = torch.tensor([[1.0, -1.0, 2.0]]), torch.ones(1, V)
    saved = grad, out, torch.zeros(1, V, dtype=torch.int16), hidden, weight, None, "relu", True, False
    of_hidden, _, _ = vocab_pool.vocab_pool_backward(*saved)
    assert torch.equal(of_hidden[0, :, -FEW:], grad @ weight[:, -FEW:].float())
