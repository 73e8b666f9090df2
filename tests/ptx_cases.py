"""Single PTX instructions and what they have to compute: the table that test_ptx.py runs."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from fractions import Fraction
from functools import partial
from typing import Any

import numpy as np
import torch
from ptx_expected import (
    Array,
    DType,
    dot_of_bytes,
    each,
    extract,
    fma,
    fma_directed,
    insert,
    larger_or_nan,
    nearest,
    of_torch,
    pair_of,
    permute,
    saturated,
    smaller,
    tf32,
    to_bf16,
    toward_zero,
    truncated,
    unordered,
)

U8, U16, U32, U64 = (np.dtype(f"u{size}") for size in (1, 2, 4, 8))
S8, S16, S32, S64 = (np.dtype(f"i{size}") for size in (1, 2, 4, 8))
F16, F32, F64 = (np.dtype(f"f{size}") for size in (2, 4, 8))
BOOL = np.dtype(bool)
LANES = 128


@dataclass(frozen=True)
class Case:
    """d[i] = expected(a[i], b[i], ...); bfloat16 travels as float32 values that it can represent."""

    text: str
    result: DType
    inputs: tuple[DType, ...]
    expected: Callable[..., Any]
    relative: float = 0.0  # error allowed; 0 is to the bit, but for the payload of NaN


def draw(dtype: DType, generator: np.random.Generator) -> Array:
    """[LANES] special values and random ones of all sizes, in a random order."""
    if dtype == BOOL:
        return generator.random(LANES) < 0.5
    if dtype.kind == "f":
        limits = np.finfo(dtype)
        special = [0, -0.0, 1, -1, 0.5, 1.5, -2.5, np.inf, -np.inf, np.nan, limits.max, limits.tiny, limits.tiny / 8]
        special += [sign * (1 + odd / 2**bits) for bits in (8, 11) for odd in (1, 3) for sign in (1, -1)]  # ties
        sizes = 10.0 ** generator.integers(-4, 5, LANES)
        values = np.concatenate([special, generator.standard_normal(LANES) * sizes])
        return generator.permutation(values[:LANES].astype(dtype))
    range_of = np.iinfo(dtype)
    special = [0, 1, 2, 31, 32, range_of.max, range_of.max - 1, range_of.min]
    drawn = generator.integers(range_of.min, range_of.max, LANES, dtype, endpoint=True)
    shifted = drawn >> generator.integers(0, 8 * dtype.itemsize, LANES).astype(dtype)
    return generator.permutation(np.concatenate([np.array(special, dtype), shifted])[:LANES])


HIGH = (("s16", S16), ("s32", S32), ("u32", U32), ("s64", S64), ("u64", U64))
TESTS: dict[str, Callable[[Array], Array]] = {
    "finite": np.isfinite,
    "notanumber": np.isnan,
    "subnormal": lambda a: (a != 0) & (np.abs(a) < 2.0**-126),
}

INTEGER = [
    Case("add.s32 %d, %a, %b;", S32, (S32, S32), np.add),
    Case("add.u16 %d, %a, %b;", U16, (U16, U16), np.add),
    Case("sub.s64 %d, %a, %b;", S64, (S64, S64), np.subtract),
    Case("mul.lo.s32 %d, %a, %b;", S32, (S32, S32), np.multiply),
    Case("mul.lo.s64 %d, %a, %b;", S64, (S64, S64), np.multiply),
    *(Case(f"mul.hi.{t} %d, %a, %b;", d, (d, d), each(lambda a, b, n=8 * d.itemsize: a * b >> n, d)) for t, d in HIGH),
    Case("mul.wide.s32 %d, %a, %b;", S64, (S32, S32), lambda a, b: a.astype(S64) * b),
    Case("mul.wide.u16 %d, %a, %b;", U32, (U16, U16), lambda a, b: a.astype(U32) * b),
    Case("mad.lo.s32 %d, %a, %b, %c;", S32, (S32, S32, S32), lambda a, b, c: a * b + c),
    Case("mad.wide.u32 %d, %a, 12, %b;", U64, (U32, U64), lambda a, b: a.astype(U64) * U64.type(12) + b),
    Case("or.b32 %b, %b, 1; div.s32 %d, %a, %b;", S32, (S32, S32), each(lambda a, b: truncated(a, b | 1), S32)),
    Case("or.b32 %b, %b, 1; div.u32 %d, %a, %b;", U32, (U32, U32), lambda a, b: a // (b | 1)),
    Case("or.b32 %b, %b, 1; rem.s32 %d, %a, %b;", S32, (S32, S32), lambda a, b: np.fmod(a, b | 1)),
    Case("neg.s32 %d, %a;", S32, (S32,), np.negative),
    Case("abs.s64 %d, %a;", S64, (S64,), np.abs),
    Case("min.s32 %d, %a, %b;", S32, (S32, S32), np.minimum),
    Case("max.u64 %d, %a, %b;", U64, (U64, U64), np.maximum),
    Case("and.b32 %d, %a, %b;", U32, (U32, U32), np.bitwise_and),
    Case("or.b64 %d, %a, %b;", U64, (U64, U64), np.bitwise_or),
    Case("xor.b16 %d, %a, %b;", U16, (U16, U16), np.bitwise_xor),
    Case("not.b32 %d, %a;", U32, (U32,), np.invert),
    Case("and.pred %d, %a, %b;", BOOL, (BOOL, BOOL), np.logical_and),
    Case("xor.pred %d, %a, %b;", BOOL, (BOOL, BOOL), np.logical_xor),
    Case("not.pred %d, %a;", BOOL, (BOOL,), np.logical_not),
    Case("shl.b32 %d, %a, %b;", U32, (U32, U32), each(lambda a, n: a << n if n < 32 else 0, U32)),
    Case("shr.u64 %d, %a, %b;", U64, (U64, U32), each(lambda a, n: a >> n if n < 64 else 0, U64)),
    Case("shr.s32 %d, %a, %b;", S32, (S32, U32), each(lambda a, n: a >> min(n, 32), S32)),
    Case("shr.b16 %d, %a, 3;", U16, (U16,), lambda a: a >> U16.type(3)),
    Case("shf.l.wrap.b32 %d, %a, %b, %c;", U32, (U32,) * 3, each(lambda a, b, n: (b << 32 | a) << n % 32 >> 32, U32)),
    Case("shf.r.clamp.b32 %d, %a, %b, %c;", U32, (U32,) * 3, each(lambda a, b, n: (b << 32 | a) >> min(n, 32), U32)),
    Case("bfe.u32 %d, %a, %b, %c;", U32, (U32,) * 3, each(lambda a, s, n: extract(a, s, n, 32, False), U32)),
    Case("bfe.s32 %d, %a, %b, %c;", S32, (S32, U32, U32), each(lambda a, s, n: extract(a, s, n, 32, True), S32)),
    Case("bfe.s64 %d, %a, %b, 7;", S64, (S64, U32), each(lambda a, s: extract(a, s, 7, 64, True), S64)),
    Case("bfe.u32 %d, %a, 5, 9;", U32, (U32,), lambda a: (a >> 5) & 511),
    Case("bfi.b32 %d, %a, %b, %c, %e;", U32, (U32,) * 4, each(insert, U32)),
    Case("bfi.b32 %d, %a, %b, 4, 8;", U32, (U32, U32), each(lambda a, b: insert(a, b, 4, 8), U32)),
    Case("popc.b32 %d, %a;", U32, (U32,), each(lambda a: bin(a).count("1"), U32)),
    Case("clz.b64 %d, %a;", U32, (U64,), each(lambda a: 64 - a.bit_length(), U32)),
    Case("bfind.u32 %d, %a;", U32, (U32,), each(lambda a: a.bit_length() - 1, U32)),
    Case("brev.b32 %d, %a;", U32, (U32,), each(lambda a: int(f"{a:032b}"[::-1], 2), U32)),
    Case("prmt.b32 %d, %a, %b, %c;", U32, (U32,) * 3, each(permute, U32)),
    Case("dp4a.s32.s32 %d, %a, %b, %c;", S32, (S32,) * 3, each(partial(dot_of_bytes, signed=True), S32)),
    Case("dp4a.u32.u32 %d, %a, %b, %c;", U32, (U32,) * 3, each(partial(dot_of_bytes, signed=False), U32)),
    Case("lop3.b32 %d, %a, %b, %c, 0x96;", U32, (U32,) * 3, lambda a, b, c: a ^ b ^ c),
    Case("lop3.b32 %d, %a, %b, %c, 0xD8;", U32, (U32,) * 3, lambda a, b, c: (a & ~c) | (b & c)),
]

FLOAT = [
    Case("add.f32 %d, %a, %b;", F32, (F32, F32), np.add),
    Case("sub.rn.f32 %d, %a, %b;", F32, (F32, F32), np.subtract),
    Case("mul.f64 %d, %a, %b;", F64, (F64, F64), np.multiply),
    Case("mul.ftz.f32 %d, %a, 0f3F000000;", F32, (F32,), lambda a: np.where(np.abs(a) < 2.0**-125, a * 0, a / 2)),
    Case("fma.rn.f32 %d, %a, %b, %c;", F32, (F32,) * 3, fma(torch.float32)),
    *(Case(f"fma.{mode}.f32 %d, %a, %b, %c;", F32, (F32,) * 3, fma_directed(mode)) for mode in ("rz", "rm", "rp")),
    Case("add.rm.f32 %d, %a, %b;", F32, (F32, F32), lambda a, b: fma_directed("rm")(a, np.ones_like(a), b)),
    Case(
        "neg.f32 %b, %a; add.rm.f32 %d, %a, %b;",
        F32,
        (F32, F32),
        lambda a, b: fma_directed("rm")(a, np.ones_like(a), -a),
    ),
    Case("sub.rp.f32 %d, %a, %b;", F32, (F32, F32), lambda a, b: fma_directed("rp")(a, np.ones_like(a), -b)),
    Case("mul.rz.f32 %d, %a, %b;", F32, (F32, F32), lambda a, b: fma_directed("rz")(a, b, np.copysign(0, a * b))),
    Case("add.sat.f32 %d, %a, %b;", F32, (F32, F32), lambda a, b: np.nan_to_num(np.clip(a + b, 0, 1), nan=0.0)),
    Case("neg.f32 %d, %a;", F32, (F32,), np.negative),
    Case("abs.f64 %d, %a;", F64, (F64,), np.abs),
    Case("min.f32 %d, %a, %b;", F32, (F32, F32), smaller),
    Case("max.f32 %d, %a, %b;", F32, (F32, F32), lambda a, b: -smaller(-a, -b)),
    Case("max.NaN.f32 %d, %a, %b;", F32, (F32, F32), larger_or_nan),
    Case("copysign.f32 %d, %a, %b;", F32, (F32, F32), lambda a, b: np.copysign(b, a)),
    Case("div.rn.f32 %d, %a, %b;", F32, (F32, F32), np.divide),
    Case("div.full.f32 %d, %a, %b;", F32, (F32, F32), np.divide, 3e-7),
    Case("rcp.rn.f32 %d, %a;", F32, (F32,), np.reciprocal),
    Case("sqrt.rn.f32 %d, %a;", F32, (F32,), np.sqrt),
    Case("rsqrt.approx.f32 %d, %a;", F32, (F32,), of_torch(torch.rsqrt), 3e-7),
    Case("ex2.approx.f32 %d, %a;", F32, (F32,), of_torch(torch.exp2), 1e-6),
    Case("lg2.approx.f32 %d, %a;", F32, (F32,), of_torch(torch.log2), 1e-5),
    Case("tanh.approx.f32 %d, %a;", F32, (F32,), of_torch(torch.tanh), 1e-6),
    Case("mul.f16 %d, %a, %b;", F16, (F16, F16), lambda a, b: (a.astype(F32) * b).astype(F16)),
    Case("fma.rn.f16 %d, %a, %b, %c;", F16, (F16,) * 3, fma(torch.float16)),
    *(Case(f"testp.{name}.f32 %d, %a;", BOOL, (F32,), test) for name, test in TESTS.items()),
]

# bfloat16: the sources are rounded to it and the result is widened again, so that float32 goes in and out.
BF16 = """{{
\t.reg .b16 %x, %y, %z;
\tcvt.rn.bf16.f32 %x, %a;
\tcvt.rn.bf16.f32 %y, %b;
\tcvt.rn.bf16.f32 %z, %c;
\t{}
\tcvt.f32.bf16 %d, %x;
\t}}"""


def of_bf16(function: Callable[..., Array]) -> Callable[..., Array]:
    return lambda *values: function(*map(to_bf16, values))


CONVERT = [
    Case(BF16.format(""), F32, (F32,) * 3, of_bf16(lambda a, b, c: a)),
    Case(BF16.format("fma.rn.bf16 %x, %x, %y, %z;"), F32, (F32,) * 3, of_bf16(fma(torch.bfloat16))),
    Case(BF16.format("max.bf16 %x, %x, %y;"), F32, (F32,) * 3, of_bf16(lambda a, b, c: -smaller(-a, -b))),
    Case(BF16.format("neg.bf16 %x, %x;"), F32, (F32,) * 3, of_bf16(lambda a, b, c: -a)),
    Case("cvt.rn.bf16x2.f32 %d, %a, %b;", U32, (F32, F32), pair_of(torch.bfloat16)),
    Case("cvt.rn.f16x2.f32 %d, %a, %b;", U32, (F32, F32), pair_of(torch.float16)),
    Case(
        "cvt.rn.f16x2.f32 %d, %a, %b; add.f16x2 %d, %d, %d;",
        U32,
        (F32, F32),
        lambda a, b: pair_of(torch.float16)(*(2 * half.astype(F16).astype(F32) for half in (a, b))),
    ),
    Case("cvt.rn.f16.f32 %d, %a;", F16, (F32,), lambda a: a.astype(F16)),
    Case("cvt.f32.f16 %d, %a;", F32, (F16,), lambda a: a.astype(F32)),
    Case("cvt.rz.f32.f64 %d, %a;", F32, (F64,), toward_zero),
    Case("cvt.f64.f32 %d, %a;", F64, (F32,), lambda a: a.astype(F64)),
    Case("cvt.rna.tf32.f32 %d, %a;", F32, (F32,), each(tf32, F32)),
    Case("cvt.rmi.f32.f32 %d, %a;", F32, (F32,), np.floor),
    Case("cvt.sat.f32.f32 %d, %a;", F32, (F32,), lambda a: np.nan_to_num(np.clip(a, 0, 1), nan=0.0)),
    Case("cvt.rzi.s32.f32 %d, %a;", S32, (F32,), lambda a: saturated(np.trunc(a), S32)),
    Case("cvt.rni.u32.f32 %d, %a;", U32, (F32,), lambda a: saturated(np.rint(a), U32)),
    Case("cvt.rpi.s64.f64 %d, %a;", S64, (F64,), lambda a: saturated(np.ceil(a), S64)),
    Case("cvt.rzi.s16.f16 %d, %a;", S16, (F16,), lambda a: saturated(np.trunc(a), S16)),
    Case("cvt.rn.f32.s32 %d, %a;", F32, (S32,), lambda a: a.astype(F32)),
    Case("cvt.rn.f32.u64 %d, %a;", F32, (U64,), each(lambda a: nearest(Fraction(a), torch.float32), F32)),
    Case("cvt.rz.f32.u32 %d, %a;", F32, (U32,), lambda a: toward_zero(a.astype(F64))),
    Case("cvt.rn.f64.s64 %d, %a;", F64, (S64,), lambda a: a.astype(F64)),
    Case("cvt.s64.s32 %d, %a;", S64, (S32,), lambda a: a.astype(S64)),
    Case("cvt.u64.u32 %d, %a;", U64, (U32,), lambda a: a.astype(U64)),
    Case("cvt.u16.u32 %d, %a;", U16, (U32,), lambda a: a.astype(U16)),
    Case("cvt.s32.s8 %d, %a;", S32, (U32,), lambda a: a.astype(S8).astype(S32)),
    Case("cvt.u32.u8 %d, %a;", U32, (U32,), lambda a: a & 255),
    Case("cvt.sat.s8.s32 %d, %a;", S32, (S32,), lambda a: np.clip(a, -128, 127)),
    Case("cvt.sat.u16.s32 %d, %a;", U16, (S32,), lambda a: np.clip(a, 0, 65535).astype(U16)),
]


ORDERED = {
    "eq": np.equal,
    "ne": np.not_equal,
    "lt": np.less,
    "le": np.less_equal,
    "gt": np.greater,
    "ge": np.greater_equal,
}
ONES = 0xFFFFFFFF

COMPARE = [
    *(Case(f"setp.{name}.s32 %d, %a, %b;", BOOL, (S32, S32), compare) for name, compare in ORDERED.items()),
    Case("setp.lo.u32 %d, %a, %b;", BOOL, (U32, U32), np.less),
    Case("setp.hs.u64 %d, %a, %b;", BOOL, (U64, U64), np.greater_equal),
    Case("setp.ge.f16 %d, %a, %b;", BOOL, (F16, F16), np.greater_equal),
    Case("setp.ne.f32 %d, %a, %b;", BOOL, (F32, F32), lambda a, b: (a != b) & ~np.isnan(a) & ~np.isnan(b)),
    *(Case(f"setp.{name}u.f32 %d, %a, %b;", BOOL, (F32, F32), unordered(compare)) for name, compare in ORDERED.items()),
    Case("setp.num.f32 %d, %a, %b;", BOOL, (F32, F32), lambda a, b: ~(np.isnan(a) | np.isnan(b))),
    Case("setp.nan.f64 %d, %a, %b;", BOOL, (F64, F64), lambda a, b: np.isnan(a) | np.isnan(b)),
    Case("setp.lt.and.s32 %d, %a, %b, %c;", BOOL, (S32, S32, BOOL), lambda a, b, c: (a < b) & c),
    Case("setp.gt.or.s32 %d, %a, %b, !%c;", BOOL, (S32, S32, BOOL), lambda a, b, c: (a > b) | ~c),
    Case(
        "{ .reg .pred %q; setp.lt.s32 %q|%d, %a, %b; and.pred %d, %d, %c; }",
        BOOL,
        (S32, S32, BOOL),
        lambda a, b, c: (a >= b) & c,
    ),
    Case("set.le.u32.f32 %d, %a, %b;", U32, (F32, F32), lambda a, b: np.where(a <= b, ONES, 0).astype(U32)),
    Case("set.gt.f32.s32 %d, %a, %b;", F32, (S32, S32), lambda a, b: (a > b).astype(F32)),
    Case("selp.f32 %d, %a, %b, %c;", F32, (F32, F32, BOOL), lambda a, b, c: np.where(c, a, b)),
    Case("selp.b64 %d, %a, 7, %b;", U64, (U64, BOOL), lambda a, b: np.where(b, a, U64.type(7))),
    Case("mov.b64 %d, {%a, %b};", U64, (U32, U32), lambda a, b: a.astype(U64) | b.astype(U64) << U64.type(32)),
    Case("mov.b64 {_, %d}, %a;", U32, (U64,), lambda a: (a >> U64.type(32)).astype(U32)),
    Case("mov.b32 %d, {%a, %b};", U32, (U16, U16), lambda a, b: a.astype(U32) | b.astype(U32) << 16),
    Case("mov.b32 {%d, _}, %a;", U16, (U32,), lambda a: a.astype(U16)),
]

CASES = [*INTEGER, *FLOAT, *CONVERT, *COMPARE]
