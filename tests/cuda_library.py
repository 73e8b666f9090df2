"""`_C_cuda.so` as nvcc made it: what cuobjdump says of it, and its kernels as programs of the interpreter of PTX."""

from __future__ import annotations

import os
import re
import struct
import subprocess
from collections.abc import Sequence
from functools import cache
from pathlib import Path

import pytest
import torch
from torch import Tensor

import stair_kernels as sk

triton = pytest.importorskip("triton", reason="Triton is not installed: its wheel has the tools that read a cubin")
from ptx.machine import Order, Program  # noqa: E402
from ptx.memory import GlobalMemory  # noqa: E402

LIBRARY = Path(sk.__file__).with_name("_C_cuda.so")
OTHER_PTX = os.environ.get(
    "STAIR_TEST_PTX"
)  # a file of nvcc's, in place of the library's: tests/test_cuda_mutations.py
built = pytest.mark.skipif(not (OTHER_PTX or LIBRARY.exists()), reason="_C_cuda.so is not built: there was no nvcc")


@cache
def cuobjdump(*options: str) -> str:
    tool = Path(triton.__file__).parent / "backends/nvidia/bin/cuobjdump"
    result = subprocess.run([str(tool), *options, str(LIBRARY)], capture_output=True, text=True, check=True)
    return result.stdout + result.stderr


@cache
def program(kernel: str, of: str = "") -> Program:
    """The kernel; where it is a template, of the types whose mangled names match `of`."""
    text = Path(OTHER_PTX).read_text() if OTHER_PTX else cuobjdump("-ptx")
    modules = re.findall(r"^\.version.*?(?=^Fatbin|\Z)", text, re.DOTALL | re.MULTILINE)
    pattern = re.compile(rf"\.entry (\w*\d{kernel}{f'I{of}E' if of else ''}E\w*)\(")
    ((module, entry),) = [(module, entry) for module in modules for entry in pattern.findall(module)]
    return Program(module, entry)


def run(
    program: Program,
    layout: str,
    arguments: Sequence[Tensor | int | float | None],
    grid: tuple[int, ...],
    dynamic: int,
    order: str,
    memory: GlobalMemory | None = None,
    threads: int = 256,
    first_block: int = 0,
) -> None:
    """`layout` is struct's; tensors become pointers, to any address; blocks before `first_block` do not run."""
    memory, numbers = memory or GlobalMemory(), []
    for number, argument in enumerate(arguments):
        if isinstance(argument, Tensor):
            flat = argument.reshape(-1).view(torch.uint8)
            numbers.append(memory.add(flat.numpy(), f"argument {number}", misalign_bytes=argument.data_ptr() % 16))
        else:
            numbers.append(argument or 0)
    given = struct.pack("<" + layout, *numbers)
    program.launch(grid, (threads,), given, memory, dynamic, Order(order), first_cta=first_block)
