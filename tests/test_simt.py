"""The CUDA C++ kernels without a GPU: compiled by g++, a fiber a CUDA thread, with and without sanitizers."""

from __future__ import annotations

from collections.abc import Callable

import pytest
from simt_on_cpu import ORDERS, SANITIZERS, SIMT, WITHOUT, compile_simt, run

pytestmark = pytest.mark.skipif(WITHOUT is not None, reason=str(WITHOUT))

OPTIONS = {
    "ASAN_OPTIONS": "detect_leaks=0:detect_stack_use_after_return=0",
    "UBSAN_OPTIONS": "halt_on_error=1:print_stacktrace=1",
    "TSAN_OPTIONS": "halt_on_error=1",
}
BARE = {"LD_PRELOAD": ""}  # tests/sanitize.sh preloads a runtime of its own
RIGHT = ("reverse", "rotate", "shared", "collectives")


@pytest.fixture(scope="module")
def faults(tmp_path_factory: pytest.TempPathFactory) -> Callable[[str, str, str], tuple[int, str]]:
    """faults(kernel, order, sanitizers) runs a kernel of tests/simt/faults.cpp: its exit status and its output."""
    folder, programs = tmp_path_factory.mktemp("simt"), {}

    def start(kernel: str, order: str, sanitize: str = "") -> tuple[int, str]:
        if sanitize not in programs:
            programs[sanitize] = folder / f"faults-{sanitize}"
            compile_simt([SIMT / "faults.cpp"], programs[sanitize], sanitize)
        result = run([str(programs[sanitize]), kernel], STAIR_SIMT_ORDER=order, **OPTIONS, **BARE)
        return result.returncode, result.stdout + result.stderr

    return start


Faults = Callable[..., tuple[int, str]]


@pytest.mark.parametrize("order", ORDERS)
@pytest.mark.parametrize("sanitize", ["", *SANITIZERS], ids=["plain", *SANITIZERS])
def test_right_kernels_pass(faults: Faults, sanitize: str, order: str) -> None:
    for kernel in RIGHT:
        assert faults(kernel, order, sanitize) == (0, ""), kernel


@pytest.mark.parametrize("order", ORDERS)
@pytest.mark.parametrize(
    ("kernel", "sanitize", "message"),
    [
        ("no_syncthreads", "thread", "data race"),
        ("no_syncwarp", "thread", "data race"),
        ("blocks", "thread", "data race"),
        ("past_shared", "address,undefined", "index 128 out of bounds"),
        ("past_dynamic", "address,undefined", "heap-buffer-overflow"),
        ("past_global", "address,undefined", "heap-buffer-overflow"),
        ("misaligned", "address,undefined", "misaligned address"),
        ("deadlock", "", "simt: deadlock in block (0, 0, 0): 95 threads wait for others in __syncthreads at "),
        ("two_barriers", "", "simt: threads of a block wait at two barriers: __syncthreads at "),
        ("diverged_warp", "", "simt: lanes of a warp wait at two places: "),
        ("absent_lane", "", "reads lane 9, which takes no part"),
    ],
    ids=lambda value: value or "plain",
)
def test_wrong_kernels_are_found(faults: Faults, kernel: str, sanitize: str, message: str, order: str) -> None:
    """In every order: a race is a missing happens-before, not a result that came out wrong."""
    status, output = faults(kernel, order, sanitize)
    assert status != 0
    assert message in output
    assert "tests/simt/faults.cpp" in output


def test_unwritten_shared_memory_differs_from_order_to_order(faults: Faults) -> None:
    assert len({faults("unwritten", order) for order in ORDERS}) == len(ORDERS)


def test_an_unknown_order_is_refused(faults: Faults) -> None:
    message = "STAIR_SIMT_ORDER: expected forward, reverse, shuffled or shuffled:SEED, got backward"
    assert message in faults("reverse", "backward")[1]
