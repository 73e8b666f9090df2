"""The README's commands and programs are run, in order, in one folder; FAST says what is run in a long one's place."""

from __future__ import annotations

import importlib
import json
import os
import re
import shlex
import subprocess
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from PIL import Image
from stair.cli import app
from typer.testing import CliRunner

ROOT = Path(__file__).resolve().parents[1]
README = (ROOT / "README.md").read_text(encoding="utf-8")
BLOCKS = re.findall(r"^```(sh|python)\n(.*?)^```", README, re.MULTILINE | re.DOTALL)
COMMANDS = [line.partition("   ")[0].strip() for kind, text in BLOCKS if kind == "sh" for line in text.splitlines()]
MAKE = re.findall(r"\bmake ([a-z-]+)\b", "\n".join(re.findall(r"`[^`\n]+`|^    make.*$", README, re.MULTILINE)))

FAST = {
    "pip install .": None,  # tests/test_package.py installs a wheel
    "stair train photos --out out/mine --minutes 10": "stair train photos --out out/mine --steps 2 --batch 4",
}


@pytest.fixture(scope="module")
def place(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Path]:
    """A folder with photos/, and out/demo as a short form of `make demo` leaves it."""
    folder = tmp_path_factory.mktemp("readme")
    (folder / "photos").mkdir()
    for number in range(12):
        picture = Image.new("RGB", (80, 60), (20 * number, 255 - 20 * number, 100))
        picture.save(folder / "photos" / f"{'dog' if number % 2 else 'cat'} on a beach {number}.png")
    before = Path.cwd()
    os.chdir(folder)
    run("stair demo --fast")
    yield folder
    os.chdir(before)


def run(command: str) -> str:
    """A `stair` command in this process, which has imported what it needs; its output."""
    program, *arguments = shlex.split(command)
    assert program == "stair", command
    done = CliRunner().invoke(app, arguments)
    assert done.exit_code == 0, f"{command}\n{done.stderr}"
    return done.stdout


def test_every_command_works(place: Path) -> None:
    assert any(command.startswith("stair search") for command in COMMANDS)
    apple = "out/demo/pictures/openmoji/1F34E.png"  # the short demo draws other pictures
    drawn = next((place / "out/demo/pictures/openmoji").glob("*.png"))
    for command in COMMANDS:
        short = FAST.get(command, command)
        if short is not None:
            assert run(short.replace(apple, str(drawn))).strip() or "--out" in short


def test_every_program_works(place: Path) -> None:
    programs = [text for kind, text in BLOCKS if kind == "python"]
    assert len(programs) >= 3
    names: dict[str, object] = {}
    for number, program in enumerate(programs):
        exec(compile(program, f"README.md, program {number + 1}", "exec"), names)


@pytest.mark.parametrize("target", sorted(set(MAKE)))
def test_every_make_target_exists(target: str) -> None:
    done = subprocess.run(["make", "--dry-run", target], cwd=ROOT, capture_output=True, text=True, timeout=60)
    assert done.returncode == 0, done.stderr


@pytest.mark.parametrize("page", ["README.md", "docs/benchmarks.md"])
def test_the_tables_of_numbers_have_the_columns_that_make_bench_prints(
    page: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.syspath_prepend(ROOT / "bench")
    report = importlib.import_module("report")
    lines = (ROOT / page).read_text(encoding="utf-8").splitlines()
    heads = [line.strip("| ").split(" | ") for line in lines if line.startswith("| operator |")]
    assert heads
    printed = [*report.TEXTS, *report.NUMBERS, *report.MEGABYTES]  # a column without numbers is left out
    for head in heads:
        assert head == [column for column in printed if column in head]
        assert {*report.TEXTS, "ours, ms", "eager", "eager/ours", "limit/ours"} <= {*head}


@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
def test_make_bench_runs(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], threads: Any, dtype: str
) -> None:
    """Every operator's case at a small size, its results compared with PyTorch's."""
    monkeypatch.syspath_prepend(ROOT / "bench")
    bench = importlib.import_module("run")
    threads(1)
    sizes = {
        "vocab_topk": "2,3,8,100,4",
        "vocab_topk_grad": "2,3,8,100,4",
        "vocab_pool": "2,3,8,100",
        "vocab_pool_grad": "2,3,8,100",
        "stair_loss_grad": "3,3,8,100",
        "topk": "2,50,4",
        "sparse_dot": "3,4,5,100",
        "sparse_dot_grad": "3,4,5,100",
        "search": "3,40,5,100,4",
    }
    for op, shape in sizes.items():
        words = ["--op", op, "--shape", shape, "--dtype", dtype, "--threads", "1", "--seconds", "0.001"]
        assert bench.main([*words, "--out", str(tmp_path)]) == 0, capsys.readouterr().err
        assert f"| {op} |" in capsys.readouterr().out
        assert json.loads((tmp_path / "bench.jsonl").read_text().splitlines()[0])["op"] == op


def test_the_licences_of_the_demos_data_are_stated() -> None:
    from stair.emoji import ATTRIBUTIONS

    table = README.partition("## Data and models")[2]
    for source in ATTRIBUTIONS.values():
        (row,) = [line for line in table.splitlines() if f"[{source['name']}]({source['url']})" in line]
        assert row.endswith(f"| {source['licence']} |")
