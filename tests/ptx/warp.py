"""Operations between the lanes of a warp: shfl, vote, match, redux, activemask."""

from __future__ import annotations

import numpy as np

from ptx.decode import Builder, Converging, Decoder, Execute, Modifiers
from ptx.errors import LaneError
from ptx.lanes import WARP, Lanes, Source
from ptx.operands import Pair, Sink
from ptx.parser import Instruction
from ptx.scalars import TYPES, Array


def _taking_part(lanes: Lanes, members_source: Source) -> tuple[Array, Array]:
    """[T] which lanes execute the instruction, and the member mask of each; a member that does not is a fault."""
    members, _ = members_source.read(lanes)
    members = np.broadcast_to(members, lanes.count)
    active = np.ones(lanes.count, bool) if lanes.mask is None else lanes.mask
    present = lanes.warp_bits(active)
    missing = active & ((members & ~present) != 0)
    if missing.any():
        raise LaneError("the member mask names lanes that do not take part", int(missing.argmax()))
    outside = active & ((members >> lanes.in_warp) & 1 == 0)
    if outside.any():
        raise LaneError("the lane is not in its own member mask", int(outside.argmax()))
    return active, members


def build_shuffle(instruction: Instruction, decoder: Decoder) -> Converging:
    modifiers = Modifiers(instruction)
    modifiers.require("sync")
    mode = modifiers.require("up", "down", "bfly", "idx")
    scalar = modifiers.type("b32")
    modifiers.finish()
    result, value, *lane_and_clamp, member_operand = decoder.operands(instruction, 5)
    both = result if isinstance(result, Pair) else Pair(result, Sink())
    target, valid_target = decoder.destination(both.first, scalar), decoder.destination(both.second, TYPES["pred"])
    source = decoder.source(value, scalar)
    lane_source, clamp_source = (decoder.source(each, TYPES["u32"]) for each in lane_and_clamp)
    members = decoder.source(member_operand, TYPES["b32"])

    def execute(lanes: Lanes) -> None:
        _, members_of = _taking_part(lanes, members)
        values, undefined = source.read(lanes)
        distance, distance_undefined = lane_source.read(lanes)
        lanes.require_defined(distance_undefined, "the lane to read from")
        clamp, _ = clamp_source.read(lanes)
        lane, valid = _shuffle_lane(mode, lanes.in_warp.astype(np.int64), distance, clamp)
        index = lanes.all - lanes.in_warp + lane
        silent = (members_of >> lane.astype(np.uint32)) & 1 == 0
        values = np.broadcast_to(values, lanes.count)[index]
        bits = np.where(silent, np.uint32(0xFFFFFFFF), np.uint32(0) if undefined is None else undefined[index])
        target.write(lanes, values, bits if bits.any() else None)
        valid_target.write(lanes, valid)

    return Converging(execute, members)


def _shuffle_lane(mode: str, lane: Array, distance: Array, clamp: Array) -> tuple[Array, Array]:
    """The lane that each one reads, and whether it is inside its segment; outside, a lane reads itself."""
    distance, clamp = distance.astype(np.int64) & 31, clamp.astype(np.int64)
    segment, bound = (clamp >> 8) & 31, clamp & 31
    last = (lane & segment) | (bound & ~segment)
    first = lane & segment
    source = {
        "up": lane - distance,
        "down": lane + distance,
        "bfly": lane ^ distance,
        "idx": first | (distance & ~segment),
    }[mode]
    valid = source >= last if mode == "up" else source <= last
    return np.where(valid, source, lane), valid


def build_vote(instruction: Instruction, decoder: Decoder) -> Converging:
    modifiers = Modifiers(instruction)
    modifiers.require("sync")
    mode = modifiers.require("ballot", "any", "all", "uni")
    result = modifiers.type("b32") if mode == "ballot" else modifiers.type("pred")
    modifiers.finish()
    destination, predicate, member_operand = decoder.operands(instruction, 3)
    target = decoder.destination(destination, result)
    source = decoder.source(predicate, TYPES["pred"])
    members = decoder.source(member_operand, TYPES["b32"])

    def execute(lanes: Lanes) -> None:
        active, members_of = _taking_part(lanes, members)
        values, undefined = source.read(lanes)
        lanes.require_defined(undefined, "the vote")
        yes = lanes.warp_bits(values & active) & members_of
        everyone = yes == members_of
        votes = {"ballot": yes, "any": yes != 0, "all": everyone, "uni": everyone | (yes == 0)}
        target.write(lanes, votes[mode])

    return Converging(execute, members)


def build_match(instruction: Instruction, decoder: Decoder) -> Converging:
    """match.any: the member lanes with the same value; match.all: all members, if they have, else none"""
    modifiers = Modifiers(instruction)
    mode = modifiers.require("any", "all")
    modifiers.require("sync")
    scalar = modifiers.type("b32", "b64")
    modifiers.finish()
    result, value, member_operand = decoder.operands(instruction, 3)
    both = result if isinstance(result, Pair) else Pair(result, Sink())
    target, all_target = decoder.destination(both.first, TYPES["b32"]), decoder.destination(both.second, TYPES["pred"])
    source = decoder.source(value, scalar)
    members = decoder.source(member_operand, TYPES["b32"])

    def execute(lanes: Lanes) -> None:
        _, members_of = _taking_part(lanes, members)
        values, undefined = source.read(lanes)
        lanes.require_defined(undefined, "the value to match")
        warps = np.broadcast_to(values, lanes.count).reshape(-1, WARP)
        equal = (warps[:, :, None] == warps[:, None, :]).astype(np.uint64)
        bits = (equal << np.arange(WARP, dtype=np.uint64)).sum(2).astype(np.uint32).reshape(-1) & members_of
        same = bits == members_of
        target.write(lanes, bits if mode == "any" else np.where(same, members_of, np.uint32(0)))
        all_target.write(lanes, same)

    return Converging(execute, members)


_REDUCE = {
    "add": np.add,
    "min": np.minimum,
    "max": np.maximum,
    "and": np.bitwise_and,
    "or": np.bitwise_or,
    "xor": np.bitwise_xor,
}


def build_reduce(instruction: Instruction, decoder: Decoder) -> Converging:
    modifiers = Modifiers(instruction)
    modifiers.require("sync")
    reduce = _REDUCE[modifiers.require(*_REDUCE)]
    scalar = modifiers.type("b32", "u32", "s32")
    modifiers.finish()
    destination, value, member_operand = decoder.operands(instruction, 3)
    target = decoder.destination(destination, scalar)
    source = decoder.source(value, scalar)
    members = decoder.source(member_operand, TYPES["b32"])

    def execute(lanes: Lanes) -> None:
        active, members_of = _taking_part(lanes, members)
        value = source.read(lanes)
        lanes.require_defined(value[1], "the value to reduce")
        values = np.broadcast_to(value[0], lanes.count)
        result = np.zeros(lanes.count, scalar.dtype)
        # Lanes of one warp come in groups: those with the same member mask.
        group = lanes.all // WARP * (1 << WARP) + members_of.astype(np.int64)
        for each in np.unique(group[active]):
            chosen = active & (group == each)
            result[chosen] = reduce.reduce(values[chosen])
        target.write(lanes, result)

    return Converging(execute, members)


def build_active_mask(instruction: Instruction, decoder: Decoder) -> Execute:
    modifiers = Modifiers(instruction)
    scalar = modifiers.type("b32")
    modifiers.finish()
    (destination,) = decoder.operands(instruction, 1)
    target = decoder.destination(destination, scalar)
    return lambda lanes: target.write(
        lanes, lanes.warp_bits(np.ones(lanes.count, bool) if lanes.mask is None else lanes.mask)
    )


OPERATIONS: dict[str, Builder] = {
    "shfl": build_shuffle,
    "vote": build_vote,
    "match": build_match,
    "redux": build_reduce,
    "activemask": build_active_mask,
}
