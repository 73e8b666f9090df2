"""The forward of vocab_pool on a GPU: [B, V] maxima over positions without the [B, L, V] logits.

A program multiplies a block of vocabulary columns with a tile of tokens (of one long row, or of several short ones side
by side) on the tensor cores: columns by tokens, so that a thread holds many tokens of few columns and takes their
maxima in its own registers. They are folded at once into the running maximum of each row, which stays in registers with
its position until the row ends.
"""

import triton
import triton.language as tl

from stair_kernels._triton.arithmetic import RAW, activate, max_or_nan

NOWHERE = tl.constexpr(0x7FFFFFFF)  # above every position
TOGETHER = tl.constexpr(8)  # groups of rows that read a block of columns while it is in L2


@triton.jit
def spans(rows, B, L, lengths, cu_seqlens, VARLEN: tl.constexpr, HAS_LENGTHS: tl.constexpr):
    """[ROWS] int64 first token, int32 number of positions; rows past the last have none."""
    known = rows < B
    if VARLEN:
        first = tl.load(cu_seqlens + rows, mask=known, other=0)
        count = tl.load(cu_seqlens + rows + 1, mask=known, other=0) - first
        return first.to(tl.int64), count
    first = rows.to(tl.int64) * L
    if HAS_LENGTHS:
        return first, tl.load(lengths + rows, mask=known, other=0)
    return first, tl.where(known, L, 0).to(tl.int32)


@triton.jit
def tokens_of(first, count, l0, ROWS: tl.constexpr, POSITIONS: tl.constexpr):
    """[ROWS * POSITIONS] int64 tokens at positions l0 .. of each row, token 0 past its end, and which are its own."""
    position = l0 + tl.arange(0, POSITIONS)[None, :]
    inside = position < count[:, None]
    token = tl.where(inside, first[:, None] + position, 0)
    return tl.reshape(token, [ROWS * POSITIONS]), tl.reshape(inside, [ROWS * POSITIONS])


@triton.jit
def slab_of(matrix, rows, d0, D, DEPTH: tl.constexpr, EVEN_D: tl.constexpr):
    """[ROWS, DEPTH] of matrix [., D]: the given rows, from column d0 on."""
    d = d0 + tl.arange(0, DEPTH)
    at = matrix + rows[:, None] * D + d[None, :]
    return tl.load(at) if EVEN_D else tl.load(at, mask=d[None, :] < D, other=0.0)


@triton.jit
def forward_kernel(
    hidden,  # [T, D]; a pointer, or with HIDDEN_BOX a descriptor of [B, L, D], or [1, T, D], in boxes of a tile
    weight,  # [V, D]; a pointer, or with WEIGHT_BOX a descriptor of boxes [COLUMNS, DEPTH]
    bias,  # [V] float32
    mask,  # [T] bool
    lengths,  # [B] int32: positions up to the last unmasked one
    cu_seqlens,  # [B + 1] int32
    out,  # [B, V] float32
    positions,  # [B, V] int16 or int32
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
    HAS_MASK: tl.constexpr,
    HAS_BIAS: tl.constexpr,
    EVEN_D: tl.constexpr,
    WEIGHT_BOX: tl.constexpr,
    HIDDEN_BOX: tl.constexpr,
    PRECISION: tl.constexpr,
    INTERPRETED: tl.constexpr,
):
    groups, blocks = tl.cdiv(B, ROWS), tl.cdiv(V, COLUMNS)
    for tile in range(tl.program_id(0), groups * blocks, tl.num_programs(0)):
        band = tile // (TOGETHER * blocks) * TOGETHER
        height = tl.minimum(groups - band, TOGETHER)
        within = tile - band * blocks
        row = (band + within % height) * ROWS
        rows = row + tl.arange(0, ROWS)
        v0 = within // height * COLUMNS
        column = v0 + tl.arange(0, COLUMNS)
        read_column = tl.where(column < V, column, 0).to(tl.int64)

        first, count = spans(rows, B, L, lengths, cu_seqlens, VARLEN, HAS_MASK)
        best = tl.full([COLUMNS, ROWS], -float("inf"), tl.float32)
        where = tl.full([COLUMNS, ROWS], -1, tl.int32)
        for l0 in range(0, tl.max(count, axis=0), POSITIONS):
            token, use = tokens_of(first, count, l0, ROWS, POSITIONS)
            corner = (0, (tl.min(first, axis=0) + l0).to(tl.int32)) if VARLEN else (row, l0)  # of the box of tokens
            logit = tl.zeros([COLUMNS, ROWS * POSITIONS], tl.float32)
            for d0 in range(0, D, DEPTH):
                w = weight.load([v0, d0]) if WEIGHT_BOX else slab_of(weight, read_column, d0, D, DEPTH, EVEN_D)
                if HIDDEN_BOX:
                    h = tl.reshape(hidden.load([corner[0], corner[1], d0]), [ROWS * POSITIONS, DEPTH])
                else:
                    h = slab_of(hidden, token, d0, D, DEPTH, EVEN_D)
                if INTERPRETED:  # Triton's interpreter takes the bits of bfloat16 for integers
                    w, h = w.to(tl.float32), h.to(tl.float32)
                logit = tl.dot(w, h.T, logit, input_precision=PRECISION)
            if HAS_MASK:
                use = use & (tl.load(mask + token, mask=use, other=0) != 0)
            highest, lowest = fold(logit, use, l0, ROWS, POSITIONS, COLUMNS, INTERPRETED)
            # strictly: the lowest position keeps a tie
            better = (where < 0) | (highest > best) | ((highest != highest) & (best == best))
            better = better & (lowest != NOWHERE)
            best = tl.where(better, highest, best)
            where = tl.where(better, lowest, where)

        at = rows[None, :].to(tl.int64) * V + column[:, None]
        keep = (rows[None, :] < B) & (column[:, None] < V)
        tl.store(positions + at, where.to(positions.dtype.element_ty), mask=keep)
        value = best
        if HAS_BIAS:
            value += tl.load(bias + column, mask=column < V, other=0.0)[:, None]
        tl.store(out + at, tl.where(where < 0, -float("inf"), value), mask=keep)
        if ACTIVATION != RAW:
            # The reductions leave each value in several threads, all of which would compute its activation. Stored and
            # loaded again, it is in one; the barrier is the program's.
            tl.debug_barrier()
            value = activate(tl.load(out + at, mask=keep, other=0.0), ACTIVATION)
            tl.store(out + at, value, mask=keep)


@triton.jit
def fold(
    logit,  # [COLUMNS, ROWS * POSITIONS]
    use,  # [ROWS * POSITIONS]
    l0,
    ROWS: tl.constexpr,
    POSITIONS: tl.constexpr,
    COLUMNS: tl.constexpr,
    INTERPRETED: tl.constexpr,
):
    """[COLUMNS, ROWS] maxima over the tokens in use, a NaN above all, and the lowest position of each or NOWHERE."""
    if tl.min(use.to(tl.int32), axis=0) == 0:
        logit = tl.where(use[None, :], logit, -float("inf"))
    logit = tl.reshape(logit, [COLUMNS, ROWS, POSITIONS])
    if INTERPRETED:  # it would run a reduction of our own element by element
        has_nan = tl.max((logit != logit).to(tl.int32), axis=2) > 0
        highest = tl.where(has_nan, float("nan"), tl.max(logit, axis=2))
    else:
        highest = tl.reduce(logit, 2, max_or_nan)
    position = l0 + tl.arange(0, POSITIONS)
    wins = (logit == highest[:, :, None]) | (logit != logit)
    lowest = tl.min(tl.where(wins, position[None, None, :], NOWHERE), axis=2)
    # where all are -inf, those not in use are as high as the others
    first_used = tl.min(tl.where(tl.reshape(use, [ROWS, POSITIONS]), position[None, :], NOWHERE), axis=1)
    return highest, tl.where(highest == -float("inf"), first_used[None, :], lowest)
