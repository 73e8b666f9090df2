"""CUDA C++ compiled by g++ with tests/simt in place of nvcc: small kernels as a program, csrc/cuda's as operators."""

from __future__ import annotations

import fcntl
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
TORCH = Path(torch.__file__).parent
CXX = os.environ.get("CXX", "g++")
ORDERS = ("forward", "reverse", "shuffled")  # STAIR_SIMT_ORDER
KERNELS = sorted((ROOT / "csrc" / "cuda").glob("*.cu"))
RUNTIME = [SIMT / f"{name}.cpp" for name in ("fiber", "runtime", "waiting")]
ASAN, TSAN = "address,undefined", "thread"
TOLD_OF = {"": [], ASAN: ["-DSIMT_ADDRESS_SANITIZER"], TSAN: ["-DSIMT_THREAD_SANITIZER"]}
RUNTIME_LIBRARY = {"": None, ASAN: "libasan.so", TSAN: "libtsan.so"}
# For tests of kernels that only a GPU has: tests/conftest.py loads those that build() made.
needs_kernels = pytest.mark.skipif(
    "STAIR_SIMT_LIBRARY" not in os.environ,
    reason="a GPU kernel: tests/test_simt.py and tests/test_triton.py run it on CPU tensors",
)


def missing() -> str | None:
    """What keeps the kernels from being compiled here."""
    if platform.machine() not in ("x86_64", "AMD64"):
        return "tests/simt switches stacks in the assembly of x86-64"
    return None if shutil.which(CXX) else f"no {CXX}: nothing compiles the kernels for the host"


@dataclass(frozen=True)
class Built:
    faults: Path  # the program of tests/simt/faults.cpp
    kernels: Path  # registers the operators of csrc/cuda for CPU tensors, in place of the CPU's own
    preload: str

    @staticmethod
    def at(folder: Path, sanitize: str) -> Built:
        return Built(folder / "faults", folder / "kernels.so", preload_of(sanitize))


def build_once(folder: Path, sanitize: str) -> Built:
    """build() in a folder of `folder`, where another process may be doing the same."""
    within = folder / f"simt-{sanitize}"
    with open(folder / f"simt-{sanitize}.lock", "w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        if (within / "done").exists():
            return Built.at(within, sanitize)
        within.mkdir(exist_ok=True)
        made = build(within, sanitize)
        (within / "done").touch()
        return made


def build(folder: Path, sanitize: str = "") -> Built:
    """Compiles the kernels with these sanitizers and the runtime without, for the two to be told apart."""
    watched = watch(sanitize)
    kernel_flags = ["-g", "-O1" if sanitize else "-O2", *watched]
    made = Built.at(folder, sanitize)
    own = compile_all(folder, [*KERNELS, SIMT / "faults.cpp"], kernel_flags)  # the slowest first
    runtime = compile_runtime(folder, sanitize)
    must_run([CXX, *watched, own.pop(), *runtime, "-o", str(made.faults)])
    link(made.kernels, [*watched, *own, *runtime])
    return made


def preload_of(sanitize: str) -> str:
    """What a Python that loads kernels with these sanitizers has to begin with."""
    library = RUNTIME_LIBRARY[sanitize]
    # libstdc++ beside the sanitizer's library, which otherwise finds no exceptions to watch in a Python written in C
    names = [library, "libstdc++.so.6"] if library else []
    return " ".join(must_run([CXX, f"-print-file-name={name}"]).strip() for name in names)


def watch(sanitize: str) -> list[str]:
    return [f"-fsanitize={sanitize}", "-fno-sanitize-recover=all", "-fno-omit-frame-pointer"] if sanitize else []


def compile_runtime(folder: Path, sanitize: str = "") -> list[str]:
    return compile_all(folder, RUNTIME, ["-g", "-O2", *TOLD_OF[sanitize]])


def compile_all(folder: Path, sources: Sequence[Path], flags: Sequence[str], checkout: Path = ROOT) -> list[str]:
    """The object file of each, in `folder`."""
    command = [CXX, "-std=c++17", "-fPIC", f"-I{SIMT}", f"-I{checkout / 'csrc'}", f"-ffile-prefix-map={checkout}/="]
    command += ["-isystem", str(TORCH / "include"), "-DTORCH_TARGET_VERSION=0x020a000000000000", *flags, "-x", "c++"]

    def compile_one(source: Path) -> str:
        compiled = str(folder / f"{source.name}.o")
        must_run([*command, "-c", str(source), "-o", compiled])
        return compiled

    with ThreadPoolExecutor(os.cpu_count()) as pool:
        return list(pool.map(compile_one, sources))


def link(library: Path, arguments: Sequence[str]) -> None:
    must_run([CXX, "-shared", *arguments, str(TORCH / "lib" / "libtorch_cpu.so"), "-o", str(library)])


def must_run(command: Sequence[str]) -> str:
    result = subprocess.run(command, capture_output=True, text=True)
    assert result.returncode == 0, result.stderr
    return result.stdout
