"""The kernels of `_C_cuda.so` as nvcc compiled them, with no GPU: what they take of one, and their PTX run."""

from __future__ import annotations

import re
import subprocess
import sys
from typing import Any

import pytest
import torch
from cuda_library import LIBRARY, built, cuobjdump, program, run
from heads import same_rows
from ptx.traffic import measured
from test_vocab_topk_gpu import expected, make_saved
from torch import Tensor

import stair_kernels as sk
from stair_kernels import reference, tiles

pytestmark = built

# Registers, of 65,536 a multiprocessor: 64 for 1,024 threads, 40 for 1,536; bytes of static shared memory.
LIMITS = {"topk_rows": (64, 8 << 10), "merge_rows": (64, 8 << 10), "score_rows": (40, 18 << 10)}
LIMITS |= {"grad_rows": (40, 18 << 10), "find_lists": (40, 0), "make_postings": (40, 0), "start_scores": (40, 0)}
RESERVED = 1 << 10  # bytes of a block's shared memory that are the system's, from sm_90 on counted with its own
LIMITS |= {"weigh": (64, 48 << 10), "sum_columns": (64, 48 << 10), "sum_rows": (64, 48 << 10)}
KERNELS = 6 + 5 + 8  # of topk.cu, sparse_dot.cu and rows_backward.cu
THREADS = 256
MAX_BANK_CONFLICTS = 1.25  # turns of the banks beside the fewest: the sort costs some
TYPES = {torch.float32: "f", torch.bfloat16: "NS_8BFloat16E", torch.float16: "NS_7Float16E"}
NONE = -(2**63)


def test_compiled_for_every_architecture() -> None:
    found = {int(arch) for arch in re.findall(r"sm_(\d+)a?\.cubin", cuobjdump("-lelf"))}
    assert found == set(tiles.ARCHITECTURES)
    assert "sm_80.ptx" in cuobjdump("-lptx")


def test_loads_without_a_gpu_and_registers_its_operators() -> None:
    """On a CPU-only torch as well: it links neither libtorch_cuda nor a shared libcudart."""
    has_kernel = "torch._C._dispatch_has_kernel_for_dispatch_key"
    names = "topk", "topk_merge", "sparse_dot", "sparse_dot_backward", "vocab_topk_backward"
    code = (
        f"import torch, stair_kernels; torch.ops.load_library({str(LIBRARY)!r});"
        f"assert all({has_kernel}('stair::' + name, 'CUDA') for name in {names})"
    )
    subprocess.run([sys.executable, "-c", code], check=True)
    needed = subprocess.run(["readelf", "-d", str(LIBRARY)], capture_output=True, text=True, check=True).stdout
    assert not re.search(r"NEEDED.*(torch_cuda|torch_python|cudart)", needed)


def test_no_spills_and_registers_for_all_blocks() -> None:
    """Those of topk ask for at most 40 KiB of shared memory besides: together below 48."""
    kernels = re.findall(r"Function (\S+):\s+(REG:.*)", cuobjdump("-res-usage"))
    assert len(kernels) == KERNELS * len(tiles.ARCHITECTURES)
    for mangled, usage in kernels:
        (name,) = [name for name in LIMITS if name in mangled]
        registers, shared_bytes = LIMITS[name]
        numbers = {key: int(value) for key, value in re.findall(r"(\w+):(\d+)", usage)}
        assert numbers["STACK"] == numbers["LOCAL"] == 0, f"{name} spills: {usage}"
        assert numbers["REG"] <= registers, f"{name}: {usage}"
        assert numbers["SHARED"] <= shared_bytes + RESERVED, f"{name}: {usage}"


def test_memory_traffic() -> None:
    """A row is read in whole sectors, each once; the banks of shared memory mostly serve 32 lanes at a time."""
    V, k = 8192, 64
    dense, values, indices = torch.randn(1, V), torch.zeros(1, k), torch.zeros(1, k, dtype=torch.int32)
    with measured() as (memory, traffic):
        run(
            program("topk_rows", "f"),
            "QqqiiqQQQ",
            [dense, V, V, k, 1024, k, None, values, indices],
            (1,),
            8192,
            "lockstep",
            memory,
        )
    assert traffic.loads.paid == traffic.loads.least == V * 4 // 32
    assert traffic.stores.paid == traffic.stores.least
    assert traffic.shared.ratio <= MAX_BANK_CONFLICTS, traffic


@pytest.mark.parametrize("order", ["lockstep", "reverse"])
@pytest.mark.parametrize(
    ("B", "V", "k", "dtype"),
    [
        (2, 33, 40, torch.float32),
        (2, 4099, 100, torch.float32),
        (2, 1001, 16, torch.bfloat16),
        (1, 777, 5, torch.float16),
    ],
)
def test_topk_from_its_ptx(B: int, V: int, k: int, dtype: torch.dtype, order: str) -> None:
    dense = torch.randn(B, V).sort(dim=1).values.to(dtype)
    if V == 1001:
        dense[1, 500] = torch.nan
    values, indices = torch.full((B, k), torch.nan), torch.full((B, k), -7, dtype=torch.int32)
    kept = min(k, V)
    given = [dense, V, 4096 * 2, kept, 1024, k, None, values, indices]
    run(program("topk_rows", TYPES[dtype]), "QqqiiqQQQ", given, (B,), 8 * 1024, order)
    same_rows(sk.SparseRows(values, indices, None, V), reference.topk(dense, k))


def test_topk_of_parts_from_its_ptx() -> None:
    """Two blocks a row, then one that selects from what they kept."""
    B, V, k, parts = 2, 5000, 20, 2
    dense = torch.randn(B, V)
    values, indices = torch.full((B, k), torch.nan), torch.full((B, k), -7, dtype=torch.int32)
    best = torch.full((B, parts * k), 7)
    run(
        program("topk_rows", "f"),
        "QqqiiqQQQ",
        [dense, V, 4096, k, 1024, k, best, None, None],
        (B, parts),
        8192,
        "lockstep",
    )
    all_of_them = [best, parts * k, parts * k, k, 1024, k, None, values, indices]
    run(program("topk_rows", "m"), "QqqiiqQQQ", all_of_them, (B,), 8192, "lockstep")
    same_rows(sk.SparseRows(values, indices, None, V), reference.topk(dense, k))


@pytest.mark.parametrize("order", ["lockstep", "shuffled"])
@pytest.mark.parametrize(("of", "dtype"), [("s", torch.int16), ("i", torch.int32)])
def test_topk_merge_from_its_ptx(of: str, dtype: torch.dtype, order: str) -> None:
    B, V, C, k = 3, 600, 300, 30
    raw, positions = torch.randint(-9, 9, (B, V)).float(), torch.randint(0, 99, (B, V)).to(dtype)
    positions[1] = -1
    keys, won = torch.full((B, k), NONE), torch.full((B, k), -1, dtype=torch.int32)
    for first in (0, C):
        part = slice(first, first + C)
        given = [keys, won, raw[:, part].contiguous(), positions[:, part].contiguous(), C, first, k, 1024, 0.0]
        run(program("merge_rows", of), "QQQQqiiif", given, (B,), 8 * 1024 + 4 * k, order)
    want = reference.topk(raw, k)
    assert (won[1] == -1).all()
    for row in (0, 2):
        assert torch.equal((2**32 - 1 - (keys[row] & (2**32 - 1))).int(), want.indices[row])
        assert torch.equal(won[row], positions[row].int()[want.indices[row].long()])


def weighed(saved: dict[str, Any], order: str, activation: int) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """vocab_topk_backward as far as the sums: factors as they stand, the sorted indices, their factors and tokens."""
    B, K = saved["indices"].shape
    sorted_indices, where = saved["indices"].flatten().sort(stable=True)
    factors, sorted_factors = torch.full((2, B * K), torch.nan)
    tokens = torch.full((B * K,), -7, dtype=torch.int32)
    given = [saved[name] for name in ("grad_values", "values", "positions")]
    arguments = [*given, B * K, K, saved["cu_seqlens"], B, 0, activation, where, factors, sorted_factors, tokens]
    run(program("weigh"), "QQQiiQiii4xQQQQ", arguments, (-(-B * K // THREADS),), 0, order)
    return factors, sorted_indices, sorted_factors, tokens


@pytest.mark.parametrize("order", ["lockstep", "reverse"])
@pytest.mark.parametrize("dtype", TYPES, ids=str)
def test_vocab_topk_backward_from_its_ptx(dtype: torch.dtype, order: str) -> None:
    """Integers, equal to the bit: a token of 69 survivors, which warps share, and a row without a token."""
    V, K, D = 75, 70, 40
    saved = make_saved([0, 1, 4, 4], D, V, K, dtype)
    B, T = len(saved["indices"]), len(saved["hidden"])
    factors, sorted_indices, sorted_factors, tokens = weighed(saved, order, 1)
    starts, grad_bias = torch.full((V + 1,), -7, dtype=torch.int32), torch.full((V,), torch.nan)
    arguments = [sorted_indices, sorted_factors, B * K, V, starts, grad_bias]
    run(program("sum_columns"), "QQi4xqQQ", arguments, (-(-(V + 1) // 64),), 0, order)
    results = []
    for rows, operand, of, layout, lists in (
        (
            T,
            "weight",
            "OfToken",
            "QQQQiii4x",
            [saved["indices"], saved["positions"], factors, saved["cu_seqlens"], B, 0, K],
        ),
        (V, "hidden", "OfColumn", "QQQQ", [starts, tokens, sorted_factors, None]),
    ):
        out = torch.full((rows, D), torch.nan, dtype=dtype)
        kernel = program("sum_rows", rf"{TYPES[dtype]}NS_\w*{of}")
        arguments = [saved[operand], out, rows, D, int(D % (16 // out.itemsize) == 0), *lists]
        run(kernel, "QQiii4x" + layout, arguments, (-(-rows // 8), 1), 0, order)
        results.append(out)
    for got, want in zip((*results, grad_bias), expected(saved)):
        assert torch.equal(got, want)


@pytest.mark.parametrize(("activation", "number"), [("log_relu", 0), ("log_log_relu", 2), ("elu1p", 3)])
def test_slopes_from_their_ptx(activation: str, number: int) -> None:
    """Against autograd's in float64."""
    raw = torch.tensor([0.25, 1.0, 6.0, 40.0, *([-3.0, -0.5] if activation == "elu1p" else [])])
    x = raw.double().requires_grad_()
    reference.ACTIVATIONS[activation](x).sum().backward()
    K = len(raw) + 1
    saved = make_saved([0, 2], 1, K, K, torch.float32)
    saved["grad_values"] = torch.ones(1, K)
    saved["values"] = torch.nn.functional.pad(reference.ACTIVATIONS[activation](raw), (0, 1))[None]
    factors = weighed(saved, "lockstep", number)[0]
    assert (factors[:-1] - x.grad).abs().max() <= 1e-6
