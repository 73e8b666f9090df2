"""Integer arithmetic and bit operations."""

from __future__ import annotations

from collections.abc import Callable, Sequence

import numpy as np

from ptx.decode import Builder, Decoder, Execute, Modifiers
from ptx.elementwise import any_bit, both_ways, elementwise, moved_by, plain, same_bits
from ptx.errors import LaneError
from ptx.lanes import Lanes, Value
from ptx.parser import Instruction
from ptx.scalars import TYPES, Array, ScalarType

INTEGERS = ("unsigned", "signed")


def multiply_high(a: Array, b: Array) -> Array:
    """The upper half of the product."""
    bits = a.dtype.itemsize * 8
    if bits == 64:
        return ((a.astype(object) * b.astype(object)) >> 64).astype(a.dtype)
    wide = np.dtype(f"{a.dtype.kind}8")
    return ((a.astype(wide) * b.astype(wide)) >> wide.type(bits)).astype(a.dtype)


def build_multiply(instruction: Instruction, decoder: Decoder) -> Execute:
    """mul, mad for integers"""
    modifiers = Modifiers(instruction)
    half = modifiers.require("lo", "hi", "wide")
    scalar = modifiers.type(*INTEGERS)
    modifiers.finish()
    adds = instruction.opcode == "mad"
    destination, a, b, *addend = decoder.operands(instruction, 4 if adds else 3)
    result = TYPES[f"{scalar.name[0]}{2 * scalar.bits}"] if half == "wide" else scalar

    def compute(a: Array, b: Array, c: Array | None = None) -> Array:
        product = multiply_high(a, b) if half == "hi" else a.astype(result.dtype) * b.astype(result.dtype)
        return product if c is None else product + c

    sources = [decoder.source(a, scalar), decoder.source(b, scalar), *(decoder.source(c, result) for c in addend)]
    return elementwise(compute, decoder.destination(destination, result), result, sources)


def build_divide(instruction: Instruction, decoder: Decoder) -> Execute:
    """div, rem for integers: the quotient is truncated"""
    modifiers = Modifiers(instruction)
    scalar = modifiers.type(*INTEGERS)
    modifiers.finish()
    operands = decoder.operands(instruction, 3)
    divisor = decoder.source(operands[2], scalar)
    remains = instruction.opcode == "rem"

    def compute(a: Array, b: Array) -> Array:
        b = np.where(b == 0, b.dtype.type(1), b)  # lanes that are not active
        remainder = np.fmod(a, b)
        return remainder if remains else (a - remainder) // b

    divide = plain(decoder, operands, scalar, compute)

    def execute(lanes: Lanes) -> None:
        zero = np.broadcast_to(divisor.read(lanes)[0] == 0, lanes.count)[lanes.active()]
        if zero.any():
            raise LaneError("division by zero", int(lanes.active()[zero.argmax()]))
        divide(lanes)

    return execute


def build_shift(instruction: Instruction, decoder: Decoder) -> Execute:
    """shl, shr: an amount past the width shifts everything out"""
    modifiers = Modifiers(instruction)
    left = instruction.opcode == "shl"
    scalar = modifiers.type("bits") if left else modifiers.type("bits", *INTEGERS)
    modifiers.finish()
    last = scalar.bits - 1

    def compute(a: Array, amount: Array) -> Array:
        inside = np.minimum(amount, last).astype(a.dtype)
        if scalar.kind == "signed":
            return a >> inside
        return np.where(amount > last, a.dtype.type(0), a << inside if left else a >> inside)

    destination, value, amount = decoder.operands(instruction, 3)
    sources = [decoder.source(value, scalar), decoder.source(amount, TYPES["u32"])]
    return elementwise(compute, decoder.destination(destination, scalar), scalar, sources, moved_by(compute))


def build_funnel_shift(instruction: Instruction, decoder: Decoder) -> Execute:
    """shf: 32 bits out of two registers"""
    modifiers = Modifiers(instruction)
    left = modifiers.require("l", "r") == "l"
    wraps = modifiers.require("wrap", "clamp") == "wrap"
    scalar = modifiers.type("b32")
    modifiers.finish()

    def compute(low: Array, high: Array, amount: Array) -> Array:
        both = low.astype(np.uint64) | (high.astype(np.uint64) << np.uint64(32))
        count = (amount & 31 if wraps else np.minimum(amount, 32)).astype(np.uint64)
        shifted = (both << count) >> np.uint64(32) if left else both >> count
        return shifted.astype(np.uint32)

    return plain(decoder, decoder.operands(instruction, 4), scalar, compute)


def build_extract(instruction: Instruction, decoder: Decoder) -> Execute:
    """bfe: `length` bits from `start` on, with the sign of the last one for a signed type"""
    modifiers = Modifiers(instruction)
    scalar = modifiers.type("u32", "u64", "s32", "s64")
    modifiers.finish()
    bits, wide = scalar.bits, np.dtype("i8" if scalar.kind == "signed" else "u8")

    def compute(a: Array, start: Array, length: Array) -> Array:
        start, length = start & 0xFF, np.minimum(length & 0xFF, bits)
        moved = a >> np.minimum(start, bits - 1).astype(a.dtype)
        if scalar.kind == "unsigned":
            moved = np.where(start >= bits, a.dtype.type(0), moved)
        unused = np.minimum(64 - length, 63).astype(wide)
        field = (moved.astype(wide) << unused) >> unused
        return np.where(length == 0, wide.type(0), field).astype(scalar.dtype)

    destination, value, *place = decoder.operands(instruction, 4)
    sources = [decoder.source(value, scalar), *(decoder.source(each, TYPES["u32"]) for each in place)]
    return elementwise(compute, decoder.destination(destination, scalar), scalar, sources, moved_by(compute))


def build_insert(instruction: Instruction, decoder: Decoder) -> Execute:
    """bfi: the low `length` bits of the first source replace those of the second from `start` on"""
    modifiers = Modifiers(instruction)
    scalar = modifiers.type("b32", "b64")
    modifiers.finish()

    def compute(a: Array, b: Array, start: Array, length: Array) -> Array:
        start, length = start & 0xFF, np.minimum(length & 0xFF, scalar.bits)
        ones = ~scalar.raw.type(0) >> np.minimum(scalar.bits - length, scalar.bits - 1).astype(scalar.raw)
        ones = np.where((length == 0) | (start >= scalar.bits), scalar.raw.type(0), ones)
        place = np.minimum(start, scalar.bits - 1).astype(scalar.raw)
        return (b & ~(ones << place)) | ((a & ones) << place)

    destination, a, b, *place_and_length = decoder.operands(instruction, 5)
    sources = [decoder.source(a, scalar), decoder.source(b, scalar)]
    sources += [decoder.source(each, TYPES["u32"]) for each in place_and_length]
    return elementwise(compute, decoder.destination(destination, scalar), scalar, sources)


def reverse_bits(a: Array) -> Array:
    bits = np.unpackbits(a.reshape(-1, 1).view(np.uint8), axis=1, bitorder="little")
    return np.packbits(bits[:, ::-1], axis=1, bitorder="little").view(a.dtype).reshape(-1)


def build_reverse(instruction: Instruction, decoder: Decoder) -> Execute:
    modifiers = Modifiers(instruction)
    scalar = modifiers.type("b32", "b64")
    modifiers.finish()
    return plain(decoder, decoder.operands(instruction, 2), scalar, reverse_bits, moved_by(reverse_bits))


def leading_zeros(a: Array) -> Array:
    filled = a
    for shift in (1, 2, 4, 8, 16, 32):
        if shift < a.dtype.itemsize * 8:
            filled = filled | (filled >> a.dtype.type(shift))
    return np.uint32(a.dtype.itemsize * 8) - np.bitwise_count(filled)


def build_count(instruction: Instruction, decoder: Decoder) -> Execute:
    """popc, clz: 32 bits, whatever the source has"""
    modifiers = Modifiers(instruction)
    scalar = modifiers.type("b32", "b64")
    modifiers.finish()
    counts: dict[str, Callable[[Array], Array]] = {"popc": np.bitwise_count, "clz": leading_zeros}
    count = counts[instruction.opcode]
    destination, value = decoder.operands(instruction, 2)
    result = TYPES["u32"]
    source = decoder.source(value, scalar)
    return elementwise(lambda a: count(a).astype(np.uint32), decoder.destination(destination, result), result, [source])


def build_find(instruction: Instruction, decoder: Decoder) -> Execute:
    """bfind: the place of the highest bit set, -1 where there is none"""
    modifiers = Modifiers(instruction)
    from_top = modifiers.flag("shiftamt")
    scalar = modifiers.type("u32", "u64")
    modifiers.finish()

    def compute(a: Array) -> Array:
        zeros = leading_zeros(a).astype(np.uint32)
        place = zeros if from_top else np.uint32(scalar.bits - 1) - zeros
        return np.where(a == 0, np.uint32(0xFFFFFFFF), place)

    destination, value = decoder.operands(instruction, 2)
    result = TYPES["u32"]
    return elementwise(compute, decoder.destination(destination, result), result, [decoder.source(value, scalar)])


def permute_bytes(a: Array, b: Array, selector: Array) -> Array:
    """prmt: four bytes of the eight, or the sign of a byte eight times"""
    eight = a.astype(np.uint64) | (b.astype(np.uint64) << np.uint64(32))
    result = np.zeros(1, np.uint64)
    for place in range(4):
        nibble = (selector.astype(np.uint64) >> np.uint64(4 * place)) & np.uint64(15)
        byte = (eight >> ((nibble & np.uint64(7)) * np.uint64(8))) & np.uint64(0xFF)
        sign = np.where(byte & np.uint64(0x80), np.uint64(0xFF), np.uint64(0))
        result = result | (np.where(nibble & np.uint64(8), sign, byte) << np.uint64(8 * place))
    return result.astype(np.uint32)


def build_permute(instruction: Instruction, decoder: Decoder) -> Execute:
    def spread(sources: Sequence[Value], result: ScalarType) -> Array:
        (_, a), (_, b), (selector, selector_undefined) = sources
        if selector_undefined is not None:
            return any_bit(sources, result)
        zero = np.zeros(1, np.uint32)
        return permute_bytes(zero if a is None else a, zero if b is None else b, selector)

    modifiers = Modifiers(instruction)
    scalar = modifiers.type("b32")
    modifiers.finish()
    return plain(decoder, decoder.operands(instruction, 4), scalar, permute_bytes, spread)


def build_lop3(instruction: Instruction, decoder: Decoder) -> Execute:
    modifiers = Modifiers(instruction)
    scalar = modifiers.type("b32")
    modifiers.finish()
    *operands, table_operand = decoder.operands(instruction, 5)
    table = decoder.constant(table_operand)

    def compute(a: Array, b: Array, c: Array) -> Array:
        result = np.zeros(1, np.uint32)
        for case in range(8):
            if table >> case & 1:
                result = result | ((a if case & 4 else ~a) & (b if case & 2 else ~b) & (c if case & 1 else ~c))
        return result

    return plain(decoder, operands, scalar, compute, same_bits)


def build_dot_product(instruction: Instruction, decoder: Decoder) -> Execute:
    """dp4a: four products of bytes, added to the third source"""
    modifiers = Modifiers(instruction)
    a_type, b_type = modifiers.type("u32", "s32"), modifiers.type("u32", "s32")
    modifiers.finish()
    result = TYPES["u32"] if a_type == b_type == TYPES["u32"] else TYPES["s32"]

    def compute(a: Array, b: Array, c: Array) -> Array:
        bytes_of = (x.reshape(-1, 1).view(f"{x.dtype.kind}1").astype(np.int64) for x in (a, b))
        return (np.multiply(*bytes_of).sum(1) + c).astype(result.dtype)

    destination, a, b, c = decoder.operands(instruction, 4)
    sources = [decoder.source(a, a_type), decoder.source(b, b_type), decoder.source(c, result)]
    return elementwise(compute, decoder.destination(destination, result), result, sources)


def build_logic(instruction: Instruction, decoder: Decoder) -> Execute:
    """and, or, xor, not"""
    modifiers = Modifiers(instruction)
    scalar = modifiers.type("bits", "pred")
    modifiers.finish()
    compute, spread, count = {
        "and": (np.bitwise_and, both_ways(0), 3),
        "or": (np.bitwise_or, both_ways(1), 3),
        "xor": (np.bitwise_xor, same_bits, 3),
        "not": (np.invert, same_bits, 2),
    }[instruction.opcode]
    return plain(decoder, decoder.operands(instruction, count), scalar, compute, spread)


def build_add(instruction: Instruction, decoder: Decoder) -> Execute:
    """add, sub, min, max for integers"""
    modifiers = Modifiers(instruction)
    scalar = modifiers.type(*INTEGERS)
    modifiers.finish()
    compute = {"add": np.add, "sub": np.subtract, "min": np.minimum, "max": np.maximum}[instruction.opcode]
    return plain(decoder, decoder.operands(instruction, 3), scalar, compute)


def build_sign(instruction: Instruction, decoder: Decoder) -> Execute:
    """neg, abs for integers"""
    modifiers = Modifiers(instruction)
    scalar = modifiers.type("signed")
    modifiers.finish()
    compute = {"neg": np.negative, "abs": np.abs}[instruction.opcode]
    return plain(decoder, decoder.operands(instruction, 2), scalar, compute)


OPERATIONS: dict[str, Builder] = {
    **dict.fromkeys(("and", "or", "xor", "not"), build_logic),
    **dict.fromkeys(("shl", "shr"), build_shift),
    **dict.fromkeys(("popc", "clz"), build_count),
    "shf": build_funnel_shift,
    "bfe": build_extract,
    "bfi": build_insert,
    "bfind": build_find,
    "brev": build_reverse,
    "prmt": build_permute,
    "dp4a": build_dot_product,
    "lop3": build_lop3,
}
