"""The GPU kernels in Triton without a GPU: interpreted, run from their PTX, and compiled for every architecture."""

from __future__ import annotations

import importlib.util
import os
import re
import subprocess
import sys
import tempfile
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from heads import DTYPES, LAYOUTS, make_head
from tolerance import assert_close

import stair_kernels as sk
from stair_kernels import VocabHead, cuda, loss, reference, tiles

triton = pytest.importorskip("triton", reason="Triton is not installed: nothing compiles its kernels")
from ptx.launch import compile_for  # noqa: E402
from triton_on_cpu import launch_nothing, never_waiting, run_from_ptx  # noqa: E402

from stair_kernels._triton import backward, forward, vocab_pool, vocab_topk  # noqa: E402

HERE = Path(__file__).parent
# What is the same on every device (opcheck, torch.compile, messages), the CPU's own (packing, memory of many threads),
# and what takes the interpreter minutes.
LEFT_OUT = ("opcheck", "compile", "bad_input", "packed_vocab", "many_threads", "narrow", "any_number", "any_shape")
TENSOR_CORES = {80: "HMMA", 86: "HMMA", 89: "HMMA", 90: "HGMMA", 100: "UTCHMMA", 120: "HMMA"}


@pytest.mark.parametrize("operator", ["vocab_pool", "vocab_topk", "stair_loss"])
def test_operator_tests_in_the_interpreter(operator: str) -> None:
    """The operator's own tests with the Triton kernels in place of the C++ ones."""
    chosen = " and ".join(f"not {name}" for name in LEFT_OUT)
    command = [sys.executable, "-m", "pytest", "-q", "-x", "-p", "no:cacheprovider", "-k", chosen]
    result = subprocess.run(
        [*command, str(HERE / f"test_{operator}.py")],
        env={**os.environ, "STAIR_TEST_DEVICE": "none", "STAIR_TEST_KERNELS": "triton"},
        capture_output=True,
        text=True,
        timeout=900,
    )
    assert result.returncode == 0, result.stdout[-3000:] + result.stderr[-3000:]
    assert " passed" in result.stdout


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize("layout", LAYOUTS)
@pytest.mark.parametrize(("L", "D"), [(5, 70), (40, 64), (140, 33)])
def test_vocab_pool_from_its_ptx(
    monkeypatch: pytest.MonkeyPatch, layout: str, L: int, D: int, dtype: torch.dtype
) -> None:
    """Forward and both gradients of the compiled kernels: short rows that share a tile, long rows, tails."""
    run_from_ptx(monkeypatch)
    head = make_head(layout, dtype, 5, L, D, 150)
    hidden = head.hidden if head.hidden.dim() == 3 or head.cu_seqlens is not None else head.hidden[:, None]
    args = hidden, head.weight, head.bias, head.mask, head.cu_seqlens, None
    out, positions = vocab_pool.vocab_pool(*args, "log_relu")
    want, want_positions = torch.ops.stair.vocab_pool(*args, "log_relu")
    given, layout_of = head.double().args()
    truth = reference.vocab_pool(*given, compute_dtype=torch.float64, **layout_of)
    assert_close(out, truth, reference.vocab_pool(*head.args()[0], **layout_of))
    assert (positions != want_positions).sum() <= 0.01 * positions.numel()  # near-ties that rounding may swap
    grad = torch.randn_like(out) * (torch.rand_like(out) > 0.5)
    saved = grad, want, want_positions, hidden, head.weight, head.cu_seqlens, "log_relu", True, True
    exact = torch.ops.stair.vocab_pool_backward(*saved[:3], hidden.float(), head.weight.float(), *saved[5:])
    rounding = {torch.float32: 2e-6, torch.bfloat16: 2e-2, torch.float16: 3e-3}[dtype]
    for got, right in zip(vocab_pool.vocab_pool_backward(*saved), exact):
        assert float((got.float() - right).abs().max()) <= rounding * float(right.abs().max())


def test_vocab_topk_from_its_ptx(monkeypatch: pytest.MonkeyPatch) -> None:
    """Integers, whose sums are exact: equal to the reference, ties included, over several chunks of the vocabulary."""
    run_from_ptx(monkeypatch)
    monkeypatch.setattr(vocab_topk, "CHUNK", 128)
    head = make_head("masked", torch.float16, 4, 9, 20, 300, integers=True)
    got = vocab_topk.vocab_topk(head.hidden, head.weight, head.bias, head.mask, None, None, 40, "relu", False)
    want = reference.vocab_topk(head.hidden, head.weight, head.bias, head.mask, k=40, activation="relu")
    for ours, right in zip(got, (want.values, want.indices, want.positions)):
        assert torch.equal(ours, right)


@pytest.mark.parametrize("layout", LAYOUTS)
def test_launchers_never_wait_for_the_device(monkeypatch: pytest.MonkeyPatch, layout: str) -> None:
    launch_nothing(monkeypatch)
    head = make_head(layout, torch.float16, 5, 9, 20, 2 * vocab_topk.CHUNK + 100).to("meta")
    hidden = head.hidden if head.hidden.dim() == 3 or head.cu_seqlens is not None else head.hidden[:, None]
    args = hidden, head.weight, head.bias, head.mask, head.cu_seqlens, None
    with never_waiting():
        out, positions = vocab_pool.vocab_pool(*args, "log_relu")
        vocab_pool.vocab_pool_backward(out, out, positions, *args[:2], head.cu_seqlens, "log_relu", True, True)
        rows = vocab_topk.vocab_topk(*args, 40, "log_relu", False)
        vocab_topk.vocab_topk_backward(rows[0], *rows, *args[:2], head.cu_seqlens, None, "log_relu", True, True)


def test_the_loss_never_waits_for_the_device(monkeypatch: pytest.MonkeyPatch) -> None:
    launch_nothing(monkeypatch)
    towers = make_head("masked", torch.float32, 5, 9, 20, 300).to("meta").args()[0] * 2
    scale, penalties = torch.empty((), device="meta"), torch.empty(2, device="meta")
    with never_waiting():
        out = loss._stair_loss._init_fn(*towers, scale, True, 128)
        loss._stair_loss_backward._init_fn(scale, penalties, *towers, scale, *out[6:], True, 128)


@pytest.mark.parametrize("operator", ["vocab_pool", "vocab_topk", "stair_loss"])
def test_checks_and_gradients_never_wait_for_the_device(operator: str) -> None:
    head = make_head("masked", torch.float32, 5, 9, 20, 300).to("meta").leaves()
    with never_waiting():
        if operator == "vocab_pool":
            out = sk.vocab_pool(*head.args()[0])
        elif operator == "vocab_topk":
            out = sk.vocab_topk(*head.args()[0], k=7).values
        else:
            tower = VocabHead(*head.args()[0])
            out = sk.stair_loss(tower, tower, logit_scale=2.0, text_flops=0.1, normalize=True).loss
        torch.autograd.grad(out.sum(), (head.hidden, head.weight, head.bias))


@pytest.mark.parametrize(
    "waits",
    [
        lambda x: x.sum().item(),
        lambda x: bool((x > 0).all()),
        lambda x: x[x > 0],
        lambda x: x.unique(),
        lambda x: x.cpu(),
        lambda x: x * torch.tensor(1.5, device=x.device),
        lambda x: x * torch.as_tensor(1.5, device=x.device),
        lambda x: x + torch.ones(3, 4),
    ],
    ids=["item", "bool", "mask", "unique", "cpu", "tensor", "as_tensor", "two devices"],
)
def test_what_would_wait_is_noticed(waits: Callable[[torch.Tensor], object]) -> None:
    with pytest.raises((AssertionError, NotImplementedError, RuntimeError)), never_waiting():
        waits(torch.empty(3, 4, device="meta"))


def test_without_triton_the_error_says_what_to_install(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: None)
    with pytest.raises(RuntimeError, match="CUDA tensors need Triton, which is not installed: pip install triton"):
        cuda._import("vocab_pool")


@pytest.mark.parametrize("itemsize", [2, 4])
@pytest.mark.parametrize("arch", [*tiles.ARCHITECTURES, 103, 75])
def test_tiles_fit_their_architecture(arch: int, itemsize: int) -> None:
    for length in (0, 1, 16, 17, 24, 64, 128, 129, 5000):
        tile = tiles.forward(length, itemsize, arch)
        assert tile.tokens == 128
        assert tile.positions >= min(length, 128)
        assert tile.operand_bytes(itemsize) <= tiles.limits_of(arch)
        assert tile.stages >= 2
        assert tiles.backward(length, itemsize).tokens == 64
    assert tiles.forward(24, itemsize, arch).rows == 4  # 24 tokens waste a quarter of their 32, not of 128


@pytest.mark.parametrize("dtype", ["bf16", "fp32"])
@pytest.mark.parametrize("arch", tiles.ARCHITECTURES)
def test_compiled_kernels_keep_to_registers_and_tensor_cores(arch: int, dtype: str) -> None:
    """No spill, no stack, shared memory within the architecture's limit, products on its tensor cores."""
    itemsize = {"bf16": 2, "fp32": 4}[dtype]
    pointers = {"hidden": dtype, "weight": dtype, "bias": "fp32", "mask": "i1", "lengths": "i32"}
    pointers |= {"out": "fp32", "positions": "i16", "grad_out": "fp32", "grad_hidden": "fp32"}
    pointers |= {"grad_weight": dtype, "grad_bias": "fp32"}
    flags = {"cu_seqlens": None, "VARLEN": False, "UPCAST": False, "HAS_MASK": True, "HAS_BIAS": True, "EVEN_D": True}
    flags |= {"ACTIVATION": 1, "NEED_WEIGHT": True, "PRECISION": "tf32" if dtype == "fp32" else "ieee"}
    kernels = [(forward.forward_kernel, tiles.forward(length, itemsize, arch)) for length in (16, 64, 512)]
    kernels += [(kernel, tiles.backward(64, itemsize)) for kernel in (backward.hidden_kernel, backward.weight_kernel)]
    for kernel, tile in kernels:
        shape = {"ROWS": tile.rows, "POSITIONS": tile.positions, "COLUMNS": tile.columns, "DEPTH": tile.depth}
        constants = {name: value for name, value in (flags | shape).items() if name in kernel.arg_names}
        rest = [name for name in kernel.arg_names if name not in constants]
        signature = {name: f"*{pointers[name]}" if name in pointers else "i32" for name in rest}
        compiled = compile_for(kernel, signature, constants, arch, tile.warps, tile.stages, aligned=["D"])
        usage, sass = read_cubin(compiled.cubin)
        assert "STACK:0" in usage, f"{compiled.name} spills: {usage}"
        assert compiled.shared_bytes <= tiles.limits_of(arch)
        assert re.search(rf"\b{TENSOR_CORES[arch]}\b", sass), f"{compiled.name} has no {TENSOR_CORES[arch]}"


def read_cubin(cubin: bytes) -> tuple[str, str]:
    """The resource usage and the machine code, by the tools in Triton's wheel."""
    tools = Path(triton.__file__).parent / "backends/nvidia/bin"
    with tempfile.NamedTemporaryFile(suffix=".cubin") as file:
        file.write(cubin)
        file.flush()
        runs = [
            subprocess.run([str(tools / tool), option, file.name], capture_output=True, text=True, check=True)
            for tool, option in (("cuobjdump", "-res-usage"), ("nvdisasm", "-c"))
        ]
    return runs[0].stdout + runs[0].stderr, runs[1].stdout
