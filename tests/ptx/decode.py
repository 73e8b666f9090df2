"""What the operations are decoded with: modifiers that must all be known, sources, destinations, addresses."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import partial

import numpy as np

from ptx.errors import PtxError
from ptx.lanes import WARP, Lanes, Source, Value
from ptx.operands import (
    Address,
    FloatImmediate,
    Immediate,
    Negated,
    Operand,
    Register,
    Sink,
    Special,
    Symbol,
    Vector,
)
from ptx.parser import Instruction, Kernel
from ptx.scalars import TYPES, Array, ScalarType

Execute = Callable[[Lanes], "int | None"]


@dataclass(frozen=True)
class Converging:
    """An operation for which the lanes of `members` (a mask of 32 bits) have to come together."""

    execute: Execute
    members: Source


Builder = Callable[[Instruction, "Decoder"], "Execute | Converging"]


class Modifiers:
    """The modifiers of an instruction: each is taken once, and none may be left over."""

    def __init__(self, instruction: Instruction) -> None:
        self._left = list(instruction.modifiers)

    def flag(self, name: str) -> bool:
        return self.take(name) is not None

    def take(self, *names: str) -> str | None:
        """The first modifier that is one of `names`."""
        for name in self._left:
            if name in names:
                self._left.remove(name)
                return name
        return None

    def require(self, *names: str) -> str:
        taken = self.take(*names)
        if taken is None:
            raise PtxError(f"expected a modifier among {', '.join(names)}")
        return taken

    def type(self, *kinds: str) -> ScalarType:
        """The first modifier that is a type, of one of `kinds` (a kind such as float or a name such as f32)."""
        for name in self._left:
            if name in TYPES:
                scalar = TYPES[name]
                if kinds and scalar.kind not in kinds and name not in kinds:
                    raise PtxError(f"unknown type .{name} for this instruction")
                self._left.remove(name)
                return scalar
        raise PtxError("expected a type")

    def finish(self) -> None:
        if self._left:
            raise PtxError(f"unknown modifier .{' .'.join(self._left)}")


class RegisterSource:
    def __init__(self, register: Register, scalar: ScalarType, negated: bool = False) -> None:
        self._index = register.index
        self._scalar = scalar
        self._narrows = register.type.bits != scalar.bits
        self._negated = negated

    def read(self, lanes: Lanes) -> Value:
        raw = lanes.registers[self._index]
        undefined = lanes.undefined[self._index]
        if self._narrows:
            raw = raw.astype(self._scalar.raw)
            undefined = None if undefined is None else undefined.astype(self._scalar.raw)
        if self._negated:
            return ~raw, undefined
        return raw.view(self._scalar.dtype), undefined


class ConstantSource:
    def __init__(self, value: Array) -> None:
        self.value = value  # [1]

    def read(self, lanes: Lanes) -> Value:
        return self.value, None


def _thread_id(axis: int, lanes: Lanes) -> Array:
    block = lanes.placement.block
    return lanes.placement.thread // int(np.prod(block[:axis])) % block[axis]


def _block_size(axis: int, lanes: Lanes) -> Array:
    return np.array([lanes.placement.block[axis]])


def _cta_id(axis: int, lanes: Lanes) -> Array:
    return lanes.placement.cta_id[:, axis]


def _grid_size(axis: int, lanes: Lanes) -> Array:
    return np.array([lanes.placement.grid[axis]])


def _bit(lanes: Lanes) -> Array:
    return np.uint64(1) << lanes.in_warp.astype(np.uint64)


_SPECIALS: dict[str, Callable[[Lanes], Array]] = {
    **{f"%tid.{name}": partial(_thread_id, axis) for axis, name in enumerate("xyz")},
    **{f"%ntid.{name}": partial(_block_size, axis) for axis, name in enumerate("xyz")},
    **{f"%ctaid.{name}": partial(_cta_id, axis) for axis, name in enumerate("xyz")},
    **{f"%nctaid.{name}": partial(_grid_size, axis) for axis, name in enumerate("xyz")},
    "%laneid": lambda lanes: lanes.in_warp,
    "%warpid": lambda lanes: lanes.warp,
    "%lanemask_eq": _bit,
    "%lanemask_lt": lambda lanes: _bit(lanes) - np.uint64(1),
    "%lanemask_le": lambda lanes: 2 * _bit(lanes) - np.uint64(1),
    "%lanemask_ge": lambda lanes: ~(_bit(lanes) - np.uint64(1)),
    "%lanemask_gt": lambda lanes: ~(2 * _bit(lanes) - np.uint64(1)),
}


class SpecialSource:
    def __init__(self, name: str, scalar: ScalarType) -> None:
        if name not in _SPECIALS:
            raise PtxError(f"unknown register {name}")
        self._values = _SPECIALS[name]
        self._scalar = scalar

    def read(self, lanes: Lanes) -> Value:
        return self._values(lanes).astype(self._scalar.raw).view(self._scalar.dtype), None


class Destination:
    """A register that results of type `scalar` go to; `write` leaves lanes that are not active alone."""

    def __init__(self, register: Register | None, scalar: ScalarType) -> None:
        self._index = register.index if register else -1
        self._scalar = scalar
        self._raw = register.type.raw if register else scalar.raw
        self._widens = register is not None and register.type.bits != scalar.bits

    def write(self, lanes: Lanes, values: Array, undefined: Array | None = None) -> None:
        if self._index < 0:
            return
        raw = values if values.dtype == self._raw else values.view(self._scalar.raw)
        if self._widens:
            raw = self._widen(raw)
            undefined = None if undefined is None else self._widen(undefined)
        if len(raw) == 1:
            raw = np.repeat(raw, lanes.count)
        before = lanes.undefined[self._index]
        if lanes.mask is not None:
            raw = np.where(lanes.mask, raw, lanes.registers[self._index])
            if undefined is not None or before is not None:
                zero = self._raw.type(0)
                new, old = zero if undefined is None else undefined, zero if before is None else before
                undefined = np.where(lanes.mask, new, old)
        elif undefined is not None:
            undefined = np.broadcast_to(undefined, lanes.count)
        lanes.registers[self._index] = raw
        lanes.undefined[self._index] = undefined if undefined is None or undefined.any() else None

    def _widen(self, raw: Array) -> Array:
        """Into a wider register: with the sign of a signed type, else with zeros."""
        if self._scalar.kind == "signed":
            return raw.view(self._scalar.dtype).astype(self._raw.str.replace("u", "i")).view(self._raw)
        return raw.astype(self._raw)


class AddressSource:
    """base + offset as uint64, for the active lanes."""

    def __init__(self, base: Source, offset_bytes: int) -> None:
        self._base = base
        self._offset = np.uint64(offset_bytes % (1 << 64))

    def read(self, lanes: Lanes, active: Array) -> Array:
        base, undefined = self._base.read(lanes)
        lanes.require_defined(undefined, "the address")
        address = base.astype(np.uint64) + self._offset
        return address[active] if len(address) > 1 else np.repeat(address, len(active))


class Decoder:
    """Binds operands of a kernel's instructions."""

    def __init__(self, kernel: Kernel) -> None:
        self.kernel = kernel

    def operands(self, instruction: Instruction, *counts: int) -> Sequence[Operand]:
        if len(instruction.operands) not in counts:
            raise PtxError(f"expected {' or '.join(map(str, counts))} operands, got {len(instruction.operands)}")
        return instruction.operands

    def source(self, operand: Operand, scalar: ScalarType, wider: bool = False) -> Source:
        """`wider`: the register may have more bits than the type, of which the low ones count."""
        if isinstance(operand, Register):
            _check_width(operand, scalar, wider)
            return RegisterSource(operand, scalar)
        if isinstance(operand, Negated) and scalar.kind == "pred":
            _check_width(operand.register, scalar, wider)
            return RegisterSource(operand.register, scalar, negated=True)
        if isinstance(operand, Special):
            return SpecialSource(operand.name, scalar)
        return ConstantSource(self._constant(operand, scalar))

    def _constant(self, operand: Operand, scalar: ScalarType) -> Array:
        if isinstance(operand, FloatImmediate):
            if operand.bits != scalar.bits:
                raise PtxError(f"a float constant of {operand.bits} bits for .{scalar.name}")
            return np.array([operand.raw], scalar.raw).view(scalar.dtype)
        if isinstance(operand, Immediate) and scalar.kind == "pred":
            return np.array([operand.value != 0])
        if isinstance(operand, Immediate) and scalar.kind != "float":
            bits = operand.value % (1 << scalar.bits)
            # LLVM writes a negative constant of 16 bits as one of 64
            value = operand.value - (1 << 64) if operand.value >= 1 << 63 and scalar.bits < 64 else operand.value
            if not -(1 << (scalar.bits - 1)) <= value < 1 << scalar.bits:
                raise PtxError(f"{operand.value} does not fit .{scalar.name}")
            return np.array([bits], scalar.raw).view(scalar.dtype)
        variables = self.kernel.shared | self.kernel.local
        if isinstance(operand, Symbol) and operand.name in variables and scalar.bits >= 32:
            return np.array([variables[operand.name]], scalar.raw).view(scalar.dtype)
        raise PtxError(f"unknown operand form {operand} for .{scalar.name}")

    def constant(self, operand: Operand) -> int:
        if not isinstance(operand, Immediate):
            raise PtxError(f"expected a constant, got {operand}")
        return operand.value

    def destination(self, operand: Operand, scalar: ScalarType, wider: bool = False) -> Destination:
        if isinstance(operand, Sink):
            return Destination(None, scalar)
        if not isinstance(operand, Register):
            raise PtxError(f"expected a register for the result, got {operand}")
        _check_width(operand, scalar, wider)
        return Destination(operand, scalar)

    def vector(self, operand: Operand, *lengths: int) -> Sequence[Operand]:
        """The elements of {...}; a single operand is a vector of one."""
        elements = operand.elements if isinstance(operand, Vector) else (operand,)
        if len(elements) not in lengths:
            raise PtxError(f"expected a vector of {' or '.join(map(str, lengths))}, got {len(elements)} elements")
        return elements

    def address(self, operand: Operand) -> AddressSource:
        if not isinstance(operand, Address):
            raise PtxError(f"expected an address, got {operand}")
        base = operand.base
        if isinstance(base, Register):
            if base.type.bits not in (32, 64):
                raise PtxError(f"an address in a register of {base.type.bits} bits")
            scalar = TYPES[f"u{base.type.bits}"]
        else:
            scalar = TYPES["u64"]
        return AddressSource(self.source(base, scalar), operand.offset_bytes)

    def whole_warp(self) -> Source:
        return ConstantSource(np.array([(1 << WARP) - 1], np.uint32))


def _check_width(register: Register, scalar: ScalarType, wider: bool) -> None:
    bits = register.type.bits
    if bits != scalar.bits and not (wider and bits > scalar.bits > 1):
        raise PtxError(f"{register.name} has {bits} bits, .{scalar.name} has {scalar.bits}")
