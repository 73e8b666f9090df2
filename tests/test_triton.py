"""The GPU kernels in Triton without a GPU: interpreted, run from their PTX, and compiled for every architecture."""

from __future__ import annotations

import importlib.util
import itertools
import os
import subprocess
import sys
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from heads import DTYPES, LAYOUTS, make_head
from simt_on_cpu import Built
from tolerance import assert_close

import stair_kernels as sk
from stair_kernels import VocabHead, cuda, loss, reference, tiles

triton = pytest.importorskip("triton", reason="Triton is not installed: nothing compiles its kernels")
import aot  # noqa: E402
from triton.backends.compiler import GPUTarget  # noqa: E402
from triton_on_cpu import launch_nothing, never_waiting, run_from_ptx  # noqa: E402

from stair_kernels._triton import vocab_pool, vocab_topk  # noqa: E402

HERE = Path(__file__).parent
# What is the same on every device (opcheck, torch.compile, messages), the CPU's own (packing, memory of many threads),
# and what takes the interpreter minutes.
LEFT_OUT = ("opcheck", "compile", "bad_input", "packed_vocab", "many_threads", "narrow", "any_number", "any_shape")


@pytest.mark.parametrize(
    ("operator", "arch", "tests"),
    [
        ("vocab_pool", 80, ""),
        ("vocab_pool", 90, "and (matches_float64 or nan or empty)"),  # operands through tensor descriptors
        ("vocab_topk", 80, "and not float16"),  # rounding is in vocab_pool's
        ("stair_loss", 80, ""),
    ],
)
def test_operator_tests_in_the_interpreter(built: Callable[[str], Built], operator: str, arch: int, tests: str) -> None:
    """The operator's own tests with the Triton kernels, and beside them those in CUDA C++, in place of the CPU's."""
    chosen = " and ".join(f"not {name}" for name in LEFT_OUT) + f" {tests}"
    environment = {"STAIR_TEST_KERNELS": "triton", "STAIR_TEST_ARCH": str(arch)}
    run_tests(built("").kernels, f"test_{operator}.py", chosen, **environment)


def run_tests(simt_library: Path, name: str, chosen: str, **environment: str) -> None:
    """In a process of their own: there the kernels replace those of the CPU."""
    command = [sys.executable, "-m", "pytest", "-q", "-x", "-p", "no:cacheprovider", "-k", chosen]
    result = subprocess.run(
        [*command, str(HERE / name)],
        env={**os.environ, "STAIR_TEST_DEVICE": "none", "STAIR_SIMT_LIBRARY": str(simt_library), **environment},
        capture_output=True,
        text=True,
        timeout=900,
    )
    assert result.returncode == 0, result.stdout[-3000:] + result.stderr[-3000:]
    assert " passed" in result.stdout


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize("layout", LAYOUTS)
@pytest.mark.parametrize(("L", "D"), [(5, 70), (40, 64), (100, 24), (140, 33)])
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


def test_vocab_topk_from_its_ptx(built: Callable[[str], Built]) -> None:
    run_tests(built("").kernels, "test_triton_exact.py", "topk_over_chunks")


@pytest.mark.parametrize("layout", LAYOUTS)
def test_launchers_never_wait_for_the_device(monkeypatch: pytest.MonkeyPatch, layout: str) -> None:
    launch_nothing(monkeypatch)
    head = make_head(layout, torch.float16, 5, 9, 20, 2 * vocab_topk.CHUNK + 100).to("meta")
    hidden = head.hidden if head.hidden.dim() == 3 or head.cu_seqlens is not None else head.hidden[:, None]
    args = hidden, head.weight, head.bias, head.mask, head.cu_seqlens, None
    with never_waiting():
        out, positions = vocab_pool.vocab_pool(*args, "log_relu")
        vocab_pool.vocab_pool_backward(out, out, positions, *args[:2], head.cu_seqlens, "log_relu", True, True)
        vocab_topk.vocab_topk(*args, 40, "log_relu", False)


def test_the_loss_never_waits_for_the_device(monkeypatch: pytest.MonkeyPatch) -> None:
    launch_nothing(monkeypatch)
    towers = make_head("masked", torch.float32, 5, 9, 20, 300).to("meta").args()[0] * 2
    scale, penalties = torch.empty((), device="meta"), torch.empty(2, device="meta")
    with never_waiting():
        out = loss._stair_loss._init_fn(*towers, scale, True, 128, True, "")
        loss._stair_loss_backward._init_fn(scale, penalties, *towers, scale, *out[6:], True, 128, "")


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


@pytest.mark.parametrize(("layout", "hidden"), [("padded", [4, 32, 64]), ("packed", None)])
def test_operands_come_in_boxes_where_the_architecture_has_them(
    monkeypatch: pytest.MonkeyPatch, layout: str, hidden: list[int] | None
) -> None:
    """Rows of different lengths that share a tile are no box."""
    given: list[Any] = []
    recorder = type("Recorder", (), {"__getitem__": lambda self, grid: lambda *args, **constants: given.extend(args)})
    monkeypatch.setattr(vocab_pool, "forward_kernel", recorder())
    monkeypatch.setattr(vocab_pool, "_arch", lambda device: 90)
    head = make_head(layout, torch.bfloat16, 8, 24, 64, 200)
    vocab_pool.vocab_pool(head.hidden, head.weight, None, None, head.cu_seqlens, None, "relu")
    assert getattr(given[0], "block_shape", None) == hidden
    assert given[1].block_shape[1] == 64


def test_without_triton_the_error_says_what_to_install(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: None)
    with pytest.raises(RuntimeError, match="CUDA tensors need Triton, which is not installed: pip install triton"):
        cuda._import("vocab_pool")


@pytest.mark.parametrize("dtype", aot.DTYPES)
@pytest.mark.parametrize("arch", [*tiles.ARCHITECTURES, 103, 75])
def test_tiles_fit_their_architecture(monkeypatch: pytest.MonkeyPatch, arch: int, dtype: str) -> None:
    monkeypatch.setattr(tiles, "MEASURED", {})  # of the rules
    itemsize, exact = aot.DTYPES[dtype][1], dtype == "float32"
    for length, masked in itertools.product((0, 1, 16, 17, 24, 64, 128, 129, 5000), (True, False)):
        tile = tiles.forward(64, length, itemsize, arch, masked=masked, exact=exact)
        assert tile.tokens == 128
        assert tile.programs * tile.operand_bytes(itemsize) <= tiles.limits_of(arch)
        assert tile.stages >= 2
        assert tile.boxes == (arch in (90, 100, 103) and not exact)
        assert tiles.backward(length, 768, itemsize, exact=exact).tokens == (32 if exact else 64)
    chosen = {length: tiles.forward(64, length, itemsize, arch, exact=exact) for length in (5, 24, 77, 128, 197)}
    assert {length: tile.positions for length, tile in chosen.items()} == {5: 16, 24: 32, 77: 32, 128: 128, 197: 32}
    assert tiles.forward(1, 77, itemsize, arch, exact=exact).positions == 128  # no other rows to share a tile with


FORWARD = {"batch": 64, "length": 49, "itemsize": 2, "arch": 90, "masked": True, "exact": False}
GRADIENT = {"length": 49, "D": 768, "itemsize": 2, "exact": False, "arch": 90, "kernel": "weight"}


@pytest.mark.parametrize(
    ("choose", "asked", "call"),
    [
        (tiles.forward, FORWARD, tiles.Call("forward", 90, 64, 2, masked=True)),
        (tiles.backward, GRADIENT, tiles.Call("weight", 90, 64, 2)),
        (tiles.gather, {"D": 768, "itemsize": 2, "arch": 90}, tiles.Call("gather", 90, 0, 2)),
    ],
)
def test_a_measured_tile_wins_over_the_rule_for_its_own_calls_only(
    monkeypatch: pytest.MonkeyPatch, choose: Callable[..., tiles.Tile], asked: dict[str, object], call: tiles.Call
) -> None:
    others: dict[str, object] = {"length": 65, "itemsize": 4, "arch": 103, "masked": False}
    others |= {"exact": True, "kernel": "hidden"}
    unlike = [asked | {name: other} for name, other in others.items() if name in asked]
    rules = [choose(**arguments) for arguments in unlike]
    measured = tiles.Tile(1, 32, 256, 128, 8, 3)
    monkeypatch.setattr(tiles, "MEASURED", {call: measured})
    assert choose(**asked) == measured
    assert [choose(**arguments) for arguments in unlike] == rules
    if "length" in asked:
        assert choose(**asked | {"length": 64}) == measured
    if "D" in asked:
        assert choose(**asked | {"D": 40}).depth == 64  # of a narrow row no more than there is


@pytest.mark.parametrize("arch", tiles.ARCHITECTURES)
def test_compiled_kernels_keep_to_registers_and_tensor_cores(arch: int) -> None:
    """Of every tile: no spill, no stack, registers and shared memory within the tile's budget, and the matrix products
    on the tensor cores, but for exact float32 none: Triton has taken TF32 where it was told not to."""
    distinct = {(v.kernel, v.tile, v.dtype, v.other): v for v in aot.variants(arch) if v.dtype != "float16"}
    for variant in distinct.values():
        code = aot.read(variant.compile(), variant.product)
        assert code.stack_bytes == 0, f"{variant} spills"
        assert code.registers <= variant.tile.registers, f"{variant}: {code.registers} registers"
        assert variant.tile.programs * code.shared_bytes <= tiles.limits_of(arch), f"{variant}: {code.shared_bytes}"
        products = {name for name in code.main_loop if name in aot.PRODUCTS}
        assert products == {variant.product}, f"{variant} multiplies with {products}"


@pytest.mark.parametrize(("target", "product"), [(("gfx942", 64), "v_mfma"), (("gfx1100", 32), "v_wmma")], ids=str)
def test_kernels_compile_for_amd(target: tuple[str, int], product: str) -> None:
    """Their matrix instructions, from the tiles of sm_80, in 64 KiB; registers were not tuned there."""
    kernels = [("forward", tiles.forward(64, length, 2, 80, exact=False)) for length in (16, 32, 64, 128)]
    kernels += [(kernel, tiles.backward(64, 768, 2, exact=False)) for kernel in ("hidden", "weight")]
    for kernel, tile in kernels:
        compiled = aot.Variant(kernel, 80, "bfloat16", replace(tile, stages=2)).compile(GPUTarget("hip", *target))
        assert product in compiled.ptx
        assert compiled.shared_bytes <= 64 << 10
