"""CUDA C++ compiled by g++ with tests/simt in place of nvcc: programs, and csrc/cuda's kernels on CPU tensors."""

from __future__ import annotations

import os
import platform
import subprocess
import tempfile
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import torch

ROOT = Path(__file__).resolve().parents[1]
SIMT = ROOT / "tests" / "simt"
CXX = os.environ.get("CXX", "g++")
ORDERS = ("forward", "reverse", "shuffled")  # STAIR_SIMT_ORDER
SANITIZERS = ("address,undefined", "thread")
KERNELS = sorted((ROOT / "csrc" / "cuda").glob("*.cu"))
WITHOUT = None if platform.machine() in ("x86_64", "AMD64") else "tests/simt switches stacks in x86-64 assembly"


def compile_simt(
    sources: Sequence[Path], target: Path, sanitize: str = "", flags: Sequence[str] = (), libraries: Sequence[Path] = ()
) -> None:
    """Links `sources`, compiled with the sanitizers, and the runtime, compiled without, into `target`."""
    common = [
        "-std=c++17",
        "-g",
        "-fPIC",
        "-Wall",
        "-Wextra",
        "-Werror",
        "-Wno-unknown-pragmas",
        f"-I{SIMT}",
        f"-ffile-prefix-map={ROOT}/=",
    ]
    watched = [f"-fsanitize={sanitize}", "-fno-sanitize-recover=all", "-fno-omit-frame-pointer"] if sanitize else []
    runtime = {"": [], "address,undefined": ["-DSIMT_ADDRESS_SANITIZER"], "thread": ["-DSIMT_THREAD_SANITIZER"]}
    with tempfile.TemporaryDirectory() as folder:
        commands = [
            ["-O2", *runtime[sanitize], str(source)] for source in sorted(SIMT.glob("*.cpp")) if is_runtime(source)
        ]
        commands += [["-O1" if sanitize else "-O2", *watched, *flags, "-x", "c++", str(source)] for source in sources]
        objects = [str(Path(folder) / f"{number}.o") for number in range(len(commands))]
        with ThreadPoolExecutor(os.cpu_count()) as pool:
            for result in pool.map(
                lambda pair: run([CXX, *common, *pair[0], "-c", "-o", pair[1]]), zip(commands, objects)
            ):
                assert result.returncode == 0, result.stderr
        shared = ["-shared"] if target.suffix == ".so" else []
        linked = run([CXX, *shared, *watched, *objects, *map(str, libraries), "-o", str(target)])
        assert linked.returncode == 0, linked.stderr


def is_runtime(source: Path) -> bool:
    return source.name != "faults.cpp"


def run(command: Sequence[str], **environment: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run(command, env={**os.environ, **environment}, capture_output=True, text=True, timeout=600)


def build_kernels(target: Path, sanitize: str = "") -> None:
    """A library that registers the operators of csrc/cuda for CPU tensors, in place of the CPU's own kernels."""
    torch_root = Path(torch.__file__).parent
    flags = [f"-I{ROOT / 'csrc'}", "-isystem", f"{torch_root / 'include'}", "-DTORCH_TARGET_VERSION=0x020a000000000000"]
    compile_simt(KERNELS, target, sanitize, flags, [torch_root / "lib" / "libtorch_cpu.so"])


def replace_cpu_kernels(library: Path) -> None:
    """From here on, in this process, CPU tensors run the kernels of csrc/cuda."""
    torch.ops.load_library(library)
