"""The CUDA C++ kernels without a GPU: compiled by g++, a fiber a CUDA thread, with and without sanitizers."""

from __future__ import annotations

import os
import subprocess
import sys
from collections.abc import Callable, Sequence
from pathlib import Path

import pytest
from simt_on_cpu import ASAN, ORDERS, TSAN, Built

HERE = Path(__file__).parent
SANITIZERS = ("", ASAN, TSAN)
OPTIONS = {
    # g++ before 13.3 misaligns vectors of 512 bits when it looks for uses after return (GCC bug 110027).
    "ASAN_OPTIONS": "detect_leaks=0:detect_stack_use_after_return=0",
    "UBSAN_OPTIONS": "halt_on_error=1:print_stacktrace=1",
    "TSAN_OPTIONS": "halt_on_error=1:ignore_noninstrumented_modules=1",
}
OPERATOR_TESTS = (
    *("test_topk.py", "test_topk_gpu.py", "test_sparse_dot.py", "test_sparse_dot_gpu.py"),
    *("test_vocab_topk.py", "test_vocab_topk_gpu.py", "test_search_gpu.py"),
)
# The same on every device, or before the kernels.
SAME = ("opcheck", "compile", "bad_input", "without_the_library", "behind_our_back", "cuda_devices_alone")
# Of vocab_topk only the backward is CUDA C++ as a whole.
BACKWARD = "(not test_vocab_topk.py or gradient or frozen or stride or empty_sizes)"
# What is run in other orders and under sanitizers.
SHAPES = (
    "shapes_that_break or nan_anywhere or merged or lists or (test_sparse_dot.py and float64)"
    " or test_vocab_topk_gpu.py or later_groups or (gradients_match_float64 and elu1p)"
)
PATHS = "every_path_once"

Faults = Callable[..., tuple[int, str]]


def run(command: Sequence[str], order: str, **environment: str) -> tuple[int, str]:
    """The exit status and the output. tests/sanitize.sh has settings of its own for pytest, and preloads for it."""
    settings = {**OPTIONS, "STAIR_SIMT_ORDER": order, "LD_PRELOAD": "", "PYTEST_ADDOPTS": "", "STAIR_SANITIZE": ""}
    result = subprocess.run(
        command, env={**os.environ, **settings, **environment}, capture_output=True, text=True, timeout=600
    )
    return result.returncode, result.stdout + result.stderr


@pytest.fixture
def faults(built: Callable[[str], Built]) -> Faults:
    """faults(kernel, order, sanitizers) runs a kernel of tests/simt/faults.cpp."""

    def start(kernel: str, order: str, sanitize: str = "") -> tuple[int, str]:
        return run([str(built(sanitize).faults), kernel], order)

    return start


@pytest.mark.parametrize("order", ORDERS)
@pytest.mark.parametrize("sanitize", SANITIZERS, ids=lambda value: value or "plain")
def test_right_kernels_pass(faults: Faults, sanitize: str, order: str) -> None:
    for kernel in ("reverse", "rotate", "shared", "collectives"):
        assert faults(kernel, order, sanitize) == (0, ""), kernel


@pytest.mark.parametrize("order", ORDERS)
@pytest.mark.parametrize(
    ("kernel", "sanitize", "message"),
    [
        ("no_syncthreads", TSAN, "data race"),
        ("no_syncwarp", TSAN, "data race"),
        ("blocks", TSAN, "data race"),
        ("past_shared", ASAN, "index 128 out of bounds"),
        ("past_dynamic", ASAN, "heap-buffer-overflow"),
        ("past_global", ASAN, "heap-buffer-overflow"),
        ("misaligned", ASAN, "misaligned address"),
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


@pytest.mark.parametrize(
    ("order", "sanitize", "chosen"),
    [
        ("forward", "", " and ".join([BACKWARD, *(f"not {name}" for name in SAME)])),
        ("reverse", "", SHAPES),
        ("shuffled", "", SHAPES),
        ("reverse", ASAN, SHAPES),
        ("shuffled", TSAN, PATHS),
    ],
    ids=["forward", "reverse", "shuffled", ASAN, TSAN],
)
def test_operator_tests(built: Callable[[str], Built], order: str, sanitize: str, chosen: str) -> None:
    """The operators' own tests with the kernels of csrc/cuda in place of the CPU's."""
    made = built(sanitize)
    options = ["-q", "-x", "--capture=sys", "-p", "no:cacheprovider", "-p", "no:faulthandler", "-k", chosen]
    status, output = run(
        [sys.executable, "-m", "pytest", *options, *(str(HERE / name) for name in OPERATOR_TESTS)],
        order,
        STAIR_SIMT_LIBRARY=str(made.kernels),
        LD_PRELOAD=made.preload,
    )
    assert status == 0, output[-4000:]
    assert " passed" in output
