"""Triton kernels that were compiled for sm_80, run by the interpreter on CPU tensors."""

from __future__ import annotations

import struct
from collections.abc import Mapping, Sequence
from functools import cache
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor

from ptx.machine import Order, Program
from ptx.memory import GlobalMemory

if TYPE_CHECKING:
    from aot import Compiled

_STRUCT = {"i1": "b", "i8": "b", "i16": "h", "i32": "i", "i64": "q", "u8": "B", "u16": "H", "u32": "I", "u64": "Q"}
_STRUCT |= {"fp32": "f", "fp64": "d", "fp16": "e"}
WARP = 32


@cache
def program_of(ptx: str) -> Program:
    """The PTX, decoded; of sm_80 only: it knows no other's instructions."""
    return Program(ptx)


def run(
    compiled: Compiled,
    grid: tuple[int, ...],
    arguments: Mapping[str, Tensor | int | float] | Sequence[Tensor | int | float],
    order: Order | None = None,
    first_cta: int = 0,
) -> None:
    """Runs a compiled kernel from `first_cta` on; what it stores is in the tensors afterwards."""
    if not isinstance(arguments, Mapping):
        arguments = dict(zip(compiled.signature, arguments, strict=True))
    if set(arguments) != set(compiled.signature):
        raise ValueError(f"arguments: expected {sorted(compiled.signature)}, got {sorted(arguments)}")
    memory, program = GlobalMemory(), program_of(compiled.ptx)
    packed = bytearray(program.kernel.parameter_bytes)
    # Triton adds parameters of its own at the end: pointers to scratch memory, null where a kernel has no use for it.
    for parameter, (name, kind) in zip(program.kernel.parameters, compiled.signature.items()):
        value = _address(memory, name, arguments[name]) if kind.startswith("*") else arguments[name]
        if name in compiled.aligned and int(value) % 16:
            raise ValueError(f"{name}: expected a multiple of 16, as it was compiled for, got {value}")
        code = "Q" if kind.startswith("*") else _STRUCT[kind]
        struct.pack_into(f"<{code}", packed, parameter.offset_bytes, value)
    block = (compiled.num_warps * WARP,)
    program.launch(grid, block, bytes(packed), memory, compiled.shared_bytes, order, first_cta=first_cta)


def _address(memory: GlobalMemory, name: str, tensor: Any) -> int:
    """The tensor's memory, at an address that is aligned as the tensor is."""
    if not isinstance(tensor, Tensor) or not tensor.is_contiguous():
        raise ValueError(f"{name}: expected a contiguous tensor, got {type(tensor).__name__}")
    flat = tensor.detach().reshape(-1).view(torch.uint8).numpy()
    return memory.add(flat, name, misalign_bytes=tensor.data_ptr() % 16)
