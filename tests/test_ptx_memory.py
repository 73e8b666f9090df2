"""The interpreter of PTX: loads, stores, atomics, asynchronous copies, and the matrices of the tensor cores."""

from __future__ import annotations

import struct

import numpy as np
import pytest
import torch
from ptx.handwritten import HEADER, WARP, run_body
from ptx.machine import ORDERS, Order, Program
from ptx.memory import GlobalMemory
from ptx.scalars import TYPES, decode, encode
from ptx_cases import S32, U8, U16, U32, Array

LANE = np.arange(WARP)


def pointer(name: str, register: str, stride_bytes: int) -> str:
    """register = name + thread * stride"""
    return f"ld.param.u64 {register}, [{name}]; mad.wide.u32 {register}, %i, {stride_bytes}, {register};"


def random_bytes(count: int) -> Array:
    return np.random.default_rng(0).integers(0, 256, count, U8)


@pytest.mark.parametrize("width", ["v2.b32", "v4.b32", "v2.b64", "b64", "v4.b16", "v2.u8"])
@pytest.mark.parametrize("hints", ["", ".L1::evict_last", ".nc.L1::no_allocate.L2::128B"])
def test_loads_and_stores_of_vectors(width: str, hints: str) -> None:
    length, bits = int(width[1]) if width[0] == "v" else 1, int(width.split(".")[-1][1:])
    size_bytes = length * bits // 8
    letter = {8: "h", 16: "h", 32: "r", 64: "w"}[bits]
    values = ", ".join(f"%{letter}{number + 4}" for number in range(length))
    values = f"{{{values}}}" if length > 1 else values
    body = f"""{pointer("a", "%w0", size_bytes)} {pointer("out", "%w1", size_bytes)}
    ld.global{hints}.{width} {values}, [%w0];
    st.global.{width} [%w1], {values};"""
    a = random_bytes(WARP * size_bytes)
    out = np.zeros_like(a)
    run_body(body, {"a": a, "out": out})
    np.testing.assert_array_equal(out, a)


def test_narrow_loads_extend_with_their_sign() -> None:
    a, out = random_bytes(WARP), np.zeros((WARP, 2), S32)
    body = f"""{pointer("a", "%w0", 1)} {pointer("out", "%w1", 8)}
    ld.global.s8 %r0, [%w0]; ld.global.u8 %r1, [%w0];
    st.global.v2.b32 [%w1], {{%r0, %r1}};"""
    run_body(body, {"a": a, "out": out})
    np.testing.assert_array_equal(out, np.stack([a.view(np.int8), a], 1))


def test_generic_addresses_and_cache_policy() -> None:
    out = np.zeros(WARP, U32)
    body = f""".shared .align 4 .b8 stage[128];
    mov.u64 %w0, stage; cvta.shared.u64 %w0, %w0; mad.wide.u32 %w0, %i, 4, %w0;
    st.b32 [%w0], %i; bar.warp.sync -1; ld.b32 %r0, [%w0];
    createpolicy.fractional.L2::evict_first.b64 %w2, 1.0;
    {pointer("out", "%w1", 4)} cvta.to.global.u64 %w1, %w1;
    st.global.L1::evict_first.L2::cache_hint.b32 [%w1], %r0, %w2;
    ld.b32 %r1, [%w1]; add.u32 %r1, %r1, 1; st.b32 [%w1], %r1;"""
    run_body(body, {"out": out})
    np.testing.assert_array_equal(out, LANE + 1)


def test_local_arrays_are_a_lane_s_own() -> None:
    """With a computed index, through local and through generic addresses."""
    out = np.zeros(WARP, U32)
    body = f""".local .align 8 .b8 own[64];
    mov.u64 %w0, own; cvta.local.u64 %w2, %w0; and.b32 %r0, %i, 15; mad.wide.u32 %w3, %r0, 4, %w2;
    st.b32 [%w3], %i; add.u64 %w4, %w0, 0; mad.wide.u32 %w4, %r0, 4, %w4; ld.local.b32 %r1, [%w4];
    {pointer("out", "%w1", 4)} st.global.b32 [%w1], %r1;"""
    run_body(body, {"out": out})
    np.testing.assert_array_equal(out, LANE)


@pytest.mark.parametrize("name", ORDERS)
@pytest.mark.parametrize(("limit", "count", "every", "some"), [(0, 0, 0, 0), (70, 70, 0, 1), (128, 128, 1, 1)])
def test_barriers_that_count_votes(limit: int, count: int, every: int, some: int, name: str) -> None:
    """CTAs come to the votes after different numbers of rounds; the last vote is the opposite one."""
    out = np.zeros((3, 128, 4), U32)
    body = f"""setp.lt.u32 %p0, %i, {limit}; mov.u32 %r8, %ctaid.x; mov.u32 %r9, 0;
    AGAIN: setp.eq.u32 %p3, %r9, %r8; @%p3 bra VOTE; bar.red.popc.u32 %r0, 0, %p0; add.u32 %r9, %r9, 1; bra AGAIN;
    VOTE: bar.red.popc.u32 %r0, 0, %p0; bar.red.and.pred %p1, 0, %p0; barrier.cta.red.or.aligned.pred %p2, 0, %p0;
    not.pred %p0, %p0; bar.red.popc.u32 %r3, 0, %p0;
    selp.u32 %r1, 1, 0, %p1; selp.u32 %r2, 1, 0, %p2; mad.lo.u32 %r4, %r8, 128, %i;
    ld.param.u64 %w1, [out]; mad.wide.u32 %w1, %r4, 16, %w1; st.global.v4.b32 [%w1], {{%r0, %r1, %r2, %r3}};"""
    run_body(body, {"out": out}, threads=128, ctas=3, order=Order(name))
    assert np.unique(out.reshape(-1, 4), axis=0).tolist() == [[count, every, some, 128 - count]]


def test_parameters_of_bytes() -> None:
    ptx = f"""{HEADER}.visible .entry kernel(.param .u32 first, .param .align 8 .b8 block[24], .param .u64 out)
    {{ .reg .b32 %r<4>; .reg .b64 %w<4>;
    ld.param.u32 %r0, [first]; ld.param.v2.u32 {{%r1, %r2}}, [block+8]; ld.param.u64 %w0, [out];
    mov.u32 %r3, %tid.x; mad.wide.u32 %w0, %r3, 8, %w0;
    add.u32 %r1, %r1, %r0; st.global.v2.b32 [%w0], {{%r1, %r2}}; ret; }}"""
    out, memory = np.zeros((WARP, 2), U32), GlobalMemory()
    parameters = struct.pack("<I4xQ2IQQ", 5, 0, 7, 11, 0, memory.add(out, "out"))
    Program(ptx).launch((1,), (WARP,), parameters, memory)
    assert out.tolist() == [[12, 11]] * WARP


ATOMICS = {
    "add.u32": lambda old, values: np.append(values, old).sum(dtype=U32),
    "max.s32": lambda old, values: max(old.view(S32), values.view(S32).max()).view(U32),
    "min.u32": lambda old, values: min(old, values.min()),
    "or.b32": lambda old, values: old | np.bitwise_or.reduce(values),
    "xor.b32": lambda old, values: old ^ np.bitwise_xor.reduce(values),
    "exch.b32": lambda old, values: values[-1],
}


@pytest.mark.parametrize("operation", ATOMICS)
def test_atomics(operation: str) -> None:
    """128 threads on 4 places, in global and in shared memory: both end up with the same."""
    a = np.random.default_rng(0).integers(0, 2**32, 128, U32)
    total = np.random.default_rng(1).integers(0, 2**32, 4, U32)
    expected = [ATOMICS[operation](total[place], a[place::4]) for place in range(4)]
    out = np.zeros(4, U32)
    body = f""".shared .align 4 .b8 place[16];
    {pointer("a", "%w0", 4)} ld.global.b32 %r0, [%w0];
    and.b32 %r1, %i, 3; ld.param.u64 %w1, [total]; mad.wide.u32 %w1, %r1, 4, %w1;
    shl.b32 %r3, %r1, 2; mov.u32 %r4, place; add.u32 %r4, %r4, %r3;
    setp.lt.u32 %p0, %i, 4;
    @%p0 ld.global.b32 %r5, [%w1];
    @%p0 st.shared.b32 [%r4], %r5;
    bar.sync 0;
    atom.shared.{operation} %r2, [%r4], %r0;
    atom.global.gpu.acq_rel.{operation} %r2, [%w1], %r0;
    bar.sync 0;
    ld.shared.b32 %r5, [%r4]; {pointer("out", "%w2", 4)}
    @%p0 st.global.b32 [%w2], %r5;"""
    run_body(body, {"a": a, "total": total, "out": out}, threads=128)
    assert total.tolist() == expected
    assert out.tolist() == expected


def test_atomics_give_what_was_there() -> None:
    """Tickets: every thread gets another one; cas lets one thread through; red of floats adds them all."""
    counter, lock, total = np.zeros(1, U32), np.zeros(1, U32), np.zeros(1, np.float32)
    tickets, winners = np.zeros(64, U32), np.zeros(64, U32)
    body = f"""ld.param.u64 %w0, [counter]; atom.global.add.u32 %r0, [%w0], 1;
    ld.param.u64 %w1, [lock]; atom.global.cas.b32 %r1, [%w1], 0, 7;
    ld.param.u64 %w4, [total]; red.global.add.f32 [%w4], 0f3F000000;
    {pointer("tickets", "%w2", 4)} {pointer("winners", "%w3", 4)}
    st.global.b32 [%w2], %r0; st.global.b32 [%w3], %r1;"""
    buffers = {"counter": counter, "lock": lock, "tickets": tickets, "winners": winners, "total": total}
    run_body(body, buffers, threads=64)
    assert sorted(tickets.tolist()) == list(range(64))
    assert winners.tolist() == [0] + [7] * 63
    assert total[0] == 32


def test_asynchronous_copy_fills_with_zeros() -> None:
    """Lane i copies its first i % 17 bytes; the groups are waited for one after the other."""
    a, out = random_bytes(WARP * 16), np.ones((2, WARP, 16), U8)
    body = f""".shared .align 16 .b8 stage[1024];
    mov.u32 %r0, stage; mad.lo.u32 %r1, %i, 16, %r0; {pointer("a", "%w0", 16)} {pointer("out", "%w1", 16)}
    rem.u32 %r2, %i, 17;
    cp.async.cg.shared.global [%r1], [%w0], 16, %r2;
    cp.async.commit_group;
    cp.async.ca.shared.global.L2::128B [%r1+512], [%w0], 16;
    cp.async.commit_group;
    cp.async.wait_group 1;
    ld.shared.v4.b32 {{%r4, %r5, %r6, %r7}}, [%r1]; st.global.v4.b32 [%w1], {{%r4, %r5, %r6, %r7}};
    cp.async.wait_all;
    ld.shared.v4.b32 {{%r4, %r5, %r6, %r7}}, [%r1+512]; st.global.v4.b32 [%w1+512], {{%r4, %r5, %r6, %r7}};"""
    run_body(body, {"a": a, "out": out})
    rows = a.reshape(WARP, 16)
    np.testing.assert_array_equal(out[0], np.where(np.arange(16) < (LANE % 17)[:, None], rows, 0))
    np.testing.assert_array_equal(out[1], rows)


@pytest.mark.parametrize("transposed", [False, True])
@pytest.mark.parametrize("count", [1, 2, 4])
def test_ldmatrix(count: int, transposed: bool) -> None:
    """Two warps; the rows of the matrices lie in shared memory in another order than the lanes name them."""
    rows = np.arange(64 * 8, dtype=U16).reshape(64, 8)
    out = np.zeros((64, count), U32)
    registers = ["%r4", "%r5", "%r6", "%r7"][:count]
    store = "; ".join(f"st.global.b32 [%w1+{4 * number}], {register}" for number, register in enumerate(registers))
    body = f""".shared .align 16 .b8 stage[1024];
    mov.u32 %r0, stage; mad.lo.u32 %r1, %i, 16, %r0; {pointer("rows", "%w0", 16)} {pointer("out", "%w1", 4 * count)}
    ld.global.v4.b32 {{%r8, %r9, %r10, %r11}}, [%w0]; st.shared.v4.b32 [%r1], {{%r8, %r9, %r10, %r11}};
    bar.sync 0;
    xor.b32 %r2, %i, 37; mad.lo.u32 %r2, %r2, 16, %r0;
    ldmatrix.sync.aligned.m8n8.x{count}{".trans" if transposed else ""}.shared.b16 {{{", ".join(registers)}}}, [%r2];
    {store};"""
    run_body(body, {"rows": rows, "out": out}, threads=64)
    for thread in range(64):
        warp, lane = thread // 32 * 32, thread % 32
        for number in range(count):
            matrix = rows[(warp + 8 * number + np.arange(8)) ^ 37]
            matrix = matrix.T if transposed else matrix
            pair = matrix[lane // 4, lane % 4 * 2 : lane % 4 * 2 + 2]
            assert out[thread, number] == int(pair[0]) | int(pair[1]) << 16


def fragments(matrix: Array, name: str, rows_first: bool) -> Array:
    """[32, registers] of A (rows_first) or of B transposed, as the manual's figures have them."""
    bits = 32 if name == "tf32" else TYPES[name].bits
    per_register, k = 32 // bits, matrix.shape[1]
    out = []
    for lane in LANE:
        words = []
        for half in range(k // (4 * per_register)):
            columns = half * 4 * per_register + lane % 4 * per_register + np.arange(per_register)
            for row in (lane // 4, lane // 4 + 8) if rows_first else (lane // 4,):
                words.append(matrix[row, columns])
        out.append(np.concatenate(words))
    return np.ascontiguousarray(np.stack(out)).view(U32)


@pytest.mark.parametrize(
    ("size", "name"),
    [(8, "tf32"), (4, "tf32"), (8, "bf16"), (16, "bf16"), (8, "f16"), (16, "f16"), (16, "s8"), (32, "u8")],
)
def test_mma(size: int, name: str) -> None:
    generator = np.random.default_rng(0)
    scalar, is_integer = TYPES[name], TYPES[name].is_integer
    if is_integer:
        a, b = (generator.integers(-128, 256, (n, size)).astype(scalar.dtype) for n in (16, 8))
        c = generator.integers(-1000, 1000, (16, 8), np.int32)
        expected = a.astype(np.int64) @ b.astype(np.int64).T + c
        raw_a, raw_b = a, b
    else:
        raw_of = TYPES["f32"] if name == "tf32" else scalar
        raw_a, raw_b = (encode(generator.standard_normal((n, size)).astype(np.float32), raw_of) for n in (16, 8))
        c = generator.standard_normal((16, 8)).astype(np.float32)
        a, b = (decode(raw & U32.type(0xFFFFE000) if name == "tf32" else raw, raw_of) for raw in (raw_a, raw_b))
        expected = a.astype(np.float64) @ b.astype(np.float64).T + c
    words_a, words_b = fragments(raw_a, name, True), fragments(raw_b, name, False)
    pairs = c.reshape(2, 8, 4, 2).transpose(1, 2, 0, 3).reshape(32, 4)
    words = np.ascontiguousarray(np.concatenate([words_a, words_b, pairs.view(U32)], 1))
    out = np.zeros((32, 4), c.dtype)
    registers = [f"%r{number}" for number in range(words.shape[1])]
    load = " ".join(f"ld.global.b32 {register}, [%w0+{4 * i}];" for i, register in enumerate(registers))
    fragment_a = ", ".join(registers[: words_a.shape[1]])
    fragment_b = ", ".join(registers[words_a.shape[1] : -4])
    accumulator = "s32" if is_integer else "f32"
    body = f"""{pointer("words", "%w0", 4 * words.shape[1])} {pointer("out", "%w1", 16)} {load}
    mma.sync.aligned.m16n8k{size}.row.col.{accumulator}.{name}.{name}.{accumulator}
        {{%r20, %r21, %r22, %r23}}, {{{fragment_a}}}, {{{fragment_b}}}, {{{", ".join(registers[-4:])}}};
    st.global.v4.b32 [%w1], {{%r20, %r21, %r22, %r23}};"""
    run_body(body, {"words": words, "out": out})
    got = out.reshape(8, 4, 2, 2).transpose(2, 0, 1, 3).reshape(16, 8)
    np.testing.assert_array_equal(got, expected.astype(c.dtype))


def test_bfloat16_is_rounded_as_torch_does() -> None:
    values = torch.randn(1000) * torch.logspace(-40, 38, 1000)
    np.testing.assert_array_equal(
        encode(values.numpy(), TYPES["bf16"]), values.bfloat16().view(torch.int16).numpy().view(U16)
    )
