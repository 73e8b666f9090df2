"""The backward of vocab_pool on a GPU: the gradient of a maximum is a matrix with one entry a row and column.

dH += onehot(position) * g  W  and  dW += (onehot(position) * g)^T  H, the one-hot factor built in registers from the
positions and gradients [B, V]: tensor cores, no sort, no atomics, sums in a fixed order. Tiles without a gradient are
skipped.
"""

import triton
import triton.language as tl

from stair_kernels._triton.arithmetic import ELU1P, slope
from stair_kernels._triton.forward import spans, tokens_of


@triton.jit
def gradients(grad_out, out, positions, rows, column, B, V, ACTIVATION: tl.constexpr):
    """[ROWS, COLUMNS] gradients of the logits, 0 where none flows, and the positions that they flow to."""
    at = rows[:, None].to(tl.int64) * V + column[None, :]
    known = (rows[:, None] < B) & (column[None, :] < V)
    y = tl.load(out + at, mask=known, other=0.0)
    position = tl.load(positions + at, mask=known, other=-1).to(tl.int32)
    grad = tl.load(grad_out + at, mask=known, other=0.0)
    flows = position >= 0
    if ACTIVATION != ELU1P:
        flows = flows & ((y > 0) | (y != y))
    # a gradient of 0 stops here too: 0 times an infinite slope or weight would be NaN
    return tl.where(flows & (grad != 0), grad * slope(y, ACTIVATION), 0.0), position


@triton.jit
def one_hot(grad, position, l0, ROWS: tl.constexpr, POSITIONS: tl.constexpr, COLUMNS: tl.constexpr):
    """[ROWS * POSITIONS, COLUMNS]: row r's gradient of each column at the position that won, 0 elsewhere."""
    here = position[:, None, :] == l0 + tl.arange(0, POSITIONS)[None, :, None]
    return tl.reshape(tl.where(here, grad[:, None, :], 0.0), [ROWS * POSITIONS, COLUMNS])


@triton.jit
def any_live(factor):
    """Whether the factor has an entry that is not 0; NaN is one."""
    return tl.max(tl.max((factor != 0).to(tl.int32), axis=1), axis=0) > 0


@triton.jit
def accumulate(factor, operand, total, PRECISION: tl.constexpr, INTERPRETED: tl.constexpr):
    """total + factor . operand, the factor rounded to the operand's dtype."""
    rounded = factor.to(operand.dtype)
    if INTERPRETED:  # Triton's interpreter takes the bits of bfloat16 for integers
        return tl.dot(rounded.to(tl.float32), operand.to(tl.float32), total, input_precision=PRECISION)
    return tl.dot(rounded, operand, total, input_precision=PRECISION)


@triton.jit
def hidden_kernel(
    grad_out,  # [B, V] float32
    out,  # [B, V] float32
    positions,  # [B, V]
    weight,  # [V, D]
    cu_seqlens,  # [B + 1] int32
    grad_hidden,  # [T, D] float32
    B,
    L,
    D,
    V,
    ROWS: tl.constexpr,
    POSITIONS: tl.constexpr,
    COLUMNS: tl.constexpr,
    DEPTH: tl.constexpr,
    ACTIVATION: tl.constexpr,
    VARLEN: tl.constexpr,
    PRECISION: tl.constexpr,
    INTERPRETED: tl.constexpr,
):
    """A program owns a group of rows and DEPTH of D, and walks the vocabulary for every tile of its tokens."""
    rows = tl.program_id(0) * ROWS + tl.arange(0, ROWS)
    d = tl.program_id(1) * DEPTH + tl.arange(0, DEPTH)
    first, count = spans(rows, B, L, cu_seqlens, cu_seqlens, VARLEN, False)
    for l0 in range(0, tl.max(count, axis=0), POSITIONS):
        total = tl.zeros([ROWS * POSITIONS, DEPTH], tl.float32)
        for v0 in range(0, V, COLUMNS):
            column = v0 + tl.arange(0, COLUMNS)
            grad, position = gradients(grad_out, out, positions, rows, column, B, V, ACTIVATION)
            factor = one_hot(grad, position, l0, ROWS, POSITIONS, COLUMNS)
            if any_live(factor):
                known = (column[:, None] < V) & (d[None, :] < D)
                w = tl.load(weight + column[:, None].to(tl.int64) * D + d[None, :], mask=known, other=0.0)
                total = accumulate(factor, w, total, PRECISION, INTERPRETED)
        token, use = tokens_of(first, count, l0, ROWS, POSITIONS)
        tl.store(grad_hidden + token[:, None] * D + d[None, :], total, mask=use[:, None] & (d[None, :] < D))


@triton.jit
def weight_kernel(
    grad_out,  # [B, V] float32
    out,  # [B, V] float32
    positions,  # [B, V]
    hidden,  # [T, D]
    cu_seqlens,  # [B + 1] int32
    grad_weight,  # [V, D]
    grad_bias,  # [V] float32
    B,
    L,
    D,
    V,
    ROWS: tl.constexpr,
    POSITIONS: tl.constexpr,
    COLUMNS: tl.constexpr,
    DEPTH: tl.constexpr,
    ACTIVATION: tl.constexpr,
    VARLEN: tl.constexpr,
    NEED_WEIGHT: tl.constexpr,
    PRECISION: tl.constexpr,
    INTERPRETED: tl.constexpr,
):
    """A program owns a block of columns and DEPTH of D, and walks the batch; the first of D sums the bias as well."""
    column = tl.program_id(0) * COLUMNS + tl.arange(0, COLUMNS)
    d = tl.program_id(1) * DEPTH + tl.arange(0, DEPTH)
    total = tl.zeros([COLUMNS, DEPTH], tl.float32)
    of_bias = tl.zeros([COLUMNS], tl.float32)
    for row in range(0, B, ROWS):
        rows = row + tl.arange(0, ROWS)
        grad, position = gradients(grad_out, out, positions, rows, column, B, V, ACTIVATION)
        of_bias += tl.sum(grad, axis=0)
        if NEED_WEIGHT:
            first, count = spans(rows, B, L, cu_seqlens, cu_seqlens, VARLEN, False)
            for l0 in range(0, tl.max(count, axis=0), POSITIONS):
                factor = one_hot(grad, position, l0, ROWS, POSITIONS, COLUMNS)
                if any_live(factor):
                    token, use = tokens_of(first, count, l0, ROWS, POSITIONS)
                    known = use[:, None] & (d[None, :] < D)
                    h = tl.load(hidden + token[:, None] * D + d[None, :], mask=known, other=0.0)
                    total = accumulate(tl.trans(factor), h, total, PRECISION, INTERPRETED)
    if NEED_WEIGHT:
        at = column[:, None].to(tl.int64) * D + d[None, :]
        known = (column[:, None] < V) & (d[None, :] < D)
        tl.store(grad_weight + at, total.to(grad_weight.dtype.element_ty), mask=known)
    if tl.program_id(1) == 0:
        tl.store(grad_bias + column, of_bias, mask=column < V)
