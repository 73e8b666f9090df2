"""The backward of vocab_pool on a GPU: the gradient of a maximum is a matrix with one entry a row and column.

dH += onehot(position) * g  W  and  dW += (onehot(position) * g)^T  H, the one-hot factor built in registers from the
positions and gradients [B, V]: tensor cores, no sort, no atomics, sums in a fixed order. Tiles without a gradient are
skipped. Of long rows most of that factor is 0: there each program visits only its own columns of a sorted order, and
dW gathers the tokens that won. tiles.py says from which length on.
"""

import triton
import triton.language as tl

from stair_kernels._triton.arithmetic import ELU1P, activate, slope
from stair_kernels._triton.forward import spans, tokens_of


@triton.jit
def gradients(grad_out, out, positions, rows, column, known, V, ACTIVATION: tl.constexpr):
    """[ROWS, COLUMNS] gradients of the logits, 0 where none flows, and the positions that they flow to."""
    at = rows[:, None].to(tl.int64) * V + column[None, :]
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
    """total + factor . operand, the factor rounded to the operand's dtype: in float16 it wants a loss scaler."""
    rounded = factor.to(operand.dtype)
    if INTERPRETED:  # it takes the bits of bfloat16 for integers
        return tl.dot(rounded.to(tl.float32), operand.to(tl.float32), total, input_precision=PRECISION)
    return tl.dot(rounded, operand, total, input_precision=PRECISION)


@triton.jit
def hidden_kernel(
    grad_out,  # [B, V] float32
    out,  # [B, V] float32
    positions,  # [B, V]
    weight,  # [V, D]
    cu_seqlens,  # [B + 1] int32
    order,  # [B, V] int64: the row's columns by the tile of positions that they flow to
    bounds,  # [B, tiles + 1] int64: where each tile's begin in `order`
    tiles,
    grad_hidden,  # [T, D] float32
    B,
    L,
    D,
    V,
    ROWS: tl.constexpr,  # 1 when sorted
    POSITIONS: tl.constexpr,
    COLUMNS: tl.constexpr,
    DEPTH: tl.constexpr,
    ACTIVATION: tl.constexpr,
    VARLEN: tl.constexpr,
    SORTED: tl.constexpr,
    PRECISION: tl.constexpr,
    INTERPRETED: tl.constexpr,
):
    """A program owns tiles of tokens of a group of rows and DEPTH of D, and walks the vocabulary for each."""
    row = tl.program_id(0) * ROWS
    rows = row + tl.arange(0, ROWS)
    d = tl.program_id(1) * DEPTH + tl.arange(0, DEPTH)
    first, count = spans(rows, B, L, cu_seqlens, cu_seqlens, VARLEN, False)
    for tile in range(tl.program_id(2), tl.cdiv(tl.max(count, axis=0), POSITIONS), tl.num_programs(2)):
        total = tl.zeros([ROWS * POSITIONS, DEPTH], tl.float32)
        begin, end = 0, V
        if SORTED:
            bound = bounds + row.to(tl.int64) * (tiles + 1) + tile
            begin, end = tl.load(bound).to(tl.int32), tl.load(bound + 1).to(tl.int32)
        for v0 in range(begin, end, COLUMNS):
            column = v0 + tl.arange(0, COLUMNS)
            inside = column < end
            if SORTED:
                column = tl.load(order + row.to(tl.int64) * V + column, mask=inside, other=0).to(tl.int32)
            known = (rows[:, None] < B) & inside[None, :]
            grad, position = gradients(grad_out, out, positions, rows, column, known, V, ACTIVATION)
            factor = one_hot(grad, position, tile * POSITIONS, ROWS, POSITIONS, COLUMNS)
            if any_live(factor):
                at = column[:, None].to(tl.int64) * D + d[None, :]
                w = tl.load(weight + at, mask=inside[:, None] & (d[None, :] < D), other=0.0)
                total = accumulate(factor, w, total, PRECISION, INTERPRETED)
        token, use = tokens_of(first, count, tile * POSITIONS, ROWS, POSITIONS)
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
    ROWS: tl.constexpr,  # 1 when gathered
    POSITIONS: tl.constexpr,
    COLUMNS: tl.constexpr,
    DEPTH: tl.constexpr,
    ACTIVATION: tl.constexpr,
    VARLEN: tl.constexpr,
    NEED_WEIGHT: tl.constexpr,
    GATHERED: tl.constexpr,
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
        known = (rows[:, None] < B) & (column[None, :] < V)
        grad, position = gradients(grad_out, out, positions, rows, column, known, V, ACTIVATION)
        of_bias += tl.sum(grad, axis=0)
        if NEED_WEIGHT:
            first, count = spans(rows, B, L, cu_seqlens, cu_seqlens, VARLEN, False)
            if GATHERED:
                total += gathered(hidden, grad, position, first, d, D)
            else:
                for l0 in range(0, tl.max(count, axis=0), POSITIONS):
                    factor = one_hot(grad, position, l0, ROWS, POSITIONS, COLUMNS)
                    if any_live(factor):
                        token, use = tokens_of(first, count, l0, ROWS, POSITIONS)
                        at = hidden + token[:, None] * D + d[None, :]
                        h = tl.load(at, mask=use[:, None] & (d[None, :] < D), other=0.0)
                        total = accumulate(tl.trans(factor), h, total, PRECISION, INTERPRETED)
    if NEED_WEIGHT:
        at = column[:, None].to(tl.int64) * D + d[None, :]
        written = (column[:, None] < V) & (d[None, :] < D)
        tl.store(grad_weight + at, total.to(grad_weight.dtype.element_ty), mask=written)
    if tl.program_id(1) == 0:
        tl.store(grad_bias + column, of_bias, mask=column < V)


@triton.jit
def gathered(hidden, grad, position, first, d, D):
    """[COLUMNS, DEPTH]: a single row's gradient of each column times the token that won."""
    # sums over the one row, not reshapes: those made Triton 3.7 fail
    token = tl.sum(tl.where(grad != 0, first[:, None] + position, 0), axis=0)
    grad = tl.sum(grad, axis=0)
    h = tl.load(hidden + token[:, None] * D + d[None, :], mask=(grad != 0)[:, None] & (d[None, :] < D), other=0.0)
    return grad[:, None] * h.to(tl.float32)


@triton.jit
def pool_at_kernel(
    positions,  # [B, V]
    hidden,  # [B * L, D]
    weight,  # [V, D]
    bias,  # [V] float32
    out,  # [B, V] float32
    B,
    L,
    D,
    V,
    COLUMNS: tl.constexpr,
    DEPTH: tl.constexpr,
    ACTIVATION: tl.constexpr,
    HAS_BIAS: tl.constexpr,
):
    """The pooled row where the positions that won are known: a dot product an entry, 0 where there is none.

    A program owns a block of columns and a share of the rows.
    """
    column = tl.program_id(0) * COLUMNS + tl.arange(0, COLUMNS)
    for row in range(tl.program_id(1), B, tl.num_programs(1)):
        at = tl.cast(row, tl.int64) * V + column
        position = tl.load(positions + at, mask=column < V, other=-1).to(tl.int32)
        live = position >= 0
        total = tl.zeros([COLUMNS], tl.float32)
        if tl.max(live.to(tl.int32), axis=0) > 0:
            token = tl.where(live, tl.cast(row, tl.int64) * L + position, 0)
            for d0 in range(0, D, DEPTH):
                d = d0 + tl.arange(0, DEPTH)
                inside = live[:, None] & (d[None, :] < D)
                h = tl.load(hidden + token[:, None] * D + d[None, :], mask=inside, other=0.0)
                w = tl.load(weight + column[:, None].to(tl.int64) * D + d[None, :], mask=inside, other=0.0)
                total += tl.sum(h.to(tl.float32) * w.to(tl.float32), axis=1)
            if HAS_BIAS:
                total += tl.load(bias + column, mask=column < V, other=0.0)
            total = tl.where(live, activate(total, ACTIVATION), 0.0)
        tl.store(out + at, total, mask=column < V)
