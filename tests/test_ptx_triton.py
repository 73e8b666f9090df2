"""Triton kernels compiled for sm_80 and run from their PTX, with no GPU, against PyTorch."""

# mypy: disable-error-code=no-untyped-def
# The arguments of a Triton kernel have no types: they are pointers and numbers of whatever it is compiled for.

from __future__ import annotations

import re
from dataclasses import replace

import pytest
import torch
from ptx.errors import PtxError
from ptx.machine import ORDERS, Order
from torch import Tensor

triton = pytest.importorskip("triton", reason="Triton is not installed: nothing compiles its kernels")
import triton.language as tl  # noqa: E402
from aot import Compiled, compile_for  # noqa: E402
from ptx.launch import run  # noqa: E402

DTYPES = {torch.float32: "fp32", torch.bfloat16: "bf16", torch.float16: "fp16"}


@triton.jit
def add_kernel(x, y, out, count, BLOCK: tl.constexpr):
    place = tl.program_id(0) * BLOCK + tl.arange(0, BLOCK)
    mask = place < count
    tl.store(out + place, tl.load(x + place, mask=mask) + tl.load(y + place, mask=mask), mask=mask)


@triton.jit
def matmul_kernel(
    a, b, c, M, N, K, BLOCK_M: tl.constexpr, BLOCK_N: tl.constexpr, BLOCK_K: tl.constexpr, PRECISION: tl.constexpr
):
    """c[m, n] = sum_k a[m, k] b[n, k]"""
    m = tl.program_id(0) * BLOCK_M + tl.arange(0, BLOCK_M)
    n = tl.program_id(1) * BLOCK_N + tl.arange(0, BLOCK_N)
    total = tl.zeros((BLOCK_M, BLOCK_N), tl.float32)
    for start in range(0, K, BLOCK_K):
        k = start + tl.arange(0, BLOCK_K)
        a_tile = tl.load(a + m[:, None] * K + k[None, :], mask=(m[:, None] < M) & (k[None, :] < K), other=0.0)
        b_tile = tl.load(b + n[None, :] * K + k[:, None], mask=(n[None, :] < N) & (k[:, None] < K), other=0.0)
        total = tl.dot(a_tile, b_tile, total, input_precision=PRECISION)
    tl.store(c + m[:, None] * N + n[None, :], total, mask=(m[:, None] < M) & (n[None, :] < N))


@triton.jit
def row_max_kernel(x, values, places, ROWS: tl.constexpr, COLUMNS: tl.constexpr):
    row = tl.arange(0, ROWS)
    value, place = tl.max(tl.load(x + row[:, None] * COLUMNS + tl.arange(0, COLUMNS)[None, :]), 1, return_indices=True)
    tl.store(values + row, value)
    tl.store(places + row, place)


@triton.jit
def top_kernel(x, out, count, COLUMNS: tl.constexpr, K: tl.constexpr):
    """The K largest of log(1 + relu(x)) a row, and how often each of them, rounded down, occurs"""
    row = tl.program_id(0)
    activation = tl.log(1.0 + tl.maximum(tl.load(x + row * COLUMNS + tl.arange(0, COLUMNS)), 0.0))
    best = tl.topk(activation, K)
    tl.store(out + row * K + tl.arange(0, K), best)
    tl.atomic_add(count + best.to(tl.int32), 1)


@triton.jit
def no_mask_kernel(x, out, BLOCK: tl.constexpr):
    place = tl.program_id(0) * BLOCK + tl.arange(0, BLOCK)
    tl.store(out + place, tl.load(x + place) * 2)


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize("count", [1, 255, 256, 1000])
def test_masked_add(dtype: torch.dtype, count: int) -> None:
    name = DTYPES[dtype]
    compiled = compile_for(
        add_kernel, {"x": f"*{name}", "y": f"*{name}", "out": f"*{name}", "count": "i32"}, {"BLOCK": 256}
    )
    x, y, out = torch.randn(count).to(dtype), torch.randn(count).to(dtype), torch.empty(count, dtype=dtype)
    run(compiled, (triton.cdiv(count, 256),), (x, y, out, count))
    assert torch.equal(out, x + y)


def compile_matmul(dtype: torch.dtype, precision: str, num_stages: int = 3) -> Compiled:
    pointers = dict.fromkeys("ab", f"*{DTYPES[dtype]}") | {"c": "*fp32"}
    tiles = {"BLOCK_M": 32, "BLOCK_N": 32, "BLOCK_K": 32, "PRECISION": precision}
    sizes = dict.fromkeys("MNK", "i32")
    return compile_for(matmul_kernel, pointers | sizes, tiles, num_stages=num_stages, aligned=["K"])


def matmul_inputs(dtype: torch.dtype, M: int = 70, N: int = 50, K: int = 144) -> tuple[Tensor, Tensor, Tensor]:
    return torch.randn(M, K).to(dtype), torch.randn(N, K).to(dtype), torch.full((M, N), torch.nan)


def run_matmul(compiled: Compiled, a: Tensor, b: Tensor, c: Tensor, order: Order | None = None) -> None:
    (M, K), N = a.shape, len(b)
    run(compiled, (triton.cdiv(M, 32), triton.cdiv(N, 32)), {"a": a, "b": b, "c": c, "M": M, "N": N, "K": K}, order)


@pytest.mark.parametrize(
    ("dtype", "precision", "relative"),
    [
        (torch.bfloat16, "ieee", 1e-6),
        (torch.float16, "ieee", 1e-6),
        (torch.float32, "ieee", 1e-6),
        (torch.float32, "tf32", 1e-3),
        (torch.float32, "tf32x3", 1e-6),
    ],
)
def test_pipelined_matmul(dtype: torch.dtype, precision: str, relative: float) -> None:
    compiled = compile_matmul(dtype, precision)
    assert "cp.async.wait_group" in compiled.ptx
    assert ("mma.sync" in compiled.ptx) == ((dtype, precision) != (torch.float32, "ieee"))
    a, b, c = matmul_inputs(dtype)
    run_matmul(compiled, a, b, c)
    truth = a.double() @ b.double().T
    # Against the sum of the magnitudes, since the products cancel.
    assert ((c - truth).abs() <= relative * (a.double().abs() @ b.double().abs().T)).all()


def test_matmul_computes_the_same_bits_in_every_order() -> None:
    compiled = compile_matmul(torch.bfloat16, "ieee")
    a, b, _ = matmul_inputs(torch.bfloat16, K=48)
    results = []
    for name in ORDERS:
        results.append(torch.full((len(a), len(b)), torch.nan))
        run_matmul(compiled, a, b, results[-1], Order(name))
    assert all(torch.equal(result, results[0]) for result in results)


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
def test_row_max_with_places(dtype: torch.dtype) -> None:
    """Ties go to the first; values among 11 tie in most rows."""
    signature = {"x": f"*{DTYPES[dtype]}", "values": f"*{DTYPES[dtype]}", "places": "*i32"}
    compiled = compile_for(row_max_kernel, signature, {"ROWS": 16, "COLUMNS": 64})
    x = torch.randint(-5, 6, (16, 64)).to(dtype)
    values, places = torch.empty(16, dtype=dtype), torch.empty(16, dtype=torch.int32)
    run(compiled, (1,), (x, values, places))
    truth = x.double().max(1)
    assert torch.equal(values.double(), truth.values)
    assert torch.equal(places.long(), (x.double() == truth.values[:, None]).int().argmax(1))


def test_top_k_with_atomics() -> None:
    compiled = compile_for(top_kernel, {"x": "*fp32", "out": "*fp32", "count": "*i32"}, {"COLUMNS": 256, "K": 16})
    x, out, count = torch.randn(3, 256) * 20, torch.empty(3, 16), torch.zeros(8, dtype=torch.int32)
    run(compiled, (3,), (x, out, count))
    truth = torch.log1p(x.double().relu()).topk(16).values
    torch.testing.assert_close(out.double(), truth, rtol=1e-6, atol=1e-6)
    assert torch.equal(count, torch.bincount(out.int().flatten(), minlength=8).int())


def test_a_missing_mask_is_found() -> None:
    compiled = compile_for(no_mask_kernel, {"x": "*fp32", "out": "*fp32"}, {"BLOCK": 256})
    run(compiled, (2,), (torch.randn(512), torch.empty(512)))
    with pytest.raises(PtxError, match=r"out of bounds: \d+ bytes at 0x\w+, which is byte 2000 of x") as raised:
        run(compiled, (2,), (torch.randn(500), torch.empty(500)))
    assert "CTA (1, 0, 0)" in str(raised.value)


@pytest.mark.parametrize("name", ORDERS)
@pytest.mark.parametrize(
    ("instruction", "message"),
    [
        ("bar.sync", "a race: another warp|nobody has waited for|never written"),
        ("cp.async.wait_group", "nobody has waited for"),
    ],
)
def test_barriers_and_waits_taken_out_of_the_matmul_are_found(instruction: str, message: str, name: str) -> None:
    """Each alone, all but those that Triton emits beside another one that does the same; and all together."""
    compiled = compile_matmul(torch.bfloat16, "ieee")
    lines = compiled.ptx.split("\n")
    places = [place for place, line in enumerate(lines) if instruction in line]
    found = 0
    for removed in [{place} for place in places] + [set(places)]:
        broken = replace(compiled, ptx="\n".join(line for place, line in enumerate(lines) if place not in removed))
        try:
            run_matmul(broken, *matmul_inputs(torch.bfloat16, K=96), Order(name))
        except PtxError as error:
            assert re.search(message, str(error))  # noqa: PT017
            found += 1
    assert found >= 3


def test_bad_arguments_are_refused() -> None:
    compiled = compile_for(no_mask_kernel, {"x": "*fp32", "out": "*fp32"}, {"BLOCK": 256})
    x = torch.randn(512)
    with pytest.raises(ValueError, match=r"arguments: expected \['out', 'x'\], got \['x'\]"):
        run(compiled, (1,), {"x": x})
    with pytest.raises(ValueError, match="x: expected a contiguous tensor"):
        run(compiled, (1,), {"x": x[::2], "out": x})
    with pytest.raises(ValueError, match="x: expected a multiple of 16, as it was compiled for"):
        run(compiled, (1,), {"x": x[1:257], "out": x})
