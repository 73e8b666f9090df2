"""What a kernel's accesses cost beside the least that their bytes could: sectors of global memory, turns of shared."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import Any
from unittest import mock

import numpy as np

from ptx import machine
from ptx.lanes import WARP, Lanes
from ptx.memory import GlobalMemory
from ptx.scalars import Array
from ptx.shared_memory import Rows, SharedMemory

SECTOR_BYTES = 32
BANKS = 32
WORD_BYTES = 4


@dataclass
class Cost:
    """Of one kind of access, summed over the instructions of all warps."""

    paid: int = 0
    least: int = 0

    @property
    def ratio(self) -> float:
        return self.paid / self.least


@dataclass
class Traffic:
    """Global: sectors that an instruction of a warp touches. Shared: turns that its banks take, atomics like loads.

    `instructions`: of a warp, those that it is made to skip by a predicate too.
    """

    loads: Cost = field(default_factory=Cost)
    stores: Cost = field(default_factory=Cost)
    shared: Cost = field(default_factory=Cost)
    instructions: int = 0


def _units(warp: Array, address: Array, size_bytes: int, unit_bytes: int) -> Array:
    """[n, 2]: the different pairs (warp, unit of memory) of accesses of size_bytes."""
    spread = np.append(np.arange(0, size_bytes, unit_bytes), size_bytes - 1)
    unit = (address.astype(np.int64)[:, None] + spread) // unit_bytes
    return np.unique(np.stack([np.repeat(warp, len(spread)), unit.reshape(-1)], 1), axis=0)


def add_global(cost: Cost, address: Array, lanes: Array, size_bytes: int) -> None:
    warp = lanes // WARP
    cost.paid += len(_units(warp, address, size_bytes, SECTOR_BYTES))
    distinct = _units(warp, address, size_bytes, size_bytes)[:, 0]
    _, counts = np.unique(distinct, return_counts=True)
    cost.least += int(np.ceil(counts * size_bytes / SECTOR_BYTES).sum())


def add_shared(cost: Cost, rows: Rows) -> None:
    # Lanes take turns by themselves where all of them together want more than a word a bank.
    together = WARP * WORD_BYTES // max(rows.size_bytes, WORD_BYTES)
    group = rows.lanes // together
    units = _units(group, rows.index * rows.size_bytes, rows.size_bytes, WORD_BYTES)
    bank = units[:, 0] * BANKS + units[:, 1] % BANKS
    banks, counts = np.unique(bank, return_counts=True)
    groups = banks // BANKS
    for each in np.unique(groups):
        turns = counts[groups == each]
        cost.paid += int(turns.max())
        cost.least += -(-int(turns.sum()) // BANKS)


@contextmanager
def measured() -> Iterator[tuple[GlobalMemory, Traffic]]:
    """A memory for the buffers of a launch, and what the launch costs."""
    traffic = Traffic()

    class Global(GlobalMemory):
        def load(self, address: Array, lanes: Array, cta: Array, size_bytes: int, *rest: Any, **named: Any) -> Array:
            add_global(traffic.loads, address, lanes, size_bytes)
            return super().load(address, lanes, cta, size_bytes, *rest, **named)

        def store(self, address: Array, lanes: Array, cta: Array, data: Array, *rest: Any, **named: Any) -> None:
            add_global(traffic.stores, address, lanes, data.shape[1])
            super().store(address, lanes, cta, data, *rest, **named)

    class Shared(SharedMemory):
        def rows(self, *arguments: Any) -> Rows:
            rows = super().rows(*arguments)
            add_shared(traffic.shared, rows)
            return rows

    class Counted(Lanes):
        def _run_selected(self, *arguments: Any) -> None:
            before, selected = self.steps_done, self.selected
            warps = self.count // WARP if selected is None else int(selected.reshape(-1, WARP).any(1).sum())
            super()._run_selected(*arguments)
            traffic.instructions += (self.steps_done - before) * warps

    with mock.patch.object(machine, "SharedMemory", Shared), mock.patch.object(machine, "Lanes", Counted):
        yield Global(), traffic
