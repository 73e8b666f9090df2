"""vocab_topk on a GPU: vocab_pool's raw logits a chunk of the vocabulary at a time, merged into each row's k best.

An entry is one int64: its logit as an ordered integer, then its index turned round. The k largest of these are the k
best with ties by lower index, whatever a selection does with equal numbers: there are none.
"""

from __future__ import annotations

from collections.abc import Iterator

import torch
from torch import Tensor

from stair_kernels import reference
from stair_kernels._triton.vocab_pool import activated, vocab_pool, vocab_pool_backward

CHUNK = 4096  # columns at a time: [B, CHUNK] stays in L2
NONE = -(2**63)  # below every entry


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
    poisoned = hidden.new_zeros(B, dtype=torch.bool)
    lowest = reference.lowest_position(hidden, mask, cu_seqlens).int()
    for v0 in _chunks(V):
        columns = slice(v0, v0 + CHUNK)
        part = None if bias is None else bias[columns]
        raw, positions = vocab_pool(hidden, weight[columns], part, mask, cu_seqlens, packed_vocab, "raw")
        poisoned |= (raw.isnan() & (positions >= 0)).any(dim=1)
        entries = torch.where((raw > _floor(activation)) & (positions >= 0), _entries(raw, v0), NONE)
        best, slot = torch.cat([best, entries], dim=1).topk(k, dim=1)
        where = torch.cat([where, positions.int()], dim=1).gather(1, slot)
    indices = torch.where(best == NONE, -1, 0xFFFFFFFF - (best & 0xFFFFFFFF)).int()
    values = torch.where(indices >= 0, activated(_logits(best), activation), 0.0)
    first = torch.arange(k, dtype=torch.int32, device=hidden.device)
    of_poisoned = torch.where(first < V, first, -1)
    indices = torch.where(poisoned[:, None], of_poisoned, indices)
    values = torch.where(poisoned[:, None], torch.where(first < V, torch.nan, 0.0), values)
    where = torch.where(poisoned[:, None], lowest[:, None], where)
    order = reference.by_value_then_index(values, indices)
    where = torch.where(indices >= 0, where, -1)
    return values.gather(1, order), indices.gather(1, order), where.gather(1, order)


def vocab_topk_backward(
    grad_values: Tensor,  # [B, K]
    values: Tensor,
    indices: Tensor,
    positions: Tensor,
    hidden: Tensor,
    weight: Tensor,
    cu_seqlens: Tensor | None,
    rows: Tensor | None,
    activation: str,
    need_hidden: bool,
    need_weight: bool,
) -> tuple[Tensor, Tensor, Tensor]:
    """stair::vocab_topk_backward: a chunk's survivors as dense rows through vocab_pool's, which skips zeros."""
    B, V = len(values), weight.shape[0]
    grad_hidden = hidden.new_zeros(hidden.shape if need_hidden else (0,), dtype=torch.float32)
    grad_weight = weight.new_zeros(weight.shape if need_weight else (0,))
    grad_bias = weight.new_zeros(V, dtype=torch.float32)
    for v0 in _chunks(V):
        columns = slice(v0, min(v0 + CHUNK, V))
        width = columns.stop - v0
        here = (indices >= v0) & (indices < columns.stop)
        slot = torch.where(here, indices - v0, width).long()  # one column more takes those of other chunks
        grads, outs, places = (
            source.new_full((B, width + 1), fill).scatter_(1, slot, source)[:, :width].contiguous()
            for source, fill in ((grad_values.float(), 0), (values, 0), (positions, -1))
        )
        hidden_part, weight_part, grad_bias[columns] = vocab_pool_backward(
            grads, outs, places, hidden, weight[columns], cu_seqlens, activation, need_hidden, need_weight
        )
        if need_hidden:
            grad_hidden += hidden_part
        if need_weight:
            grad_weight[columns] = weight_part
    if need_weight and rows is not None:
        grad_weight = grad_weight[rows]
    return grad_hidden.to(hidden.dtype), grad_weight, grad_bias


def _chunks(V: int) -> Iterator[int]:
    yield from range(0, V, CHUNK)


def _floor(activation: str) -> float:
    return 0.0 if activation in reference.RELU_FAMILY else -torch.inf


def _entries(raw: Tensor, v0: int) -> Tensor:
    """[B, n] int64 of raw [B, n], whose first column is v0."""
    bits = (raw + 0.0).view(torch.int32).long()  # -0 is 0
    ordered = torch.where(bits < 0, bits ^ 0x7FFFFFFF, bits)
    index = torch.arange(v0, v0 + raw.shape[1], device=raw.device)
    return ordered * 2**32 + (0xFFFFFFFF - index)


def _logits(entries: Tensor) -> Tensor:
    ordered = entries >> 32
    bits = torch.where(ordered < 0, ordered ^ 0x7FFFFFFF, ordered)
    return bits.int().view(torch.float32)
