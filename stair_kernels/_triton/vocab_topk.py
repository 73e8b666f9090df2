"""vocab_topk on a GPU: vocab_pool's raw logits a chunk of the vocabulary at a time, merged into each row's k best.

Both the merging and the backward are CUDA C++: csrc/cuda/topk.cu, csrc/cuda/rows_backward.cu.
"""

from __future__ import annotations

import torch
from torch import Tensor

from stair_kernels import reference
from stair_kernels._triton.vocab_pool import activated, operand, vocab_pool

CHUNK = 4096  # columns at a time: [B, CHUNK] stays in L2
NONE = -(2**63)  # the key of no entry
NAN = 2**31 - 1  # the upper half of a NaN's key, which is the largest


def vocab_topk(
    hidden: Tensor,
    weight: Tensor,
    bias: Tensor | None,
    mask: Tensor | None,
    cu_seqlens: Tensor | None,
    packed_vocab: int | None,
    k: int,
    activation: str,
    sparse_grad: bool,
) -> tuple[Tensor, Tensor, Tensor]:
    """stair::vocab_topk."""
    B, V = hidden.shape[0] if cu_seqlens is None else cu_seqlens.shape[0] - 1, weight.shape[0]
    best = hidden.new_full((B, k), NONE, dtype=torch.int64)
    where = hidden.new_full((B, k), -1, dtype=torch.int32)
    hidden, weight = operand(hidden), operand(weight)  # once, not for each chunk
    for v0 in range(0, V, CHUNK):
        columns = slice(v0, v0 + CHUNK)
        part = None if bias is None else bias[columns]
        raw, positions = vocab_pool(hidden, weight[columns], part, mask, cu_seqlens, packed_vocab, "raw")
        torch.ops.stair.topk_merge(best, where, raw, positions, v0, activation in reference.RELU_FAMILY)
    poisoned = best[:, :1] >> 32 == NAN
    lowest = reference.lowest_position(hidden, mask, cu_seqlens).int()
    indices = torch.where(best == NONE, -1, 0xFFFFFFFF - (best & 0xFFFFFFFF)).int()
    values = torch.where(indices >= 0, activated(_logits(best), activation), 0.0)
    first = torch.arange(k, dtype=torch.int32, device=hidden.device)
    of_poisoned = torch.where(first < V, first, -1)
    indices = torch.where(poisoned, of_poisoned, indices)
    values = torch.where(poisoned, torch.where(first < V, torch.nan, 0.0), values)
    where = torch.where(poisoned, lowest[:, None], where)
    order = reference.by_value_then_index(values, indices)
    where = torch.where(indices >= 0, where, -1)
    return values.gather(1, order), indices.gather(1, order), where.gather(1, order)


def _logits(keys: Tensor) -> Tensor:
    ordered = keys >> 32
    bits = torch.where(ordered < 0, ordered ^ 0x7FFFFFFF, ordered)
    return bits.int().view(torch.float32)
