"""Lanes that run together: their registers, which of them are active, and in which order diverged ones run."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Protocol

import numpy as np

from ptx.errors import LaneError
from ptx.local_memory import LocalMemory
from ptx.memory import GlobalMemory
from ptx.operands import Register
from ptx.parser import Instruction
from ptx.scalars import Array
from ptx.shared_memory import PendingCopy, Rows, SharedMemory

WARP = 32
DONE = 1 << 40  # the pc of a lane that has left the kernel, or never was
RESELECT = -1

# (values, bits that nobody has written or None); one element where all lanes have the same.
Value = tuple[Array, Array | None]


class Source(Protocol):
    def read(self, lanes: Lanes) -> Value: ...


@dataclass(frozen=True)
class Step:
    """A decoded instruction."""

    # Runs it for lanes.mask; gives the next pc, None for the one behind, RESELECT where lanes.pc has the answer.
    execute: Callable[[Lanes], int | None]
    instruction: Instruction
    guard: Source | None = None
    guard_is_negated: bool = False
    # The lanes of the warp that have to come here together (a mask of 32 bits a lane), None for any.
    members: Source | None = None


@dataclass(frozen=True)
class Placement:
    """Where each lane of a group is in the grid."""

    grid: tuple[int, int, int]
    block: tuple[int, int, int]
    cta: Array  # [T] which CTA of the batch: a part of the shared memory
    cta_number: Array  # [T] which CTA of the grid
    cta_id: Array  # [T, 3]
    thread: Array  # [T] in its CTA; threads past the block do not exist


class Lanes:
    """T lanes, a multiple of 32, and everything an instruction may touch."""

    def __init__(
        self,
        registers: Sequence[Register],
        placement: Placement,
        parameters: Array,  # [bytes] uint8
        memory: GlobalMemory,
        shared: SharedMemory,
        local_bytes: int,
    ) -> None:
        self.placement = placement
        self.parameters = parameters
        self.memory = memory
        self.shared = shared
        self.local = LocalMemory(len(placement.thread), local_bytes)
        self.count = len(placement.thread)
        self.all = np.arange(self.count)
        self.in_warp = (self.all % WARP).astype(np.uint32)
        self.cta = placement.cta
        self.cta_number = placement.cta_number
        self.warp = placement.thread // WARP
        self.registers = [np.zeros(self.count, register.type.raw) for register in registers]
        never = {raw: np.full(self.count, ~raw.type(0)) for raw in {register.type.raw for register in registers}}
        self.undefined: list[Array | None] = [never[register.type.raw] for register in registers]
        self.copies: list[PendingCopy] = []
        self.copy_group = np.zeros(self.count, np.int64)  # groups of cp.async committed so far

        exists = placement.thread < int(np.prod(placement.block))
        self.pc = np.where(exists, 0, DONE)
        self.waiting = np.zeros(self.count, bool)
        self.barrier = np.zeros(self.count, np.int64)
        self.waits_at = np.zeros(self.count, np.int64)  # pc of the barrier
        # bar.red: a lane waits with a vote, and runs the instruction once more when `votes` has been counted for it.
        self.votes_yes = np.zeros(self.count, bool)
        self.voting = np.zeros(self.count, bool)
        self.counted = np.zeros(self.count, bool)
        self.votes = np.zeros(self.count, np.int64)
        self.current = 0
        self.steps_done = 0
        self.selected: Array | None = None  # lanes at `current`; None is all
        self.mask: Array | None = None  # those of them that the guard lets through
        self._stop = DONE  # where the next of the other lanes is

    def active(self) -> Array:
        """The indices of the lanes that execute the instruction."""
        return self.all if self.mask is None else np.flatnonzero(self.mask)

    def shared_rows(self, address: Array, active: Array, size_bytes: int) -> Rows:
        """The access of the `active` lanes to their addresses in shared memory, checked."""
        return self.shared.rows(address, active, self.cta[active], self.warp[active], size_bytes)

    def require_defined(self, undefined: Array | None, what: str) -> None:
        if undefined is None:
            return
        bad = np.broadcast_to(undefined != 0, self.count)
        bad = bad if self.mask is None else bad & self.mask
        if bad.any():
            raise LaneError(f"{what} depends on a register or on memory that was never written", int(bad.argmax()))

    def run(self, program: Sequence[Step], max_steps: int) -> None:
        """Until every lane is done or waits at a barrier."""
        while self._select(program):
            self._run_selected(program, max_steps)

    def _select(self, program: Sequence[Step]) -> bool:
        """The lanes with the smallest pc, unless the rest of their warp has to come first."""
        runnable = (self.pc != DONE) & ~self.waiting
        places = np.unique(self.pc[runnable])
        for number, place in enumerate(places):
            self.current = int(place)
            chosen = runnable & (self.pc == place)
            ready = self._ready(program[place], chosen)
            if not ready.any():
                continue
            self.selected = None if ready.all() else ready
            self._stop = int(places[number + 1]) if number + 1 < len(places) else DONE
            return True
        if len(places):
            texts = [program[place].instruction.text for place in places]
            raise LaneError(f"deadlock: lanes of one warp wait for each other at {texts}", int(runnable.argmax()))
        return False

    def _ready(self, step: Step, chosen: Array) -> Array:
        """Those of the chosen lanes whose warp has come together as the instruction demands."""
        if step.members is None:
            return chosen
        self.mask = chosen
        members, undefined = step.members.read(self)
        self.require_defined(undefined, "the member mask")
        present = self.warp_bits(chosen)
        alive = self.warp_bits(self.pc != DONE)
        return chosen & ((members & alive & ~present) == 0)

    def warp_bits(self, lanes: Array) -> Array:
        """[T] uint32: which lanes of the warp are set, for each lane of the warp."""
        bits = (lanes.reshape(-1, WARP).astype(np.uint64) << np.arange(WARP, dtype=np.uint64)).sum(1)
        return np.repeat(bits.astype(np.uint32), WARP)

    def _run_selected(self, program: Sequence[Step], max_steps: int) -> None:
        selected = self.selected
        selected_count = self.count if selected is None else int(np.count_nonzero(selected))
        while True:
            step = program[self.current]
            if selected is not None and step.members is not None and not self._all_ready(step, selected):
                break
            self.mask = selected
            self.steps_done += 1
            if self.steps_done > max_steps:
                raise LaneError(f"not done after max_steps = {max_steps}: an endless loop?", int(self.active()[0]))
            following = self.current + 1
            if step.guard is None or self._pass_guard(step, step.guard, selected_count):
                jump = step.execute(self)
                if jump == RESELECT:
                    return
                following = following if jump is None else jump
            self.current = following
            if following >= self._stop:
                break
        if selected is None:
            self.pc[:] = self.current
        else:
            self.pc[selected] = self.current

    def _all_ready(self, step: Step, selected: Array) -> bool:
        return bool((self._ready(step, selected) == selected).all())

    def _pass_guard(self, step: Step, guard: Source, selected_count: int) -> bool:
        """Narrows the mask to the lanes that the guard lets through; False when there are none."""
        passes, undefined = guard.read(self)
        self.require_defined(undefined, "the guard")
        if step.guard_is_negated:
            passes = ~passes
        if self.mask is not None:
            passes = passes & self.mask
        passing = int(np.count_nonzero(passes))
        if passing != selected_count:
            self.mask = passes
        return passing > 0

    def branch(self, target: int) -> int:
        """The masked lanes go to `target`, the others of the selected on."""
        if self.mask is self.selected:
            return target
        self._leave(self.current + 1)
        self.pc[self.mask] = target
        return RESELECT

    def exit(self) -> int:
        self._leave(self.current + 1)
        self.pc[self.active()] = DONE
        return RESELECT

    def wait(self, barrier: int, votes_yes: Array | None = None) -> int:
        """The masked lanes wait for the rest of their CTA; those that vote come to the same instruction again."""
        active = self.active()
        if self.mask is not self.selected:
            raise LaneError("a barrier in a warp whose lanes do not all take part", int(active[0]))
        self._leave(self.current + 1)
        if votes_yes is not None:
            counted = self.counted[active]
            self.counted[active] = False
            active = active[~counted]
            self.pc[active] = self.current
            self.voting[active] = True
            self.votes_yes[active] = votes_yes[active]
        self.waiting[active] = True
        self.barrier[active] = barrier
        self.waits_at[active] = self.current
        return RESELECT

    def _leave(self, place: int) -> None:
        if self.selected is None:
            self.pc[:] = place
        else:
            self.pc[self.selected] = place
