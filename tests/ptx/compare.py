"""Comparisons and choices: setp, set, selp, testp."""

from __future__ import annotations

from collections.abc import Callable, Sequence

import numpy as np

from ptx.decode import Builder, Decoder, Execute, Modifiers
from ptx.elementwise import any_bit, both_ways, elementwise, same_bits, selected_bits
from ptx.errors import PtxError
from ptx.lanes import Lanes, Value
from ptx.operands import Pair, Sink
from ptx.parser import Instruction
from ptx.scalars import TYPES, Array, ScalarType, decode, flush_subnormals

Compare = Callable[[Array, Array], Array]

_ORDERED: dict[str, Compare] = {
    "eq": np.equal,
    "ne": np.not_equal,
    "lt": np.less,
    "le": np.less_equal,
    "gt": np.greater,
    "ge": np.greater_equal,
}
_UNSIGNED = {"lo": "lt", "ls": "le", "hi": "gt", "hs": "ge"}
_COMBINE = {
    "and": (np.logical_and, both_ways(0)),
    "or": (np.logical_or, both_ways(1)),
    "xor": (np.logical_xor, same_bits),
}


def _unordered(a: Array, b: Array) -> Array:
    return np.isnan(a) | np.isnan(b)


def _float_comparison(name: str) -> Compare:
    if name == "num":
        return lambda a, b: ~_unordered(a, b)
    if name == "nan":
        return _unordered
    if name == "ne":  # of ordered values, unlike NumPy's
        return lambda a, b: (a != b) & ~_unordered(a, b)
    if name in _ORDERED:
        return _ORDERED[name]
    ordered = _ORDERED[name[:2]]
    return lambda a, b: ordered(a, b) | _unordered(a, b)


def _comparison(name: str, scalar: ScalarType, flush: bool) -> Compare:
    """On values as the sources give them."""
    if scalar.kind == "float":
        compare = _float_comparison(name)

        def on_raw(a: Array, b: Array) -> Array:
            values = [decode(each.view(scalar.raw), scalar) for each in (a, b)]
            if flush:
                values = [flush_subnormals(each) for each in values]
            return compare(*values)

        return on_raw
    if scalar.kind == "bits" and name not in ("eq", "ne"):
        raise PtxError(f".{name} of .{scalar.name}")
    if scalar.kind == "signed" and name in _UNSIGNED:
        raise PtxError(f".{name} of .{scalar.name}")
    name = _UNSIGNED.get(name, name)
    if name not in _ORDERED:
        raise PtxError(f".{name} of .{scalar.name}")
    return _ORDERED[name]


_FLOAT_ONLY = ("equ", "neu", "ltu", "leu", "gtu", "geu", "num", "nan")


def build_set_predicate(instruction: Instruction, decoder: Decoder) -> Execute:
    modifiers = Modifiers(instruction)
    name = modifiers.require(*_ORDERED, *_UNSIGNED, *_FLOAT_ONLY)
    combine = modifiers.take(*_COMBINE)
    flush = modifiers.flag("ftz")
    scalar = modifiers.type("bits", "unsigned", "signed", "f16", "bf16", "f32", "f64")
    modifiers.finish()
    compare = _comparison(name, scalar, flush)
    result, a, b, *others = decoder.operands(instruction, 4 if combine else 3)
    both = result if isinstance(result, Pair) else Pair(result, Sink())
    predicate = TYPES["pred"]
    yes, no = decoder.destination(both.first, predicate), decoder.destination(both.second, predicate)
    sources = [decoder.source(a, scalar), decoder.source(b, scalar)]
    other = decoder.source(others[0], predicate) if others else None

    def combined(value: Value, lanes: Lanes) -> Value:
        if other is None or combine is None:
            return value
        compute, spread = _COMBINE[combine]
        second = other.read(lanes)
        defined = value[1] is None and second[1] is None
        return compute(value[0], second[0]), None if defined else spread([value, second], predicate)

    def execute(lanes: Lanes) -> None:
        values: Sequence[Value] = [source.read(lanes) for source in sources]
        defined = all(bits is None for _, bits in values)
        undefined = None if defined else any_bit(values, predicate)
        holds = compare(*(value for value, _ in values))
        yes_value, no_value = combined((holds, undefined), lanes), combined((~holds, undefined), lanes)
        yes.write(lanes, *yes_value)
        no.write(lanes, *no_value)

    return execute


def build_set(instruction: Instruction, decoder: Decoder) -> Execute:
    """set: all ones, or 1.0, where the comparison holds"""
    modifiers = Modifiers(instruction)
    name = modifiers.require(*_ORDERED, *_UNSIGNED, *_FLOAT_ONLY)
    flush = modifiers.flag("ftz")
    result = modifiers.type("u32", "s32", "f32")
    scalar = modifiers.type("bits", "unsigned", "signed", "f16", "bf16", "f32", "f64")
    modifiers.finish()
    compare = _comparison(name, scalar, flush)
    yes = np.uint32(0x3F800000 if result.name == "f32" else 0xFFFFFFFF)
    destination, *operands = decoder.operands(instruction, 3)
    sources = [decoder.source(operand, scalar) for operand in operands]
    return elementwise(
        lambda a, b: np.where(compare(a, b), yes, np.uint32(0)),
        decoder.destination(destination, result),
        result,
        sources,
    )


def build_select(instruction: Instruction, decoder: Decoder) -> Execute:
    modifiers = Modifiers(instruction)
    scalar = modifiers.type("bits", "unsigned", "signed", "f32", "f64")
    modifiers.finish()
    destination, a, b, condition = decoder.operands(instruction, 4)
    sources = [decoder.source(a, scalar), decoder.source(b, scalar), decoder.source(condition, TYPES["pred"])]
    return elementwise(_choose, decoder.destination(destination, scalar), scalar, sources, selected_bits)


def _choose(a: Array, b: Array, condition: Array) -> Array:
    return np.where(condition, a, b)


def _is_subnormal(a: Array) -> Array:
    return (a != 0) & (np.abs(a) < np.finfo(a.dtype).tiny)


_TESTS: dict[str, Callable[[Array], Array]] = {
    "finite": np.isfinite,
    "infinite": np.isinf,
    "number": lambda a: ~np.isnan(a),
    "notanumber": np.isnan,
    "normal": lambda a: np.isfinite(a) & (a != 0) & ~_is_subnormal(a),
    "subnormal": _is_subnormal,
}


def build_test(instruction: Instruction, decoder: Decoder) -> Execute:
    modifiers = Modifiers(instruction)
    test = _TESTS[modifiers.require(*_TESTS)]
    scalar = modifiers.type("f32", "f64")
    modifiers.finish()
    destination, value = decoder.operands(instruction, 2)
    predicate = TYPES["pred"]
    return elementwise(test, decoder.destination(destination, predicate), predicate, [decoder.source(value, scalar)])


OPERATIONS: dict[str, Builder] = {
    "setp": build_set_predicate,
    "set": build_set,
    "selp": build_select,
    "testp": build_test,
}
