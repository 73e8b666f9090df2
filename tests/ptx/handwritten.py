"""Small kernels around a few lines of PTX, for the tests of the interpreter itself."""

from __future__ import annotations

import struct
from collections.abc import Mapping, Sequence

import numpy as np

from ptx.machine import Order, Program
from ptx.memory import GlobalMemory
from ptx.scalars import Array

HEADER = ".version 8.7\n.target sm_80\n.address_size 64\n"
WARP = 32


def entry(name: str, parameters: Sequence[str], body: str) -> str:
    """An entry whose parameters are pointers; %i is the thread, %p0.. %r0.. %w0.. %h0.. %f0.. are free registers."""
    declared = ",\n".join(f"\t.param .u64 {parameter}" for parameter in parameters)
    return (
        f".visible .entry {name}(\n{declared}\n)\n{{\n"
        "\t.reg .pred %p<8>;\n\t.reg .b16 %h<16>;\n\t.reg .b32 %r<32>;\n\t.reg .b64 %w<16>;\n\t.reg .b32 %i;\n"
        f"\tmov.u32 %i, %tid.x;\n{body}\n\tret;\n}}\n"
    )


def run_ptx(
    ptx: str,
    buffers: Mapping[str, Array],
    threads: int = WARP,
    ctas: int = 1,
    order: Order | None = None,
    dynamic_shared_bytes: int = 0,
    max_steps: int = 10**6,
) -> None:
    """Runs the only entry of `ptx`, whose parameters are pointers to the buffers."""
    memory = GlobalMemory()
    addresses = [memory.add(data, name) for name, data in buffers.items()]
    parameters = struct.pack(f"<{len(addresses)}Q", *addresses)
    Program(ptx).launch((ctas,), (threads,), parameters, memory, dynamic_shared_bytes, order, max_steps)


def run_body(body: str, buffers: Mapping[str, Array], threads: int = WARP, **options: int | Order) -> None:
    """Runs the body of an `entry`."""
    run_ptx(HEADER + entry("kernel", list(buffers), body), buffers, threads, **options)  # type: ignore[arg-type]


def lanewise(name: str, text: str, result: np.dtype, inputs: Sequence[np.dtype]) -> str:
    """An entry that computes result[i] from a[i], b[i], ...: `text` is in terms of %d and of %a, %b, %c, %e

    A bool is a predicate, stored as a byte.
    """
    names = "abce"[: len(inputs)]
    lines = ["\t.reg .b64 %at;", "\t.reg .b16 %byte;", _declare("d", result)]
    for each, dtype in zip(names, inputs):
        lines += [_declare(each, dtype), f"\tld.param.u64 %at, [{each}];"]
        lines += [f"\tmad.wide.u32 %at, %i, {dtype.itemsize}, %at;"]
        if dtype.kind == "b":
            lines += ["\tld.global.u8 %byte, [%at];", f"\tsetp.ne.u16 %{each}, %byte, 0;"]
        else:
            lines += [f"\tld.global.b{8 * dtype.itemsize} %{each}, [%at];"]
    lines += [f"\t{text}", "\tld.param.u64 %at, [d];", f"\tmad.wide.u32 %at, %i, {result.itemsize}, %at;"]
    if result.kind == "b":
        lines += ["\tselp.u16 %byte, 1, 0, %d;", "\tst.global.u8 [%at], %byte;"]
    else:
        lines += [f"\tst.global.b{8 * result.itemsize} [%at], %d;"]
    return entry(name, [*names, "d"], "\n".join(lines))


def _declare(name: str, dtype: np.dtype) -> str:
    return f"\t.reg .pred %{name};" if dtype.kind == "b" else f"\t.reg .b{max(8 * dtype.itemsize, 16)} %{name};"


def run_lanewise(text: str, result: np.dtype, inputs: Sequence[Array]) -> Array:
    """result[i] for one warp or more; all inputs have the same length."""
    ptx = HEADER + lanewise("kernel", text, result, [each.dtype for each in inputs])
    output = np.zeros(len(inputs[0]), result)
    run_ptx(ptx, {**dict(zip("abce", inputs)), "d": output}, threads=len(output))
    return output
