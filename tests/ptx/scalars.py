"""The scalar types of PTX, and bfloat16, float16, TensorFloat-32 and float32 as bits and as values."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

Array = NDArray[Any]


@dataclass(frozen=True)
class ScalarType:
    """A PTX type: `dtype` is how its values are computed with, `raw` how a register holds them."""

    name: str
    kind: str  # pred, bits, unsigned, signed, float; packed is two floats of 16 bits
    bits: int
    dtype: np.dtype[Any]
    raw: np.dtype[Any]

    @property
    def bytes(self) -> int:
        return self.bits // 8

    @property
    def is_integer(self) -> bool:
        return self.kind in ("bits", "unsigned", "signed")

    @property
    def element(self) -> ScalarType:
        """The type of one half of a packed pair; any other type is its own element."""
        return TYPES[self.name.removesuffix("x2")]


def _types() -> dict[str, ScalarType]:
    types = {"pred": ScalarType("pred", "pred", 1, np.dtype(np.bool_), np.dtype(np.bool_))}
    for bits in (8, 16, 32, 64):
        raw = np.dtype(f"u{bits // 8}")
        types[f"b{bits}"] = ScalarType(f"b{bits}", "bits", bits, raw, raw)
        types[f"u{bits}"] = ScalarType(f"u{bits}", "unsigned", bits, raw, raw)
        types[f"s{bits}"] = ScalarType(f"s{bits}", "signed", bits, np.dtype(f"i{bits // 8}"), raw)
    for name, bits in (("f32", 32), ("f64", 64)):
        types[name] = ScalarType(name, "float", bits, np.dtype(f"f{bits // 8}"), np.dtype(f"u{bits // 8}"))
    for name in ("f16", "bf16"):  # computed with as float32: `decode` and `encode`
        types[name] = ScalarType(name, "float", 16, np.dtype(np.uint16), np.dtype(np.uint16))
        types[f"{name}x2"] = ScalarType(f"{name}x2", "packed", 32, np.dtype(np.uint32), np.dtype(np.uint32))
    types["tf32"] = ScalarType("tf32", "float", 32, np.dtype(np.uint32), np.dtype(np.uint32))
    return types


TYPES = _types()

_CANONICAL_NAN = {"f16": 0x7FFF, "bf16": 0x7FFF, "f32": 0x7FFFFFFF, "f64": 0x7FFFFFFFFFFFFFFF}
_SMALLEST_NORMAL_F32 = np.float32(2.0**-126)


def decode(raw: Array, scalar: ScalarType) -> Array:
    """The values of float bits, as float32 (f64: float64). A packed pair gets one more axis, low half first."""
    if scalar.kind == "packed":
        return decode(raw.reshape(-1, 1).view(np.uint16), scalar.element)
    if scalar.name == "bf16":
        return (raw.astype(np.uint32) << np.uint32(16)).view(np.float32)
    if scalar.name == "f16":
        return raw.view(np.float16).astype(np.float32)
    if scalar.name == "tf32":  # the tensor cores do not look at the low 13 bits
        return (raw & np.uint32(0xFFFFE000)).view(np.float32)
    return raw.view(scalar.dtype)


def encode(values: Array, scalar: ScalarType) -> Array:
    """The bits of float32 or float64 values, rounded to the nearest, ties to even; NaN as the hardware writes it."""
    if scalar.kind == "packed":
        return np.ascontiguousarray(encode(values, scalar.element)).view(np.uint32).reshape(-1)
    nan = np.isnan(values)
    if scalar.name == "bf16":
        raw = _bf16_bits(values if values.dtype == np.float32 else round_to_odd_f32(values))
    elif scalar.name == "f16":
        raw = values.astype(np.float16).view(np.uint16)
    else:
        raw = values.astype(scalar.dtype, copy=False).view(scalar.raw)
    return np.where(nan, scalar.raw.type(_CANONICAL_NAN[scalar.name]), raw) if nan.any() else raw


def _bf16_bits(values: Array) -> Array:
    bits = values.view(np.uint32).astype(np.uint64)
    return ((bits + 0x7FFF + ((bits >> 16) & 1)) >> 16).astype(np.uint16)


def round_to_odd_f32(values: Array) -> Array:
    """float64 to float32 so that a second rounding, to fewer bits, gives what a single one would have given."""
    narrow = values.astype(np.float32)
    wide = narrow.astype(np.float64)
    inexact_even = (wide != values) & ((narrow.view(np.uint32) & 1) == 0)
    toward = np.where(values > wide, np.float32(np.inf), np.float32(-np.inf))
    return np.where(inexact_even, np.nextafter(narrow, toward), narrow)


def round_directed(values: Array, scalar: ScalarType, mode: str) -> Array:
    """The bits of `values` (float64) rounded toward zero (rz), -infinity (rm) or +infinity (rp)."""
    raw = encode(values, scalar)
    back = decode(raw, scalar).astype(np.float64)
    up = {"rz": values < 0, "rm": np.zeros(values.shape, bool), "rp": np.ones(values.shape, bool)}[mode]
    wrong = np.where(up, back < values, back > values)
    # One step on the grid of the format: the magnitude is the integer below the sign bit. A step away from zero
    # starts at a zero that `values` is beyond, and that zero has the sign of `values`.
    grows = np.where(up, values > 0, values < 0)
    step = np.where(grows, 1, -1).astype(np.int64)
    return np.where(wrong, (raw.astype(np.int64) + step).astype(raw.dtype), raw)


def round_tf32(values: Array) -> Array:
    """The bits of float32 values rounded to 10 bits of mantissa, ties away from zero (cvt.rna.tf32.f32)."""
    raw = values.view(np.uint32)
    rounded = (raw + np.uint32(0x1000)) & np.uint32(0xFFFFE000)
    return np.where(np.isfinite(values), rounded, np.where(np.isnan(values), np.uint32(0x7FFFFFFF), raw))


def flush_subnormals(values: Array) -> Array:
    """.ftz: float32 subnormals become zeros of the same sign."""
    return np.where(np.abs(values) < _SMALLEST_NORMAL_F32, np.copysign(np.float32(0), values), values)


def fma(a: Array, b: Array, c: Array, scalar: ScalarType) -> Array:
    """a * b + c of float32 values, as float64 that `encode` rounds to `scalar` as one single rounding would have."""
    product = a.astype(np.float64) * b  # exact: 48 bits
    total = product + c
    if scalar.element.bits == 16:
        return _fma_odd(product, c.astype(np.float64), total)
    bits = total.view(np.uint64)
    # A second rounding goes wrong only where the first one has made up a tie: in a normal float32 the low 29 bits.
    tie = (bits & np.uint64(0x1FFFFFFF)) == np.uint64(0x10000000)
    if not (tie | (np.abs(total) < _SMALLEST_NORMAL_F32)).any():
        return total
    return _fma_odd(product, c.astype(np.float64), total)


def fma_directed(a: Array, b: Array, c: Array, mode: str) -> Array:
    """The bits of a * b + c of float32 values, rounded in the direction `mode`."""
    product, c = a.astype(np.float64) * b, c.astype(np.float64)
    total = _fma_odd(product, c, product + c)
    if mode == "rm":  # then x - x is -0
        total = np.where((total == 0) & (np.signbit(product) | np.signbit(c)), -0.0, total)
    return round_directed(total, TYPES["f32"], mode)


def _fma_odd(product: Array, c: Array, total: Array) -> Array:
    """product + c, rounded to odd: `total` is the rounded sum, the lost part is computed without an error (2Sum)."""
    back = total - product
    lost = (product - (total - back)) + (c - back)
    inexact_even = np.isfinite(lost) & (lost != 0) & ((total.view(np.uint64) & np.uint64(1)) == 0)
    return np.where(inexact_even, np.nextafter(total, np.where(lost > 0, np.inf, -np.inf)), total)
