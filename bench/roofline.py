"""What the machine can do, measured in the same run as the operators: multiply-add peaks and read bandwidth."""

from __future__ import annotations

import ctypes
import os
import shutil
import subprocess
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path

import numpy as np

SOURCE = Path(__file__).with_name("peak.cpp")
BUFFER_BYTES = 256 << 20  # a thread; beyond any cache


@dataclass(frozen=True)
class Roofline:
    """The machine's limits with all benchmark threads busy."""

    gflops: dict[str, float]  # dtype of the inputs -> 1e9 FLOP/s with float32 sums, two a fused multiply-add
    read_gbps: float  # 1e9 bytes/s

    def time_ms(self, dtype: str, flops: float, mem_bytes: float) -> float:
        """The least time for that much arithmetic and memory traffic."""
        return 1e3 * max(flops / (self.gflops[dtype] * 1e9), mem_bytes / (self.read_gbps * 1e9))

    def best(self, other: Roofline) -> Roofline:
        """The higher of two measurements: a limit is what was reached at any time."""
        gflops = {dtype: max(rate, self.gflops.get(dtype, 0.0)) for dtype, rate in other.gflops.items()}
        return Roofline(gflops, max(self.read_gbps, other.read_gbps))


def measure(threads: int, folder: Path, seconds: float = 0.5) -> Roofline:
    """Compiles peak.cpp for this machine and runs it on every thread at once; the sum of the threads' rates."""
    library = ctypes.CDLL(str(_compiled(folder)))
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


def _compiled(folder: Path) -> Path:
    library = folder / "peak.so"
    if not library.exists() or library.stat().st_mtime < SOURCE.stat().st_mtime:
        compiler = os.environ.get("CXX") or shutil.which("c++") or "g++"
        folder.mkdir(parents=True, exist_ok=True)
        command = [compiler, "-O3", "-march=native", "-fPIC", "-shared", str(SOURCE), "-o", str(library)]
        subprocess.run(command, check=True)
    return library
