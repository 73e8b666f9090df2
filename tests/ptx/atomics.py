"""Atomics on global and shared memory: atom, red."""

from __future__ import annotations

from collections.abc import Callable
from functools import partial

import numpy as np

from ptx.access import ORDERINGS, SCOPES, resolve, take_space
from ptx.decode import Builder, Decoder, Execute, Modifiers
from ptx.errors import LaneError, PtxError
from ptx.lanes import Lanes
from ptx.memory import ATOMIC
from ptx.parser import Instruction
from ptx.scalars import TYPES, Array, ScalarType, decode, encode

_ATOMIC_INTEGER: dict[str, Callable[[Array, Array], Array]] = {
    "add": np.add,
    "min": np.minimum,
    "max": np.maximum,
    "and": np.bitwise_and,
    "or": np.bitwise_or,
    "xor": np.bitwise_xor,
}


def _combine(operation: str, scalar: ScalarType) -> Callable[[Array, Array | None, Array], Array]:
    """What an atomic leaves in memory (raw bits), given its operand, the second one of cas, and what was there."""
    if operation == "exch":
        return lambda value, _, before: value
    if operation == "cas":
        return lambda value, new, before: np.where(before == value, before if new is None else new, before)
    if scalar.is_integer:
        compute = _ATOMIC_INTEGER[operation]
        return lambda value, _, before: compute(before.view(scalar.dtype), value.view(scalar.dtype)).view(scalar.raw)
    if operation == "add":
        return lambda value, _, before: encode(decode(before, scalar) + decode(value, scalar), scalar)
    raise PtxError(f"unknown atomic .{operation}.{scalar.name}")


def build_atomic(instruction: Instruction, decoder: Decoder) -> Execute:
    """atom, red: the lanes one after the other"""
    modifiers = Modifiers(instruction)
    space = take_space(modifiers)
    modifiers.take(*ORDERINGS)
    modifiers.take(*SCOPES)
    operation = modifiers.require(*_ATOMIC_INTEGER, "exch", "cas")
    hints = int(modifiers.flag("L2::cache_hint"))
    modifiers.flag("noftz")
    scalar = modifiers.type("b32", "b64", "unsigned", "signed", "f32", "f64", "f16", "bf16", "packed")
    modifiers.finish()
    gives = instruction.opcode == "atom"
    operands = list(decoder.operands(instruction, 2 + gives + (operation == "cas") + hints))
    target = decoder.destination(operands.pop(0), scalar) if gives else None
    address = decoder.address(operands.pop(0))
    raw_type = TYPES[f"b{scalar.bits}"]
    sources = [decoder.source(operand, raw_type) for operand in operands[: len(operands) - hints]]
    combine = _combine(operation, scalar)

    def execute(lanes: Lanes) -> None:
        active = lanes.active()
        space_of, place = resolve(lanes, space, address.read(lanes, active), active)
        values = []
        for source in sources:
            value, undefined = source.read(lanes)
            lanes.require_defined(undefined, "the operand of an atomic")
            values.append(np.broadcast_to(value, lanes.count))
        result = np.zeros(lanes.count, scalar.raw)
        result_undefined = np.zeros(lanes.count, scalar.raw)
        for turn in _turns(place, lanes.cta[active] if space_of == "shared" else np.zeros(len(active), np.int64)):
            chosen = active[turn]
            operand, *new = (value[chosen] for value in values)
            change = partial(combine, operand, new[0] if new else None)
            before, undefined = _change(lanes, space_of, place[turn], chosen, scalar, change)
            result[chosen] = before
            result_undefined[chosen] = undefined
        if target is not None:
            target.write(lanes, result, result_undefined)

    return execute


def _turns(place: Array, cta: Array) -> list[Array]:
    """The accesses in turns in which no place occurs twice; those to one place keep their order."""
    order = np.lexsort((place, cta))
    begins = np.ones(len(order), bool)
    begins[1:] = (place[order][1:] != place[order][:-1]) | (cta[order][1:] != cta[order][:-1])
    position = np.arange(len(order))
    rank = position - np.maximum.accumulate(np.where(begins, position, 0))
    return [np.sort(order[rank == turn]) for turn in range(int(rank.max()) + 1)]


def _change(
    lanes: Lanes, space: str, place: Array, chosen: Array, scalar: ScalarType, combine: Callable[[Array], Array]
) -> tuple[Array, Array]:
    """Replaces what is at different places; gives what was there, and which of its bits were undefined."""
    if space == "shared":
        rows = lanes.shared_rows(place, chosen, scalar.bytes)
        data, undefined = lanes.shared.begin_atomic(rows)
        before = data.view(scalar.raw).reshape(-1)
        lanes.shared.finish_atomic(rows, _bytes(combine(before)))
        return before, undefined.view(scalar.raw).reshape(-1)
    if space == "local":
        raise LaneError("an atomic on local memory", int(chosen[0]))
    cta = lanes.cta_number[chosen]
    before = lanes.memory.load(place, chosen, cta, scalar.bytes, what=ATOMIC).view(scalar.raw).reshape(-1)
    lanes.memory.store(place, chosen, cta, _bytes(combine(before)), what=ATOMIC)
    return before, np.zeros(len(chosen), scalar.raw)


def _bytes(values: Array) -> Array:
    return np.ascontiguousarray(values).view(np.uint8).reshape(len(values), -1)


OPERATIONS: dict[str, Builder] = {"atom": build_atomic, "red": build_atomic}
