"""What the device can do, measured in the same run as the operators: multiply-add peaks and memory bandwidth."""

from __future__ import annotations

import ctypes
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import torch
from native import compiled_library
from timer import Clock

SOURCE = Path(__file__).with_name("peak.cpp")
BUFFER_BYTES = 256 << 20  # a thread; beyond any cache
MATRIX = 8192  # rows and columns of the product that a GPU is measured by
COPIED_BYTES = 1 << 30
RUNS = 5  # of which the best counts


@dataclass(frozen=True)
class Roofline:
    """The limits with all benchmark threads, or the whole GPU, busy."""

    gflops: dict[str, float]  # dtype of the inputs -> 1e9 FLOP/s with float32 sums, two a fused multiply-add
    mem_gbps: float  # 1e9 bytes/s: reads on the CPU, a copy's reads and writes on a GPU

    def time_ms(self, dtype: str, flops: float, mem_bytes: float) -> float:
        """The least time for that much arithmetic and memory traffic."""
        return 1e3 * max(flops / (self.gflops[dtype] * 1e9), mem_bytes / (self.mem_gbps * 1e9))

    def best(self, other: Roofline) -> Roofline:
        """The higher of two measurements: a limit is what was reached at any time."""
        gflops = {dtype: max(rate, self.gflops.get(dtype, 0.0)) for dtype, rate in other.gflops.items()}
        return Roofline(gflops, max(self.mem_gbps, other.mem_gbps))


def measure_host(threads: int, folder: Path, seconds: float = 0.5) -> Roofline:
    """Compiles peak.cpp for this machine and runs it on every thread at once; the sum of the threads' rates."""
    library = ctypes.CDLL(str(compiled_library(SOURCE, folder)))
    for rate in (library.fma_rate, library.bfloat16_rate, library.read_rate):
        rate.restype = ctypes.c_double
    library.fma_rate.argtypes = library.bfloat16_rate.argtypes = [ctypes.c_double]
    library.read_rate.argtypes = [ctypes.c_void_p, ctypes.c_int64, ctypes.c_double]
    with ThreadPoolExecutor(threads) as pool:  # ctypes releases the GIL
        fma = sum(pool.map(library.fma_rate, [seconds] * threads)) / 1e9
        bfloat16 = sum(pool.map(library.bfloat16_rate, [seconds] * threads)) / 1e9
        buffers = list(pool.map(lambda _: np.ones(BUFFER_BYTES, np.uint8), range(threads)))
        rates = pool.map(lambda buffer: library.read_rate(buffer.ctypes.data, buffer.nbytes, seconds), buffers)
        read_gbps = sum(rates) / 1e9
    return Roofline({"float32": fma, "float16": fma, "bfloat16": max(bfloat16, fma)}, read_gbps)


def measure_device(
    device: torch.device, clock: Clock, matrix: int = MATRIX, copied_bytes: int = COPIED_BYTES
) -> Roofline:
    """The rates of PyTorch's matrix product (in float32 without TF32, unless that is allowed) and of its copy."""
    gflops = {}
    for dtype in ("float32", "float16", "bfloat16"):
        a, b = (torch.randn(matrix, matrix, device=device).to(getattr(torch, dtype)) for _ in range(2))
        out = torch.empty_like(a)
        gflops[dtype] = 2 * matrix**3 / _best_ms(clock, partial(torch.mm, a, b, out=out)) / 1e6
    source = torch.ones(copied_bytes, dtype=torch.uint8, device=device)
    target = torch.empty_like(source)
    return Roofline(gflops, 2 * copied_bytes / _best_ms(clock, partial(target.copy_, source)) / 1e6)


def _best_ms(clock: Clock, run: Callable[[], Any]) -> float:
    run()
    return min(clock.time_ms(run) for _ in range(RUNS))
