"""Moves, branches, exits, barriers and fences."""

from __future__ import annotations

import numpy as np

from ptx.decode import Builder, Converging, Decoder, Execute, Modifiers
from ptx.elementwise import elementwise, moved_by, plain
from ptx.errors import LaneError, PtxError
from ptx.lanes import Lanes
from ptx.local_memory import LOCAL_WINDOW
from ptx.operands import Symbol, Vector
from ptx.parser import Instruction
from ptx.scalars import TYPES, Array, ScalarType
from ptx.shared_memory import SHARED_WINDOW


def build_move(instruction: Instruction, decoder: Decoder) -> Execute:
    modifiers = Modifiers(instruction)
    scalar = modifiers.type()
    modifiers.finish()
    destination, source = decoder.operands(instruction, 2)
    if isinstance(source, Vector):
        return _pack(decoder, scalar, instruction)
    if isinstance(destination, Vector):
        return _unpack(decoder, scalar, instruction)
    return plain(decoder, (destination, source), scalar, _same, moved_by(_same))


def _same(a: Array) -> Array:
    return a


def _element_type(scalar: ScalarType, count: int) -> ScalarType:
    if count not in (2, 4) or scalar.bits % count or f"b{scalar.bits // count}" not in TYPES:
        raise PtxError(f"{count} elements of .{scalar.name}")
    return TYPES[f"b{scalar.bits // count}"]


def _pack(decoder: Decoder, scalar: ScalarType, instruction: Instruction) -> Execute:
    destination, source = instruction.operands
    elements = decoder.vector(source, 2, 4)
    part = _element_type(scalar, len(elements))
    sources = [decoder.source(element, part) for element in elements]
    target = decoder.destination(destination, scalar)

    def pack(parts: list[Array]) -> Array:
        packed = np.zeros(1, scalar.raw)
        for place, each in enumerate(parts):
            packed = packed | (each.astype(scalar.raw) << scalar.raw.type(place * part.bits))
        return packed

    def execute(lanes: Lanes) -> None:
        values = [source.read(lanes) for source in sources]
        undefined = None
        if any(bits is not None for _, bits in values):
            undefined = pack([np.zeros(1, part.raw) if bits is None else bits for _, bits in values])
        target.write(lanes, pack([value for value, _ in values]), undefined)

    return execute


def _unpack(decoder: Decoder, scalar: ScalarType, instruction: Instruction) -> Execute:
    destination, operand = instruction.operands
    elements = decoder.vector(destination, 2, 4)
    part = _element_type(scalar, len(elements))
    raw_type = TYPES[f"b{scalar.bits}"]
    source = decoder.source(operand, raw_type)
    targets = [decoder.destination(element, part) for element in elements]

    def execute(lanes: Lanes) -> None:
        raw, undefined = source.read(lanes)
        for place, target in enumerate(targets):
            shift = raw_type.raw.type(place * part.bits)
            bits = None if undefined is None else (undefined >> shift).astype(part.raw)
            target.write(lanes, (raw >> shift).astype(part.raw), bits)

    return execute


_WINDOWS = {"global": 0, "shared": SHARED_WINDOW, "local": LOCAL_WINDOW}


def build_convert_address(instruction: Instruction, decoder: Decoder) -> Execute:
    """cvta: generic addresses of global memory are the addresses themselves, the others in windows."""
    modifiers = Modifiers(instruction)
    to_space = modifiers.flag("to")
    space = modifiers.require(*_WINDOWS)
    scalar = modifiers.type("u64")
    modifiers.finish()
    window = np.uint64(_WINDOWS[space])
    destination, source = decoder.operands(instruction, 2)
    return elementwise(
        (lambda a: a - window) if to_space else (lambda a: a + window),
        decoder.destination(destination, scalar),
        scalar,
        [decoder.source(source, scalar)],
    )


def build_branch(instruction: Instruction, decoder: Decoder) -> Execute:
    modifiers = Modifiers(instruction)
    modifiers.flag("uni")
    modifiers.finish()
    (label,) = decoder.operands(instruction, 1)
    if not isinstance(label, Symbol) or label.name not in decoder.kernel.labels:
        raise PtxError("a branch to an unknown label")
    target = decoder.kernel.labels[label.name]
    if target == len(decoder.kernel.instructions):
        raise PtxError("a branch to where the kernel has no more instructions")
    return lambda lanes: lanes.branch(target)


def build_exit(instruction: Instruction, decoder: Decoder) -> Execute:
    modifiers = Modifiers(instruction)
    if instruction.opcode == "ret":
        modifiers.flag("uni")
    modifiers.finish()
    decoder.operands(instruction, 0)
    return lambda lanes: lanes.exit()


def build_trap(instruction: Instruction, decoder: Decoder) -> Execute:
    modifiers = Modifiers(instruction)
    modifiers.finish()

    def execute(lanes: Lanes) -> None:
        raise LaneError("the kernel gave up (trap)", int(lanes.active()[0]))

    return execute


def build_barrier(instruction: Instruction, decoder: Decoder) -> Converging:
    """bar.sync, barrier.sync, bar.red of all threads of the CTA; bar.warp.sync"""
    modifiers = Modifiers(instruction)
    if instruction.opcode == "bar" and modifiers.flag("warp"):
        modifiers.require("sync")
        modifiers.finish()
        (members,) = decoder.operands(instruction, 1)
        # Lanes of a warp see each other's writes in program order here, so that coming together is all there is.
        return Converging(lambda lanes: None, decoder.source(members, TYPES["b32"]))
    modifiers.flag("cta")
    if modifiers.require("sync", "red") == "red":
        return _build_voting_barrier(instruction, decoder, modifiers)
    modifiers.flag("aligned")
    modifiers.finish()
    number, *count = decoder.operands(instruction, 1, 2)
    barrier = decoder.constant(number)
    threads = decoder.constant(count[0]) if count else None

    def execute(lanes: Lanes) -> int:
        if threads is not None and threads != int(np.prod(lanes.placement.block)):
            first = int(lanes.active()[0])
            raise LaneError("a barrier for a part of the CTA, which this interpreter does not know", first)
        return lanes.wait(barrier)

    return Converging(execute, decoder.whole_warp())


def _build_voting_barrier(instruction: Instruction, decoder: Decoder, modifiers: Modifiers) -> Converging:
    """bar.red: how many threads of the CTA say yes, or whether all or any of them do"""
    mode = modifiers.require("popc", "and", "or")
    modifiers.flag("aligned")
    result = modifiers.type("u32") if mode == "popc" else modifiers.type("pred")
    modifiers.finish()
    destination, number, vote = decoder.operands(instruction, 3)
    barrier = decoder.constant(number)
    target, source = decoder.destination(destination, result), decoder.source(vote, TYPES["pred"])

    def execute(lanes: Lanes) -> int:
        yes, undefined = source.read(lanes)
        lanes.require_defined(undefined, "the vote")
        everyone, selected = lanes.counted.copy(), lanes.mask
        if everyone.any():
            lanes.mask = everyone if selected is None else everyone & selected
            threads = int(np.prod(lanes.placement.block))
            counts = {"popc": lanes.votes.astype(np.uint32), "and": lanes.votes == threads, "or": lanes.votes > 0}
            target.write(lanes, counts[mode])
            lanes.mask = selected
        return lanes.wait(barrier, np.broadcast_to(yes, lanes.count))

    return Converging(execute, decoder.whole_warp())


def build_fence(instruction: Instruction, decoder: Decoder) -> Execute:
    """membar, fence: memory is sequentially consistent here already."""
    modifiers = Modifiers(instruction)
    if instruction.opcode == "fence":
        modifiers.take("sc", "acq_rel")
    modifiers.require("cta", "gpu", "gl", "sys")
    modifiers.finish()
    decoder.operands(instruction, 0)
    return lambda lanes: None


OPERATIONS: dict[str, Builder] = {
    "mov": build_move,
    "cvta": build_convert_address,
    "bra": build_branch,
    **dict.fromkeys(("ret", "exit"), build_exit),
    "trap": build_trap,
    **dict.fromkeys(("bar", "barrier"), build_barrier),
    **dict.fromkeys(("membar", "fence"), build_fence),
}
