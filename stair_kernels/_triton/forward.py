"""The forward of vocab_pool on a GPU: [B, V] maxima over positions without the [B, L, V] logits.

A program computes the logits of a tile of tokens (of one long row, or of several short ones side by side) and of a
block of vocabulary columns on the tensor cores, and folds them at once into the running maximum of each row, which
stays in registers with its position until the row ends.
"""

import triton
import triton.language as tl

from stair_kernels._triton.arithmetic import EMPTY, RAW, activate, from_ordered, to_ordered


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
def logits_of(
    hidden,
    weight,
    token,
    column,
    D,
    TOKENS: tl.constexpr,
    COLUMNS: tl.constexpr,
    DEPTH: tl.constexpr,
    EVEN_D: tl.constexpr,
    PRECISION: tl.constexpr,
    UPCAST: tl.constexpr,
):
    """[TOKENS, COLUMNS] float32: hidden[token] . weight[column]."""
    d = tl.arange(0, DEPTH)
    left = hidden + token[:, None] * D + d[None, :]
    right = weight + column[None, :] * D + d[:, None]
    total = tl.zeros([TOKENS, COLUMNS], tl.float32)
    for d0 in range(0, D, DEPTH):
        if EVEN_D:
            a, b = tl.load(left), tl.load(right)
        else:
            a = tl.load(left, mask=d[None, :] < D - d0, other=0.0)
            b = tl.load(right, mask=d[:, None] < D - d0, other=0.0)
        if UPCAST:  # Triton's interpreter takes the bits of bfloat16 for integers
            a, b = a.to(tl.float32), b.to(tl.float32)
        total = tl.dot(a, b, total, input_precision=PRECISION)
        left += DEPTH
        right += DEPTH
    return total


@triton.jit
def forward_kernel(
    hidden,  # [T, D]
    weight,  # [V, D]
    bias,  # [V] float32
    mask,  # [T] bool
    lengths,  # [B] int32: positions up to the last unmasked one
    cu_seqlens,  # [B + 1] int32
    out,  # [B, V] float32, rows out_stride apart
    positions,  # [B, V] int16 or int32, rows out_stride apart
    B,
    L,
    D,
    V,
    out_stride,
    ROWS: tl.constexpr,
    POSITIONS: tl.constexpr,
    COLUMNS: tl.constexpr,
    DEPTH: tl.constexpr,
    ACTIVATION: tl.constexpr,
    VARLEN: tl.constexpr,
    HAS_MASK: tl.constexpr,
    HAS_BIAS: tl.constexpr,
    EVEN_D: tl.constexpr,
    PRECISION: tl.constexpr,
    UPCAST: tl.constexpr,
):
    TOGETHER: tl.constexpr = 8  # groups of rows that read a block of columns while it is in L2
    groups, blocks = tl.cdiv(B, ROWS), tl.cdiv(V, COLUMNS)
    for tile in range(tl.program_id(0), groups * blocks, tl.num_programs(0)):
        band = tile // (TOGETHER * blocks) * TOGETHER
        height = tl.minimum(groups - band, TOGETHER)
        within = tile - band * blocks
        rows = (band + within % height) * ROWS + tl.arange(0, ROWS)
        column = within // height * COLUMNS + tl.arange(0, COLUMNS)
        inside_vocab = column < V
        read_column = tl.where(inside_vocab, column, 0).to(tl.int64)

        first, count = spans(rows, B, L, lengths, cu_seqlens, VARLEN, HAS_MASK)
        best = tl.full([ROWS, COLUMNS], EMPTY, tl.int32)
        where = tl.full([ROWS, COLUMNS], -1, tl.int32)
        for l0 in range(0, tl.max(count, axis=0), POSITIONS):
            token, use = tokens_of(first, count, l0, ROWS, POSITIONS)
            logit = logits_of(
                hidden,
                weight,
                token,
                read_column,
                D,
                ROWS * POSITIONS,
                COLUMNS,
                DEPTH,
                EVEN_D,
                PRECISION,
                UPCAST,
            )
            if HAS_MASK:
                use = use & (tl.load(mask + token, mask=use, other=0) != 0)
            key = tl.where(use[:, None], to_ordered(logit), EMPTY)
            key = tl.reshape(key, [ROWS, POSITIONS, COLUMNS])
            highest = tl.max(key, axis=1)
            position = l0 + tl.arange(0, POSITIONS)[None, :, None]
            lowest = tl.min(tl.where(key == highest[:, None, :], position, 0x7FFFFFFF), axis=1)
            better = highest > best  # strictly: the lowest position keeps a tie
            best = tl.where(better, highest, best)
            where = tl.where(better, lowest, where)

        value = from_ordered(best)
        if HAS_BIAS:
            value += tl.load(bias + column, mask=inside_vocab, other=0.0)[None, :]
        value = activate(value, ACTIVATION)
        value = tl.where(best == EMPTY, -float("inf") if ACTIVATION == RAW else 0.0, value)
        at = rows[:, None].to(tl.int64) * out_stride + column[None, :]
        keep = (rows[:, None] < B) & inside_vocab[None, :]
        tl.store(out + at, value, mask=keep)
        tl.store(positions + at, where.to(positions.dtype.element_ty), mask=keep)
