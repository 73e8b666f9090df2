"""Global memory as named buffers, shared memory a CTA; every access is checked for bounds, alignment and races."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from ptx.errors import LaneError
from ptx.scalars import Array

GLOBAL_BASE = 1 << 33  # past 32 bits: an address computed in 32 bits is out of bounds
RED_ZONE_BYTES = 1 << 16
BUFFER_ALIGN_BYTES = 256
# Generic addresses of shared memory begin here.
SHARED_WINDOW = 1 << 44


@dataclass
class Buffer:
    name: str
    base: int
    data: Array  # [bytes] uint8


@dataclass
class PendingCopy:
    """A cp.async that nobody has waited for yet; one row a lane."""

    lanes: Array  # [n] indices
    address: Array  # [n] in shared memory
    data: Array  # [n, bytes]
    group: Array  # [n] number of the lane's group that it belongs to


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
        self.buffers.append(Buffer(name, base, flat))
        self._next = -(-(base + flat.size + RED_ZONE_BYTES) // BUFFER_ALIGN_BYTES) * BUFFER_ALIGN_BYTES
        self._bases = np.array([buffer.base for buffer in self.buffers])
        self._ends = np.array([buffer.base + buffer.data.size for buffer in self.buffers])
        return base

    def load(self, address: Array, lanes: Array, size_bytes: int, align: bool = True) -> Array:
        """[n, size_bytes] uint8 for addresses [n]."""
        loaded = np.empty((len(address), size_bytes), np.uint8)
        for buffer, chosen, offsets in self._locate(address, lanes, size_bytes, align):
            loaded[chosen] = buffer.data[offsets]
        return loaded

    def store(self, address: Array, lanes: Array, data: Array) -> None:
        check_one_writer(address, lanes, data, "global")
        for buffer, chosen, offsets in self._locate(address, lanes, data.shape[1]):
            buffer.data[offsets] = data[chosen]

    def _locate(
        self, address: Array, lanes: Array, size_bytes: int, align: bool = True
    ) -> list[tuple[Buffer, Array | slice, Array]]:
        """(buffer, which of the addresses, their bytes in it [n, size_bytes]); no address is left out."""
        address = address.astype(np.int64)
        number = np.searchsorted(self._bases, address, side="right") - 1
        outside = (number < 0) | (address + size_bytes > self._ends[number])
        if outside.any():
            bad = int(outside.argmax())
            raise LaneError(self._out_of_bounds(int(address[bad]), size_bytes), int(lanes[bad]))
        if align:
            _check_alignment(address, lanes, size_bytes, "global")
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


class SharedMemory:
    """The shared memory of a batch of CTAs, side by side.

    Bytes start out undefined. Between two barriers, no byte may be written by one warp and read or written by another;
    only writing the same value twice is allowed, as copies of one computed value in several warps do. Each warp's
    accesses are kept apart, so that the verdict does not depend on the order in which the warps run.
    """

    def __init__(self, ctas: int, warps: int, size_bytes: int) -> None:
        self.size_bytes = size_bytes
        self.stride_bytes = max(-(-size_bytes // 16), 1) * 16
        total = ctas * self.stride_bytes
        self.data = np.zeros(total, np.uint8)
        self.undefined = np.full(total, 0xFF, np.uint8)
        self.pending = np.zeros(total, bool)  # a cp.async is on its way here
        self.written = np.zeros((warps, total), bool)
        self.read = np.zeros((warps, total), bool)
        self.atomic = np.zeros((warps, total), bool)

    def barrier(self, cta: int) -> None:
        """What was done before it comes before what is done after it."""
        own = slice(cta * self.stride_bytes, (cta + 1) * self.stride_bytes)
        self.written[:, own] = False
        self.read[:, own] = False
        self.atomic[:, own] = False

    def load(
        self, address: Array, lanes: Array, cta: Array, warp: Array, size_bytes: int
    ) -> tuple[Array, Array | None]:
        """[n, size_bytes] bytes for addresses [n], and which of their bits are undefined."""
        row = self._rows(address, lanes, cta, size_bytes)
        self._check_not_pending(row, address, lanes, size_bytes)
        written = _rows_of(self.written, size_bytes)
        theirs = written[:, row].any(0) & ~written[warp, row]
        theirs |= _by_others(self.atomic, row, warp, size_bytes)
        _raise_at(theirs, address, lanes, "a race: another warp writes, with no barrier between, what is read from")
        _rows_of(self.read, size_bytes)[warp, row] = True
        undefined = self.undefined.reshape(-1, size_bytes)[row]
        return self.data.reshape(-1, size_bytes)[row], undefined if undefined.any() else None

    def store(
        self, address: Array, lanes: Array, cta: Array, warp: Array, data: Array, undefined: Array | None = None
    ) -> None:
        """Writes rows of bytes; `undefined` are the bits of `data` that nobody has computed."""
        size_bytes = data.shape[1]
        row = self._rows(address, lanes, cta, size_bytes)
        self._check_not_pending(row, address, lanes, size_bytes)
        check_one_writer(row, lanes, data, "shared")
        self._claim(row, address, lanes, warp, data)
        self.data.reshape(-1, size_bytes)[row] = data
        self.undefined.reshape(-1, size_bytes)[row] = 0 if undefined is None else undefined

    def begin_copy(self, address: Array, lanes: Array, cta: Array, warp: Array, size_bytes: int) -> None:
        """A cp.async has been issued: from now on the bytes belong to it."""
        row = self._rows(address, lanes, cta, size_bytes)
        self._check_not_pending(row, address, lanes, size_bytes)
        self._check_alone(row, address, lanes, warp, size_bytes)
        theirs = _by_others(self.atomic, row, warp, size_bytes)
        _raise_at(theirs, address, lanes, "a race: an atomic of another warp, with no barrier between, on")
        self.pending.reshape(-1, size_bytes)[row] = True

    def finish_copy(self, address: Array, lanes: Array, cta: Array, warp: Array, data: Array) -> None:
        self.pending.reshape(-1, data.shape[1])[self._rows(address, lanes, cta, data.shape[1])] = False
        self.store(address, lanes, cta, warp, data)

    def begin_atomic(
        self, address: Array, lanes: Array, cta: Array, warp: Array, size_bytes: int
    ) -> tuple[Array, Array]:
        """What is there, and which of its bits are undefined. Atomics of several warps are not a race."""
        row = self._rows(address, lanes, cta, size_bytes)
        self._check_not_pending(row, address, lanes, size_bytes)
        self._check_alone(row, address, lanes, warp, size_bytes)
        _rows_of(self.atomic, size_bytes)[warp, row] = True
        return self.data.reshape(-1, size_bytes)[row], self.undefined.reshape(-1, size_bytes)[row]

    def finish_atomic(self, address: Array, lanes: Array, cta: Array, data: Array) -> None:
        row = self._rows(address, lanes, cta, data.shape[1])
        self.data.reshape(-1, data.shape[1])[row] = data
        self.undefined.reshape(-1, data.shape[1])[row] = 0

    def _check_alone(self, row: Array, address: Array, lanes: Array, warp: Array, size_bytes: int) -> None:
        theirs = _by_others(self.written, row, warp, size_bytes) | _by_others(self.read, row, warp, size_bytes)
        _raise_at(theirs, address, lanes, "a race: another warp uses, with no barrier between, the same")

    def _claim(self, row: Array, address: Array, lanes: Array, warp: Array, data: Array) -> None:
        """Notes who writes; a fault where another warp has read, or has written another value."""
        size_bytes = data.shape[1]
        theirs = _by_others(self.read, row, warp, size_bytes) | _by_others(self.atomic, row, warp, size_bytes)
        _raise_at(theirs, address, lanes, "a race: another warp reads, with no barrier between, what is written to")
        differs = (self.data.reshape(-1, size_bytes)[row] != data) | (self.undefined.reshape(-1, size_bytes)[row] != 0)
        theirs = _by_others(self.written, row, warp, size_bytes) & differs
        _raise_at(theirs, address, lanes, "a race: another warp writes another value, with no barrier between, to")
        _rows_of(self.written, size_bytes)[warp, row] = True

    def _rows(self, address: Array, lanes: Array, cta: Array, size_bytes: int) -> Array:
        """[n] which rows of `size_bytes` the addresses are."""
        address = address.astype(np.int64)
        outside = (address < 0) | (address + size_bytes > self.size_bytes)
        if outside.any():
            bad = int(outside.argmax())
            raise LaneError(
                f"shared access out of bounds: {size_bytes} bytes at {int(address[bad]):#x} of {self.size_bytes}",
                int(lanes[bad]),
            )
        _check_alignment(address, lanes, size_bytes, "shared")
        return (address + cta * self.stride_bytes) // size_bytes

    def _check_not_pending(self, row: Array, address: Array, lanes: Array, size_bytes: int) -> None:
        pending = self.pending.reshape(-1, size_bytes)[row]
        _raise_at(pending, address, lanes, "a cp.async that nobody has waited for is on its way to")


def _rows_of(flags: Array, size_bytes: int) -> Array:
    """[warps, bytes] as [warps, rows, size_bytes]"""
    return flags.reshape(flags.shape[0], -1, size_bytes)


def _by_others(flags: Array, row: Array, warp: Array, size_bytes: int) -> Array:
    """[n, size_bytes] whether a warp other than the lane's own has set the flag of a byte."""
    rows = _rows_of(flags, size_bytes)
    return rows[:, row].sum(0, dtype=np.int8) > rows[warp, row]


def _raise_at(bad: Array, address: Array, lanes: Array, what: str) -> None:
    """A fault at the first byte [n, bytes] that is bad."""
    if bad.any():
        first = int(bad.any(1).argmax())
        byte = int(address[first]) + int(bad[first].argmax())
        raise LaneError(f"{what} shared memory at {byte:#x}", int(lanes[first]))


def _check_alignment(address: Array, lanes: Array, size_bytes: int, space: str) -> None:
    crooked = address % address.dtype.type(size_bytes) != 0
    if crooked.any():
        bad = int(crooked.argmax())
        raise LaneError(f"misaligned {space} access: {size_bytes} bytes at {int(address[bad]):#x}", int(lanes[bad]))


def check_one_writer(place: Array, lanes: Array, data: Array, space: str) -> None:
    """Which of two lanes wins is not defined: they may store to one address only the same value."""
    order = np.argsort(place, kind="stable")
    same = place[order][1:] == place[order][:-1]
    if not same.any():
        return
    differs = same & (data[order][1:] != data[order][:-1]).any(1)
    if differs.any():
        bad = order[int(differs.argmax()) + 1]
        raise LaneError(f"another lane stores a different value to the same {space} address", int(lanes[bad]))
