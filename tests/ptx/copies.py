"""cp.async: copies to shared memory whose data are there only once their group has been waited for."""

from __future__ import annotations

import numpy as np

from ptx.decode import Builder, Decoder, Execute, Modifiers
from ptx.errors import LaneError, PtxError
from ptx.lanes import Lanes
from ptx.parser import Instruction
from ptx.scalars import TYPES, Array
from ptx.shared_memory import PendingCopy


def build_copy(instruction: Instruction, decoder: Decoder) -> Execute:
    modifiers = Modifiers(instruction)
    modifiers.require("async")
    if modifiers.flag("commit_group"):
        modifiers.finish()
        decoder.operands(instruction, 0)
        return _commit
    if modifiers.flag("wait_all"):
        modifiers.finish()
        decoder.operands(instruction, 0)
        return lambda lanes: _wait(lanes, lanes.copy_group)
    if modifiers.flag("wait_group"):
        modifiers.finish()
        (count,) = decoder.operands(instruction, 1)
        keep = decoder.constant(count)
        return lambda lanes: _wait(lanes, lanes.copy_group - keep - 1)
    return _build_issue(instruction, decoder, modifiers)


def _commit(lanes: Lanes) -> None:
    lanes.copy_group = lanes.copy_group + (1 if lanes.mask is None else lanes.mask)


def _wait(lanes: Lanes, last_group: Array) -> None:
    """The copies of the active lanes up to their `last_group` arrive."""
    active = np.ones(lanes.count, bool) if lanes.mask is None else lanes.mask
    still_pending = []
    for copy in lanes.copies:
        done = active[copy.lanes] & (copy.group <= last_group[copy.lanes])
        arrived, rest = _split(copy, done), _split(copy, ~done)
        if len(arrived.lanes):
            lanes.shared.finish_copy(arrived, lanes.cta[arrived.lanes], lanes.warp[arrived.lanes])
        if len(rest.lanes):
            still_pending.append(rest)
    lanes.copies = still_pending


def _split(copy: PendingCopy, chosen: Array) -> PendingCopy:
    return PendingCopy(copy.lanes[chosen], copy.address[chosen], copy.data[chosen], copy.group[chosen])


def _build_issue(instruction: Instruction, decoder: Decoder, modifiers: Modifiers) -> Execute:
    cache = modifiers.require("ca", "cg")
    modifiers.require("shared", "shared::cta")
    modifiers.require("global")
    modifiers.take("L2::64B", "L2::128B", "L2::256B")
    hints = int(modifiers.flag("L2::cache_hint"))
    modifiers.finish()
    operands = decoder.operands(instruction, 3 + hints, 4 + hints)
    size_bytes = decoder.constant(operands[2])
    if size_bytes not in ((16,) if cache == "cg" else (4, 8, 16)):
        raise PtxError(f"cp.async.{cache} of {size_bytes} bytes")
    to, source = decoder.address(operands[0]), decoder.address(operands[1])
    has_count = len(operands) - hints == 4
    # The bytes to read; the rest of the copy is zeros.
    count_source = decoder.source(operands[3], TYPES["u32"]) if has_count else None

    def execute(lanes: Lanes) -> None:
        active = lanes.active()
        to_address, from_address = to.read(lanes, active), source.read(lanes, active)
        count = np.full(len(active), size_bytes)
        if count_source is not None:
            values, undefined = count_source.read(lanes)
            lanes.require_defined(undefined, "the size of a copy")
            count = np.broadcast_to(values, lanes.count)[active].astype(np.int64)
        data = _read(lanes, active, from_address, count, size_bytes)
        lanes.shared.begin_copy(lanes.shared_rows(to_address, active, size_bytes))
        lanes.copies.append(PendingCopy(active, to_address, data, lanes.copy_group[active]))

    return execute


def _read(lanes: Lanes, active: Array, address: Array, count: Array, size_bytes: int) -> Array:
    """[n, size_bytes]: `count` bytes from global memory, then zeros."""
    if (count > size_bytes).any():
        raise LaneError("a copy from more bytes than it is long", int(active[(count > size_bytes).argmax()]))
    crooked = (count > 0) & (address % np.uint64(size_bytes) != 0)
    if crooked.any():
        raise LaneError(f"misaligned global access: {size_bytes} bytes", int(active[crooked.argmax()]))
    data = np.zeros((len(active), size_bytes), np.uint8)
    for each in np.unique(count[count > 0]):
        chosen = np.flatnonzero(count == each)
        cta = lanes.cta_number[active[chosen]]
        data[chosen, :each] = lanes.memory.load(address[chosen], active[chosen], cta, int(each), align=False)
    return data


def build_policy(instruction: Instruction, decoder: Decoder) -> Execute:
    """createpolicy: how the cache keeps data does not change what a kernel computes."""
    modifiers = Modifiers(instruction)
    modifiers.require("fractional")
    modifiers.require("L2::evict_first", "L2::evict_last", "L2::evict_normal", "L2::evict_unchanged")
    scalar = modifiers.type("b64")
    modifiers.finish()
    destination, *_ = decoder.operands(instruction, 1, 2)
    target = decoder.destination(destination, scalar)
    return lambda lanes: target.write(lanes, np.zeros(1, np.uint64))


OPERATIONS: dict[str, Builder] = {"cp": build_copy, "createpolicy": build_policy}
