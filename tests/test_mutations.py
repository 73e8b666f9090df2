"""Faults planted in a copy of the GPU kernels, one at a time: the test that is said to catch it has to fail there.

A fault is caught by a failed assertion, or by what the interpreter of PTX refuses; anything else that stops the test,
such as a kernel that no longer compiles, is a failure of this one.
"""

from __future__ import annotations

import json
import os
import re
import shutil
import subprocess
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import NamedTuple
from xml.etree import ElementTree

import pytest
from mutations import MUTATIONS, RAGGED, Mutation
from simt_on_cpu import Built

pytest.importorskip("triton", reason="Triton is not installed: nothing compiles its kernels")

HERE = Path(__file__).parent
CAUGHT = re.compile(r"assert |AssertionError|ptx\.errors\.PtxError")
TESTS_FAILED = 1  # pytest's exit codes
ALL_PASSED = 0


class Outcome(NamedTuple):
    code: int
    problems: list[list[str]]  # of each test that ran: the messages of its failure, error or skip
    output: str


Run = Callable[..., Outcome]


@pytest.fixture(scope="module")
def run(built: Callable[[str], Built]) -> Iterator[Run]:
    """run(copy, nodes, NAME=value) runs these tests in the copy, in an environment with these names."""
    command = [sys.executable, str(HERE / "mutant_runner.py")]
    env = {**os.environ, "PYTEST_DISABLE_PLUGIN_AUTOLOAD": "1", "STAIR_SIMT_LIBRARY": str(built("").kernels)}
    with subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True, env=env) as runner:

        def request(copy: Path, nodes: list[str], **environment: str) -> Outcome:
            runner.stdin.write(json.dumps({"copy": str(copy), "nodes": nodes, "environment": environment}) + "\n")
            runner.stdin.flush()
            code = int(runner.stdout.readline())
            report = copy / "report.xml"
            cases = ElementTree.parse(report).iter("testcase") if report.exists() else []
            problems = [[problem.get("message", "") for problem in case] for case in cases]
            return Outcome(code, problems, (copy / "output.txt").read_text())

        yield request
        runner.stdin.close()


@pytest.fixture
def copy(tmp_path: Path) -> Path:
    """A checkout whose Python package is a copy: the tests and what is compiled are links to the originals."""
    package = HERE.parent / "stair_kernels"
    shutil.copytree(package, tmp_path / package.name, ignore=shutil.ignore_patterns("*.so", "__pycache__"))
    for library in package.glob("*.so"):
        (tmp_path / package.name / library.name).symlink_to(library)
    for name in ("tests", "pyproject.toml"):
        (tmp_path / name).symlink_to(HERE.parent / name)
    return tmp_path


def plant(mutation: Mutation, copy: Path) -> None:
    path = copy / mutation.file
    text = path.read_text()
    count = text.count(mutation.old)
    assert count == 1, f"{mutation.name}: expected once in {mutation.file}, found {count} times: {mutation.old!r}"
    path.write_text(text.replace(mutation.old, mutation.new))


def caught(outcome: Outcome) -> bool:
    """One test ran, and failed of its own."""
    failed = outcome.code == TESTS_FAILED and len(outcome.problems) == 1
    return failed and [bool(CAUGHT.match(message)) for message in outcome.problems[0]] == [True]


def test_without_a_fault_the_tests_pass(run: Run, copy: Path) -> None:
    nodes = sorted({mutation.caught_by for mutation in MUTATIONS})
    outcome = run(copy, nodes)
    assert outcome.code == ALL_PASSED, outcome.output
    assert outcome.problems == [[]] * len(nodes), outcome.output  # nor skipped


@pytest.mark.parametrize("mutation", MUTATIONS, ids=lambda mutation: mutation.name)
def test_a_planted_fault_is_caught(run: Run, copy: Path, mutation: Mutation) -> None:
    plant(mutation, copy)
    outcome = run(copy, [mutation.caught_by])
    assert caught(outcome), f"{mutation.name} ({mutation.why}): exit code {outcome.code}\n{outcome.output[-3000:]}"


@pytest.mark.parametrize(
    ("new", "says"),
    [
        ("ELEMENTS = = 1", "SyntaxError"),  # no test is collected
        ("ELEMENTS = not_there", "NameError"),
        ("ELEMENTS = 1024; CODES = {}", "KeyError"),  # the test fails, but not of its own
        ("ELEMENTS = 1024", " passed"),
    ],
    ids=["syntax", "import", "exception", "nothing"],
)
def test_what_else_stops_a_test_is_no_catch(run: Run, copy: Path, new: str, says: str) -> None:
    plant(Mutation("", "stair_kernels/_triton/vocab_pool.py", RAGGED, "", "ELEMENTS = 1024", new), copy)
    outcome = run(copy, [RAGGED])
    assert not caught(outcome)
    assert says in outcome.output


def test_a_test_that_is_not_there_is_no_catch(run: Run, copy: Path) -> None:
    assert not caught(run(copy, [RAGGED + "_and_more"]))


@pytest.mark.parametrize(("old", "count"), [("not there", "0"), ("import", "[0-9]+")], ids=["none", "many"])
def test_a_fault_has_one_place(copy: Path, old: str, count: str) -> None:
    with pytest.raises(AssertionError, match=f"expected once in .*vocab_pool.py, found {count} times"):
        plant(Mutation("name", "stair_kernels/_triton/vocab_pool.py", RAGGED, "", old, ""), copy)
