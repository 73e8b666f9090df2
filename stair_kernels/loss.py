"""stair_loss: the exact STAIR objective, streamed over chunks of the vocabulary; [B, V] never exists.

Forward, for each chunk: Y_t, Y_i = vocab_pool(chunk); S += Y_t Y_i^T; column means for FLOPS; squared norms.
Backward computes the chunk again: dY_t = dS Y_i + the terms of the norm and of FLOPS, through vocab_pool's backward.
Storage O(B^2 + V + B * chunk) beside the gradients themselves; with save="positions" [B, V] positions as well, and of
the chunk only the entries above 0 are computed again, each at its position.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor
from torch.nn import functional as F

from stair_kernels.autograd import positions_dtype
from stair_kernels.distributed import Group, checked, summed
from stair_kernels.ops import PackedVocab, _head_args
from stair_kernels.reference import StairLoss, VocabHead

EPS = 1e-12  # of the L2 norm, as torch.nn.functional.normalize
ACTIVATION = "log_relu"


def stair_loss(
    text: VocabHead,  # hidden [B, L, D] or [B, D], weight [V, D], bias [V], mask [B, L]
    image: VocabHead,
    *,
    logit_scale: Tensor | float,
    text_flops: float = 0.0,
    image_flops: float = 0.0,
    normalize: bool = False,
    chunk: int = 4096,
    save: str = "none",
    group: Group = None,
) -> StairLoss:
    """loss = (CE(rows) + CE(columns)) / 2 of logit_scale * <text row, image row>, + sum over towers weight * FLOPS.

    The rows are act = log(1 + relu(max over l)) over the whole vocabulary, untruncated; with `normalize` they are
    divided by max(L2 norm, 1e-12) for the product, not for FLOPS (STAIR, arXiv 2301.13081, section 3). The reference of
    the same name states every part. `contrastive`, `text_flops` and `image_flops` of the result are differentiable too.

    Args:
        logit_scale: multiplies the scores (not its logarithm); a float or a differentiable scalar tensor.
        text_flops, image_flops: the weights of the two FLOPS penalties.
        chunk: vocabulary columns held at a time; changes memory and rounding, not meaning.
        save: "none": the backward computes the rows again. "positions": the forward keeps their winning positions, 2
            bytes for each entry of [B, V] a tower (4 where L > 32,767), and the backward computes only the entries
            above 0, each at its position: the faster, the fewer they are.
        group: a torch.distributed group over whose ranks the vocabulary is spread: each gives the whole batch and its
            own columns of weight and bias (stair_kernels.distributed), and has the loss of all columns. What is sent
            is [B, B] scores and the gradients of hidden.

    Raises:
        ValueError: naming the argument, what was expected and what came.
    """
    for name, head in (("text", text), ("image", image)):
        if isinstance(head[1], PackedVocab):
            raise ValueError(f"{name}: expected a weight tensor [V, D], got a PackedVocab (it serves inference only)")
    args = [_head_args(*head, None, ACTIVATION)[:4] for head in (VocabHead(*text), VocabHead(*image))]
    B, V = args[0][0].shape[0], args[0][1].shape[0]
    if args[1][0].shape[0] != B:
        raise ValueError(f"image: expected {B} rows like text, got {args[1][0].shape[0]}")
    if args[1][1].shape[0] != V:
        raise ValueError(f"image: expected a vocabulary of {V} like text, got {args[1][1].shape[0]}")
    if save not in ("none", "positions"):
        raise ValueError(f"save: expected none or positions, got {save!r}")
    if chunk < 1:
        raise ValueError(f"chunk: expected an integer >= 1, got {chunk}")
    scale = _scalar(logit_scale, args[0][0].device)
    group_name = "" if group is None else checked(group).group_name
    out = torch.ops.stair.stair_loss(*args[0], *args[1], scale, normalize, chunk, save == "positions", group_name)
    contrastive, penalty_text, penalty_image = out[:3]
    loss = contrastive + text_flops * penalty_text + image_flops * penalty_image
    return StairLoss(loss, *out[:6])


@torch.library.custom_op("stair::stair_loss", mutates_args=())
def _stair_loss(
    text_hidden: Tensor,
    text_weight: Tensor,
    text_bias: Tensor | None,
    text_mask: Tensor | None,
    image_hidden: Tensor,
    image_weight: Tensor,
    image_bias: Tensor | None,
    image_mask: Tensor | None,
    scale: Tensor,
    normalize: bool,
    chunk: int,
    keep: bool,
    group: str,
) -> tuple[Tensor, Tensor, Tensor, Tensor, Tensor, Tensor, Tensor, Tensor, Tensor, Tensor, Tensor]:
    """contrastive, FLOPS x 2, active x 2, accuracy; saved: score [B, B], column means [2, V], norms [2, B], and with
    `keep` the positions [B, V] of the entries above 0, -1 elsewhere, x 2."""
    text = VocabHead(text_hidden, text_weight, text_bias, text_mask)
    image = VocabHead(image_hidden, image_weight, image_bias, image_mask)
    (B, V), device = (len(text_hidden), len(text_weight)), text_hidden.device
    with torch.autocast(device.type, enabled=False):
        score = torch.zeros(B, B, device=device)
        means, squares = torch.zeros(2, V, device=device), torch.zeros(2, B, device=device)
        active = torch.zeros(2, device=device)
        kept = [_kept(head, keep) for head in (text, image)]
        for v0 in range(0, V, chunk):
            pooled = [_pool(head, v0, chunk) for head in (text, image)]
            score += torch.ops.stair.matmul_nt(pooled[0][0], pooled[1][0])
            for tower, (row, positions) in enumerate(pooled):
                if keep:
                    kept[tower][:, v0 : v0 + chunk] = positions.masked_fill_(row <= 0, -1)
                means[tower, v0 : v0 + chunk] = row.mean(dim=0)
                squares[tower] += row.square().sum(dim=1)
                active[tower] += (row > 0).sum() / max(B, 1)
            del pooled, row, positions  # before the next chunk's are made
        flops = means.square().sum(dim=1)
        score, squares, flops, active = summed((score, squares, flops, active), group)
        norms = squares.sqrt().clamp(min=EPS) if normalize else torch.ones_like(squares)
        score /= norms[0][:, None] * norms[1]
        logit, target = scale * score, torch.arange(B, device=device)
        contrastive = (F.cross_entropy(logit, target) + F.cross_entropy(logit.T, target)) / 2
        accuracy = accuracy_of(logit)
    return (
        contrastive,
        flops[0].clone(),
        flops[1].clone(),
        active[0].clone(),
        active[1].clone(),
        accuracy,
        score,
        means,
        norms,
        kept[0],
        kept[1],
    )


@_stair_loss.register_fake
def _(
    text_hidden: Tensor,
    text_weight: Tensor,
    text_bias: Tensor | None,
    text_mask: Tensor | None,
    image_hidden: Tensor,
    image_weight: Tensor,
    image_bias: Tensor | None,
    image_mask: Tensor | None,
    scale: Tensor,
    normalize: bool,
    chunk: int,
    keep: bool,
    group: str,
) -> tuple[Tensor, ...]:
    heads = VocabHead(text_hidden, text_weight), VocabHead(image_hidden, image_weight)
    B, V = text_hidden.shape[0], text_weight.shape[0]
    shapes: list[tuple[int, ...]] = [()] * 6 + [(B, B), (2, V), (2, B)]
    parts = [text_hidden.new_empty(shape, dtype=torch.float32) for shape in shapes]
    return *parts, *(_kept(head, keep) for head in heads)


@torch.library.custom_op("stair::stair_loss_backward", mutates_args=())
def _stair_loss_backward(
    grad_contrastive: Tensor,
    grad_flops: Tensor,
    text_hidden: Tensor,
    text_weight: Tensor,
    text_bias: Tensor | None,
    text_mask: Tensor | None,
    image_hidden: Tensor,
    image_weight: Tensor,
    image_bias: Tensor | None,
    image_mask: Tensor | None,
    scale: Tensor,
    score: Tensor,
    means: Tensor,
    norms: Tensor,
    text_positions: Tensor,
    image_positions: Tensor,
    normalize: bool,
    chunk: int,
    group: str,
) -> tuple[Tensor, Tensor, Tensor, Tensor, Tensor, Tensor, Tensor]:
    """Gradients of hidden, weight, bias of the text; of the image; scale. Float32, but weight's in its own dtype."""
    heads = (
        VocabHead(text_hidden, text_weight, text_bias, text_mask),
        VocabHead(image_hidden, image_weight, image_bias, image_mask),
    )
    B, V = len(text_hidden), len(text_weight)
    with torch.autocast(text_hidden.device.type, enabled=False):
        logit = scale * score
        grad_logit = logit.softmax(dim=1) + logit.softmax(dim=0)
        grad_logit.diagonal().sub_(2)
        grad_logit *= grad_contrastive / (2 * max(B, 1))
        grad_scale = (grad_logit * score).sum(dim=1).sum()  # in two steps: a full sum is split among the threads
        grad_score = scale * grad_logit
        # through score = raw / (n_t n_i): d raw, and d n pushed on to the row: -row * sum(d score * score) / n^2
        pull = torch.stack([-(grad_score * score).sum(dim=1), -(grad_score * score).sum(dim=0)]) / norms.square()
        grad_raw = grad_score / (norms[0][:, None] * norms[1])
        grads = [_zero_grads(head) for head in heads]
        for v0 in range(0, V, chunk):
            columns = slice(v0, v0 + chunk)
            pooled = [_pool(head, v0, chunk, kept) for head, kept in zip(heads, (text_positions, image_positions))]
            for tower, (head, (row, positions)) in enumerate(zip(heads, pooled)):
                grad_row = torch.ops.stair.matmul_nt(grad_raw if tower == 0 else grad_raw.T, pooled[1 - tower][0].T)
                grad_row += 2 * grad_flops[tower] / max(B, 1) * means[tower, columns]
                if normalize:
                    grad_row += pull[tower][:, None] * row
                hidden, weight, bias = torch.ops.stair.vocab_pool_backward(
                    grad_row, row, positions, head.hidden, head.weight[columns], None, ACTIVATION, True, True
                )
                grads[tower][0].add_(hidden)
                grads[tower][1][columns], grads[tower][2][columns] = weight, bias
                del grad_row, hidden, weight, bias
            del pooled, row, positions  # before the next chunk's are made
        of_hidden = summed([of_tower[0] for of_tower in grads], group)
    return of_hidden[0], *grads[0][1:], of_hidden[1], *grads[1][1:], grad_scale


@_stair_loss_backward.register_fake
def _(
    grad_contrastive: Tensor,
    grad_flops: Tensor,
    text_hidden: Tensor,
    text_weight: Tensor,
    text_bias: Tensor | None,
    text_mask: Tensor | None,
    image_hidden: Tensor,
    image_weight: Tensor,
    image_bias: Tensor | None,
    image_mask: Tensor | None,
    scale: Tensor,
    score: Tensor,
    means: Tensor,
    norms: Tensor,
    text_positions: Tensor,
    image_positions: Tensor,
    normalize: bool,
    chunk: int,
    group: str,
) -> tuple[Tensor, ...]:
    heads = VocabHead(text_hidden, text_weight), VocabHead(image_hidden, image_weight)
    return *_zero_grads(heads[0]), *_zero_grads(heads[1]), scale.new_empty(())


def _save(ctx: Any, inputs: tuple[Any, ...], output: tuple[Tensor, ...]) -> None:
    *tensors, ctx.normalize, ctx.chunk, _, ctx.group = inputs
    ctx.save_for_backward(*tensors, *output[6:])
    ctx.mark_non_differentiable(*output[3:])


def _backward(ctx: Any, grad_contrastive: Tensor, grad_text: Tensor, grad_image: Tensor, *_: Any) -> tuple[Any, ...]:
    saved = ctx.saved_tensors
    inputs = saved[:9]
    grad_flops = torch.stack([grad_text, grad_image])
    grads = torch.ops.stair.stair_loss_backward(
        grad_contrastive, grad_flops, *saved, ctx.normalize, ctx.chunk, ctx.group
    )
    slots = (0, 1, 2, 4, 5, 6, 8)  # hidden, weight, bias of each tower, scale
    by_input: list[Tensor | None] = [None] * 13
    for slot, grad in zip(slots, grads):
        if inputs[slot] is not None:
            by_input[slot] = grad.to(inputs[slot].dtype)
    return tuple(by_input)


def _no_double_backward(ctx: Any, *_: Any) -> tuple[Any, ...]:
    raise NotImplementedError("stair_loss is differentiable once; got a request for a second derivative")


_stair_loss.register_autograd(_backward, setup_context=_save)
_stair_loss_backward.register_autograd(_no_double_backward)


def _scalar(logit_scale: Tensor | float, device: torch.device) -> Tensor:
    """[] float32 on `device`: a number is filled in there, since a copy from the host would wait for the device."""
    if not isinstance(logit_scale, Tensor):
        return torch.full((), logit_scale, dtype=torch.float32, device=device)
    if logit_scale.numel() != 1:
        raise ValueError(f"logit_scale: expected a float or a scalar tensor, got shape {list(logit_scale.shape)}")
    if logit_scale.device != device:
        raise ValueError(f"logit_scale: expected device {device} like text, got {logit_scale.device}")
    return logit_scale.to(torch.float32).reshape(())


def accuracy_of(logit: Tensor, first: int = 0) -> Tensor:
    """The share of rows i of [B, N] that have their own column first + i higher than all others."""
    index = torch.arange(first, first + len(logit), device=logit.device)[:, None]
    rivals = logit.scatter(1, index, -torch.inf)
    best_rival = F.pad(rivals, (0, 1), value=-torch.inf).amax(dim=1)  # the added column: one row has no rival
    return (logit.gather(1, index)[:, 0] > best_rival).float().mean()


def _pool(head: VocabHead, v0: int, chunk: int, kept: Tensor | None = None) -> tuple[Tensor, Tensor]:
    """vocab_pool of the columns [v0, v0 + chunk): values and positions; at the positions kept, where there are any."""
    weight, bias = head.weight[v0 : v0 + chunk], None if head.bias is None else head.bias[v0 : v0 + chunk]
    if kept is not None and kept.numel() > 0:
        positions = kept[:, v0 : v0 + chunk].contiguous()
        return torch.ops.stair.vocab_pool_at(head.hidden, weight, bias, positions, ACTIVATION), positions
    return torch.ops.stair.vocab_pool(head.hidden, weight, bias, head.mask, None, None, ACTIVATION)


def _kept(head: VocabHead, keep: bool) -> Tensor:
    """Room for a tower's positions; of no size where they are not kept."""
    shape = (head.hidden.shape[0], head.weight.shape[0]) if keep else (0, 0)
    return head.hidden.new_empty(shape, dtype=positions_dtype(head.hidden, None))


def _zero_grads(head: VocabHead) -> tuple[Tensor, Tensor, Tensor]:
    hidden, weight = head.hidden, head.weight
    grad_hidden = hidden.new_zeros(hidden.shape, dtype=torch.float32)
    return grad_hidden, torch.zeros_like(weight), weight.new_zeros(weight.shape[:1], dtype=torch.float32)
