"""The interpreter of PTX (tests/ptx): every family of instructions does what the manual says."""

from __future__ import annotations

import subprocess
from pathlib import Path

import numpy as np
import pytest
from ptx.handwritten import HEADER, WARP, entry, lanewise, run_body, run_lanewise
from ptx.machine import ORDERS, Order, Program
from ptx.memory import GlobalMemory
from ptx_cases import BF16, CASES, U32, Array, Case, draw

LANE = np.arange(WARP)


@pytest.mark.parametrize("case", CASES, ids=lambda case: case.text.strip("{}\n\t ").split("\n")[-1].strip())
def test_instruction(case: Case) -> None:
    generator = np.random.default_rng(0)
    for _ in range(4):
        inputs = [draw(dtype, generator) for dtype in case.inputs]
        got = run_lanewise(case.text, case.result, inputs)
        with np.errstate(all="ignore"):
            expected = np.asarray(case.expected(*inputs)).astype(case.result)
        if case.relative:
            np.testing.assert_allclose(got, expected, case.relative, 2.0**-126)
            continue
        if case.result.kind == "f":
            np.testing.assert_array_equal(np.isnan(got), np.isnan(expected))
            got, expected = (np.where(np.isnan(each), 0, each).astype(case.result) for each in (got, expected))
        np.testing.assert_array_equal(got.view(f"u{got.itemsize}"), expected.view(f"u{got.itemsize}"))


@pytest.mark.parametrize("text", ["fma.rn.f32 %d, %a, %b, %c;", BF16.format("fma.rn.bf16 %x, %x, %y, %z;")])
def test_fma_is_rounded_once(text: str) -> None:
    """The product is a tie; what decides it is 2^-100, beyond the bits of float64."""
    a, b = (24929, 673 / 2**24) if text.startswith("fma") else (7, 37 / 256)
    c = np.array([2.0**-100, -(2.0**-100), 0], np.float32)
    got = run_lanewise(text, c.dtype, [np.full(3, a, c.dtype), np.full(3, b, c.dtype), c])
    step = 2.0**-23 if text.startswith("fma") else 2.0**-7
    below = a * b - step / 2
    assert got.tolist() == [below + step, below, below if text.startswith("fma") else below + step]


def test_ptxas_takes_the_cases(tmp_path: Path) -> None:
    """What the table runs is PTX, not something that only this interpreter takes for it."""
    backend = pytest.importorskip("triton.backends.nvidia", reason="Triton, whose ptxas is used, is not installed")
    ptxas = Path(backend.__file__).parent / "bin" / "ptxas"
    entries = [lanewise(f"case{i}", case.text, case.result, case.inputs) for i, case in enumerate(CASES)]
    source = tmp_path / "cases.ptx"
    source.write_text(HEADER + "".join(entries))
    subprocess.run([ptxas, "-arch=sm_80", "-O0", source, "-o", tmp_path / "cases.cubin"], check=True)


def warp_result(body: str, value: Array, threads: int = WARP) -> Array:
    """What a body leaves in %r1 when %r0 is `value`."""
    out = np.zeros(threads, U32)
    load = "ld.param.u64 %w0, [value]; mad.wide.u32 %w0, %i, 4, %w0; ld.global.b32 %r0, [%w0];"
    store = "ld.param.u64 %w1, [out]; mad.wide.u32 %w1, %i, 4, %w1; st.global.b32 [%w1], %r1;"
    run_body(f"{load}\n{body}\n{store}", {"value": value, "out": out}, threads)
    return out


SHUFFLES = {
    "bfly.b32 %r1, %r0, 5, 31, -1": LANE ^ 5,
    "bfly.b32 %r1, %r0, 3, 0x1c1f, -1": LANE ^ 3,  # segments of four lanes
    "up.b32 %r1, %r0, 3, 0, -1": np.where(LANE >= 3, LANE - 3, LANE),
    "down.b32 %r1, %r0, 3, 31, -1": np.where(LANE + 3 < 32, LANE + 3, LANE),
    "down.b32 %r1, %r0, 3, 0x181f, -1": np.where(LANE % 8 + 3 < 8, LANE + 3, LANE),
    "idx.b32 %r1, %r0, 6, 31, -1": np.full(32, 6),
    "idx.b32 %r1, %r0, 1, 0x1c1f, -1": LANE // 4 * 4 + 1,
}


@pytest.mark.parametrize("text", SHUFFLES)
def test_shuffle(text: str) -> None:
    value = np.random.default_rng(0).integers(0, 2**32, 64, np.uint32)
    got = warp_result(f"shfl.sync.{text};", value, threads=64)
    np.testing.assert_array_equal(got, np.concatenate([value[SHUFFLES[text]], value[32:][SHUFFLES[text]]]))


def test_shuffle_says_whether_a_lane_was_inside() -> None:
    got = warp_result("shfl.sync.up.b32 %r2|%p0, %r0, 4, 0, -1; selp.b32 %r1, 1, 0, %p0;", LANE.astype(U32))
    np.testing.assert_array_equal(got, LANE >= 4)


VOTES = {
    "setp.gt.u32 %p0, %r0, 9; vote.sync.ballot.b32 %r1, %p0, -1;": sum(1 << i for i in range(10, 32)),
    "setp.gt.u32 %p0, %r0, 40; vote.sync.any.pred %p1, %p0, -1; selp.b32 %r1, 1, 0, %p1;": 0,
    "setp.lt.u32 %p0, %r0, 40; vote.sync.all.pred %p1, %p0, -1; selp.b32 %r1, 1, 0, %p1;": 1,
    "setp.lt.u32 %p0, %r0, 4; vote.sync.uni.pred %p1, %p0, -1; selp.b32 %r1, 1, 0, %p1;": 0,
    "redux.sync.add.u32 %r1, %r0, -1;": sum(range(32)),
    "redux.sync.max.s32 %r1, %r0, -1;": 31,
    "redux.sync.xor.b32 %r1, %r0, -1;": 0,
    "activemask.b32 %r1;": 2**32 - 1,
}


@pytest.mark.parametrize("text", VOTES)
def test_vote_and_reduction(text: str) -> None:
    assert set(warp_result(text, LANE.astype(U32))) == {VOTES[text]}


def test_match() -> None:
    value = (LANE % 3).astype(U32)
    got = warp_result("match.any.sync.b32 %r1, %r0, -1;", value)
    assert got.tolist() == [sum(1 << i for i in range(32) if i % 3 == lane % 3) for lane in range(32)]
    assert set(warp_result("match.all.sync.b32 %r1|%p0, %r0, -1;", value)) == {0}


def test_diverged_halves_vote_for_themselves() -> None:
    body = """setp.lt.u32 %p0, %r0, 16;
        @%p0 bra LOW;
        redux.sync.add.u32 %r1, %r0, 0xffff0000;
        bra.uni DONE;
    LOW:
        redux.sync.add.u32 %r1, %r0, 0xffff;
    DONE:
        bar.warp.sync -1;
        activemask.b32 %r2;
        add.u32 %r2, %r2, 1;
        add.u32 %r1, %r1, %r2;"""
    got = warp_result(body, LANE.astype(U32))
    assert got.tolist() == [sum(range(16))] * 16 + [sum(range(16, 32))] * 16


def test_loops_of_different_lengths() -> None:
    body = """mov.u32 %r1, 0;
    AGAIN:
        setp.eq.u32 %p0, %r0, 0;
        @%p0 bra DONE;
        add.u32 %r1, %r1, %r0;
        sub.u32 %r0, %r0, 1;
        bra AGAIN;
    DONE:"""
    value = np.random.default_rng(0).integers(0, 9, 96).astype(U32)
    np.testing.assert_array_equal(warp_result(body, value, threads=96), value * (value + 1) // 2)


def test_lanes_wait_at_an_earlier_place_for_the_rest_of_their_warp() -> None:
    body = """bra START;
    TOGETHER:
        redux.sync.add.u32 %r1, %r0, -1;
        activemask.b32 %r2;
        shr.u32 %r2, %r2, 31;
        add.u32 %r1, %r1, %r2;
        bra DONE;
    START:
        setp.lt.u32 %p0, %r0, 16;
        @%p0 bra TOGETHER;
        add.u32 %r0, %r0, 100;
        bra TOGETHER;
    DONE:"""
    assert set(warp_result(body, LANE.astype(U32))) == {sum(range(32)) + 1600 + 1}


def test_diverged_lanes_come_together_where_their_ways_meet() -> None:
    body = """setp.lt.u32 %p0, %r0, 16;
        @%p0 bra LOW;
        add.u32 %r0, %r0, 1;
    LOW:
        activemask.b32 %r1;"""
    assert set(warp_result(body, LANE.astype(U32))) == {2**32 - 1}


REVERSE = """.shared .align 4 .b8 stage[512];
    mov.u32 %r0, stage;
    shl.b32 %r1, %i, 2;
    add.u32 %r1, %r0, %r1;
    mov.u32 %r2, %ctaid.x;
    mad.lo.u32 %r2, %r2, 1000, %i;
    st.shared.b32 [%r1], %r2;
    bar.sync 0;
    xor.b32 %r3, %i, 127;
    shl.b32 %r3, %r3, 2;
    add.u32 %r3, %r0, %r3;
    ld.shared.b32 %r4, [%r3];
    mov.u32 %r5, %ctaid.x;
    mad.lo.u32 %r5, %r5, 128, %i;
    ld.param.u64 %w0, [out];
    mad.wide.u32 %w0, %r5, 4, %w0;
    st.global.b32 [%w0], %r4;"""


@pytest.mark.parametrize("name", ORDERS)
def test_shared_memory_in_every_order(name: str) -> None:
    out = np.zeros(128 * 40, U32)
    run_body(REVERSE, {"out": out}, threads=128, ctas=40, order=Order(name, seed=1))
    np.testing.assert_array_equal(out.reshape(40, 128), np.arange(40)[:, None] * 1000 + np.arange(128)[::-1])


def test_grid_and_block_of_three_dimensions() -> None:
    body = """mov.u32 %r0, %tid.y; mov.u32 %r1, %ntid.x; mov.u32 %r2, %ctaid.y; mov.u32 %r3, %nctaid.x;
    mov.u32 %r4, %ctaid.x; mad.lo.u32 %r5, %r2, %r3, %r4; mul.lo.u32 %r5, %r5, 24;
    mad.lo.u32 %r6, %r0, %r1, %i; add.u32 %r5, %r5, %r6;
    ld.param.u64 %w0, [out]; mad.wide.u32 %w0, %r5, 4, %w0; st.global.b32 [%w0], %r5;"""
    out, memory = np.zeros(24 * 6, U32), GlobalMemory()
    address = memory.add(out, "out")
    Program(HEADER + entry("kernel", ["out"], body)).launch((2, 3), (8, 3), address.to_bytes(8, "little"), memory)
    np.testing.assert_array_equal(out, np.arange(24 * 6))


TICKETS = """mov.u32 %r0, %laneid; setp.ne.u32 %p0, %r0, 0; @%p0 ret;
    ld.param.u64 %w0, [counter]; atom.global.add.u32 %r1, [%w0], 1;
    mov.u32 %r2, %ctaid.x; mul.lo.u32 %r2, %r2, 3; mov.u32 %r3, %warpid; add.u32 %r2, %r2, %r3;
    ld.param.u64 %w1, [out]; mad.wide.u32 %w1, %r2, 4, %w1; st.global.b32 [%w1], %r1;"""


def test_orders_are_what_they_say() -> None:
    """Each warp of two CTAs takes a ticket."""
    tickets = {}
    for name, seed in (("lockstep", 0), ("forward", 0), ("reverse", 0), ("shuffled", 0), ("shuffled", 1)):
        out = np.zeros(6, U32)
        run_body(TICKETS, {"counter": np.zeros(1, U32), "out": out}, 96, ctas=2, order=Order(name, seed))
        tickets[name, seed] = out.tolist()
        assert sorted(out) == list(range(6))
    assert tickets["forward", 0] == list(range(6))
    assert tickets["reverse", 0] == list(range(6))[::-1]
    assert tickets["shuffled", 0] != tickets["shuffled", 1]


def test_an_unknown_order_is_refused() -> None:
    with pytest.raises(ValueError, match="order: expected one of"):
        Order("backwards")
