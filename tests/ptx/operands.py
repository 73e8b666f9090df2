"""The operands of PTX instructions, parsed once."""

from __future__ import annotations

import re
import struct
from collections.abc import Callable
from dataclasses import dataclass

from ptx.errors import PtxError
from ptx.scalars import ScalarType


@dataclass(frozen=True)
class Register:
    name: str
    index: int  # in the register file of the kernel
    type: ScalarType  # as declared: only its width counts


@dataclass(frozen=True)
class Negated:
    """!%p, a predicate that counts when it is false."""

    register: Register


@dataclass(frozen=True)
class Immediate:
    value: int


@dataclass(frozen=True)
class FloatImmediate:
    """0f3F800000 or 0d3FF0000000000000: the bits of a float."""

    raw: int
    bits: int


@dataclass(frozen=True)
class Special:
    """%tid.x and its like."""

    name: str


@dataclass(frozen=True)
class Symbol:
    """A name that is not a register: a variable, a parameter or a label."""

    name: str


@dataclass(frozen=True)
class Sink:
    """_, a result that nobody wants."""


@dataclass(frozen=True)
class Address:
    """[base + offset_bytes]"""

    base: Register | Symbol | Immediate
    offset_bytes: int


@dataclass(frozen=True)
class Vector:
    """{a, b, ...}"""

    elements: tuple[Operand, ...]


@dataclass(frozen=True)
class Pair:
    """%r|%p, a result and the predicate that goes with it."""

    first: Operand
    second: Operand


Operand = Register | Negated | Immediate | FloatImmediate | Special | Symbol | Sink | Address | Vector | Pair

_INTEGER = re.compile(r"[+-]?(0[xX][0-9a-fA-F]+|0[bB][01]+|\d+)U?")
_FLOAT_BITS = re.compile(r"0([fFdD])([0-9a-fA-F]{8}|[0-9a-fA-F]{16})")
_DECIMAL = re.compile(r"-?\d+\.\d*")
_NAME = re.compile(r"[A-Za-z_$%][\w$]*")
_SPECIAL = re.compile(r"%\w+(\.[xyzw])?")
_ADDRESS = re.compile(r"([^\s+-]+)\s*(?:\+\s*(-?\w+)|(-\s*\w+))?")


def split_operands(text: str) -> list[str]:
    """The comma-separated operands; commas inside {} and [] do not count."""
    parts, depth, start = [], 0, 0
    for position, character in enumerate(text):
        depth += (character in "{[") - (character in "}]")
        if character == "," and depth == 0:
            parts.append(text[start:position].strip())
            start = position + 1
    last = text[start:].strip()
    return [*parts, last] if last or parts else []


def parse_operand(text: str, find_register: Callable[[str], Register | None]) -> Operand:
    if text == "_":
        return Sink()
    if text.startswith("{") and text.endswith("}"):
        return Vector(tuple(parse_operand(part, find_register) for part in split_operands(text[1:-1])))
    if text.startswith("[") and text.endswith("]"):
        return _parse_address(text[1:-1].strip(), find_register)
    if text.startswith("!"):
        register = find_register(text[1:].strip())
        if register is None:
            raise PtxError(f"expected a predicate after !, got {text}")
        return Negated(register)
    if "|" in text:
        first, _, second = text.partition("|")
        return Pair(parse_operand(first.strip(), find_register), parse_operand(second.strip(), find_register))
    return _parse_atom(text, find_register)


def _parse_atom(text: str, find_register: Callable[[str], Register | None]) -> Operand:
    if _INTEGER.fullmatch(text):
        return Immediate(_integer(text))
    if match := _FLOAT_BITS.fullmatch(text):
        bits = 32 if match[1] in "fF" else 64
        if len(match[2]) * 4 != bits:
            raise PtxError(f"a float constant of the wrong length: {text}")
        return FloatImmediate(int(match[2], 16), bits)
    if _DECIMAL.fullmatch(text):
        return FloatImmediate(struct.unpack("<Q", struct.pack("<d", float(text)))[0], 64)
    if register := find_register(text):
        return register
    if _SPECIAL.fullmatch(text):
        return Special(text)
    if _NAME.fullmatch(text):
        return Symbol(text)
    raise PtxError(f"unknown operand form {text!r}")


def _parse_address(text: str, find_register: Callable[[str], Register | None]) -> Address:
    match = _ADDRESS.fullmatch(text)
    if match is None:
        raise PtxError(f"unknown address form [{text}]")
    base = _parse_atom(match[1], find_register)
    if not isinstance(base, (Register, Symbol, Immediate)):
        raise PtxError(f"unknown address form [{text}]")
    offset = (match[2] or match[3] or "0").replace(" ", "")
    if not _INTEGER.fullmatch(offset):
        raise PtxError(f"unknown address form [{text}]")
    return Address(base, _integer(offset))


def _integer(text: str) -> int:
    digits = text.rstrip("U")
    if re.fullmatch(r"[+-]?0[0-7]+", digits):  # octal, as in C
        return int(digits, 8)
    return int(digits, 0)
