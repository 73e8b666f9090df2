"""Arithmetic that the kernels share: a maximum that keeps NaN, the activations and their slopes."""

import triton
import triton.language as tl

RAW, LOG_RELU, RELU, LOG_LOG_RELU, ELU1P = (tl.constexpr(code) for code in range(5))
CODES = {"raw": 0, "log_relu": 1, "relu": 2, "log_log_relu": 3, "elu1p": 4}


@triton.jit
def max_or_nan(a, b):
    """The larger of two; NaN is larger than all."""
    return tl.maximum(a, b, propagate_nan=tl.PropagateNan.ALL)


@triton.jit
def log1p(x):
    """log(1 + x) of x >= 0, as in csrc/cpu/simd/activation.h: with u = 1 + x rounded, u = 2^k m and m in [sqrt(1/2),
    sqrt(2)), it is k log 2 + log m + c / u, c what the rounding lost; log m by the polynomial of fdlibm's e_logf.c."""
    u = x + 1.0
    bits = u.to(tl.int32, bitcast=True)
    k = (bits - 0x3F3504F3) >> 23
    m = (bits - (k << 23)).to(tl.float32, bitcast=True)
    lost = tl.where(k >= 2, 1.0 - (u - x), x - (u - 1.0)) / u
    f = tl.where(k == 0, x, m - 1.0)
    lost = tl.where(k == 0, 0.0, lost)
    s = f / (2.0 + f)
    z = s * s
    w = z * z
    tail = w * (0.40000972152 + w * 0.24279078841) + z * (0.66666662693 + w * 0.28498786688)
    half = 0.5 * f * f
    exponent = k.to(tl.float32)
    y = s * (half + tail) + (exponent * 9.0580006145e-06 + lost) - half + f + exponent * 6.9313812256e-01
    return tl.where(x <= 3.402823466e38, y, x)  # infinity and NaN are their own logarithms


@triton.jit
def activate(x, ACTIVATION: tl.constexpr):
    """The activation of a raw logit; NaN stays."""
    positive = tl.where(x <= 0.0, 0.0, x)
    if ACTIVATION == RAW:
        return x
    elif ACTIVATION == RELU:
        return positive
    elif ACTIVATION == LOG_RELU:
        return log1p(positive)
    elif ACTIVATION == LOG_LOG_RELU:
        return log1p(log1p(positive))
    else:
        return tl.where(x > 0.0, x + 1.0, tl.exp(tl.where(x > 0.0, 0.0, x)))


@triton.jit
def activate_kernel(raw, out, n, ACTIVATION: tl.constexpr, ELEMENTS: tl.constexpr):
    """out[i] = the activation of raw[i], i < n."""
    i = tl.program_id(0).to(tl.int64) * ELEMENTS + tl.arange(0, ELEMENTS)
    tl.store(out + i, activate(tl.load(raw + i, mask=i < n, other=0.0), ACTIVATION), mask=i < n)


@triton.jit
def slope(y, ACTIVATION: tl.constexpr):
    """d activation / d x from the activation's value y, of an entry above the floor."""
    if ACTIVATION == LOG_RELU:
        return tl.exp(-y)  # 1 / (1 + x)
    elif ACTIVATION == LOG_LOG_RELU:
        inner = tl.exp(y)  # 1 + log1p(x)
        return tl.exp(1.0 - inner) / inner
    elif ACTIVATION == ELU1P:
        return tl.where(y > 1.0, 1.0, y)  # 1 or exp(x)
    else:
        return tl.where(y == y, 1.0, y)
