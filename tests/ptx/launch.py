"""Triton kernels without a GPU: compiled for sm_80, then run by the interpreter on CPU tensors."""

from __future__ import annotations

import struct
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import Any

import torch
import triton
from torch import Tensor
from triton.backends.compiler import GPUTarget
from triton.compiler import ASTSource

from ptx.machine import Order, Program
from ptx.memory import GlobalMemory

_STRUCT = {"i1": "b", "i8": "b", "i16": "h", "i32": "i", "i64": "q", "u8": "B", "u16": "H", "u32": "I", "u64": "Q"}
_STRUCT |= {"fp32": "f", "fp64": "d", "fp16": "e"}
WARP = 32


@dataclass(frozen=True)
class Compiled:
    name: str
    ptx: str
    signature: Mapping[str, str]  # without the constants: name -> *bf16, i32, ...
    aligned: frozenset[str]  # the arguments that the kernel takes to be multiples of 16
    num_warps: int
    shared_bytes: int
    cubin: bytes

    @cached_property
    def program(self) -> Program:
        """The PTX, decoded; of sm_80 only: it knows no other's instructions."""
        return Program(self.ptx)


def compile_for(
    kernel: Any,
    signature: Mapping[str, str],
    constexprs: Mapping[str, Any] | None = None,
    arch: int = 80,
    num_warps: int = 4,
    num_stages: int = 3,
    aligned: Sequence[str] = (),
) -> Compiled:
    """Compiles a @triton.jit kernel. `signature` has every argument but the constexprs, in any order.

    Pointers, and the arguments named in `aligned`, are taken to be multiples of 16, as Triton's launcher finds out
    from the values.
    """
    if not isinstance(kernel, triton.JITFunction):  # with TRITON_INTERPRET=1, @triton.jit makes something else
        raise TypeError(f"kernel: expected a function compiled by @triton.jit, got {type(kernel).__name__}")
    constexprs = dict(constexprs or {})
    unknown = [kind for kind in signature.values() if not kind.startswith("*") and kind not in _STRUCT]
    if unknown:
        raise ValueError(f"signature: expected pointers and {sorted(_STRUCT)}, got {unknown}")
    names = [name for name in kernel.arg_names if name in signature]
    multiples = {name for name in names if signature[name].startswith("*") or name in aligned}
    source = ASTSource(
        fn=kernel,
        signature={name: "constexpr" if name in constexprs else signature[name] for name in kernel.arg_names},
        constexprs=constexprs,
        attrs={(kernel.arg_names.index(name),): [["tt.divisibility", 16]] for name in multiples},
    )
    options = {"num_warps": num_warps, "num_stages": num_stages}
    compiled = triton.compile(source, target=GPUTarget("cuda", arch, WARP), options=options)
    return Compiled(
        name=compiled.metadata.name,
        ptx=compiled.asm["ptx"],
        signature={name: signature[name] for name in names},
        aligned=frozenset(multiples),
        num_warps=num_warps,
        shared_bytes=compiled.metadata.shared,
        cubin=compiled.asm["cubin"],
    )


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
    memory = GlobalMemory()
    packed = bytearray(compiled.program.kernel.parameter_bytes)
    # Triton adds parameters of its own at the end: pointers to scratch memory, null where a kernel has no use for it.
    for parameter, (name, kind) in zip(compiled.program.kernel.parameters, compiled.signature.items()):
        value = _address(memory, name, arguments[name]) if kind.startswith("*") else arguments[name]
        if name in compiled.aligned and int(value) % 16:
            raise ValueError(f"{name}: expected a multiple of 16, as it was compiled for, got {value}")
        code = "Q" if kind.startswith("*") else _STRUCT[kind]
        struct.pack_into(f"<{code}", packed, parameter.offset_bytes, value)
    block = (compiled.num_warps * WARP,)
    compiled.program.launch(grid, block, bytes(packed), memory, compiled.shared_bytes, order, first_cta=first_cta)


def _address(memory: GlobalMemory, name: str, tensor: Any) -> int:
    """The tensor's memory, at an address that is aligned as the tensor is."""
    if not isinstance(tensor, Tensor) or not tensor.is_contiguous():
        raise ValueError(f"{name}: expected a contiguous tensor, got {type(tensor).__name__}")
    flat = tensor.detach().reshape(-1).view(torch.uint8).numpy()
    return memory.add(flat, name, misalign_bytes=tensor.data_ptr() % 16)
