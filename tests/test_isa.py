"""The operator tests again, under every other instruction set that this CPU has; without AMX, AMX in emulation."""

from __future__ import annotations

import os
import re
import subprocess
import sys
import sysconfig
from pathlib import Path

import pytest

import stair_kernels as sk

HERE = Path(__file__).parent
ALL = ("amx", "avx512_bf16", "avx512", "avx2", "generic")
OPERATOR_TESTS = (
    "test_vocab_topk.py",
    "test_vocab_pool.py",
    "test_topk.py",
    "test_stair_loss.py",
    "test_head_properties.py",
)
SAME = ("opcheck", "compile", "bad_input")  # what comes before the kernels
PYTEST = "import pytest, sys; sys.exit(pytest.main(sys.argv[1:]))"
# The same, and says how many tile products the emulator of AMX has done.
EMULATED_PYTEST = """
import ctypes, pytest, sys
code = pytest.main(sys.argv[1:])
print(ctypes.CDLL(None).stair_amx_products(), "AMX products")
sys.exit(code)
"""


def run(isa: str, *command: str, **env: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [sys.executable, *command],
        env={**os.environ, "STAIR_TEST_DEVICE": "none", "STAIR_CPU_ISA": isa, **env},
        capture_output=True,
        text=True,
        timeout=600,
    )


def run_operator_tests(isa: str, script: str, only: str, **env: str) -> str:
    """The output of the operator tests whose name holds `only`, in a process of their own."""
    chosen = " and ".join([only, *(f"not {name}" for name in SAME)])
    # pytest's fault handler would take the signal that the emulator lives on
    options = ["-q", "-x", "-p", "no:cacheprovider", "-p", "no:faulthandler", "-k", chosen]
    result = run(isa, "-c", script, *options, *(str(HERE / name) for name in OPERATOR_TESTS), **env)
    assert result.returncode == 0, result.stdout[-3000:] + result.stderr[-3000:]
    assert " passed" in result.stdout
    return result.stdout


def probe(isa: str, **env: str) -> subprocess.CompletedProcess[str]:
    return run(isa, "-c", "import stair_kernels as sk; print(sk.cpu_isa())", **env)


def lacks(isa: str) -> bool:
    return "expected one that this CPU has" in probe(isa).stderr


@pytest.mark.parametrize("isa", [isa for isa in ALL if isa != sk.cpu_isa()])
def test_operators_on(isa: str) -> None:
    if "STAIR_CPU_ISA" in os.environ:
        pytest.skip("already running under a forced instruction set")
    if lacks(isa):
        pytest.skip(f"this CPU has no {isa}")
    assert probe(isa).stdout.strip() == isa
    run_operator_tests(isa, PYTEST, "test")


@pytest.mark.parametrize("isa", [isa for isa in ("avx512", "avx2", "generic") if isa != sk.cpu_isa()])
def test_search_on(isa: str) -> None:
    if lacks(isa):
        pytest.skip(f"this CPU has no {isa}")
    files = (str(HERE / f"test_index_{name}.py") for name in ("pruned", "far"))
    result = run(isa, "-c", PYTEST, "-q", "-x", "-p", "no:cacheprovider", *files)
    assert result.returncode == 0, result.stdout[-3000:] + result.stderr[-3000:]
    assert " passed" in result.stdout


@pytest.fixture(scope="module")
def emulator(tmp_path_factory: pytest.TempPathFactory) -> str:
    """tests/amx/emulator.cpp, compiled; LD_PRELOAD with it, after what is preloaded already (a sanitizer)."""
    library = tmp_path_factory.mktemp("amx") / "emulator.so"
    compiler = os.environ.get("CXX") or sysconfig.get_config_var("CXX").split()[0]
    source = str(HERE / "amx" / "emulator.cpp")
    subprocess.run([compiler, "-std=c++17", "-O2", "-shared", "-fPIC", source, "-o", str(library)], check=True)
    return f"{os.environ.get('LD_PRELOAD', '')} {library}".strip()


def test_amx_in_emulation(emulator: str) -> None:
    """The compiled AMX kernels: their instructions trap, and the emulator executes them."""
    if "STAIR_CPU_ISA" in os.environ:
        pytest.skip("already running under a forced instruction set")
    if sk.cpu_isa() == "amx":
        pytest.skip("this CPU has AMX: the tests run on it")
    if lacks("avx512_bf16"):
        pytest.skip("the AMX kernels need AVX-512 beside the tiles, which this CPU has not")
    assert probe("amx", LD_PRELOAD=emulator).stdout.strip() == "amx"
    output = run_operator_tests("amx", EMULATED_PYTEST, "(bfloat16 or test_head_properties)", LD_PRELOAD=emulator)
    products = re.search(r"(\d+) AMX products", output)
    assert products is not None
    assert int(products[1]) > 10_000


def test_amx_is_refused_without_it() -> None:
    if not lacks("amx"):
        pytest.skip("this CPU has AMX")
    assert "got amx" in probe("amx").stderr


def test_an_unknown_instruction_set_is_an_error() -> None:
    result = probe("mmx")
    assert result.returncode != 0
    assert "STAIR_CPU_ISA: expected one that this CPU has" in result.stderr
    assert "got mmx" in result.stderr
