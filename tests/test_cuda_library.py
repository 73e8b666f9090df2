"""The kernels of `_C_cuda.so` as nvcc compiled them, with no GPU: what they take of one, and their PTX run."""

from __future__ import annotations

import re
import subprocess
import sys
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import Any

import pytest
import torch
from cuda_library import LIBRARY, built, cuobjdump, program, run
from far import holes
from heads import same_rows
from ptx.traffic import measured
from test_vocab_topk_gpu import expected, make_saved
from torch import Tensor

import stair_kernels as sk
from stair_kernels import reference, tiles

pytestmark = built

RESERVED = 1 << 10  # bytes of a block's shared memory that are the system's, from sm_90 on counted with its own


@dataclass(frozen=True)
class Kernel:
    """What one takes at most, and how many of its blocks a multiprocessor is to hold at a time."""

    registers: int  # a thread
    static_bytes: int  # of shared memory
    dynamic_bytes: int  # of the sizes that the number of blocks is for
    threads: int
    blocks: tuple[int, int, int]  # with 164 KiB of shared memory (sm_80), 228 (sm_90, sm_100), 100 (the others)


SELECTED = 8 << 10  # room of a selection of up to 256
SEARCHED = (32 << 10) + SELECTED + 64 * 32  # a range's sums, and 64 terms
KERNELS = {
    # 16 loads of 16 bytes a thread in flight want 64 registers: half of the threads of a multiprocessor
    "topk_rows": Kernel(64, 2 << 10, SELECTED, 256, (4, 4, 4)),
    "merge_rows": Kernel(64, 2 << 10, SELECTED + 256 * 4, 256, (4, 4, 4)),
    "merge_best": Kernel(64, 2 << 10, SELECTED, 256, (4, 4, 4)),
    "sum_rows": Kernel(64, 8 << 10, 0, 256, (4, 4, 4)),
    # scores or gradients of a range take 16 KiB: three quarters of the threads where there are 228
    "score_rows": Kernel(40, 18 << 10, 0, 128, (8, 12, 5)),
    "grad_rows": Kernel(40, 18 << 10, 0, 128, (8, 12, 5)),
    # the sums of a range take 32 KiB
    "search_range": Kernel(48, 2 << 10, SEARCHED, 256, (3, 5, 2)),
    # all threads
    "find_lists": Kernel(32, 0, 0, 128, (16, 16, 12)),
    "make_postings": Kernel(32, 0, 0, 128, (16, 16, 12)),
    "start_scores": Kernel(32, 0, 0, 128, (16, 16, 12)),
    "weigh": Kernel(32, 0, 0, 256, (8, 8, 6)),
    "sum_columns": Kernel(40, 0, 0, 256, (8, 8, 6)),
    "plan_queries": Kernel(40, 0, 0, 256, (8, 8, 6)),
    "write_best": Kernel(32, 0, 0, 256, (8, 8, 6)),
}
COUNT = 6 + 5 + 8 + 4  # of topk.cu, sparse_dot.cu, rows_backward.cu and search.cu


@dataclass(frozen=True)
class Multiprocessor:
    """The programming guide's limits of a compute capability."""

    threads: int
    blocks: int
    shared_bytes: int
    registers: int = 65536

    def holds(self, registers: int, shared_bytes: int, threads: int) -> int:
        """Blocks at a time. Registers are given a warp in units of 256, shared memory in units of 128 bytes."""
        warps = threads // 32
        of_block = -(-registers * 32 // 256) * 256 * warps
        shared_bytes = -(-(shared_bytes + RESERVED) // 128) * 128
        limits = self.threads // threads, self.blocks, self.registers // of_block, self.shared_bytes // shared_bytes
        return min(limits)


MULTIPROCESSORS = {
    80: Multiprocessor(2048, 32, 164 << 10),
    86: Multiprocessor(1536, 16, 100 << 10),
    89: Multiprocessor(1536, 24, 100 << 10),
    90: Multiprocessor(2048, 32, 228 << 10),
    100: Multiprocessor(2048, 32, 228 << 10),
    120: Multiprocessor(1536, 24, 100 << 10),
}
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
    names = "topk", "topk_merge", "sparse_dot", "sparse_dot_backward", "vocab_topk_backward", "search"
    code = (
        f"import torch, stair_kernels; torch.ops.load_library({str(LIBRARY)!r});"
        f"assert all({has_kernel}('stair::' + name, 'CUDA') for name in {names})"
    )
    subprocess.run([sys.executable, "-c", code], check=True)
    needed = subprocess.run(["readelf", "-d", str(LIBRARY)], capture_output=True, text=True, check=True).stdout
    assert not re.search(r"NEEDED.*(torch_cuda|torch_python|cudart)", needed)


@cache
def usages() -> list[tuple[int, str, dict[str, int]]]:
    """Architecture, kernel, and its numbers of every cubin in the library."""
    found = []
    for part in cuobjdump("-res-usage").split("Fatbin elf code:")[1:]:
        arch = int(re.findall(r"arch = sm_(\d+)", part)[0])
        for mangled, usage in re.findall(r"Function (\S+):\s+(REG:.*)", part):
            (name,) = [name for name in KERNELS if re.search(rf"\d{name}[EI]", mangled)]
            numbers = {key: int(value) for key, value in re.findall(r"(\w+):(\d+)", usage)}
            if arch >= 90:
                numbers["SHARED"] = max(numbers["SHARED"] - RESERVED, 0)
            found.append((arch, name, numbers))
    return found


def test_no_spills_and_registers_for_all_blocks() -> None:
    """Those of topk ask for at most 40 KiB of shared memory besides: together below 48."""
    assert len(usages()) == COUNT * len(tiles.ARCHITECTURES)
    for arch, name, numbers in usages():
        kernel, message = KERNELS[name], f"{name} on sm_{arch}: {numbers}"
        assert numbers["STACK"] == numbers["LOCAL"] == 0, f"spills: {message}"
        assert numbers["REG"] <= kernel.registers, message
        assert numbers["SHARED"] <= kernel.static_bytes, message


def test_blocks_on_a_multiprocessor() -> None:
    """What registers, shared memory and threads let in, for the sizes of a selection of up to 256."""
    assert set(MULTIPROCESSORS) == set(tiles.ARCHITECTURES)
    for arch, name, numbers in usages():
        kernel = KERNELS[name]
        shared_bytes = numbers["SHARED"] + kernel.dynamic_bytes
        held = MULTIPROCESSORS[arch].holds(numbers["REG"], shared_bytes, kernel.threads)
        wanted = kernel.blocks[{164: 0, 228: 1, 100: 2}[MULTIPROCESSORS[arch].shared_bytes >> 10]]
        assert held >= wanted, f"{name} on sm_{arch}: {held} blocks, wanted {wanted}: {numbers}"


def test_what_a_multiprocessor_holds() -> None:
    """As NVIDIA's occupancy calculator has it."""
    hopper, ada = MULTIPROCESSORS[90], MULTIPROCESSORS[89]
    assert hopper.holds(32, 0, 256) == 8  # threads
    assert hopper.holds(33, 0, 256) == 6  # 40 registers
    assert hopper.holds(16, 0, 32) == 32  # blocks
    assert hopper.holds(16, 113 << 10, 128) == 2  # 114 KiB each
    assert hopper.holds(16, (113 << 10) + 1, 128) == 1
    assert ada.holds(48, 44 << 10, 256) == 2


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


def test_topk_of_rows_past_2_to_the_31(tmp_path: Path) -> None:
    """B * V: the last block reads there."""
    V, k = 8192, 20
    B = 2**31 // V + 2
    dense = holes(tmp_path, B, V, dtype=torch.float32)
    dense[-1] = torch.randn(V)
    values, indices = torch.full((B, k), torch.nan), torch.full((B, k), -7, dtype=torch.int32)
    given = [dense, V, V, k, 1024, k, None, values, indices]
    run(program("topk_rows", "f"), "QqqiiqQQQ", given, (B,), 8192, "lockstep", first_block=B - 1)
    same_rows(sk.SparseRows(values[-1:], indices[-1:], None, V), reference.topk(dense[-1:], k))


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
