"""Shared memory: bounds, alignment, bytes never written, copies not waited for, and races between warps."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from ptx.errors import LaneError
from ptx.memory import ATOMIC, CONFLICTS, READ, WRITE, check_alignment, check_one_writer
from ptx.scalars import Array

# Generic addresses of shared memory begin here.
SHARED_WINDOW = 1 << 44


@dataclass
class PendingCopy:
    """A cp.async that nobody has waited for yet; one row a lane."""

    lanes: Array  # [n] indices
    address: Array  # [n]
    data: Array  # [n, bytes]
    group: Array  # [n] number of the lane's group that it belongs to


@dataclass(frozen=True)
class Rows:
    """One access of n lanes: rows of `size_bytes`, and who asks for them."""

    index: Array  # [n] in the memory of the batch
    address: Array  # [n] in that of the CTA
    lanes: Array  # [n]
    warp: Array  # [n]
    size_bytes: int

    def of(self, memory: Array) -> Array:
        """Bytes [..., total] as rows [..., rows, size_bytes]"""
        return memory.reshape(*memory.shape[:-1], -1, self.size_bytes)

    def words(self, flags: Array) -> Array:
        """Flags [..., total] as rows of the largest words [..., rows, words]: faster where only any or none matter."""
        width = min(self.size_bytes, 8)
        return flags.view(f"u{width}").reshape(*flags.shape[:-1], -1, self.size_bytes // width)

    def refuse(self, bad: Array, what: str) -> None:
        """An error at the first byte [n, size_bytes] that is bad."""
        if bad.any():
            first = int(bad.any(1).argmax())
            byte = int(self.address[first]) + int(bad[first].argmax())
            raise LaneError(f"{what} shared memory at {byte:#x}", int(self.lanes[first]))


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
        # Which warp did what since the last barrier, [warps, total]
        self._did = {what: np.zeros((warps, total), bool) for what in (READ, WRITE, ATOMIC)}

    def barrier(self, cta: int) -> None:
        """What was done before it comes before what is done after it."""
        for flags in self._did.values():
            flags[:, cta * self.stride_bytes : (cta + 1) * self.stride_bytes] = False

    def rows(self, address: Array, lanes: Array, cta: Array, warp: Array, size_bytes: int) -> Rows:
        """Checked: inside, aligned, and no copy on its way there. `address`, `lanes`, `cta` and `warp` are [n]."""
        rows = self._aligned_rows(address, lanes, cta, warp, size_bytes)
        if rows.words(self.pending)[rows.index].any():
            rows.refuse(rows.of(self.pending)[rows.index], "a cp.async that nobody has waited for is on its way to")
        return rows

    def load(self, rows: Rows) -> tuple[Array, Array | None]:
        """[n, size_bytes] bytes, and which of their bits are undefined."""
        self._check(READ, rows)
        self._note_read(rows)
        undefined = rows.of(self.undefined)[rows.index]
        return rows.of(self.data)[rows.index], undefined if undefined.any() else None

    def store(self, rows: Rows, data: Array, undefined: Array | None = None) -> None:
        """Writes `data` [n, size_bytes], of which the bits `undefined` have not been computed by anybody."""
        check_one_writer(rows.index, rows.lanes, data, "shared")
        same_value = (rows.of(self.data)[rows.index] == data) & (rows.of(self.undefined)[rows.index] == 0)
        if undefined is not None:
            same_value &= undefined == 0
        self._check(WRITE, rows, same_value)
        self._note(WRITE, rows)
        rows.of(self.data)[rows.index] = data
        rows.of(self.undefined)[rows.index] = 0 if undefined is None else undefined

    def begin_copy(self, rows: Rows) -> None:
        """A cp.async has been issued: from now on the bytes belong to it."""
        self._check(WRITE, rows)
        rows.words(self.pending)[rows.index] = rows.words(np.ones(rows.size_bytes, bool))[0]

    def finish_copy(self, copy: PendingCopy, cta: Array, warp: Array) -> None:
        rows = self._aligned_rows(copy.address, copy.lanes, cta, warp, copy.data.shape[1])
        rows.words(self.pending)[rows.index] = 0
        self.store(rows, copy.data)

    def begin_atomic(self, rows: Rows) -> tuple[Array, Array]:
        """What is there, and which of its bits are undefined. Atomics of several warps are not a race."""
        self._check(ATOMIC, rows)
        self._note(ATOMIC, rows)
        return rows.of(self.data)[rows.index], rows.of(self.undefined)[rows.index]

    def finish_atomic(self, rows: Rows, data: Array) -> None:
        rows.of(self.data)[rows.index] = data
        rows.of(self.undefined)[rows.index] = 0

    def _aligned_rows(self, address: Array, lanes: Array, cta: Array, warp: Array, size_bytes: int) -> Rows:
        address = address.astype(np.int64)
        outside = (address < 0) | (address + size_bytes > self.size_bytes)
        if outside.any():
            bad = int(outside.argmax())
            place = f"{size_bytes} bytes at {int(address[bad]):#x} of {self.size_bytes}"
            raise LaneError(f"shared access out of bounds: {place}", int(lanes[bad]))
        check_alignment(address, lanes, size_bytes, "shared")
        return Rows((address + cta * self.stride_bytes) // size_bytes, address, lanes, warp, size_bytes)

    def _check(self, what: str, rows: Rows, same_value: Array | None = None) -> None:
        """An error where another warp has done what conflicts with doing `what`."""
        for other in CONFLICTS[what]:
            if not rows.words(self._did[other])[:, rows.index].any():
                continue
            did = rows.of(self._did[other])[:, rows.index]
            mine = rows.of(self._did[other])[rows.warp, rows.index]
            theirs = did.sum(0, dtype=np.int8) > mine
            if what == READ and other == WRITE:
                theirs &= ~mine  # the value is this warp's as well
            if what == WRITE and other == WRITE and same_value is not None:
                theirs &= ~same_value
            rows.refuse(theirs, f"a race: another warp {other} what this one {what}, with no barrier between:")

    def _note_read(self, rows: Rows) -> None:
        """All but what the warp has written itself: of that, others may write only the same value again."""
        if not rows.words(self._did[WRITE])[rows.warp, rows.index].any():
            self._note(READ, rows)
            return
        rows.of(self._did[READ])[rows.warp, rows.index] |= ~rows.of(self._did[WRITE])[rows.warp, rows.index]

    def _note(self, what: str, rows: Rows) -> None:
        rows.words(self._did[what])[rows.warp, rows.index] = rows.words(np.ones(rows.size_bytes, bool))[0]
