"""Loads and stores: ld, st."""

from __future__ import annotations

from typing import Any

import numpy as np

from ptx.decode import Builder, Decoder, Execute, Modifiers
from ptx.errors import LaneError, PtxError
from ptx.lanes import Lanes
from ptx.local_memory import LOCAL_WINDOW
from ptx.operands import Address, Symbol
from ptx.parser import Instruction
from ptx.scalars import Array
from ptx.shared_memory import SHARED_WINDOW

_CACHE = ("ca", "cg", "cs", "lu", "cv", "wb", "wt", "nc")
_EVICTION = ("L1::evict_normal", "L1::evict_unchanged", "L1::evict_first", "L1::evict_last", "L1::no_allocate")
_PREFETCH = ("L2::64B", "L2::128B", "L2::256B")
ORDERINGS = ("relaxed", "acquire", "release", "acq_rel", "volatile", "weak")
SCOPES = ("cta", "gpu", "sys")


def take_hints(modifiers: Modifiers) -> int:
    """Takes what does not change results here; gives how many operands the hints bring."""
    for names in (ORDERINGS, SCOPES, _CACHE, _CACHE, _EVICTION, _PREFETCH):
        modifiers.take(*names)
    return int(modifiers.flag("L2::cache_hint"))


def take_space(modifiers: Modifiers) -> str:
    space = modifiers.take("global", "shared", "shared::cta", "local")
    return "generic" if space is None else space.partition("::")[0]


def _vector_length(modifiers: Modifiers) -> int:
    return int((modifiers.take("v2", "v4") or "v1")[1:])


def resolve(lanes: Lanes, space: str, address: Array, active: Array) -> tuple[str, Array]:
    """The state space of generic addresses, and the addresses in it."""
    if space != "generic" or not len(address):
        return space, address
    first = int(address[0])
    space, window, end = "global", 0, SHARED_WINDOW
    if first >= LOCAL_WINDOW:
        space, window, end = "local", LOCAL_WINDOW, 1 << 64
    elif first >= SHARED_WINDOW:
        space, window, end = "shared", SHARED_WINDOW, LOCAL_WINDOW
    offset = address - np.uint64(window)
    if (offset >= np.uint64(end - window)).any():
        raise LaneError("generic addresses of several state spaces in one instruction", int(active[0]))
    return space, offset


def load(lanes: Lanes, space: str, address: Array, active: Array, size_bytes: int) -> tuple[Array, Array | None]:
    """[n, size_bytes] bytes for the n active lanes, and which of their bits are undefined."""
    space, address = resolve(lanes, space, address, active)
    if space == "shared":
        return lanes.shared.load(lanes.shared_rows(address, active, size_bytes))
    if space == "local":
        return lanes.local.load(address, active, size_bytes)
    return lanes.memory.load(address, active, lanes.cta_number[active], size_bytes), None


def store(lanes: Lanes, space: str, address: Array, active: Array, data: Array, undefined: Array | None = None) -> None:
    space, address = resolve(lanes, space, address, active)
    if space == "shared":
        lanes.shared.store(lanes.shared_rows(address, active, data.shape[1]), data, undefined)
        return
    if space == "local":
        lanes.local.store(address, active, data, undefined)
        return
    if undefined is not None and undefined.any():
        bad = int(active[undefined.any(1).argmax()])
        raise LaneError("the stored value depends on a register or on memory that was never written", bad)
    lanes.memory.store(address, active, lanes.cta_number[active], data)


def _spread_out(lanes: Lanes, active: Array, rows: Array, raw: np.dtype[Any]) -> Array:
    """Bytes [n, b] of the active lanes as one value a lane [T]."""
    values = np.zeros(lanes.count, raw)
    values[active] = np.ascontiguousarray(rows).view(raw).reshape(-1)
    return values


def build_load(instruction: Instruction, decoder: Decoder) -> Execute:
    modifiers = Modifiers(instruction)
    if modifiers.flag("param"):
        return _build_load_parameter(instruction, decoder, modifiers)
    space = take_space(modifiers)
    hints = take_hints(modifiers)
    length = _vector_length(modifiers)
    scalar = modifiers.type("bits", "unsigned", "signed", "f32", "f64")
    modifiers.finish()
    destination, place, *_ = decoder.operands(instruction, 2 + hints)
    elements = decoder.vector(destination, length)
    targets = [decoder.destination(element, scalar, wider=True) for element in elements]
    address = decoder.address(place)
    size_bytes = scalar.bytes

    def execute(lanes: Lanes) -> None:
        active = lanes.active()
        data, undefined = load(lanes, space, address.read(lanes, active), active, size_bytes * length)
        for number, target in enumerate(targets):
            part = slice(number * size_bytes, (number + 1) * size_bytes)
            bits = None if undefined is None else _spread_out(lanes, active, undefined[:, part], scalar.raw)
            target.write(lanes, _spread_out(lanes, active, data[:, part], scalar.raw), bits)

    return execute


def _build_load_parameter(instruction: Instruction, decoder: Decoder, modifiers: Modifiers) -> Execute:
    length = _vector_length(modifiers)
    scalar = modifiers.type("bits", "unsigned", "signed", "f32", "f64")
    modifiers.finish()
    destination, place = decoder.operands(instruction, 2)
    if not isinstance(place, Address) or not isinstance(place.base, Symbol):
        raise PtxError("a parameter whose place is computed")
    found = [each for each in decoder.kernel.parameters if each.name == place.base.name]
    if not found or not 0 <= place.offset_bytes <= found[0].size_bytes - scalar.bytes * length:
        raise PtxError("past the end of a parameter, or of none")
    start = found[0].offset_bytes + place.offset_bytes
    elements = decoder.vector(destination, length)
    targets = [decoder.destination(element, scalar, wider=True) for element in elements]

    def execute(lanes: Lanes) -> None:
        for number, target in enumerate(targets):
            first = start + number * scalar.bytes
            target.write(lanes, lanes.parameters[first : first + scalar.bytes].view(scalar.raw))

    return execute


def build_store(instruction: Instruction, decoder: Decoder) -> Execute:
    modifiers = Modifiers(instruction)
    space = take_space(modifiers)
    hints = take_hints(modifiers)
    length = _vector_length(modifiers)
    scalar = modifiers.type("bits", "unsigned", "signed", "f32", "f64")
    modifiers.finish()
    place, values, *_ = decoder.operands(instruction, 2 + hints)
    sources = [decoder.source(element, scalar, wider=True) for element in decoder.vector(values, length)]
    address = decoder.address(place)

    def execute(lanes: Lanes) -> None:
        active = lanes.active()
        data = np.empty((len(active), length), scalar.raw)
        undefined = np.zeros((len(active), length), scalar.raw)
        for number, source in enumerate(sources):
            value, bits = source.read(lanes)
            data[:, number] = _of_active(value.view(scalar.raw), active)
            if bits is not None:
                undefined[:, number] = _of_active(bits, active)
        place_of = address.read(lanes, active)
        store(lanes, space, place_of, active, data.view(np.uint8), undefined.view(np.uint8))

    return execute


def _of_active(values: Array, active: Array) -> Array:
    return values if len(values) == 1 else values[active]


OPERATIONS: dict[str, Builder] = {"ld": build_load, "st": build_store}
