"""Peak memory of a variant beyond its inputs, results included, in a run that is not timed.

On a CUDA device PyTorch's allocator knows it. On the CPU allocations.cpp, preloaded into a process of its own, counts
the live bytes of malloc and its kin, which PyTorch, our kernels, NumPy and what torch.compile emits all allocate from.
"""

from __future__ import annotations

import ctypes
import gc
import json
import os
import platform
import subprocess
import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import asdict
from pathlib import Path
from subprocess import PIPE
from typing import Any

import torch
from cases import Case
from native import compiled_library
from variants import Work
from work import prepare

SOURCE = Path(__file__).with_name("allocations.cpp")


@contextmanager
def meter(device: torch.device, threads: int, folder: Path) -> Iterator[Callable[[Case, Work], dict[str, int]]]:
    """Gives a function of a case to the peak bytes of its variants; to nothing where malloc cannot be counted."""
    if device.type == "cuda":
        yield lambda case, work: {name: _device_peak(variant.run, device) for name, variant in work.variants.items()}
    elif platform.libc_ver()[0] != "glibc":
        print("memory: not measured, counting malloc needs glibc", file=sys.stderr)
        yield lambda case, work: {}
    else:
        command = [sys.executable, __file__, str(threads)]
        environment = {**os.environ, "LD_PRELOAD": str(compiled_library(SOURCE, folder))}
        with subprocess.Popen(command, env=environment, stdin=PIPE, stdout=PIPE, text=True) as process:
            yield lambda case, work: _asked(process, case, [name for name in work.variants if name != "rescaled"])


def _asked(process: subprocess.Popen[str], case: Case, names: list[str]) -> dict[str, int]:
    assert process.stdin is not None
    assert process.stdout is not None
    process.stdin.write(json.dumps({"case": asdict(case), "names": names}) + "\n")
    process.stdin.flush()
    answer = process.stdout.readline()
    if not answer:
        raise RuntimeError(f"memory: the process that counts ended with code {process.wait()}")
    return json.loads(answer)


def _device_peak(run: Callable[[], Any], device: torch.device) -> int:
    run()  # what is made once, as cuBLAS' workspace
    gc.collect()
    torch.cuda.synchronize(device)
    torch.cuda.reset_peak_memory_stats(device)
    before = torch.cuda.memory_allocated(device)
    run()
    torch.cuda.synchronize(device)
    return torch.cuda.max_memory_allocated(device) - before


def _host_peak(run: Callable[[], Any], counter: ctypes.CDLL) -> int:
    run()
    gc.collect()
    before = counter.allocations_restart()
    run()
    return counter.allocations_peak() - before


def _serve(threads: int) -> None:
    """Answers each case on a line of the standard input with one of its variants' peaks."""
    torch.set_num_threads(threads)
    counter = ctypes.CDLL(None)
    counter.allocations_restart.restype = counter.allocations_peak.restype = ctypes.c_int64
    for line in sys.stdin:
        request = json.loads(line)
        case = Case(**{**request["case"], "shape": tuple(request["case"]["shape"])})
        work = prepare(case, torch.device("cpu"))
        peaks = {name: _host_peak(work.variants[name].run, counter) for name in request["names"]}
        del work
        print(json.dumps(peaks), flush=True)


if __name__ == "__main__":
    _serve(int(sys.argv[1]))
