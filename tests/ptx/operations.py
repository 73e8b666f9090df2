"""The table opcode -> operation, and the decoding of a kernel with it."""

from __future__ import annotations

from collections.abc import Sequence

from ptx import access, atomics, compare, control, convert, copies, floating, integer, tensor_core, warp
from ptx.decode import Builder, Converging, Decoder, Execute, Modifiers
from ptx.errors import PtxError
from ptx.lanes import Step
from ptx.operands import Negated
from ptx.parser import Instruction, Kernel
from ptx.scalars import TYPES


def _by_type(integers: Builder, floats: Builder) -> Builder:
    """An opcode that means one thing for integers and another for floats."""

    def build(instruction: Instruction, decoder: Decoder) -> Execute | Converging:
        scalar = Modifiers(instruction).type()
        return (integers if scalar.is_integer else floats)(instruction, decoder)

    return build


OPERATIONS: dict[str, Builder] = {
    **{
        opcode: builder
        for module in (access, atomics, compare, control, convert, copies, floating, integer, tensor_core, warp)
        for opcode, builder in module.OPERATIONS.items()
    },
    "add": _by_type(integer.build_add, floating.build_add),
    "sub": _by_type(integer.build_add, floating.build_add),
    "mul": _by_type(integer.build_multiply, floating.build_add),
    "mad": _by_type(integer.build_multiply, floating.build_fma),
    "div": _by_type(integer.build_divide, floating.build_divide),
    "rem": integer.build_divide,
    "min": _by_type(integer.build_add, floating.build_minimum),
    "max": _by_type(integer.build_add, floating.build_minimum),
    "neg": _by_type(integer.build_sign, floating.build_sign),
    "abs": _by_type(integer.build_sign, floating.build_sign),
}

_ENDS = ("ret", "exit", "bra", "trap")


def decode_kernel(kernel: Kernel) -> Sequence[Step]:
    """Every instruction, run or not: what is not known is an error before anything runs."""
    decoder = Decoder(kernel)
    last = kernel.instructions[-1] if kernel.instructions else None
    if last is None or last.opcode not in _ENDS or last.guard is not None:
        raise PtxError(f"{kernel.name} does not end with a return or a branch")
    return [_decode(instruction, decoder) for instruction in kernel.instructions]


def _decode(instruction: Instruction, decoder: Decoder) -> Step:
    try:
        if instruction.opcode not in OPERATIONS:
            raise PtxError(f"unknown instruction {instruction.opcode}")
        operation = OPERATIONS[instruction.opcode](instruction, decoder)
        guard = instruction.guard
        negated = isinstance(guard, Negated)
        predicate = guard.register if isinstance(guard, Negated) else guard
        source = None if predicate is None else decoder.source(predicate, TYPES["pred"])
        members = operation.members if isinstance(operation, Converging) else None
        execute = operation.execute if isinstance(operation, Converging) else operation
        return Step(execute, instruction, source, negated, members)
    except PtxError as error:
        raise PtxError(f"{error}\n  line {instruction.line}: {instruction.text}") from None
