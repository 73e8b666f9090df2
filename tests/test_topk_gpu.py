"""topk_merge, which has a GPU kernel only, and what topk refuses on a GPU; tests/test_simt.py runs them without one."""

from __future__ import annotations

import pytest
import torch
from heads import same_rows
from simt_on_cpu import needs_kernels
from torch import Tensor

import stair_kernels as sk
from stair_kernels import cuda, reference

NONE = -(2**63)


def keys_of(raw: Tensor, kept: Tensor) -> Tensor:
    """[B, V] int64: larger for larger logits, then for lower indices; NaN the largest of all."""
    bits = (raw + 0.0).view(torch.int32).long()
    ordered = torch.where(raw.isnan(), 2**31 - 1, torch.where(bits < 0, bits ^ (2**31 - 1), bits))
    return torch.where(kept | raw.isnan(), (ordered << 32) + (2**32 - 1 - torch.arange(raw.shape[1])), NONE)


def logits(kind: str, B: int, V: int) -> tuple[Tensor, Tensor]:
    raw = torch.randn(B, V)
    positions = torch.randint(0, 500, (B, V))
    if kind == "ties":
        raw = torch.randint(-2, 3, (B, V)).float()
    if kind == "ascending":
        raw = raw.sort(dim=1).values
    if kind == "special":
        raw[torch.rand(B, V) > 0.7] = -torch.inf
        raw[torch.rand(B, V) > 0.9] = torch.inf
        raw[torch.rand(B, V) > 0.7] *= 0.0  # both zeros, NaN of infinities
        raw[:1].nan_to_num_(0.0)
    if kind == "empty rows":
        raw[1], positions[1] = torch.nan, -1
        raw[2] = -torch.inf
    return raw, positions


def merge(raw: Tensor, positions: Tensor, chunk: int, k: int, above_zero: bool) -> tuple[Tensor, Tensor]:
    """The keys and positions that are left of chunks merged one after the other; of int16 and int32 in turn."""
    B, V = raw.shape
    keys, won = torch.full((B, k), NONE), torch.full((B, k), -1, dtype=torch.int32)
    for number, first in enumerate(range(0, V, chunk)):
        part = slice(first, first + chunk)
        dtype = torch.int32 if number % 2 else torch.int16
        given = raw[:, part].contiguous(), positions[:, part].to(dtype).contiguous()
        torch.ops.stair.topk_merge(keys, won, *given, first, above_zero)
    return keys, won


def best_of_all(raw: Tensor, positions: Tensor, k: int, above_zero: bool) -> tuple[Tensor, Tensor]:
    """What merge() is to give, from all columns at once."""
    kept = (raw > (0.0 if above_zero else -torch.inf)) & (positions >= 0)
    keys = torch.where(positions >= 0, keys_of(raw, kept), NONE)
    best, slot = torch.nn.functional.pad(keys, (0, k), value=NONE).topk(k, dim=1)
    won = torch.nn.functional.pad(positions, (0, k), value=-1).gather(1, slot).int()
    return best, torch.where(best == NONE, -1, won)


@needs_kernels
@pytest.mark.parametrize("above_zero", [True, False], ids=["relu", "elu1p"])
@pytest.mark.parametrize("kind", ["dense", "ties", "ascending", "special", "empty rows"])
@pytest.mark.parametrize(
    ("V", "chunk", "k"), [(1000, 300, 64), (9000, 4096, 100), (6000, 1024, 2048), (70, 33, 200), (40, 1, 1)]
)
def test_merged_chunks_are_the_best_of_all(V: int, chunk: int, k: int, kind: str, above_zero: bool) -> None:
    raw, positions = logits(kind, 4, V)
    merged = merge(raw, positions, chunk, k, above_zero)
    assert all(map(torch.equal, merged, best_of_all(raw, positions, k, above_zero)))


@needs_kernels
@pytest.mark.parametrize(
    ("B", "V", "k", "dtype"),
    [
        (2, 300, 5, torch.float32),
        (3, 4100, 300, torch.float16),  # one block a row, selections, a row that begins between two vectors
        (1, 9001, 64, torch.bfloat16),  # two parts
        (1, 17000, 2048, torch.float32),  # the largest k
    ],
)
def test_every_path_once(B: int, V: int, k: int, dtype: torch.dtype) -> None:
    """Few launches, for ThreadSanitizer, which makes each take a second."""
    dense = torch.randn(B, V).sort(dim=1).values.to(dtype)
    dense[0, V // 2 :] = dense[0, V // 2 :].flip(0)
    same_rows(sk.topk(dense, k), reference.topk(dense, k))
    if V < 5000:
        raw, positions = logits("special", B, V)
        merged, expected = merge(raw, positions, 2200, k, False), best_of_all(raw, positions, k, False)
        assert all(map(torch.equal, merged, expected))


@needs_kernels
def test_opcheck() -> None:
    raw, positions = logits("dense", 3, 50)
    state = torch.full((3, 8), NONE), torch.full((3, 8), -1, dtype=torch.int32)
    torch.library.opcheck(torch.ops.stair.topk_merge.default, (*state, raw, positions.short(), 7, True))


@needs_kernels
def test_refused_arguments_are_named() -> None:
    raw, positions = logits("dense", 3, 50)
    keys, won = torch.full((3, 8), NONE), torch.full((3, 8), -1, dtype=torch.int32)
    call = torch.ops.stair.topk_merge
    with pytest.raises(RuntimeError, match=r"keys_: expected contiguous \[B, k\] int64"):
        call(keys.int(), won, raw, positions.int(), 0, True)
    with pytest.raises(RuntimeError, match=r"positions_: expected contiguous \[3, 8\] int32"):
        call(keys, won[:, :4], raw, positions.int(), 0, True)
    with pytest.raises(RuntimeError, match=r"raw: expected contiguous \[3, C\] float32"):
        call(keys, won, raw.double(), positions.int(), 0, True)
    with pytest.raises(RuntimeError, match=r"raw_positions: expected contiguous \[3, 50\] int16 or int32"):
        call(keys, won, raw, positions, 0, True)
    with pytest.raises(RuntimeError, match="topk: k: expected at most 2048 entries of a row on a GPU, got 2049"):
        torch.ops.stair.topk(torch.ones(2, 3000), 2049)


def test_without_the_library_the_error_says_what_builds_it(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(cuda, "LIBRARY_BUILT", False)
    message = r"topk on CUDA tensors needs _C_cuda\.so, which is not built: .*make setup STAIR_CUDA=ON"
    with pytest.raises(RuntimeError, match=message):
        cuda.require_library("topk")
