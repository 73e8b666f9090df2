"""The table op -> implementations: every operator test runs over its rows; a device or a SIMT build is one more row."""

from __future__ import annotations

import os
import sys
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import Any

import pytest
import torch

import stair_kernels as sk
from stair_kernels import _index

sys.path.insert(0, os.path.dirname(__file__))

import simt_on_cpu
from on_device import OnDevice, named_device

# Under deterministic algorithms (_poisoned_outputs) cuBLAS wants it, before its first use.
os.environ.setdefault("CUBLAS_WORKSPACE_CONFIG", ":4096:8")

if sanitizers := os.environ.get("STAIR_SANITIZE"):  # tests/sanitize.sh: no test may run on other libraries by mistake
    runtime = {"address,undefined": b"__asan_init", "thread": b"__tsan_init"}[sanitizers]
    for library in (Path(sk.__file__).with_name("_C.so"), Path(_index.__file__)):
        assert runtime in library.read_bytes(), f"{library} was not built with {sanitizers}"


if simt := os.environ.get("STAIR_SIMT_LIBRARY"):  # tests/test_simt.py: the GPU kernels in CUDA C++, compiled by g++
    torch.ops.load_library(simt)

if os.environ.get("STAIR_TEST_KERNELS") == "triton":  # tests/test_triton.py: and those in Triton's interpreter
    from triton_on_cpu import replace_cpu_kernels

    replace_cpu_kernels()


@dataclass(frozen=True)
class Implementation:
    """One way to run the operators."""

    name: str
    operators: Any  # has the public operators' names; takes and gives CPU tensors
    device: str = "cpu"  # where the kernels run

    @property
    def device_type(self) -> str:
        return torch.device(self.device).type


DEVICE = named_device()
ON_DEVICE = [] if DEVICE is None else [Implementation(f"on-{DEVICE}", OnDevice(DEVICE), DEVICE)]
# The CPU kernels run on one instruction set a process (STAIR_CPU_ISA); test_isa.py runs the tests under every other.
ON_CPU = [Implementation(f"cpu-{sk.cpu_isa()}", sk)]
# A device that STAIR_TEST_DEVICE names is tested alone.
IMPLEMENTATIONS = ON_DEVICE if ON_DEVICE and os.environ.get("STAIR_TEST_DEVICE") else ON_CPU + ON_DEVICE


@pytest.fixture(params=IMPLEMENTATIONS, ids=lambda implementation: implementation.name)
def impl(request: pytest.FixtureRequest) -> Implementation:
    return request.param


@pytest.fixture(params=dict.fromkeys(implementation.device for implementation in IMPLEMENTATIONS))
def device(request: pytest.FixtureRequest) -> str:
    """For tests that call torch.ops or torch.compile: tensors made on it."""
    return request.param


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Tests that share a fixture of their module run in one process, so that it is made once."""
    for item in items:
        fixtures = item._fixtureinfo.name2fixturedefs.values()
        if any(definitions[-1].scope == "module" for definitions in fixtures):
            item.add_marker(pytest.mark.xdist_group(item.path.stem))


@pytest.fixture(scope="session")
def built(
    request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory
) -> Callable[[str], simt_on_cpu.Built]:
    """built(sanitizers): csrc/cuda compiled by g++, once for all processes of a run."""
    if without := simt_on_cpu.missing():
        pytest.skip(without)
    base = tmp_path_factory.getbasetemp()
    folder = base.parent if hasattr(request.config, "workerinput") else base  # of all workers, or of one process
    return cache(lambda sanitize: simt_on_cpu.build_once(folder, sanitize))


@pytest.fixture(autouse=True)
def _seed() -> None:
    torch.manual_seed(0)


@pytest.fixture
def threads(impl: Implementation) -> Iterator[Callable[[int], None]]:
    """threads(n) sets the number of threads until the test ends."""
    if isinstance(impl.operators, OnDevice):
        pytest.skip(f"the CPU's threads do not split the work of {impl.device}")
    before = torch.get_num_threads()
    yield torch.set_num_threads
    torch.set_num_threads(before)


@pytest.fixture
def one_thread() -> Iterator[None]:
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(before)


@pytest.fixture
def pictures(tmp_path: Path) -> Path:
    """A folder of tiny_stair's pictures."""
    from tiny_stair import save_pictures

    return save_pictures(tmp_path / "pictures")


@pytest.fixture(scope="module")
def loaded(tmp_path_factory: pytest.TempPathFactory) -> Any:
    """tiny_stair's model and processor."""
    from stair.checkpoint import load
    from tiny_stair import save_checkpoint

    return load(save_checkpoint(tmp_path_factory.mktemp("loaded") / "model"))


@pytest.fixture(scope="module")
def picture(tmp_path_factory: pytest.TempPathFactory) -> Any:
    """tiny_stair's red disc."""
    from PIL import Image
    from tiny_stair import save_pictures

    return Image.open(save_pictures(tmp_path_factory.mktemp("pictures")) / "red.png")


@pytest.fixture(autouse=True)
def _poisoned_outputs() -> Iterator[None]:
    """Every uninitialised tensor starts as NaN (integers: the largest): a kernel that forgets to write is seen."""
    before = torch.utils.deterministic.fill_uninitialized_memory, torch.are_deterministic_algorithms_enabled()
    torch.utils.deterministic.fill_uninitialized_memory = True
    torch.use_deterministic_algorithms(True)
    yield
    torch.utils.deterministic.fill_uninitialized_memory = before[0]
    torch.use_deterministic_algorithms(before[1])
