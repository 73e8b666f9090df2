"""cvt: between integers and floats, in every rounding that Triton and nvcc emit for sm_80."""

from __future__ import annotations

import numpy as np

from ptx.decode import Builder, Decoder, Execute, Modifiers
from ptx.elementwise import Compute, elementwise, moved_by
from ptx.errors import PtxError
from ptx.lanes import Source
from ptx.operands import Operand
from ptx.parser import Instruction
from ptx.scalars import TYPES, Array, ScalarType, decode, encode, flush_subnormals, round_directed, round_tf32

_TO_INTEGRAL = {"rni": np.rint, "rzi": np.trunc, "rmi": np.floor, "rpi": np.ceil}
_ROUNDINGS = ("rn", "rz", "rm", "rp", "rna", *_TO_INTEGRAL)


def _integer_to_integer(source: ScalarType, result: ScalarType, saturate: bool) -> Compute:
    limits = np.iinfo(result.dtype)

    def compute(a: Array) -> Array:
        if not saturate:
            return a.astype(result.dtype)
        if source.kind == "unsigned":
            return np.minimum(a, a.dtype.type(min(limits.max, np.iinfo(a.dtype).max))).astype(result.dtype)
        low, high = max(limits.min, np.iinfo(a.dtype).min), min(limits.max, np.iinfo(a.dtype).max)
        return np.clip(a, low, high).astype(result.dtype)

    return compute


def _integer_to_float(source: ScalarType, result: ScalarType, rounding: str | None) -> Compute:
    if rounding == "rn":
        if result.name in ("f32", "f64"):
            return lambda a: a.astype(result.dtype).view(result.raw)
        if source.bits < 64:
            return lambda a: encode(a.astype(np.float64), result)
    elif rounding in ("rz", "rm", "rp") and source.bits < 64:
        return lambda a: round_directed(a.astype(np.float64), result, rounding)
    raise PtxError(f"unknown rounding .{rounding} from .{source.name} to .{result.name}")


def _float_to_integer(source: ScalarType, result: ScalarType, rounding: str | None, flush: bool) -> Compute:
    """Clamped to the range of the result; NaN is 0."""
    if rounding not in _TO_INTEGRAL:
        raise PtxError(f"unknown rounding .{rounding} from .{source.name} to .{result.name}")
    to_integral = _TO_INTEGRAL[rounding]
    limits = np.iinfo(result.dtype)

    def compute(a: Array) -> Array:
        values = decode(a.view(source.raw), source)
        values = to_integral(flush_subnormals(values) if flush else values).astype(np.float64)
        inside = (values >= limits.min) & (values < float(limits.max) + 1)
        whole = np.where(inside & (np.abs(values) < 2.0**63), values, 0).astype(np.int64).astype(result.dtype)
        high = inside & (values >= 2.0**63)  # of u64 only
        whole = np.where(high, np.where(high, values, 0).astype(np.uint64).astype(result.dtype), whole)
        clamped = np.where(values > 0, result.dtype.type(limits.max), result.dtype.type(limits.min))
        return np.where(inside, whole, np.where(np.isnan(values), result.dtype.type(0), clamped))

    return compute


def _round_float(values: Array, result: ScalarType, rounding: str | None) -> Array:
    """The bits of `values` in the type `result`."""
    if rounding == "rna":
        return round_tf32(values)
    if rounding in ("rz", "rm", "rp"):
        return round_directed(values.astype(np.float64), result, rounding)
    return encode(values, result)


def _float_to_float(
    source: ScalarType, result: ScalarType, rounding: str | None, flush: bool, saturate: bool, relu: bool
) -> Compute:
    widens = result.bits > source.bits or result == source
    allowed = (None, *_TO_INTEGRAL) if widens else ("rn", "rz", "rm", "rp")
    if result.name == "tf32":
        allowed = ("rna",)
    if rounding not in allowed:
        raise PtxError(f"unknown rounding .{rounding} from .{source.name} to .{result.name}")

    def compute(a: Array) -> Array:
        values = decode(a.view(source.raw), source)
        if flush:
            values = flush_subnormals(values)
        if rounding in _TO_INTEGRAL:
            values = _TO_INTEGRAL[rounding](values)
        if saturate:
            values = np.where(np.isnan(values), 0, np.clip(values, 0, 1)).astype(values.dtype)
        if relu:
            values = np.where(values < 0, values.dtype.type(0), values)
        return _round_float(values, result, rounding)

    return compute


def _build_pair(decoder: Decoder, operands: tuple[Operand, ...], result: ScalarType, rounding: str | None) -> Execute:
    """Two floats into one register; the first source is the high half."""
    element = result.element
    if rounding not in ("rn", "rz") or len(operands) != 3:
        raise PtxError(f"unknown form of a conversion to .{result.name}")

    def compute(high: Array, low: Array) -> Array:
        high, low = (_round_float(each, element, rounding).astype(np.uint32) for each in (high, low))
        return (high << np.uint32(16)) | low

    sources: list[Source] = [decoder.source(operand, TYPES["f32"]) for operand in operands[1:]]
    return elementwise(compute, decoder.destination(operands[0], result), result, sources)


def build_convert(instruction: Instruction, decoder: Decoder) -> Execute:
    modifiers = Modifiers(instruction)
    rounding = modifiers.take(*_ROUNDINGS)
    flush, saturate, relu = modifiers.flag("ftz"), modifiers.flag("sat"), modifiers.flag("relu")
    result, source = modifiers.type(), modifiers.type()
    modifiers.finish()
    if result.kind == "packed" and source.name == "f32" and not (flush or saturate or relu):
        return _build_pair(decoder, instruction.operands, result, rounding)
    if flush and "f32" not in (result.name, source.name):
        raise PtxError(f".ftz from .{source.name} to .{result.name}")
    spread_like_move = False
    if source.is_integer and result.is_integer:
        if rounding or flush or relu:
            raise PtxError("a rounding between integers")
        compute = _integer_to_integer(source, result, saturate)
        spread_like_move = not saturate
    elif relu and (source.kind != "float" or result.kind != "float"):
        raise PtxError("unknown modifier .relu")
    elif source.is_integer and result.kind == "float":
        compute = _integer_to_float(source, result, rounding)
    elif source.kind == "float" and result.is_integer:
        compute = _float_to_integer(source, result, rounding, flush)
    elif source.kind == "float" and result.kind == "float":
        compute = _float_to_float(source, result, rounding, flush, saturate, relu)
    else:
        raise PtxError(f"unknown conversion from .{source.name} to .{result.name}")
    destination, value = decoder.operands(instruction, 2)
    sources: list[Source] = [decoder.source(value, source, wider=True)]
    target = decoder.destination(destination, result, wider=True)
    if spread_like_move:
        return elementwise(compute, target, result, sources, moved_by(compute))
    return elementwise(compute, target, result, sources)


OPERATIONS: dict[str, Builder] = {"cvt": build_convert}
