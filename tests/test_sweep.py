"""bench/run.py --sweep in Triton's interpreter, end to end, and its parts that need no kernel."""

from __future__ import annotations

import os
import re
import subprocess
import sys
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch

from stair_kernels import tiles
from stair_kernels.tiles import Call, Tile

pytest.importorskip("triton", reason="Triton is not installed: nothing runs its kernels")
import sweep
from candidates import feeds, shapes
from triton.runtime.errors import OutOfResources
from work_tiles import Subject

BENCH = Path(__file__).resolve().parents[1] / "bench"
FORWARD = Call("forward", 90, 64, 2, masked=True)
PRESENT, BETTER, BEST = (Tile(2, 64, columns, 64, 4, 3, boxes=True) for columns in (32, 64, 128))


def test_end_to_end_in_the_interpreter(tmp_path: Path) -> None:
    """Each kernel gets a table and a line; the line holds the best tile, and pasting it would change nothing."""
    command = [sys.executable, BENCH / "run.py", "--sweep", "--device", "cpu", "--dtype", "bfloat16", "--out", tmp_path]
    done = subprocess.run(command, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    assert done.stdout == (tmp_path / "sweep.md").read_text() + "\n"
    lines = re.findall(r"^    # interpreter: not a time, do not paste: (.*),$", done.stdout, re.MULTILINE)
    found = [eval(f"{{{line}}}", {"Call": Call, "Tile": Tile}) for line in lines]
    assert [call.kernel for (call,) in found] == ["forward", "hidden", "weight"]
    for ((call, tile),) in map(dict.items, found):
        table = done.stdout.partition(f"{sweep.written(call)}\n\n")[2]
        row = next(line for line in table.splitlines() if line.startswith(f"| {sweep.written(tile)}"))
        assert float(row.split("|")[4].strip(" x")) >= 1
    assert done.stdout.count("the present one") == 3
    assert done.stderr.count("is right") == 3 * 2 * sweep.FEW


def test_a_wrong_candidate_is_refused_with_its_error(tmp_path: Path) -> None:
    """The gathering kernel takes one row of the batch at a time: of two it adds the tokens' numbers."""
    plant = (
        "import sys, run, sweep; from stair_kernels.tiles import Tile; "
        "sweep.shapes = lambda call, D: [Tile(2, 16, 32, 32, 4, 2), Tile(1, 16, 64, 32, 4, 2)]; "
        "sys.exit(run.main(sys.argv[1:]))"
    )
    options = [
        "--sweep",
        "--device",
        "cpu",
        "--op",
        "vocab_pool_grad",
        "--inputs",
        "untrained",
        "--shape",
        "2,66,24,40",
        "--out",
    ]
    command = [sys.executable, "-c", plant, *options, tmp_path]
    interpreted = {**os.environ, "TRITON_INTERPRET": "1"}  # before the plant imports the kernels
    done = subprocess.run(command, capture_output=True, text=True, cwd=BENCH, env=interpreted)
    assert done.returncode == 0, done.stderr
    told = done.stderr[done.stderr.index("gather") :]
    assert re.search(r"Tile\(2, 16, 32, 32, 4, 2\) is wrong: relative error \S+$", told, re.MULTILINE)
    assert "Tile(1, 16, 64, 32, 4, 2) is right" in told
    table = done.stdout[done.stdout.index("gather") :]
    assert "Tile(1, 16, 64, 32, 4, 2)" in table
    assert "Tile(2," not in table


class Stand(dict[Tile, float]):
    """A subject and its clock: milliseconds of each tile that runs, read where a pasted line would be."""

    def __init__(self, times_ms: dict[Tile, float], error: float = 0.0, n_spills: int = 0) -> None:
        super().__init__(times_ms)
        self.launched = sweep.Launched(None)
        self.launched.compiled = SimpleNamespace(n_spills=n_spills)
        self.timed: list[Tile] = []
        subject = Subject(FORWARD, PRESENT, 768, torch.device("cpu"), self.run, lambda tile: error, 1e-2)
        self.sweep = sweep.Sweep(subject, self.launched, self, 1e-9, few=False)

    def run(self) -> Tile:
        tile = tiles.MEASURED[FORWARD]
        if tile not in self:
            raise OutOfResources(300_000, 232_448, "shared memory")
        self.launched.constants = sweep.vocab_pool._shape(tile) | {"DEPTH": tile.depth}
        return tile

    def time_ms(self, run: Any) -> float:
        self.timed.append(run())
        return self[self.timed[-1]]


def test_the_slower_half_leaves_until_the_fastest_and_the_present_are_left() -> None:
    known = dict.fromkeys([PRESENT, *shapes(FORWARD, 768)])
    times_ms = {tile: 10.0 + number for number, tile in enumerate(known)} | {PRESENT: 99.0, BETTER: 2.0, BEST: 1.0}
    stand = Stand(times_ms)
    assert stand.sweep.halved(list(times_ms), 2) == [PRESENT, BEST, BETTER]
    turns = [stand.timed.count(tile) for tile in times_ms]
    assert min(turns) == 3
    assert stand.timed.count(PRESENT) == stand.timed.count(BEST) >= 12  # in 4 halvings
    assert tiles.MEASURED == {}


def test_a_search_finds_a_tile_that_only_another_feed_makes_fast() -> None:
    known = [PRESENT, *shapes(FORWARD, 768)]
    known += [fed for tile in known for fed in feeds(FORWARD, tile)]
    fast = feeds(FORWARD, BEST)[0]
    stand = Stand(dict.fromkeys(known, 5.0) | {tile: 4.0 for tile in known if tile.columns == 128} | {fast: 1.0})
    stand |= {tile: 3.0 for tile in shapes(FORWARD, 768) if (tile.columns, tile.tokens, tile.warps) == (128, 128, 4)}
    timings = stand.sweep.run()
    assert min(timings, key=lambda tile: timings[tile].median_ms) == fast
    assert PRESENT in timings


def test_what_cannot_be_launched_spills_or_is_wrong_is_not_timed() -> None:
    assert Stand({PRESENT: 1.0}).sweep.fault(PRESENT) is None
    reason = Stand({}).sweep.fault(PRESENT)
    assert reason is not None
    assert reason.startswith("failed: OutOfResources: out of resource: shared memory, Required: 300000")
    assert Stand({PRESENT: 1.0}, n_spills=12).sweep.fault(PRESENT) == "spills 12 words"
    assert Stand({PRESENT: 1.0}, error=0.02).sweep.fault(PRESENT) == "is wrong: relative error 2.00e-02"
    assert Stand({PRESENT: 1.0}, error=float("nan")).sweep.fault(PRESENT) == "is wrong: relative error nan"
    with pytest.raises(sweep.WrongResultError, match="the present tile, is wrong"):
        Stand({PRESENT: 1.0}, error=0.02).sweep.run()


def test_the_line_of_a_gpu_can_be_pasted_and_says_where_it_is_from(monkeypatch: pytest.MonkeyPatch) -> None:
    run = {"machine": {"gpu": "NVIDIA Some 100"}, "versions": {"triton": "3.7.1"}, "commit": "abc"}
    monkeypatch.setattr(sweep, "environment", lambda device, threads: run)
    timing = sweep.Timing
    subject = Subject(FORWARD, PRESENT, 768, torch.device("cuda"), print, print, 0.0)
    timings = {PRESENT: timing(2.0, 1.9, 2.1, 1.8, 9), BEST: timing(1.0, 0.9, 1.1, 0.8, 9)}
    text = sweep._line(subject, timings, "B=64 bfloat16 untrained", torch.device("cuda"))
    pasted = text.partition("\n\n")[2]
    assert eval(f"{{{pasted}}}", {"Call": Call, "Tile": Tile}) == {FORWARD: BEST}
    assert max(map(len, pasted.splitlines())) <= 120
    assert "# NVIDIA Some 100, triton 3.7.1, commit abc\n" in pasted
    assert "1 ms, 2 ms with Tile(2, 64, 32, 64, 4, 3, boxes=True)" in pasted
    timings[BEST] = timing(1.9, 1.8, 2.0, 1.7, 9)
    assert "the present tile stays" in sweep._line(subject, timings, "", torch.device("cuda"))


@pytest.mark.parametrize("arch", tiles.ARCHITECTURES)
@pytest.mark.parametrize(("itemsize", "exact"), [(2, False), (4, True)])
def test_candidates_keep_to_what_a_block_has_and_a_kernel_takes(arch: int, itemsize: int, exact: bool) -> None:
    for length in (16, 32, 64, 80, 128, 208, 512):
        call = Call("forward", arch, length, itemsize, exact, masked=True)
        made = shapes(call, 768)
        made += [fed for tile in made for fed in feeds(call, tile)]
        assert {tile.boxes for tile in made} == {False, arch in (90, 100) and not exact}
        assert all(tiles.fits(tile, itemsize, arch) for tile in made)
        assert {tile.positions for tile in made} <= {16, 32, 64, 128, 256}  # Triton's ranges are powers of two
        for kernel, one_row in (("hidden", tiles.sorts(length)), ("weight", False), ("gather", True)):
            made = shapes(Call(kernel, arch, length, itemsize, exact), 48)
            assert len(made) == len(set(made)) > 5
            assert max(tile.depth for tile in made) == 64  # of rows of 48
            assert all(tile.rows == 1 or not one_row for tile in made)
