"""Faults planted in a copy of csrc/cuda, one at a time, compiled by g++: the test named beside it has to fail.

A fault is caught by a failed assertion or by what tests/simt refuses, a race by ThreadSanitizer. What is the compiled
kernels' alone is compiled by nvcc and run from its PTX.
"""

from __future__ import annotations

import shutil
import signal
import sys
from pathlib import Path

import pytest
from cuda_mutations import FROM_PTX, MUTATIONS, RACES, UNIT
from mutations import Mutation
from simt_on_cpu import ROOT, TORCH, TSAN, compile_all, compile_runtime, link, missing, must_run, preload_of, watch
from test_mutations import ALL_PASSED, Outcome, Run, caught, copy, plant, run
from test_simt import run as run_command

__all__ = ["copy", "run"]  # fixtures

WITHOUT = missing()
pytestmark = pytest.mark.skipif(WITHOUT is not None, reason=str(WITHOUT))


@pytest.fixture(scope="module")
def runtime(tmp_path_factory: pytest.TempPathFactory) -> list[str]:
    return compile_runtime(tmp_path_factory.mktemp("runtime"))


@pytest.fixture(scope="module")
def watched_runtime(tmp_path_factory: pytest.TempPathFactory) -> list[str]:
    """Which tells ThreadSanitizer what it needs to know."""
    return compile_runtime(tmp_path_factory.mktemp("watched"), TSAN)


@pytest.fixture
def checkout(copy: Path) -> Path:
    """The copy, with a csrc of its own."""
    shutil.copytree(ROOT / "csrc", copy / "csrc")
    return copy


def compiled(checkout: Path, unit: str, runtime: list[str], sanitize: str = "") -> dict[str, str]:
    """The environment in which tests find the copy's kernels; forward, unwritten shared memory is NaN and -1."""
    watched, library = watch(sanitize), checkout / "kernels.so"
    objects = compile_all(checkout, [checkout / "csrc" / "cuda" / unit], ["-O0", *watched], checkout)
    link(library, [*watched, *objects, *runtime])
    kernels = {"STAIR_SIMT_LIBRARY": str(library), "STAIR_SIMT_ORDER": "forward"}
    return {**kernels, "STAIR_TEST_DEVICE": "none"}


def stopped_by_simt(outcome: Outcome) -> bool:
    return outcome.code == -signal.SIGABRT and "\nsimt: " in "\n" + outcome.output


def compiled_to_ptx(checkout: Path, unit: str) -> dict[str, str]:
    """The environment in which tests find the copy's kernels as nvcc makes them."""
    nvcc = shutil.which("nvcc")
    if nvcc is None:
        pytest.skip("no nvcc: nothing compiles CUDA C++ to PTX")
    target, include = checkout / "kernels.ptx", TORCH / "include"
    flags = ["-std=c++17", "-arch=compute_80", "-DUSE_CUDA", "-DTORCH_TARGET_VERSION=0x020a000000000000"]
    flags += [f"-I{checkout / 'csrc'}", "-isystem", str(include)]
    must_run([nvcc, *flags, "-ptx", str(checkout / "csrc" / "cuda" / unit), "-o", str(target)])
    return {"STAIR_TEST_PTX": str(target), "STAIR_TEST_DEVICE": "none"}


@pytest.mark.parametrize("unit", sorted({UNIT[mutation.file] for mutation in FROM_PTX}))
def test_without_a_fault_the_tests_of_ptx_pass(run: Run, checkout: Path, unit: str) -> None:
    nodes = sorted({mutation.caught_by for mutation in FROM_PTX if UNIT[mutation.file] == unit})
    outcome = run(checkout, nodes, **compiled_to_ptx(checkout, unit))
    assert outcome.code == ALL_PASSED, outcome.output
    assert outcome.problems == [[]] * len(nodes), outcome.output  # nor skipped


@pytest.mark.parametrize("mutation", FROM_PTX, ids=lambda mutation: mutation.name)
def test_a_planted_fault_is_caught_from_ptx(run: Run, checkout: Path, mutation: Mutation) -> None:
    plant(mutation, checkout)
    outcome = run(checkout, [mutation.caught_by], **compiled_to_ptx(checkout, UNIT[mutation.file]))
    assert caught(outcome), f"{mutation.name} ({mutation.why}): exit code {outcome.code}\n{outcome.output[-3000:]}"


@pytest.mark.parametrize("unit", sorted({UNIT[mutation.file] for mutation in MUTATIONS}))
def test_without_a_fault_the_tests_pass(run: Run, checkout: Path, runtime: list[str], unit: str) -> None:
    nodes = sorted({mutation.caught_by for mutation in MUTATIONS if UNIT[mutation.file] == unit})
    outcome = run(checkout, nodes, **compiled(checkout, unit, runtime))
    assert outcome.code == ALL_PASSED, outcome.output
    assert outcome.problems == [[]] * len(nodes), outcome.output  # nor skipped


@pytest.mark.parametrize("mutation", MUTATIONS, ids=lambda mutation: mutation.name)
def test_a_planted_fault_is_caught(run: Run, checkout: Path, runtime: list[str], mutation: Mutation) -> None:
    plant(mutation, checkout)
    outcome = run(checkout, [mutation.caught_by], **compiled(checkout, UNIT[mutation.file], runtime))
    message = f"{mutation.name} ({mutation.why}): exit code {outcome.code}\n{outcome.output[-3000:]}"
    assert caught(outcome) or stopped_by_simt(outcome), message


@pytest.mark.parametrize("mutation", RACES, ids=lambda mutation: mutation.name)
def test_a_planted_race_is_caught(checkout: Path, watched_runtime: list[str], mutation: Mutation) -> None:
    """Without one, the same test passes: tests/test_simt.py runs it so."""
    plant(mutation, checkout)
    environment = compiled(checkout, UNIT[mutation.file], watched_runtime, TSAN)
    nodes = ["-p", "no:cacheprovider", str(ROOT / mutation.caught_by)]
    command = [sys.executable, "-m", "pytest", "-q", "--capture=sys", "-p", "no:faulthandler", *nodes]
    status, output = run_command(command, "forward", **environment, LD_PRELOAD=preload_of(TSAN))
    assert status != 0
    assert "ThreadSanitizer: data race" in output
