"""Faults planted in a copy of csrc/cuda, one at a time, compiled by g++: the test named beside it has to fail.

A fault is caught by a failed assertion or by what tests/simt refuses, a race by ThreadSanitizer.
"""

from __future__ import annotations

import shutil
import signal
import sys
from pathlib import Path

import pytest
from cuda_mutations import MUTATIONS, RACES, UNIT
from mutations import Mutation
from simt_on_cpu import ROOT, TSAN, compile_all, compile_runtime, link, missing, preload_of, watch
from test_mutations import ALL_PASSED, Outcome, Run, caught, copy, plant, run
from test_simt import run as run_command

__all__ = ["copy", "run"]  # fixtures

WITHOUT = missing()
pytestmark = pytest.mark.skipif(WITHOUT is not None, reason=str(WITHOUT))


@pytest.fixture(scope="module")
def runtime(tmp_path_factory: pytest.TempPathFactory) -> list[str]:
    return compile_runtime(tmp_path_factory.mktemp("runtime"))


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


@pytest.mark.parametrize("unit", sorted(set(UNIT.values())))
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
def test_a_planted_race_is_caught(checkout: Path, mutation: Mutation) -> None:
    """Without one, the same test passes: tests/test_simt.py runs it so."""
    plant(mutation, checkout)
    environment = compiled(checkout, UNIT[mutation.file], compile_runtime(checkout, TSAN), TSAN)
    nodes = ["-p", "no:cacheprovider", str(ROOT / mutation.caught_by)]
    command = [sys.executable, "-m", "pytest", "-q", "--capture=sys", "-p", "no:faulthandler", *nodes]
    status, output = run_command(command, "forward", **environment, LD_PRELOAD=preload_of(TSAN))
    assert status != 0
    assert "ThreadSanitizer: data race" in output
