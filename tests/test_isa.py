"""The operator tests again, under every other instruction set that this CPU has."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest

import stair_kernels as sk

HERE = Path(__file__).parent
ALL = ("avx512_bf16", "avx512", "avx2", "generic")
OPERATOR_TESTS = ("test_vocab_topk.py", "test_vocab_pool.py", "test_stair_loss.py")


def run(isa: str, *command: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [sys.executable, *command],
        env={**os.environ, "STAIR_CPU_ISA": isa},
        capture_output=True,
        text=True,
        timeout=600,
    )


@pytest.mark.parametrize("isa", [isa for isa in ALL if isa != sk.cpu_isa()])
def test_operators_on(isa: str) -> None:
    if "STAIR_CPU_ISA" in os.environ:
        pytest.skip("already running under a forced instruction set")
    probe = run(isa, "-c", "import stair_kernels as sk; print(sk.cpu_isa())")
    if "expected one that this CPU has" in probe.stderr:
        pytest.skip(f"this CPU has no {isa}")
    assert probe.stdout.strip() == isa, probe.stderr
    # Instruction sets differ in tiles, conversions, packing and the logarithm, not in layouts and registrations.
    skipped = ("opcheck", "compile", "bad_input", "padded", "single", "elu1p", "log_log_relu", "any_number_of_threads")
    tests = [str(HERE / name) for name in OPERATOR_TESTS]
    result = run(
        isa,
        "-m",
        "pytest",
        "-q",
        "-x",
        "-p",
        "no:cacheprovider",
        "-k",
        " and ".join(f"not {name}" for name in skipped),
        *tests,
    )
    assert result.returncode == 0, result.stdout[-3000:]
    assert " passed" in result.stdout


def test_an_unknown_instruction_set_is_an_error() -> None:
    result = run("mmx", "-c", "import stair_kernels as sk; sk.cpu_isa()")
    assert result.returncode != 0
    assert "STAIR_CPU_ISA: expected one that this CPU has" in result.stderr
    assert "got mmx" in result.stderr
