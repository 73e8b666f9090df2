"""mma.sync and ldmatrix: the matrices of a warp, spread over the registers of its lanes."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from ptx.access import load
from ptx.decode import Builder, Converging, Decoder, Modifiers
from ptx.errors import LaneError, PtxError
from ptx.lanes import WARP, Lanes, Source
from ptx.parser import Instruction
from ptx.scalars import TYPES, Array, ScalarType, decode

_LANE = np.arange(WARP)[:, None]
_GROUP, _PLACE = _LANE // 4, _LANE % 4  # "groupID" and "threadID_in_group" of the PTX manual


@dataclass(frozen=True)
class Shape:
    """M x N x K with `per_register` elements of A and B in a register of 32 bits."""

    k: int
    per_register: int

    @property
    def a_registers(self) -> int:
        return 16 * self.k // WARP // self.per_register

    @property
    def b_registers(self) -> int:
        return 8 * self.k // WARP // self.per_register

    def a_place(self) -> tuple[Array, Array]:
        """(row, column) of A [16, K], each [32 lanes, elements]"""
        element = np.arange(self.a_registers * self.per_register)
        register, inside = element // self.per_register, element % self.per_register
        row = _GROUP + 8 * (register % 2)
        return row, self.per_register * _PLACE + inside + 4 * self.per_register * (register // 2)

    def b_place(self) -> tuple[Array, Array]:
        """(row, column) of B [K, 8]"""
        element = np.arange(self.b_registers * self.per_register)
        register, inside = element // self.per_register, element % self.per_register
        row = self.per_register * _PLACE + inside + 4 * self.per_register * register
        return row, np.broadcast_to(_GROUP, row.shape)


# (row, column) of C and D [16, 8], each [32, 4]
_C_PLACE = (_GROUP + 8 * (np.arange(4) // 2), 2 * _PLACE + np.arange(4) % 2)

_SHAPES = {
    ("m16n8k8", "f16"): Shape(8, 2),
    ("m16n8k8", "bf16"): Shape(8, 2),
    ("m16n8k16", "f16"): Shape(16, 2),
    ("m16n8k16", "bf16"): Shape(16, 2),
    ("m16n8k4", "tf32"): Shape(4, 1),
    ("m16n8k8", "tf32"): Shape(8, 1),
    **{(f"m16n8k{k}", name): Shape(k, 4) for k in (16, 32) for name in ("s8", "u8")},
}


def _elements(raw: Array, scalar: ScalarType) -> Array:
    """Registers [warps, 32, n] uint32 as values [warps, 32, elements], in float64 or int64."""
    narrow = np.ascontiguousarray(raw).view(scalar.raw)
    return narrow.view(scalar.dtype).astype(np.int64) if scalar.is_integer else decode(narrow, scalar).astype(float)


def _matrix(values: Array, place: tuple[Array, Array], rows: int, columns: int) -> Array:
    """[warps, rows, columns] from [warps, 32, elements]"""
    matrix = np.zeros((len(values), rows, columns), values.dtype)
    matrix[:, place[0], place[1]] = values
    return matrix


def _read(lanes: Lanes, sources: list[Source]) -> tuple[Array, Array | None]:
    """Registers as [warps, 32, n] uint32, and their undefined bits."""
    values = [source.read(lanes) for source in sources]
    raw = np.stack([np.broadcast_to(value.view(np.uint32), lanes.count) for value, _ in values], 1)
    if all(bits is None for _, bits in values):
        return raw.reshape(-1, WARP, len(sources)), None
    zero = np.zeros(1, np.uint32)
    undefined = [np.broadcast_to(zero if bits is None else bits, lanes.count) for _, bits in values]
    return raw.reshape(-1, WARP, len(sources)), np.stack(undefined, 1).reshape(-1, WARP, len(sources))


def build_multiply(instruction: Instruction, decoder: Decoder) -> Converging:
    """D = A B + C, the sum rounded once"""
    modifiers = Modifiers(instruction)
    for name in ("sync", "aligned"):
        modifiers.require(name)
    size = modifiers.require(*{size for size, _ in _SHAPES})
    for name in ("row", "col"):
        modifiers.require(name)
    result, a_type, b_type, c_type = (modifiers.type() for _ in range(4))
    modifiers.finish()
    accumulator = "s32" if a_type.is_integer else "f32"
    shape = _SHAPES.get((size, a_type.name))
    same_kind = a_type == b_type or (a_type.is_integer and (size, b_type.name) in _SHAPES)
    if shape is None or not same_kind or {result.name, c_type.name} != {accumulator}:
        raise PtxError("a combination of shape and types that this interpreter does not know")
    operands = decoder.operands(instruction, 4)
    counts = (4, shape.a_registers, shape.b_registers, 4)
    d, a, b, c = (decoder.vector(operand, count) for operand, count in zip(operands, counts))
    targets = [decoder.destination(each, result) for each in d]
    bits32 = TYPES["b32"]
    a_sources, b_sources = ([decoder.source(each, bits32) for each in part] for part in (a, b))
    c_sources = [decoder.source(each, c_type) for each in c]

    def execute(lanes: Lanes) -> None:
        _require_whole_warps(lanes)
        (a_raw, a_bits), (b_raw, b_bits), (c_raw, c_bits) = (
            _read(lanes, sources) for sources in (a_sources, b_sources, c_sources)
        )
        a_matrix = _matrix(_elements(a_raw, a_type), shape.a_place(), 16, shape.k)
        b_matrix = _matrix(_elements(b_raw, b_type), shape.b_place(), shape.k, 8)
        product = (a_matrix @ b_matrix)[:, _C_PLACE[0], _C_PLACE[1]] + _elements(c_raw, c_type)
        product = product.astype(result.dtype)
        undefined = None
        if any(bits is not None for bits in (a_bits, b_bits, c_bits)):
            undefined = _undefined_products(shape, (a_raw, a_bits, a_type), (b_raw, b_bits, b_type), c_bits)
        for number, target in enumerate(targets):
            bits = None if undefined is None else undefined[:, :, number].reshape(-1)
            target.write(lanes, np.ascontiguousarray(product[:, :, number]).reshape(-1), bits)

    return Converging(execute, decoder.whole_warp())


Fragment = tuple[Array, "Array | None", ScalarType]


def _undefined_products(shape: Shape, a: Fragment, b: Fragment, c_bits: Array | None) -> Array:
    """[warps, 32, 4]: all bits of the elements that an undefined one goes into."""

    def flags(fragment: Fragment) -> Array:
        raw, bits, scalar = fragment
        bits = np.zeros_like(raw) if bits is None else bits
        return np.not_equal(np.ascontiguousarray(bits).view(scalar.raw), 0)

    rows: Array = np.any(_matrix(flags(a), shape.a_place(), 16, shape.k), axis=2)
    columns: Array = np.any(_matrix(flags(b), shape.b_place(), shape.k, 8), axis=1)
    bad = (rows[:, :, None] | columns[:, None, :])[:, _C_PLACE[0], _C_PLACE[1]]
    if c_bits is not None:
        bad = bad | (c_bits != 0)
    return np.where(bad, np.uint32(0xFFFFFFFF), np.uint32(0))


def _require_whole_warps(lanes: Lanes) -> None:
    if lanes.mask is None:
        return
    warps = lanes.mask.reshape(-1, WARP)
    broken = warps.any(1) & ~warps.all(1)
    if broken.any():
        raise LaneError("not all lanes of the warp take part", int(broken.argmax()) * WARP)


def build_load_matrix(instruction: Instruction, decoder: Decoder) -> Converging:
    """1, 2 or 4 matrices of 8 x 8 elements of 16 bits; lane i has the address of row i"""
    modifiers = Modifiers(instruction)
    for name in ("sync", "aligned", "m8n8"):
        modifiers.require(name)
    count = int(modifiers.require("x1", "x2", "x4")[1:])
    transposed = modifiers.flag("trans")
    modifiers.require("shared", "shared::cta")
    modifiers.type("b16")
    modifiers.finish()
    destination, place = decoder.operands(instruction, 2)
    targets = [decoder.destination(each, TYPES["b32"]) for each in decoder.vector(destination, count)]
    address = decoder.address(place)

    def execute(lanes: Lanes) -> None:
        _require_whole_warps(lanes)
        whole = lanes.mask
        gives_address = lanes.in_warp < 8 * count
        lanes.mask = gives_address if whole is None else whole & gives_address
        active = lanes.active()
        data, undefined = load(lanes, "shared", address.read(lanes, active), active, 16)
        lanes.mask = whole
        fragments = _row_fragments(data, count, transposed)
        undefined_fragments = None if undefined is None else _row_fragments(undefined, count, transposed)
        warps = np.unique(active // WARP)
        for number, target in enumerate(targets):
            bits = None if undefined_fragments is None else _of_warps(lanes, warps, undefined_fragments[:, number])
            target.write(lanes, _of_warps(lanes, warps, fragments[:, number]), bits)

    return Converging(execute, decoder.whole_warp())


def _row_fragments(rows: Array, count: int, transposed: bool) -> Array:
    """[warps * 8 * count, 16] bytes as [warps, count, 32] uint32: each lane has two neighbours of a row."""
    matrices = np.ascontiguousarray(rows).view(np.uint16).reshape(-1, count, 8, 8)
    if transposed:
        matrices = matrices.swapaxes(2, 3)
    return np.ascontiguousarray(matrices).view(np.uint32).reshape(-1, count, WARP)


def _of_warps(lanes: Lanes, warps: Array, values: Array) -> Array:
    """[T] from [warps, 32]; zero for the other warps."""
    spread = np.zeros((lanes.count // WARP, WARP), np.uint32)
    spread[warps] = values
    return spread.reshape(-1)


OPERATIONS: dict[str, Builder] = {"mma": build_multiply, "ldmatrix": build_load_matrix}
