"""Floating-point arithmetic: rounded once, as the hardware does; the approximations are computed exactly instead."""

from __future__ import annotations

from collections.abc import Callable

import numpy as np

from ptx.decode import Builder, Decoder, Execute, Modifiers
from ptx.elementwise import Compute, plain, same_bits
from ptx.errors import PtxError
from ptx.parser import Instruction
from ptx.scalars import Array, ScalarType, decode, encode, flush_subnormals, fma, fma_directed

FLOATS = ("f32", "f64", "f16", "bf16", "f16x2", "bf16x2")


def _smaller(a: Array, b: Array) -> Array:
    """min: of a number and NaN the number, and -0 below +0"""
    return np.where((a == 0) & (b == 0), np.where(np.signbit(a), a, b), np.fmin(a, b))


def _larger(a: Array, b: Array) -> Array:
    return np.where((a == 0) & (b == 0), np.where(np.signbit(a), b, a), np.fmax(a, b))


def _or_nan(compute: Compute) -> Compute:
    return lambda a, b: np.where(np.isnan(a) | np.isnan(b), a.dtype.type(np.nan), compute(a, b))


def on_bits(compute: Compute, scalar: ScalarType, flush: bool, saturate: bool = False, relu: bool = False) -> Compute:
    """`compute` on values, made to take and give bits."""

    def on_raw(*raw: Array) -> Array:
        values = [decode(each.view(scalar.raw), scalar) for each in raw]
        if flush:
            values = [flush_subnormals(each) for each in values]
        result = compute(*values)
        if saturate:
            result = np.where(np.isnan(result), 0, np.clip(result, 0, 1)).astype(result.dtype)
        if relu:
            result = np.where(result > 0, result, np.where(np.isnan(result), result, result.dtype.type(0)))
        if flush:
            result = flush_subnormals(result.astype(np.float32))
        return encode(result, scalar)

    return on_raw


def _build(instruction: Instruction, decoder: Decoder, modifiers: Modifiers, compute: Compute, sources: int) -> Execute:
    """The modifiers that are left are .ftz, .sat and the type."""
    flush = modifiers.flag("ftz")
    saturate = modifiers.flag("sat")
    relu = modifiers.flag("relu") if instruction.opcode == "fma" else False
    scalar = modifiers.type(*FLOATS)
    modifiers.finish()
    if flush and scalar.name != "f32":
        raise PtxError(f".ftz with .{scalar.name}")
    operands = decoder.operands(instruction, sources + 1)
    return plain(decoder, operands, scalar, on_bits(compute, scalar, flush, saturate, relu))


def _build_directed(instruction: Instruction, decoder: Decoder, modifiers: Modifiers, mode: str) -> Execute:
    """add, sub, mul, fma with a rounding other than to the nearest"""
    scalar = modifiers.type("f32")
    modifiers.finish()
    one, zero = np.ones(1, np.float32), np.zeros(1, np.float32)

    def compute(*raw: Array) -> Array:
        a, b, *c = (decode(each.view(scalar.raw), scalar) for each in raw)
        if instruction.opcode in ("add", "sub"):
            return fma_directed(a, one, b if instruction.opcode == "add" else -b, mode)
        # The product alone keeps its sign when it is zero.
        sign_of_product = np.where(np.signbit(a) ^ np.signbit(b), -zero, zero)
        return fma_directed(a, b, c[0] if c else sign_of_product, mode)

    operands = decoder.operands(instruction, 4 if instruction.opcode == "fma" else 3)
    return plain(decoder, operands, scalar, compute)


_DIRECTED = ("rz", "rm", "rp")


def build_add(instruction: Instruction, decoder: Decoder) -> Execute:
    """add, sub, mul"""
    modifiers = Modifiers(instruction)
    if mode := modifiers.take(*_DIRECTED):
        return _build_directed(instruction, decoder, modifiers, mode)
    modifiers.take("rn")  # the default
    compute = {"add": np.add, "sub": np.subtract, "mul": np.multiply}[instruction.opcode]
    return _build(instruction, decoder, modifiers, compute, 2)


def build_fma(instruction: Instruction, decoder: Decoder) -> Execute:
    """fma, and mad, which is the same for floats"""
    modifiers = Modifiers(instruction)
    if instruction.opcode == "fma" and (mode := modifiers.take(*_DIRECTED)):
        return _build_directed(instruction, decoder, modifiers, mode)
    modifiers.require("rn")
    scalar = Modifiers(instruction).type("f32", "f16", "bf16", "f16x2", "bf16x2")
    return _build(instruction, decoder, modifiers, lambda a, b, c: fma(a, b, c, scalar), 3)


def build_minimum(instruction: Instruction, decoder: Decoder) -> Execute:
    """min, max"""
    modifiers = Modifiers(instruction)
    compute = {"min": _smaller, "max": _larger}[instruction.opcode]
    if modifiers.flag("NaN"):
        compute = _or_nan(compute)
    return _build(instruction, decoder, modifiers, compute, 2)


def build_sign(instruction: Instruction, decoder: Decoder) -> Execute:
    """neg, abs: the sign bit alone, NaN or not"""
    modifiers = Modifiers(instruction)
    flush = modifiers.flag("ftz")
    scalar = modifiers.type(*FLOATS)
    modifiers.finish()
    element = scalar.element
    sign = 1 << (element.bits - 1)
    if scalar.kind == "packed":
        sign |= sign << 16
    mask = scalar.raw.type(sign)
    negates = instruction.opcode == "neg"

    def compute(a: Array) -> Array:
        raw = a.view(scalar.raw)
        raw = raw ^ mask if negates else raw & ~mask
        return flush_subnormals(raw.view(np.float32)).view(np.uint32) if flush else raw

    return plain(decoder, decoder.operands(instruction, 2), scalar, compute, same_bits)


def build_copysign(instruction: Instruction, decoder: Decoder) -> Execute:
    """The sign of the first source with the magnitude of the second."""
    modifiers = Modifiers(instruction)
    scalar = modifiers.type("f32", "f64")
    modifiers.finish()
    return plain(decoder, decoder.operands(instruction, 3), scalar, lambda a, b: np.copysign(b, a))


def build_divide(instruction: Instruction, decoder: Decoder) -> Execute:
    modifiers = Modifiers(instruction)
    modifiers.require("rn", "full", "approx")
    return _build(instruction, decoder, modifiers, np.divide, 2)


def _through_f64(function: Callable[[Array], Array]) -> Compute:
    return lambda a: function(a.astype(np.float64))


_FUNCTIONS: dict[str, tuple[Compute, tuple[str, ...]]] = {
    "rcp": (lambda a: 1 / a, ("rn", "approx")),
    "sqrt": (np.sqrt, ("rn", "approx")),
    "rsqrt": (_through_f64(lambda a: 1 / np.sqrt(a)), ("approx",)),
    "ex2": (_through_f64(np.exp2), ("approx",)),
    "lg2": (_through_f64(np.log2), ("approx",)),
    "sin": (_through_f64(np.sin), ("approx",)),
    "cos": (_through_f64(np.cos), ("approx",)),
    "tanh": (_through_f64(np.tanh), ("approx",)),
}


def build_function(instruction: Instruction, decoder: Decoder) -> Execute:
    compute, ways = _FUNCTIONS[instruction.opcode]
    modifiers = Modifiers(instruction)
    modifiers.require(*ways)
    return _build(instruction, decoder, modifiers, compute, 1)


OPERATIONS: dict[str, Builder] = {
    "fma": build_fma,
    "copysign": build_copysign,
    **dict.fromkeys(_FUNCTIONS, build_function),
}
