"""The portable C++: it compiles for a processor without vector code of its own, and computes the same there."""

from __future__ import annotations

import os
import shutil
import subprocess
import sysconfig
from pathlib import Path

import pytest
import torch

ROOT = Path(__file__).parent.parent
CROSS, EMULATOR = "aarch64-linux-gnu-g++", "qemu-aarch64"
KERNELS = [str(ROOT / "csrc/cpu/simd/table.cpp"), "-DSTAIR_ISA=generic"]
FLAGS = ["-std=c++17", "-O2", "-Wall", "-Wextra", "-Werror", "-fvisibility=hidden", f"-I{ROOT / 'csrc'}"]


def build_check(compiler: str, folder: Path, *flags: str) -> str:
    program = folder / "check"
    source = str(ROOT / "tests/portable/check.cpp")
    subprocess.run([compiler, *FLAGS, *flags, source, *KERNELS, "-o", str(program)], check=True)
    return str(program)


def test_generic_kernels_here(tmp_path: Path) -> None:
    compiler = os.environ.get("CXX") or sysconfig.get_config_var("CXX").split()[0]
    subprocess.run([build_check(compiler, tmp_path)], check=True)


@pytest.mark.skipif(shutil.which(CROSS) is None, reason=f"no {CROSS} (Debian: apt install g++-aarch64-linux-gnu)")
def test_every_cpu_source_compiles_for_aarch64() -> None:
    sources = [ROOT / "csrc/ops.cpp", *(ROOT / "csrc/cpu").glob("*.cpp")]
    headers = ["-isystem", str(Path(torch.__file__).parent / "include"), "-DTORCH_TARGET_VERSION=0x020a000000000000"]
    for source in sources:
        subprocess.run([CROSS, *FLAGS, *headers, "-fsyntax-only", str(source)], check=True)


@pytest.mark.skipif(
    not (shutil.which(CROSS) and shutil.which(EMULATOR)),
    reason=f"no {CROSS} or no {EMULATOR} (Debian: apt install g++-aarch64-linux-gnu qemu-user)",
)
def test_generic_kernels_on_aarch64(tmp_path: Path) -> None:
    subprocess.run([EMULATOR, build_check(CROSS, tmp_path, "-static")], check=True)
