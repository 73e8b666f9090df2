"""loss_of_rows: the STAIR objective of truncated rows; over the rows of all ranks with a process group."""

from __future__ import annotations

import torch
from torch import Tensor
from torch.nn import functional as F

from stair_kernels.distributed import Group, checked, gather_rows, summed
from stair_kernels.loss import EPS, _scalar, accuracy_of
from stair_kernels.ops import flops, sparse_dot
from stair_kernels.reference import StairLoss
from stair_kernels.rows import SparseRows, trusted_rows


def loss_of_rows(
    text: SparseRows,  # [B, K]
    image: SparseRows,  # [B, K']
    *,
    logit_scale: Tensor | float,
    text_flops: float = 0.0,
    image_flops: float = 0.0,
    normalize: bool = False,
    group: Group = None,
) -> StairLoss:
    """loss = (CE(rows) + CE(columns)) / 2 of logit_scale * sparse_dot(text, image), + sum over towers weight * FLOPS.

    The loss that stair_loss is of the whole rows, of rows as vocab_topk cuts them: what was cut off counts as 0, in
    scores, norms and FLOPS, and gets no gradient: a term below the k largest is not pushed down by FLOPS, nor pulled up
    where it would match. Equal where no row has more than k active terms; else train with stair_loss, or a larger k.

    Args:
        logit_scale: multiplies the scores; a float or a differentiable scalar tensor.
        group: a torch.distributed group whose ranks each give B rows of the batch. Every rank gets the parts of the
            whole batch of P * B; gradients, once averaged over the ranks, are those of a single process
            (stair_kernels.distributed).

    Raises:
        ValueError: naming the argument, what was expected and what came.
    """
    for name, rows in (("text", text), ("image", image)):
        if not isinstance(rows, SparseRows):
            raise ValueError(f"{name}: expected SparseRows, got {type(rows).__name__}")
    if len(image) != len(text):
        raise ValueError(f"image: expected {len(text)} rows like text, got {len(image)}")
    if image.vocab_size != text.vocab_size:
        raise ValueError(f"image: expected vocab_size {text.vocab_size} like text, got {image.vocab_size}")
    scale, B, first = _scalar(logit_scale, text.device), len(text), 0
    own, towers, ranks, name = (text, image), (text, image), 1, ""
    if group is not None:
        group = checked(group)
        ranks, name, first = group.size(), group.group_name, group.rank() * B
        towers = gather_rows(text, group), gather_rows(image, group)
    units = [_unit(rows) for rows in towers] if normalize else towers
    of_own = [rows[first : first + B] for rows in units]
    logit = scale * sparse_dot(of_own[0], units[1]), scale * sparse_dot(of_own[1], units[0])
    target = torch.arange(first, first + B, device=text.device)
    contrastive = (F.cross_entropy(logit[0], target) + F.cross_entropy(logit[1], target)) / 2
    penalties = [flops(rows) for rows in towers]
    with torch.no_grad():
        active = [(rows.values > 0).sum(dim=1).float().mean() for rows in own]
        parts = [contrastive, *active, accuracy_of(logit[0], first)]
        whole = [total / ranks for total in summed(parts, name)]
    contrastive = contrastive + (whole[0] - contrastive).detach()  # of all ranks; its gradient is this one's share
    loss = contrastive + text_flops * penalties[0] + image_flops * penalties[1]
    return StairLoss(loss, contrastive, penalties[0], penalties[1], *whole[1:])


def _unit(rows: SparseRows) -> SparseRows:
    """The rows divided by their L2 norm, at least EPS."""
    return trusted_rows(F.normalize(rows.values, dim=1, eps=EPS), rows.indices, None, rows.vocab_size)
