"""The table op -> implementations: every operator test runs over its rows; a Triton or SIMT build is one more row."""

from __future__ import annotations

import os
import sys
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest
import torch

import stair_kernels as sk
from stair_kernels import _index

sys.path.insert(0, os.path.dirname(__file__))

if sanitizers := os.environ.get("STAIR_SANITIZE"):  # tests/sanitize.sh: no test may run on other libraries by mistake
    runtime = {"address,undefined": b"__asan_init", "thread": b"__tsan_init"}[sanitizers]
    for library in (Path(sk.__file__).with_name("_C.so"), Path(_index.__file__)):
        assert runtime in library.read_bytes(), f"{library} was not built with {sanitizers}"


if os.environ.get("STAIR_TEST_KERNELS") == "triton":  # tests/test_triton.py: the GPU kernels in Triton's interpreter
    from triton_on_cpu import replace_cpu_kernels

    replace_cpu_kernels()

if os.environ.get("STAIR_TEST_KERNELS") == "simt":  # tests/test_simt.py: those in CUDA C++, compiled by g++
    torch.ops.load_library(os.environ["STAIR_SIMT_LIBRARY"])


@dataclass(frozen=True)
class Implementation:
    """One way to run the operators."""

    name: str
    operators: Any  # has vocab_topk, vocab_pool, topk, sparse_dot, flops, stair_loss
    device: str = "cpu"


# The CPU kernels run on one instruction set a process (STAIR_CPU_ISA); test_isa.py runs the tests under every other.
IMPLEMENTATIONS = [Implementation(f"cpu-{sk.cpu_isa()}", sk)]


@pytest.fixture(params=IMPLEMENTATIONS, ids=lambda implementation: implementation.name)
def impl(request: pytest.FixtureRequest) -> Implementation:
    return request.param


@pytest.fixture(autouse=True)
def _seed() -> None:
    torch.manual_seed(0)


@pytest.fixture
def threads() -> Iterator[Callable[[int], None]]:
    """threads(n) sets the number of threads until the test ends."""
    before = torch.get_num_threads()
    yield torch.set_num_threads
    torch.set_num_threads(before)


@pytest.fixture(autouse=True)
def _poisoned_outputs() -> Iterator[None]:
    """Every uninitialised tensor starts as NaN (integers: the largest): a kernel that forgets to write is seen."""
    before = torch.utils.deterministic.fill_uninitialized_memory, torch.are_deterministic_algorithms_enabled()
    torch.utils.deterministic.fill_uninitialized_memory = True
    torch.use_deterministic_algorithms(True)
    yield
    torch.utils.deterministic.fill_uninitialized_memory = before[0]
    torch.use_deterministic_algorithms(before[1])
