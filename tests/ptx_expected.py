"""What PTX operations compute, in NumPy, PyTorch or plain Python, apart from the interpreter: for ptx_cases.py."""

from __future__ import annotations

import math
from collections.abc import Callable
from fractions import Fraction
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray

Array = NDArray[Any]
DType = np.dtype[Any]
U16, U32 = np.dtype("u2"), np.dtype("u4")
F32, F64 = np.dtype("f4"), np.dtype("f8")


def each(function: Callable[..., Any], dtype: DType) -> Callable[..., Array]:
    """A function of Python numbers, for every lane; integers wrap around."""

    def on_arrays(*arrays: Array) -> Array:
        values = [function(*lane) for lane in zip(*(array.tolist() for array in arrays))]
        if dtype.kind == "f":
            return np.array(values, dtype)
        return np.array([value % (1 << 8 * dtype.itemsize) for value in values], f"u{dtype.itemsize}").view(dtype)

    return on_arrays


def truncated(a: int, b: int) -> int:
    return abs(a) // abs(b) * (1 if (a < 0) == (b < 0) else -1)


def extract(a: int, start: int, length: int, bits: int, signed: bool) -> int:
    """bfe, as the manual's pseudocode has it"""
    start, length = start & 0xFF, length & 0xFF
    last = min(start + length - 1, bits - 1)
    fill = (a >> last) & 1 if signed and length else 0
    taken = [(a >> (start + i)) & 1 if i < length and start + i < bits else fill for i in range(bits)]
    return sum(bit << i for i, bit in enumerate(taken))


def insert(a: int, b: int, start: int, length: int) -> int:
    for i in range(length & 0xFF):
        place = (start & 0xFF) + i
        if place < 32:
            b = b & ~(1 << place) | ((a >> i) & 1) << place
    return b


def permute(a: int, b: int, selector: int) -> int:
    both, result = a | b << 32, 0
    for i in range(4):
        nibble = selector >> 4 * i & 15
        byte = both >> 8 * (nibble & 7) & 255
        result |= ((255 if byte & 128 else 0) if nibble & 8 else byte) << 8 * i
    return result


def dot_of_bytes(a: int, b: int, c: int, signed: bool) -> int:
    pairs = zip(*((value % 2**32).to_bytes(4, "little") for value in (a, b)))
    sign = 128 if signed else 0
    return c + sum(((x ^ sign) - sign) * ((y ^ sign) - sign) for x, y in pairs)


def nearest(exact: Fraction, dtype: torch.dtype) -> float:
    """The value of `dtype` next to `exact`; of two as near, the even one."""
    bits = torch.int32 if dtype == torch.float32 else torch.int16
    near = torch.tensor(float(exact), dtype=torch.float64).to(dtype)
    if not near.isfinite():
        return float(near)
    raw = near.view(bits)
    candidates = [candidate.view(dtype) for candidate in (raw, raw + 1, raw - 1)]
    finite = [candidate for candidate in candidates if candidate.isfinite()]
    return float(min(finite, key=lambda value: (abs(Fraction(float(value)) - exact), int(value.view(bits)) & 1)))


def directed(exact: Fraction, mode: str) -> float:
    """The float32 next to `exact` toward zero (rz), below (rm) or above (rp)."""
    below = mode == "rm" or (mode == "rz" and exact > 0)
    near = np.float32(nearest(exact, torch.float32))
    steps = np.nextafter(near, np.float32(-np.inf)), near, np.nextafter(near, np.float32(np.inf))
    values = [Fraction(float(each)) if np.isfinite(each) else float(each) for each in steps]
    fits = [each for each, value in zip(steps, values) if (value <= exact if below else value >= exact)]
    return float(max(fits) if below else min(fits))


def fma_directed(mode: str) -> Callable[..., Array]:
    def rounded_once(a: float, b: float, c: float) -> float:
        exact = Fraction(a) * Fraction(b) + Fraction(c) if all(map(math.isfinite, (a, b, c))) else Fraction(0)
        if exact:
            return directed(exact, mode)
        total = float(np.float64(a) * np.float64(b) + np.float64(c))
        negative = math.copysign(1, a) * math.copysign(1, b) < 0 or math.copysign(1, c) < 0
        return -0.0 if total == 0 and mode == "rm" and negative else total

    return each(rounded_once, F32)


def fma(dtype: torch.dtype) -> Callable[..., Array]:
    def rounded_once(a: float, b: float, c: float) -> float:
        if not all(map(math.isfinite, (a, b, c))) or a * b + c == 0:
            return float(np.float64(a) * np.float64(b) + np.float64(c))
        return nearest(Fraction(a) * Fraction(b) + Fraction(c), dtype)

    return each(rounded_once, F32)


def smaller(a: Array, b: Array) -> Array:
    """Of a number and NaN the number; -0 is below +0."""
    zeros = np.where(np.signbit(a), a, b)
    return np.where((a == 0) & (b == 0), zeros, np.fmin(a, b))


def larger_or_nan(a: Array, b: Array) -> Array:
    return np.where(np.isnan(a) | np.isnan(b), F32.type(np.nan), -smaller(-a, -b))


def saturated(values: Array, dtype: DType) -> Array:
    """Of integral floats; NaN is 0."""
    low, high = np.iinfo(dtype).min, np.iinfo(dtype).max
    return np.array([0 if math.isnan(v) else int(min(max(v, low), high)) for v in values.tolist()], dtype)


def toward_zero(values: Array) -> Array:
    """float64 to float32"""
    near = values.astype(F32)
    return np.where(np.abs(near.astype(F64)) > np.abs(values), np.nextafter(near, F32.type(0)), near)


def to_bf16(values: Array) -> Array:
    """float32 -> bfloat16 -> float32"""
    return torch.from_numpy(values.astype(F32)).bfloat16().float().numpy()


def half_bits(values: Array, dtype: torch.dtype) -> Array:
    """As uint32; NaN is 0x7FFF."""
    narrow = torch.from_numpy(values).to(dtype)
    return np.where(np.isnan(values), 0x7FFF, narrow.view(torch.int16).numpy().view(U16)).astype(U32)


def pair_of(dtype: torch.dtype) -> Callable[[Array, Array], Array]:
    """The first value is the high half."""
    return lambda a, b: half_bits(a, dtype) << 16 | half_bits(b, dtype)


def tf32(value: float) -> float:
    """10 bits of mantissa, ties away from zero"""
    if not math.isfinite(value) or value == 0:
        return value
    mantissa, exponent = math.frexp(abs(value))
    return math.copysign(math.ldexp(math.floor(mantissa * 2**11 + 0.5), exponent - 11), value)


def of_torch(function: Callable[[torch.Tensor], torch.Tensor]) -> Callable[[Array], Array]:
    return lambda a: function(torch.from_numpy(a)).numpy()


def unordered(compare: Callable[[Array, Array], Array]) -> Callable[[Array, Array], Array]:
    return lambda a, b: compare(a, b) | np.isnan(a) | np.isnan(b)
