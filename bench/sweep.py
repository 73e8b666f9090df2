"""bench/run.py --sweep: the tiles of vocab_pool's GPU kernels on a device, tried one by one.

A candidate is tried as the line that would be pasted, in tiles.MEASURED, with the launcher that users run; only the
kernel that it is for is started. Its result is checked before it is timed; one that is wrong, spills or cannot be
launched is dropped with its reason. The others take turns, and the slower half is dropped until a few are left. Without
a GPU the same happens in Triton's interpreter, with a few candidates; what its clock says is no time of a GPU.
"""

from __future__ import annotations

import json
import sys
from collections.abc import Callable, Iterator, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any
from unittest import mock

import torch
from candidates import feeds, shapes
from cases import Case
from machine import environment
from timer import Clock, Timing, clock_of, interleaved
from triton.errors import TritonError
from variants import WrongResultError
from work_tiles import Subject, subjects

from stair_kernels import tiles
from stair_kernels._triton import vocab_pool
from stair_kernels.tiles import Call, Tile

KEPT_SHAPES = 3  # for which other feeds are tried
KEPT = 5
FEW = 3  # candidates at a time in the interpreter


def main(cases: Sequence[Case], device: torch.device, seconds: float, out: Path) -> int:
    """Prints what each search found, and writes it to `out`."""
    found: list[str] = []
    done: set[Call] = set()
    out.parent.mkdir(parents=True, exist_ok=True)
    if device.type == "cuda":
        torch.cuda.set_device(device)
    for case in cases:
        try:
            for text in search(case, device, seconds, done):
                print(text, flush=True)
                found.append(text)
                out.write_text("\n".join(found), encoding="utf-8")
        except WrongResultError as error:
            print(error, file=sys.stderr)
            return 1
    return 0


def search(case: Case, device: torch.device, seconds: float, done: set[Call]) -> Iterator[str]:
    """A table and the line to paste, for each kernel of the case whose call is not in `done`; adds it there."""
    interpreted = device.type == "cpu"
    for subject in subjects(case, device):
        if subject.call in done:
            continue
        done.add(subject.call)
        print(written(subject.call), file=sys.stderr)
        with _only(subject.kernel) as launched:
            sweep = Sweep(subject, launched, clock_of(device), 0.0 if interpreted else seconds, interpreted)
            timings = sweep.run()
        sizes = " ".join(f"{name}={size}" for name, size in case.sizes.items())
        yield _table(subject, timings) + _line(subject, timings, f"{sizes} {case.dtype} {case.inputs}", device)


class Launched:
    """Stands in for a kernel: launches it and keeps what was launched, or nothing in place of no kernel."""

    def __init__(self, kernel: Any) -> None:
        self.kernel = kernel
        self.compiled: Any = None
        self.constants: dict[str, Any] = {}

    def __getitem__(self, grid: tuple[int, ...]) -> Callable[..., None]:
        def launch(*args: Any, **constants: Any) -> None:
            if self.kernel is not None:
                self.compiled, self.constants = self.kernel[grid](*args, **constants), constants

        return launch

    @property
    def spilled(self) -> int:
        """Words of a thread in local memory; the interpreter has none."""
        return 0 if self.compiled is None else self.compiled.n_spills


@dataclass(frozen=True)
class Sweep:
    """The search for one subject's tile."""

    subject: Subject
    launched: Launched
    clock: Clock
    seconds: float  # given to each of the last few
    few: bool

    def run(self) -> dict[Tile, Timing]:
        """The times of the present tile and of the fastest, which took turns."""
        call, present = self.subject.call, self.subject.present
        if fault := self.fault(present):
            raise WrongResultError(f"{written(call)}: {written(present)}, the present tile, {fault}; not timed")
        best = self._fastest([present], shapes(call, self.subject.D), KEPT_SHAPES)
        best = self._fastest(best, [other for tile in best for other in feeds(call, tile)], KEPT)
        return interleaved({tile: self._taking(tile) for tile in best}, self.clock, self.seconds)

    def fault(self, tile: Tile) -> str | None:
        """What keeps the tile from being timed."""
        try:
            with _poisoned():
                result = self._taking(tile)()
        except (TritonError, RuntimeError) as failure:  # too many resources; a pass of the compiler that failed
            _wait(self.subject.device)  # raises again when the device is lost
            return f"failed: {type(failure).__name__}: {' '.join(str(failure).split())[:200]}"
        wanted = vocab_pool._shape(tile) | {"DEPTH": tile.depth}
        assert wanted.items() <= self.launched.constants.items(), f"{tile}: launched {self.launched.constants}"
        if self.launched.spilled:
            return f"spills {self.launched.spilled} words"
        error = self.subject.error(result)
        return None if error <= self.subject.tolerance else f"is wrong: relative error {error:.2e}"

    def _fastest(self, known: Sequence[Tile], more: Sequence[Tile], count: int) -> list[Tile]:
        """The present tile and the `count` fastest of the known and of those of `more` that pass."""
        fresh = [tile for tile in dict.fromkeys(more) if tile not in known]
        fresh = fresh[:: -(-len(fresh) // FEW)] if self.few and fresh else fresh
        passing = list(known)
        for number, tile in enumerate(fresh, 1):
            fault = self.fault(tile)
            print(f"  {number}/{len(fresh)} {written(tile)} {fault or 'is right'}", file=sys.stderr)
            passing += [] if fault else [tile]
        return self.halved(passing, count)

    def halved(self, among: Sequence[Tile], count: int) -> list[Tile]:
        """The present tile and the `count` fastest others: all take turns, the slower half of them leaves."""
        present = self.subject.present
        others = [tile for tile in among if tile != present]
        while len(others) > count:
            runs = {tile: self._taking(tile) for tile in (present, *others)}
            timings = interleaved(runs, self.clock, self.seconds / 8)
            others = sorted(others, key=lambda tile: timings[tile].median_ms)[: max(count, len(others) // 2)]
        return [present, *others]

    def _taking(self, tile: Tile) -> Callable[[], Any]:
        """The subject's run with the tile pasted."""

        def run() -> Any:
            with mock.patch.dict(tiles.MEASURED, {self.subject.call: tile}):
                return self.subject.run()

        return run


@contextmanager
def _only(kernel: str) -> Iterator[Launched]:
    """Inside, the launchers of vocab_pool start this kernel and no other."""
    with ExitStack() as patches:
        for name in ("forward_kernel", "hidden_kernel", "weight_kernel"):
            stand_in = Launched(getattr(vocab_pool, name) if name == f"{kernel}_kernel" else None)
            patches.enter_context(mock.patch.object(vocab_pool, name, stand_in))
        yield getattr(vocab_pool, f"{kernel}_kernel")


@contextmanager
def _poisoned() -> Iterator[None]:
    """Inside, new tensors are NaN: the allocator hands out the right result of the candidate before."""
    torch.use_deterministic_algorithms(True, warn_only=True)  # torch.utils.deterministic.fill_uninitialized_memory
    try:
        yield
    finally:
        torch.use_deterministic_algorithms(False)


def _wait(device: torch.device) -> None:
    if device.type == "cuda":
        torch.cuda.synchronize(device)


def written(value: Call | Tile) -> str:
    """The Python that makes it, as short as tiles.py has it."""
    fields = value._asdict() if isinstance(value, Call) else vars(value)
    words = [json.dumps(field) for field in fields.values() if not isinstance(field, bool)]
    words += [f"{name}=True" for name, field in fields.items() if field is True]
    return f"{type(value).__name__}({', '.join(words)})"


def _table(subject: Subject, timings: dict[Tile, Timing]) -> str:
    """The fastest first."""
    present = timings[subject.present]
    rows = [
        f"{written(subject.call)}",
        "",
        "| tile | median, ms | middle half | present/this |",
        "|---|---:|---:|---:|",
    ]
    for tile, timing in sorted(timings.items(), key=lambda item: item[1].median_ms):
        name = written(tile) + (", the present one" if tile == subject.present else "")
        half = f"{timing.q1_ms:.4g} to {timing.q3_ms:.4g}"
        rows.append(f"| {name} | {timing.median_ms:.4g} | {half} | {present.median_ms / timing.median_ms:.3g}x |")
    return "\n".join(rows) + "\n\n"


def _line(subject: Subject, timings: dict[Tile, Timing], inputs: str, device: torch.device) -> str:
    """What to paste into tiles.MEASURED, and a comment on where it comes from."""
    best, present = min(timings, key=lambda tile: timings[tile].median_ms), timings[subject.present]
    line = f"{written(subject.call)}: {written(best)},\n"
    if device.type == "cpu":
        return f"    # interpreter: not a time, do not paste: {line}"
    if timings[best].q3_ms >= present.q1_ms:
        return f"the present tile stays: within the noise of {line}"
    run = environment(device, torch.get_num_threads())
    where = f"{run['machine']['gpu']}, triton {run['versions']['triton']}, commit {run['commit']}"
    times = f"{timings[best].median_ms:.4g} ms, {present.median_ms:.4g} ms with {written(subject.present)}"
    return f"paste into MEASURED of stair_kernels/tiles.py:\n\n    # {where}\n    # {inputs}: {times}\n    {line}"
