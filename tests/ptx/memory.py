"""Global memory as named buffers; every access is checked for bounds, alignment, and races between CTAs."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from ptx.errors import LaneError
from ptx.scalars import Array

GLOBAL_BASE = 1 << 33  # past 32 bits: an address computed in 32 bits is out of bounds
RED_ZONE_BYTES = 1 << 16
BUFFER_ALIGN_BYTES = 256

READ, WRITE, ATOMIC = "reads", "writes", "changes atomically"
# What another CTA must not have done to a byte before (or after: both are seen) a CTA does this.
CONFLICTS = {READ: (WRITE, ATOMIC), WRITE: (READ, WRITE, ATOMIC), ATOMIC: (READ, WRITE)}
_NOBODY, _MANY = 0, -1
_PAGE_BITS = 12


class Ledger:
    """Which CTA (its number + 1) did what to each byte of a buffer in a launch; has room for touched pages only."""

    def __init__(self, size_bytes: int) -> None:
        self._slot_of_page = np.zeros((size_bytes >> _PAGE_BITS) + 1, np.int64)  # 0 is none
        self._slots = 1
        self._doers = {what: np.zeros(1 << _PAGE_BITS, np.int32) for what in (READ, WRITE, ATOMIC)}

    def touch(self, what: str, place: Array, cta: Array, same_value: Array | None = None) -> tuple[Array, str] | None:
        """Notes that `cta` [n] does `what` to the bytes `place` [n, bytes].

        Nothing orders the CTAs of a launch. Where another one has done what conflicts, gives which of the [n, bytes]
        and what that was; writing the `same_value` twice is no conflict.
        """
        slot = self._slots_of(place)
        me = (cta + 1)[:, None].astype(np.int32)
        for other in CONFLICTS[what]:
            doer = self._doers[other][slot]
            clash = (doer != _NOBODY) & (doer != me)
            if what == other == WRITE and same_value is not None:
                clash &= ~same_value
            if clash.any():
                return clash, other
        doers = self._doers[what]
        before = doers[slot]
        doers[slot] = np.where((before == _NOBODY) | (before == me), me, _MANY)
        # Of several CTAs in one instruction the last has won.
        doers[slot[doers[slot] != me]] = _MANY
        return None

    def _slots_of(self, place: Array) -> Array:
        page = place >> _PAGE_BITS
        new = np.unique(page[self._slot_of_page[page] == 0])
        if len(new):
            self._slot_of_page[new] = np.arange(self._slots, self._slots + len(new))
            self._slots += len(new)
            for what, doers in self._doers.items():
                if len(doers) < self._slots << _PAGE_BITS:
                    grown = np.zeros(2 * self._slots << _PAGE_BITS, np.int32)
                    grown[: len(doers)] = doers
                    self._doers[what] = grown
        return (self._slot_of_page[page] << _PAGE_BITS) | (place & ((1 << _PAGE_BITS) - 1))


@dataclass
class Buffer:
    name: str
    base: int
    data: Array  # [bytes] uint8
    ledger: Ledger


class GlobalMemory:
    """Buffers at made-up addresses, far apart; their data stay where they are."""

    def __init__(self) -> None:
        self.buffers: list[Buffer] = []
        self._next = GLOBAL_BASE
        self._bases = np.array([1 << 62])  # with no buffer, every address is before the first
        self._ends = self._bases

    def add(self, data: Array, name: str, misalign_bytes: int = 0) -> int:
        """The address given to `data`, a contiguous array; it is `misalign_bytes` past a multiple of 256."""
        flat = data.reshape(-1).view(np.uint8)
        base = self._next + misalign_bytes
        self.buffers.append(Buffer(name, base, flat, Ledger(flat.size)))
        self._next = -(-(base + flat.size + RED_ZONE_BYTES) // BUFFER_ALIGN_BYTES) * BUFFER_ALIGN_BYTES
        self._bases = np.array([buffer.base for buffer in self.buffers])
        self._ends = np.array([buffer.base + buffer.data.size for buffer in self.buffers])
        return base

    def begin_launch(self) -> None:
        """What an earlier launch did comes before what this one does."""
        for buffer in self.buffers:
            buffer.ledger = Ledger(buffer.data.size)

    def load(
        self, address: Array, lanes: Array, cta: Array, size_bytes: int, align: bool = True, what: str = READ
    ) -> Array:
        """[n, size_bytes] uint8 for addresses [n]."""
        loaded = np.empty((len(address), size_bytes), np.uint8)
        for buffer, chosen, place in self._locate(address, lanes, size_bytes, align):
            _refuse(buffer, buffer.ledger.touch(what, place, cta[chosen]), what, place, lanes[chosen])
            loaded[chosen] = buffer.data[place]
        return loaded

    def store(self, address: Array, lanes: Array, cta: Array, data: Array, what: str = WRITE) -> None:
        check_one_writer(address, lanes, data, "global")
        for buffer, chosen, place in self._locate(address, lanes, data.shape[1], True):
            same_value = buffer.data[place] == data[chosen]
            _refuse(buffer, buffer.ledger.touch(what, place, cta[chosen], same_value), what, place, lanes[chosen])
            buffer.data[place] = data[chosen]

    def _locate(
        self, address: Array, lanes: Array, size_bytes: int, align: bool
    ) -> list[tuple[Buffer, Array | slice, Array]]:
        """(buffer, which of the addresses, their bytes in it [n, size_bytes]); no address is left out."""
        address = address.astype(np.int64)
        number = np.searchsorted(self._bases, address, side="right") - 1
        outside = (number < 0) | (address + size_bytes > self._ends[number])
        if outside.any():
            bad = int(outside.argmax())
            raise LaneError(self._out_of_bounds(int(address[bad]), size_bytes), int(lanes[bad]))
        if align:
            check_alignment(address, lanes, size_bytes, "global")
        spread = np.arange(size_bytes)
        found: list[tuple[Buffer, Array | slice, Array]] = []
        for each in np.unique(number):
            chosen = slice(None) if number[0] == each and (number == each).all() else np.flatnonzero(number == each)
            found.append((self.buffers[each], chosen, (address[chosen] - self._bases[each])[:, None] + spread))
        return found

    def _out_of_bounds(self, address: int, size_bytes: int) -> str:
        text = f"global access out of bounds: {size_bytes} bytes at {address:#x}"
        if not self.buffers:
            return f"{text}, and there are no buffers"
        near = min(self.buffers, key=lambda each: max(each.base - address, address - each.base - each.data.size))
        return f"{text}, which is byte {address - near.base} of {near.name}, a buffer of {near.data.size} bytes"


def _refuse(buffer: Buffer, clash: tuple[Array, str] | None, what: str, place: Array, lanes: Array) -> None:
    if clash is not None:
        bad, other = clash
        first = int(bad.any(1).argmax())
        byte = int(place[first, bad[first].argmax()])
        raise LaneError(
            f"a race: another CTA {other} what this one {what}, byte {byte} of {buffer.name}", int(lanes[first])
        )


def check_alignment(address: Array, lanes: Array, size_bytes: int, space: str) -> None:
    crooked = address % address.dtype.type(size_bytes) != 0
    if crooked.any():
        bad = int(crooked.argmax())
        raise LaneError(f"misaligned {space} access: {size_bytes} bytes at {int(address[bad]):#x}", int(lanes[bad]))


def check_one_writer(place: Array, lanes: Array, data: Array, space: str) -> None:
    """Which of two lanes wins is not defined: they may store to one place only the same value."""
    order = np.argsort(place, kind="stable")
    same = place[order][1:] == place[order][:-1]
    if not same.any():
        return
    differs = same & (data[order][1:] != data[order][:-1]).any(1)
    if differs.any():
        bad = order[int(differs.argmax()) + 1]
        raise LaneError(f"another lane stores a different value to the same {space} address", int(lanes[bad]))
