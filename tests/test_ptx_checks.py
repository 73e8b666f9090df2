"""The interpreter of PTX finds what is wrong with a kernel: every check is provoked, and says where it was."""

from __future__ import annotations

import numpy as np
import pytest
from ptx.errors import PtxError
from ptx.handwritten import HEADER, WARP, entry, run_body
from ptx.machine import ORDERS, Order, Program
from ptx.memory import GlobalMemory
from ptx_cases import U8, U32

SHARED = ".shared .align 16 .b8 stage[512]; mov.u32 %r0, stage; mad.lo.u32 %r1, %i, 4, %r0;"
TO_OUT = "ld.param.u64 %w1, [out]; mad.wide.u32 %w1, %i, 4, %w1;"


def fails(body: str, message: str, threads: int = WARP, order: Order | None = None) -> str:
    """Runs a body with a buffer `out` of one word a thread and four more; gives the text of the error."""
    with pytest.raises(PtxError, match=message) as raised:
        run_body(body, {"out": np.zeros(threads + 4, U32)}, threads, order=order or Order())
    return str(raised.value)


@pytest.mark.parametrize(
    ("body", "message"),
    [
        (f"{TO_OUT} st.global.b32 [%w1+20], %i;", r"out of bounds: 4 bytes at 0x\w+, which is byte 144 of out"),
        (f"{TO_OUT} ld.global.b32 %r1, [%w1-4];", "which is byte -4 of out, a buffer of 144 bytes"),
        ("mov.u64 %w1, 0; ld.global.b32 %r1, [%w1];", "global access out of bounds"),
        (f"{TO_OUT} cvt.u32.u64 %r1, %w1; cvt.u64.u32 %w1, %r1; ld.global.b32 %r1, [%w1];", "out of bounds"),
        (f"{TO_OUT} ld.global.v2.b32 {{%r1, %r2}}, [%w1];", "misaligned global access: 8 bytes"),
        (f"{TO_OUT} atom.global.add.u32 %r1, [%w1+2], 1;", "misaligned global access: 4 bytes"),
        (f"{SHARED} st.shared.b32 [%r1+388], %i;", "shared access out of bounds: 4 bytes at 0x200 of 512"),
        (f"{SHARED} st.shared.v2.b32 [%r1], {{%i, %i}};", "misaligned shared access: 8 bytes"),
        (f"{SHARED} {TO_OUT} cp.async.cg.shared.global [%r0], [%w1], 16;", "misaligned global access: 16 bytes"),
        (f"{SHARED} {TO_OUT} st.global.b32 [%w1], %r5;", "stored value depends on .* never written"),
        (f"{SHARED} {TO_OUT} ld.shared.b32 %r5, [%r1]; st.global.b32 [%w1], %r5;", "stored value depends on"),
        ("ld.global.b32 %r1, [%w3];", "the address depends on a register or on memory that was never written"),
        ("@%p3 bra END; END:", "the guard depends on"),
        ("ld.param.u64 %w1, [out]; st.global.b32 [%w1], %i;", "another lane stores a different value"),
        ("mov.u32 %r1, 0; div.u32 %r2, %i, %r1;", "division by zero"),
        ("setp.lt.u32 %p0, %i, 9; @%p0 shfl.sync.bfly.b32 %r2, %i, 1, 31, -1;", "lanes that do not take part"),
        ("redux.sync.add.u32 %r1, %i, 0xff;", "not in its own member mask"),
        (".local .b8 own[8]; mov.u64 %w2, own; ld.local.b32 %r1, [%w2+8];", "local access out of bounds: 4 bytes at"),
        (f".local .b8 own[8]; mov.u64 %w2, own; ld.local.b8 %r1, [%w2]; {TO_OUT} st.global.b32 [%w1], %r1;", "never w"),
        ("trap;", "the kernel gave up"),
    ],
)  # fmt: skip
def test_bad_access(body: str, message: str) -> None:
    assert "CTA (0, 0, 0), warp 0, lane " in fails(body, message)


def test_the_report_names_instruction_and_lane() -> None:
    text = fails(f"{TO_OUT} setp.eq.u32 %p0, %i, 45; @%p0 st.global.b32 [%w1+400], %i;", "byte 580 of out", threads=64)
    assert "warp 1, lane 13" in text
    assert "@%p0 st.global.b32 [%w1+400], %i" in text
    assert "line 14:" in text


@pytest.mark.parametrize(
    ("body", "message"),
    [
        ("frobnicate.b32 %r1, %r2;", "unknown instruction frobnicate"),
        ("add.cc.s32 %r1, %r2, %r3;", "unknown modifier .cc"),
        ("cvt.rn.satfinite.f16.f32 %h1, %r2;", "unknown modifier .satfinite"),
        ("add.s32 %r1, %r2, %w1;", "%w1 has 64 bits, .s32 has 32"),
        ("add.s32 %r1, %r2;", "expected 3 operands, got 2"),
        ("mov.u32 %r1, %clock;", "unknown register %clock"),
        ("mov.u32 %r1, nowhere;", "unknown operand form"),
        ("mov.u32 %r1, %r2 + 1;", "unknown operand form"),
        ("bra NOWHERE;", "a branch to an unknown label"),
        ("cvt.f16.f32 %h1, %r2;", "unknown rounding .None"),
        ("cvt.rn.f32.f16 %r1, %h2;", "unknown rounding .rn"),
        ("bar.arrive 0, 64;", "expected a modifier among sync, red"),
        ("mma.sync.aligned.m16n8k16.row.col.f16.f16.f16.f16 {%r1, %r2}, {%r1, %r2, %r3, %r4}, {%r5, %r6}, {%r1, %r2};",
         "a combination of shape and types"),
        ("ldmatrix.sync.aligned.m8n8.x3.shared.b16 {%r1, %r2, %r3}, [%r4];", "expected a modifier among x1, x2, x4"),
        (".const .b8 table[16];", "unknown directive"),
        ("mul.lo.f32 %r1, %r2, %r3;", "unknown modifier .lo"),
        ("fma.rn.f64 %w1, %w2, %w3, %w4;", "unknown type .f64"),
        ("setp.lo.s32 %p1, %r1, %r2;", ".lo of .s32"),
    ],
)  # fmt: skip
def test_what_is_not_known_is_refused_before_anything_runs(body: str, message: str) -> None:
    out = np.zeros(WARP, U32)
    with pytest.raises(PtxError, match=message) as raised:
        run_body(f"{TO_OUT} st.global.b32 [%w1], 1;\n{body}", {"out": out})
    assert f": {body.split(';')[0]}" in str(raised.value)
    assert not out.any()


def test_a_masked_load_leaves_the_other_lanes_undefined() -> None:
    """What Triton's reductions do: shuffle values that only some lanes have, and use those of these lanes only."""
    body = f"""{SHARED} {TO_OUT}
    st.shared.b32 [%r1], %i;
    setp.lt.u32 %p0, %i, 4;
    @%p0 ld.shared.b32 %r2, [%r1];
    shfl.sync.bfly.b32 %r3, %r2, 1, 31, -1;
    add.u32 %r4, %r2, %r3;
    selp.b32 %r5, %r4, 9, %p0;"""
    out = np.zeros(WARP, U32)
    run_body(f"{body} st.global.b32 [%w1], %r5;", {"out": out})
    assert out.tolist() == [1, 1, 5, 5] + [9] * 28
    fails(f"{body} st.global.b32 [%w1], %r4;", "never written\n.*lane 4\n")


def test_only_the_bits_that_count_have_to_be_defined() -> None:
    body = f"""{TO_OUT}
    mov.b32 %r1, {{%h1, %h1}}; mov.u16 %h2, 3; mov.b32 %r2, {{%h2, %h1}};
    and.b32 %r3, %r2, 0xffff; shl.b32 %r4, %r2, 16; prmt.b32 %r5, %r2, 0, 0x5410;
    or.b32 %r6, %r1, -1; add.u32 %r3, %r3, %r4; add.u32 %r3, %r3, %r6;"""
    out = np.zeros(WARP, U32)
    run_body(f"{body} and.b32 %r5, %r5, 0xffff; st.global.b32 [%w1], %r3;", {"out": out})
    assert set(out) == {(3 + (3 << 16) - 1) % 2**32}
    fails(f"{body} st.global.b32 [%w1], %r2;", "stored value depends on")


COPY = f"""{SHARED} ld.param.u64 %w1, [out]; mad.wide.u32 %w1, %i, 4, %w1;
    cp.async.ca.shared.global [%r1], [%w1], 4;
    cp.async.commit_group;"""


@pytest.mark.parametrize(
    "use", ["ld.shared.b32 %r2, [%r1];", "st.shared.b32 [%r1], 1;", "atom.shared.add.u32 %r2, [%r1], 1;"]
)
def test_a_copy_that_was_not_waited_for(use: str) -> None:
    fails(f"{COPY} {use}", "a cp.async that nobody has waited for is on its way to shared memory at 0x0")
    fails(f"{COPY} cp.async.commit_group; cp.async.wait_group 2; {use}", "nobody has waited for")
    run_body(f"{COPY} cp.async.commit_group; cp.async.wait_group 1; {use}", {"out": np.zeros(WARP, U32)})


NEIGHBOUR = "xor.b32 %r2, %r1, 128;"  # the same place of the other of two warps


@pytest.mark.parametrize("name", ORDERS)
@pytest.mark.parametrize(
    ("first", "second", "message"),
    [
        ("st.shared.b32 [%r1], %i;", "ld.shared.b32 %r3, [%r2];", "a race: another warp (writes|reads)"),
        ("ld.shared.b32 %r3, [%r1];", "st.shared.b32 [%r2], %i;", "a race: another warp (writes|reads)"),
        ("st.shared.b32 [%r1], %i;", "st.shared.b32 [%r2], %i;", "a race: another warp writes what this one writes"),
        ("atom.shared.add.u32 %r3, [%r1], %i;", "st.shared.b32 [%r2], %i;", "a race: another warp"),
        ("ld.shared.b32 %r3, [%r1];", "cp.async.ca.shared.global [%r2], [%w1], 4;", "a race: another warp|on its way"),
    ],
)
def test_a_missing_barrier(first: str, second: str, message: str, name: str) -> None:
    start = f"{SHARED} {NEIGHBOUR} {TO_OUT} st.shared.b32 [%r1], 5; bar.sync 0;"
    run_body(f"{start} {first} bar.sync 0; {second}", {"out": np.zeros(64, U32)}, threads=64, order=Order(name))
    fails(f"{start} {first} {second}", message, threads=64, order=Order(name))


@pytest.mark.parametrize("name", ORDERS)
def test_copies_are_seen_by_others_after_a_barrier_only(name: str) -> None:
    start, out = f"{COPY} {NEIGHBOUR} cp.async.wait_all;", np.zeros(64, U32)
    run_body(f"{start} bar.sync 0; ld.shared.b32 %r3, [%r2];", {"out": out}, threads=64, order=Order(name))
    fails(f"{start} ld.shared.b32 %r3, [%r2];", "a race: another warp", threads=64, order=Order(name))


@pytest.mark.parametrize("name", ORDERS)
@pytest.mark.parametrize(
    ("body", "message"),
    [
        ("st.global.b32 [%w1], %r2;", "another (CTA writes what this one writes, byte 0 of out|lane stores a diff)"),
        (
            "st.global.b32 [%w0], 5; ld.global.b32 %r3, [%w0+128];",
            "another CTA (writes|reads) what this one (writes|reads)",
        ),
        (
            "red.global.add.u32 [%w1], %r2; ld.global.b32 %r3, [%w1];",
            "a race: another CTA (reads|changes atomically) what",
        ),
        ("ld.global.b32 %r3, [%w1]; setp.eq.u32 %p0, %r2, 3; @%p0 st.global.b32 [%w1], 5;", "a race: another CTA"),
        ("st.global.b32 [%w1], 5;", None),
        ("red.global.add.u32 [%w1], %r2;", None),
        ("ld.global.b32 %r3, [%w1];", None),
        ("st.global.b32 [%w0], 5; ld.global.b32 %r3, [%w0];", None),
    ],
)
def test_ctas_that_touch_the_same_memory(body: str, message: str | None, name: str) -> None:
    """%w0 is a place of the CTA's own, %w1 one that all of them have."""
    start = f"""{TO_OUT} mov.u32 %r2, %ctaid.x; add.u32 %r2, %r2, 1;
    mul.wide.u32 %w0, %r2, 128; add.u64 %w0, %w0, %w1;"""
    out = np.zeros((5, WARP), U32)
    if message is None:
        run_body(start + body, {"out": out}, ctas=3, order=Order(name))
        return
    with pytest.raises(PtxError, match=message):
        run_body(start + body, {"out": out}, ctas=3, order=Order(name))


@pytest.mark.parametrize("name", ORDERS)
def test_copies_of_one_value_are_no_race(name: str) -> None:
    """Triton lets several warps store what each of them has computed alike."""
    body = f"{SHARED} and.b32 %r2, %i, 31; mad.lo.u32 %r3, %r2, 4, %r0; st.shared.b32 [%r3], %r2;"
    run_body(f"{body} ld.shared.b32 %r4, [%r3];", {"out": np.zeros(64, U32)}, threads=64, order=Order(name))


@pytest.mark.parametrize("name", ORDERS)
@pytest.mark.parametrize(
    ("body", "message"),
    [
        ("setp.lt.u32 %p0, %i, 32; @%p0 ret; bar.sync 0;", "deadlock: 32 threads of a CTA wait .*; 32 have left"),
        ("setp.lt.u32 %p0, %i, 32; @%p0 bra A; bar.sync 0; ret; A: bar.sync 1;", "deadlock: 32 .*; 32 threads"),
        ("setp.lt.u32 %p0, %i, 40; @%p0 bra A; bar.sync 0; ret; A: bar.sync 0;", "deadlock: lanes of one warp"),
        ("setp.lt.u32 %p0, %i, 8; @%p0 bra A; bar.warp.sync 0xff; ret; A: bar.warp.sync -1;", "deadlock: lanes of"),
        ("setp.lt.u32 %p0, %i, 8; @%p0 bar.sync 0;", "a barrier in a warp whose lanes do not all take part"),
        ("AGAIN: bra AGAIN;", "not done after max_steps = 1000"),
    ],
)  # fmt: skip
def test_a_kernel_that_does_not_end(body: str, message: str, name: str) -> None:
    with pytest.raises(PtxError, match=message):
        run_body(body, {}, threads=64, order=Order(name), max_steps=1000)


def test_mma_needs_the_whole_warp() -> None:
    registers = "{%r1, %r1, %r1, %r1}"
    mma = "mma.sync.aligned.m16n8k16.row.col.f32.bf16.bf16.f32"
    body = f"mov.u32 %r1, 0; setp.lt.u32 %p0, %i, 8; @%p0 {mma} {registers}, {registers}, {{%r1, %r1}}, {registers};"
    fails(body, "not all lanes of the warp take part")


def test_a_launch_that_does_not_fit_is_refused() -> None:
    program = Program(HEADER + entry("kernel", ["a", "b"], ""))
    with pytest.raises(ValueError, match="parameters: expected 16 bytes for kernel, got 8"):
        program.launch((1,), (32,), bytes(8), GlobalMemory())
    with pytest.raises(PtxError, match=r"expected one entry called other, the PTX has \['kernel'\]"):
        Program(HEADER + entry("kernel", [], ""), "other")


def test_an_offset_past_32_bits_is_seen() -> None:
    """Byte 3 * 2^30: right in 64 bits, out of bounds where the product was cut to 32."""
    huge = np.zeros(3 << 30, U8)  # never touched but for one page
    body = "ld.param.u64 %w0, [huge]; add.u32 %r0, %i, 0x2fffffe0; {} st.global.b32 [%w0], 7;"
    run_body(body.format("mad.wide.u32 %w0, %r0, 4, %w0;"), {"huge": huge})
    assert set(huge[-128:].view(U32)) == {7}
    cut = "shl.b32 %r0, %r0, 2; cvt.s64.s32 %w2, %r0; add.s64 %w0, %w0, %w2;"
    with pytest.raises(PtxError, match="out of bounds: 4 bytes"):
        run_body(body.format(cut), {"huge": huge})
