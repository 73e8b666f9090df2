"""The grid: CTAs and warps in a chosen order, barriers, deadlocks, and where a fault was."""

from __future__ import annotations

import random
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass
from typing import TypeVar

import numpy as np

from ptx.errors import LaneError, PtxError
from ptx.lanes import DONE, WARP, Lanes, Placement, Step
from ptx.memory import GlobalMemory
from ptx.operations import decode_kernel
from ptx.parser import Kernel, parse
from ptx.scalars import Array
from ptx.shared_memory import SharedMemory

Item = TypeVar("Item")
ORDERS = ("lockstep", "forward", "reverse", "shuffled")
# How many lanes run in lockstep: enough to make NumPy's overhead small, few enough for their CTAs' shared memory.
LOCKSTEP_LANES = 4096


@dataclass(frozen=True)
class Order:
    """Which warps run first. A correct kernel computes the same in every order.

    lockstep: warps, and several CTAs, side by side; by far the fastest. The others run one CTA after the other, and
    each warp as far as the next barrier: forward, reverse, or shuffled anew from `seed` for every barrier.
    """

    name: str = "lockstep"
    seed: int = 0

    def __post_init__(self) -> None:
        if self.name not in ORDERS:
            raise ValueError(f"order: expected one of {ORDERS}, got {self.name}")


class Program:
    """A kernel ready to run."""

    def __init__(self, ptx: str, entry: str | None = None) -> None:
        self.kernel: Kernel = parse(ptx, entry)
        self.steps: Sequence[Step] = decode_kernel(self.kernel)

    def launch(
        self,
        grid: tuple[int, ...],
        block: tuple[int, ...],
        parameters: bytes,
        memory: GlobalMemory,
        dynamic_shared_bytes: int = 0,
        order: Order | None = None,
        max_steps: int = 10**6,
        first_cta: int = 0,
    ) -> None:
        """Runs every CTA from `first_cta` on. `max_steps` bounds the instructions of the lanes that run together."""
        if len(parameters) != self.kernel.parameter_bytes:
            expected = f"{self.kernel.parameter_bytes} bytes for {self.kernel.name}"
            raise ValueError(f"parameters: expected {expected}, got {len(parameters)}")
        sizes = _three(grid), _three(block)
        launch = _Launch(self, *sizes, parameters, memory, dynamic_shared_bytes, max_steps, first_cta)
        order = order or Order()
        memory.begin_launch()
        with np.errstate(all="ignore"):
            launch.run_lockstep() if order.name == "lockstep" else launch.run_in_order(order)


def _three(sizes: tuple[int, ...]) -> tuple[int, int, int]:
    x, y, z = (*sizes, 1, 1)[:3]
    return x, y, z


class _Launch:
    def __init__(
        self,
        program: Program,
        grid: tuple[int, int, int],
        block: tuple[int, int, int],
        parameters: bytes,
        memory: GlobalMemory,
        dynamic_shared_bytes: int,
        max_steps: int,
        first_cta: int,
    ) -> None:
        self.program = program
        self.grid = grid
        self.block = block
        self.parameters = np.frombuffer(parameters, np.uint8)
        self.memory = memory
        self.shared_bytes = program.kernel.shared_bytes + dynamic_shared_bytes
        self.max_steps = max_steps
        self.warps = -(-int(np.prod(block)) // WARP)
        self.ctas = range(first_cta, int(np.prod(grid)))

    def run_lockstep(self) -> None:
        """All warps of as many CTAs as make LOCKSTEP_LANES."""
        batch = max(LOCKSTEP_LANES // (self.warps * WARP), 1)
        for first in self.ctas[::batch]:
            ctas = np.arange(first, min(first + batch, self.ctas.stop))
            shared = SharedMemory(len(ctas), self.warps, self.shared_bytes)
            group = self._lanes(ctas, np.arange(self.warps), shared)
            self._run_ctas([group], shared, len(ctas), Order())

    def run_in_order(self, order: Order) -> None:
        """One CTA after the other, and one warp after the other."""
        generator = random.Random(order.seed)
        for cta in _arranged(list(self.ctas), order, generator):
            shared = SharedMemory(1, self.warps, self.shared_bytes)
            groups = [self._lanes(np.array([cta]), np.array([warp]), shared) for warp in range(self.warps)]
            self._run_ctas(groups, shared, 1, order, generator)

    def _lanes(self, ctas: Array, warps: Array, shared: SharedMemory) -> Lanes:
        """Those warps of those CTAs, as lanes that run together."""
        thread = (warps[:, None] * WARP + np.arange(WARP)).reshape(-1)
        x, y, _ = self.grid
        each_id = np.stack([ctas % x, ctas // x % y, ctas // (x * y)], 1)
        placement = Placement(
            grid=self.grid,
            block=self.block,
            cta=np.repeat(np.arange(len(ctas)), len(thread)),
            cta_number=np.repeat(ctas, len(thread)),
            cta_id=np.repeat(each_id, len(thread), 0),
            thread=np.tile(thread, len(ctas)),
        )
        kernel = self.program.kernel
        return Lanes(kernel.registers, placement, self.parameters, self.memory, shared, kernel.local_bytes)

    def _run_ctas(
        self,
        groups: list[Lanes],
        shared: SharedMemory,
        ctas: int,
        order: Order,
        generator: random.Random | None = None,
    ) -> None:
        """Lets every group run to its next barrier, releases the barriers, and so on to the end."""
        while any((group.pc != DONE).any() for group in groups):
            for group in _arranged(groups, order, generator):
                self._run(group)
            released = [self._release(groups, shared, cta) for cta in range(ctas)]
            if not any(released) and any((group.pc != DONE).any() for group in groups):
                raise PtxError(f"deadlock: {self._waiting_at(groups)}")

    def _run(self, group: Lanes) -> None:
        try:
            group.run(self.program.steps, self.max_steps)
        except LaneError as fault:
            raise PtxError(self._report(group, fault)) from None

    def _report(self, group: Lanes, fault: LaneError) -> str:
        instruction = self.program.steps[group.current].instruction
        cta = tuple(int(each) for each in group.placement.cta_id[fault.lane])
        where = f"CTA {cta}, warp {int(group.warp[fault.lane])}, lane {int(group.in_warp[fault.lane])}"
        return f"{fault.reason}\n  {where}\n  line {instruction.line}: {instruction.text}"

    def _release(self, groups: list[Lanes], shared: SharedMemory, cta: int) -> bool:
        """Opens the barrier of a CTA when all of its threads have come to it."""
        own = [group.cta == cta for group in groups]
        exists = [mine & (group.placement.thread < np.prod(self.block)) for mine, group in zip(own, groups)]
        if not all(group.waiting[mine].all() for mine, group in zip(exists, groups)):
            return False
        numbers = {int(number) for mine, group in zip(exists, groups) for number in np.unique(group.barrier[mine])}
        if len(numbers) != 1:
            return False
        votes = sum(int(np.count_nonzero(group.votes_yes[mine])) for mine, group in zip(exists, groups))
        for mine, group in zip(own, groups):
            group.waiting[mine] = False
            group.votes[mine] = votes
            group.counted |= mine & group.voting
            group.voting[mine] = False
        shared.barrier(cta)
        return True

    def _waiting_at(self, groups: list[Lanes]) -> str:
        """Where the threads of the first stuck CTA wait for others that have left the kernel, or wait elsewhere."""
        stuck = min(int(group.cta[group.waiting].min()) for group in groups if group.waiting.any())
        places: Counter[int] = Counter()
        gone = 0
        for group in groups:
            own = group.cta == stuck
            places.update(int(place) for place in group.waits_at[group.waiting & own])
            exists = group.placement.thread < np.prod(self.block)
            gone += int(np.count_nonzero((group.pc == DONE) & own & exists))
        texts = []
        for place, count in places.items():
            instruction = self.program.steps[place].instruction
            texts.append(f"{count} threads of a CTA wait at line {instruction.line}: {instruction.text}")
        return "; ".join([*texts, f"{gone} have left the kernel"])


def _arranged(items: list[Item], order: Order, generator: random.Random | None) -> list[Item]:
    if order.name == "reverse":
        return items[::-1]
    if order.name == "shuffled" and generator is not None:
        return generator.sample(items, len(items))
    return items
