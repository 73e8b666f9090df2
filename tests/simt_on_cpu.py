"""CUDA C++ compiled by g++ with tests/simt in place of nvcc: small kernels as a program, csrc/cuda's as operators."""

from __future__ import annotations

import os
import platform
import shutil
import subprocess
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path

import pytest
import torch

ROOT = Path(__file__).resolve().parents[1]
SIMT = ROOT / "tests" / "simt"
CXX = os.environ.get("CXX", "g++")
ORDERS = ("forward", "reverse", "shuffled")  # STAIR_SIMT_ORDER
KERNELS = sorted((ROOT / "csrc" / "cuda").glob("*.cu"))
RUNTIME = [SIMT / f"{name}.cpp" for name in ("fiber", "runtime", "waiting")]
ASAN, TSAN = "address,undefined", "thread"
TOLD_OF = {"": [], ASAN: ["-DSIMT_ADDRESS_SANITIZER"], TSAN: ["-DSIMT_THREAD_SANITIZER"]}
# For tests of kernels that only a GPU has: tests/conftest.py loads those that build() made.
needs_kernels = pytest.mark.skipif(
    "STAIR_SIMT_LIBRARY" not in os.environ,
    reason="a GPU kernel: tests/test_simt.py and tests/test_triton.py run it on CPU tensors",
)
RUNTIME_LIBRARY = {"": None, ASAN: "libasan.so", TSAN: "libtsan.so"}


def missing() -> str | None:
    """What keeps the kernels from being compiled here."""
    if platform.machine() not in ("x86_64", "AMD64"):
        return "tests/simt switches stacks in the assembly of x86-64"
    return None if shutil.which(CXX) else f"no {CXX}: nothing compiles the kernels for the host"


@dataclass(frozen=True)
class Built:
    faults: Path  # the program of tests/simt/faults.cpp
    kernels: Path  # registers the operators of csrc/cuda for CPU tensors, in place of the CPU's own
    preload: str  # what a Python that loads `kernels` has to begin with


def build(folder: Path, sanitize: str = "") -> Built:
    """Compiles the kernels with these sanitizers and the runtime without, for the two to be told apart."""
    torch_root = Path(torch.__file__).parent
    common = ["-std=c++17", "-g", "-fPIC", f"-I{SIMT}"]
    common += [f"-I{ROOT / 'csrc'}", "-isystem", str(torch_root / "include"), f"-ffile-prefix-map={ROOT}/="]
    common += ["-DTORCH_TARGET_VERSION=0x020a000000000000"]
    watched = [f"-fsanitize={sanitize}", "-fno-sanitize-recover=all", "-fno-omit-frame-pointer"] if sanitize else []
    kernel_flags = ["-O1" if sanitize else "-O2", *watched, "-x", "c++"]
    sources = [*KERNELS, SIMT / "faults.cpp", *RUNTIME]  # the slowest first
    objects = {source: folder / f"{source.name}.o" for source in sources}

    def compile_one(source: Path) -> None:
        flags = ["-O2", *TOLD_OF[sanitize]] if source in RUNTIME else kernel_flags
        must_run([CXX, *common, *flags, "-c", str(source), "-o", str(objects[source])])

    with ThreadPoolExecutor(os.cpu_count()) as pool:
        list(pool.map(compile_one, sources))
    runtime = [str(objects[source]) for source in RUNTIME]
    faults, kernels = folder / "faults", folder / "kernels.so"
    must_run([CXX, *watched, str(objects[SIMT / "faults.cpp"]), *runtime, "-o", str(faults)])
    operators = [str(objects[source]) for source in KERNELS]
    torch_cpu = str(torch_root / "lib" / "libtorch_cpu.so")
    must_run([CXX, "-shared", *watched, *operators, *runtime, torch_cpu, "-o", str(kernels)])
    library = RUNTIME_LIBRARY[sanitize]
    # libstdc++ beside the sanitizer's library, which otherwise finds no exceptions to watch in a Python written in C
    names = [library, "libstdc++.so.6"] if library else []
    return Built(faults, kernels, " ".join(must_run([CXX, f"-print-file-name={name}"]).strip() for name in names))


def must_run(command: Sequence[str]) -> str:
    result = subprocess.run(command, capture_output=True, text=True)
    assert result.returncode == 0, result.stderr
    return result.stdout
