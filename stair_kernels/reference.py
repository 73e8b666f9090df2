"""Every operator in plain PyTorch, under its public name: the specification.

Obvious, not fast. It decides ties, empty rows, masked rows and NaN; the kernels, the tests and the documentation speak
of it. Inputs are cast to `compute_dtype` first: float32 as the kernels accumulate, float64 when a test wants the truth.
"""

from __future__ import annotations

from typing import NamedTuple

import torch
from torch import Tensor
from torch.nn import functional as F

from stair_kernels.rows import SparseRows, scatter_rows

ACTIVATIONS = {
    "log_relu": lambda x: torch.log1p(torch.relu(x)),
    "relu": torch.relu,
    "log_log_relu": lambda x: torch.log1p(torch.log1p(torch.relu(x))),
    "elu1p": lambda x: torch.where(x > 0, x + 1, x.clamp(max=0).exp()),  # elu(x) + 1 without its cancellation
}
RELU_FAMILY = ("log_relu", "relu", "log_log_relu")


def pooled_logits(
    hidden: Tensor,  # [B, L, D], [B, D] or packed [T, D] with cu_seqlens
    weight: Tensor,  # [V, D]
    bias: Tensor | None,  # [V]
    mask: Tensor | None,  # [B, L] bool, True = use
    cu_seqlens: Tensor | None,  # [B + 1] int32
    compute_dtype: torch.dtype,
) -> tuple[Tensor, Tensor]:  # [B, V] raw logits, [B, V] int64 positions
    """raw[b, v] = (max_l hidden[b, l] . weight[v]) + bias[v], and the lowest l that reaches the maximum.

    A NaN at an unmasked position wins; one at a masked position is not seen. A row with no unmasked position has raw
    logits -inf and positions -1.
    """
    V = weight.shape[0]
    if cu_seqlens is not None:
        bounds = cu_seqlens.tolist()
        sequences = [hidden[start:end] for start, end in zip(bounds, bounds[1:])]
        kept = [torch.arange(len(sequence)) for sequence in sequences]
    else:
        sequences = list(hidden.unsqueeze(1) if hidden.dim() == 2 else hidden)
        keep_all = [torch.arange(len(sequence)) for sequence in sequences]
        kept = keep_all if mask is None else [row.nonzero()[:, 0] for row in mask]
    raw, positions = [], []
    for sequence, keep in zip(sequences, kept):
        if len(keep) == 0:
            raw.append(torch.full((V,), -torch.inf, dtype=compute_dtype))
            positions.append(torch.full((V,), -1))
            continue
        logit = sequence[keep].to(compute_dtype) @ weight.to(compute_dtype).T  # [L, V]
        best = torch.where(logit.isnan(), torch.inf, logit).argmax(dim=0)  # argmax returns the first maximum
        nan_or_best = torch.where(logit.isnan().any(dim=0), logit.isnan().int().argmax(dim=0), best)
        raw.append(logit.gather(0, nan_or_best[None])[0])
        positions.append(keep[nan_or_best])
    shape = (len(sequences), V)
    raw_rows = torch.stack(raw) if raw else torch.empty(shape, dtype=compute_dtype)
    return (raw_rows if bias is None else raw_rows + bias.to(compute_dtype)), (
        torch.stack(positions) if positions else torch.empty(shape, dtype=torch.int64)
    )


def vocab_pool(
    hidden: Tensor,
    weight: Tensor,
    bias: Tensor | None = None,
    mask: Tensor | None = None,
    *,
    activation: str = "log_relu",
    cu_seqlens: Tensor | None = None,
    compute_dtype: torch.dtype = torch.float32,
) -> Tensor:  # [B, V]
    """out[b, v] = activation(max_l hidden[b, l] . weight[v] + bias[v]); 0 where a row has no unmasked position."""
    raw, positions = pooled_logits(hidden, weight, bias, mask, cu_seqlens, compute_dtype)
    return torch.where(positions >= 0, ACTIVATIONS[activation](raw), 0.0)


def vocab_topk(
    hidden: Tensor,
    weight: Tensor,
    bias: Tensor | None = None,
    mask: Tensor | None = None,
    *,
    k: int,
    activation: str = "log_relu",
    cu_seqlens: Tensor | None = None,
    compute_dtype: torch.dtype = torch.float32,
) -> SparseRows:
    """The k largest of vocab_pool's row, chosen by raw logit (ties by lower index), then by descending value.

    The activation is monotone but rounds: two raw logits may share a value. The choice is by the raw logit; the order
    of the survivors is by value, ties by lower index. In the relu family a raw logit <= 0 is no entry, in elu1p -inf is
    none. A row with a NaN logit has value NaN in its first min(k, V) slots, indices 0, 1, 2, ..., and the row's lowest
    position.
    """
    raw, positions = pooled_logits(hidden, weight, bias, mask, cu_seqlens, compute_dtype)
    floor = 0.0 if activation in RELU_FAMILY else -torch.inf
    chosen = (raw > floor) & (positions >= 0)
    poisoned = raw.isnan().any(dim=1) & (positions >= 0).any(dim=1)
    values, indices = _select(raw, chosen, poisoned, k)
    values = torch.where(indices >= 0, ACTIVATIONS[activation](values), 0.0)
    # `positions` of a poisoned row: its lowest unmasked position
    lowest = torch.where(poisoned, lowest_position(hidden, mask, cu_seqlens), 0)
    won = positions.gather(1, indices.clamp(min=0).long()) if positions.shape[1] else indices.long()
    won = torch.where(poisoned[:, None], lowest[:, None], won)
    won = torch.where(indices >= 0, won, -1).int()
    order = by_value_then_index(values, indices)
    values, indices, won = values.gather(1, order), indices.gather(1, order), won.gather(1, order)
    return SparseRows(values.float(), indices, won, weight.shape[0])


def topk(dense: Tensor, k: int) -> SparseRows:
    """The k largest positive entries of each row of dense [B, V], descending, ties by lower index; no positions.

    A row with a NaN has value NaN in its first min(k, V) slots, indices 0, 1, 2, ...
    """
    dense = dense.float() if dense.dtype != torch.float64 else dense
    values, indices = _select(dense, dense > 0, dense.isnan().any(dim=1), k)
    return SparseRows(torch.where(indices >= 0, values, 0.0).float(), indices, None, dense.shape[1])


def sparse_dot(a: SparseRows, b: SparseRows, *, compute_dtype: torch.dtype = torch.float32) -> Tensor:  # [Q, N]
    """score[q, n] = sum_v a[q, v] * b[n, v]; NaN where row q or row n holds a value that is not finite."""
    finite_a, finite_b = a.values.isfinite(), b.values.isfinite()
    dense_a = scatter_rows(torch.where(finite_a, a.values, 0.0).to(compute_dtype), a.indices, a.vocab_size)
    dense_b = scatter_rows(torch.where(finite_b, b.values, 0.0).to(compute_dtype), b.indices, b.vocab_size)
    bad = ~finite_a.all(dim=1)[:, None] | ~finite_b.all(dim=1)[None, :]
    return torch.where(bad, torch.nan, dense_a @ dense_b.T)


def flops(rows: SparseRows, *, compute_dtype: torch.dtype = torch.float32) -> Tensor:
    """sum_v (mean_b value[b, v])^2 (Paria et al. 2020, eq. 4); 0 for an empty batch."""
    if len(rows) == 0:
        return rows.values.sum().to(compute_dtype)
    return scatter_rows(rows.values.to(compute_dtype), rows.indices, rows.vocab_size).mean(dim=0).square().sum()


class VocabHead(NamedTuple):
    """One tower's vocabulary head: what vocab_pool takes."""

    hidden: Tensor
    weight: Tensor
    bias: Tensor | None = None
    mask: Tensor | None = None


class StairLoss(NamedTuple):
    """The parts of the STAIR training objective; all scalars."""

    loss: Tensor  # contrastive + text_flops weight * text_flops + image_flops weight * image_flops
    contrastive: Tensor  # (row + column cross-entropy) / 2
    text_flops: Tensor  # sum_v (mean_b act)^2 of the texts
    image_flops: Tensor  # ... of the images
    text_active: Tensor  # mean number of entries > 0 in a text's row
    image_active: Tensor  # ... in an image's row
    accuracy: Tensor  # share of texts whose best image is their own, ties counting against


def stair_loss(
    text: VocabHead,
    image: VocabHead,
    *,
    logit_scale: Tensor | float,
    text_flops: float = 0.0,
    image_flops: float = 0.0,
    normalize: bool = False,
    compute_dtype: torch.dtype = torch.float32,
) -> StairLoss:
    """Symmetric InfoNCE over logit_scale * <text row, image row>, plus a FLOPS penalty a tower (STAIR, section 3).

    With `normalize`, rows are divided by max(their L2 norm, 1e-12) for the product; FLOPS is of the rows as they are.
    The means over an empty batch are NaN.
    """
    text_rows, image_rows = (vocab_pool(*head, compute_dtype=compute_dtype) for head in (text, image))
    return loss_of_rows(
        text_rows,
        image_rows,
        logit_scale=logit_scale,
        text_flops=text_flops,
        image_flops=image_flops,
        normalize=normalize,
    )


def loss_of_rows(
    text: Tensor,  # [B, V]
    image: Tensor,  # [B, V]
    *,
    logit_scale: Tensor | float,
    text_flops: float = 0.0,
    image_flops: float = 0.0,
    normalize: bool = False,
) -> StairLoss:
    """What stair_loss is of the two towers' dense rows."""
    rows = (text, image)
    left, right = (F.normalize(row, dim=1) if normalize else row for row in rows)
    logit = logit_scale * (left @ right.T)
    target = torch.arange(len(logit), device=logit.device)
    contrastive = (F.cross_entropy(logit, target) + F.cross_entropy(logit.T, target)) / 2
    penalties = [row.mean(dim=0).square().sum() for row in rows]
    active = [(row > 0).sum(dim=1).to(row.dtype).mean() for row in rows]
    own = torch.eye(len(logit), dtype=torch.bool, device=logit.device)
    rivals = logit.detach().masked_fill(own, -torch.inf)
    best_rival = F.pad(rivals, (0, 1), value=-torch.inf).amax(dim=1)  # the added column: one row has no rival
    accuracy = (logit.detach().diagonal() > best_rival).to(logit.dtype).mean()
    loss = contrastive + text_flops * penalties[0] + image_flops * penalties[1]
    return StairLoss(loss, contrastive, penalties[0], penalties[1], active[0], active[1], accuracy)


def _select(raw: Tensor, chosen: Tensor, poisoned: Tensor, k: int) -> tuple[Tensor, Tensor]:
    """[B, k] raw values and int32 indices of each row's k largest chosen entries; a poisoned row is NaN at 0, 1, ..."""
    B, V = raw.shape
    values = raw.new_zeros(B, k)
    indices = torch.full((B, k), -1, dtype=torch.int32)
    width = min(k, V)
    order = torch.where(chosen, raw, -torch.inf).argsort(dim=1, descending=True, stable=True)[:, :width]
    picked = chosen.gather(1, order)
    # unchosen entries of value -inf may stand before chosen ones of -inf only in elu1p, where -inf is not chosen
    indices[:, :width] = torch.where(picked, order, -1).int()
    first = torch.arange(width, dtype=torch.int32).expand(B, width)
    indices[:, :width] = torch.where(poisoned[:, None], first, indices[:, :width])
    values = torch.cat([raw.gather(1, indices[:, :width].clamp(min=0).long()), values[:, width:]], dim=1)
    return torch.where(poisoned[:, None] & (indices >= 0), torch.nan, values), indices


def by_value_then_index(values: Tensor, indices: Tensor) -> Tensor:
    """[B, K] int64: the order by descending value, ties by lower index, empty slots last."""
    by_index = torch.where(indices >= 0, indices.long(), torch.iinfo(torch.int64).max).argsort(dim=1, stable=True)
    filled = indices.gather(1, by_index) >= 0
    key = torch.where(filled, values.detach().gather(1, by_index), -torch.inf)
    return by_index.gather(1, key.argsort(dim=1, descending=True, stable=True))


def lowest_position(hidden: Tensor, mask: Tensor | None, cu_seqlens: Tensor | None) -> Tensor:
    """[B] int64: each row's lowest unmasked position."""
    if cu_seqlens is not None:
        return torch.zeros(len(cu_seqlens) - 1, dtype=torch.int64, device=cu_seqlens.device)
    if mask is None or mask.shape[1] == 0:
        return torch.zeros(len(hidden), dtype=torch.int64, device=hidden.device)
    return mask.int().argmax(dim=1)
