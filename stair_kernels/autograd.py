"""Fakes (shapes without data, for torch.compile) and gradients of the torch.ops.stair operators."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from stair_kernels.rows import scatter_rows

Context = Any  # the autograd context that torch.library passes


def positions_dtype(hidden: Tensor, cu_seqlens: Tensor | None) -> torch.dtype:
    """Of vocab_pool's positions: int16 where every position of hidden [B, L, D], or [T, D] with cu_seqlens, fits."""
    longest = hidden.shape[0 if cu_seqlens is not None else 1]
    return torch.int16 if longest <= torch.iinfo(torch.int16).max else torch.int32


def _rows_of(hidden: Tensor, cu_seqlens: Tensor | None) -> Any:
    return hidden.shape[0] if cu_seqlens is None else cu_seqlens.shape[0] - 1


@torch.library.register_fake("stair::vocab_topk")
def _(
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
    shape = (_rows_of(hidden, cu_seqlens), k)
    values = hidden.new_empty(shape, dtype=torch.float32)
    return values, hidden.new_empty(shape, dtype=torch.int32), hidden.new_empty(shape, dtype=torch.int32)


@torch.library.register_fake("stair::vocab_pool")
def _(
    hidden: Tensor,
    weight: Tensor,
    bias: Tensor | None,
    mask: Tensor | None,
    cu_seqlens: Tensor | None,
    packed_vocab: int | None,
    activation: str,
) -> tuple[Tensor, Tensor]:
    shape = (_rows_of(hidden, cu_seqlens), weight.shape[0] if packed_vocab is None else packed_vocab)
    positions = hidden.new_empty(shape, dtype=positions_dtype(hidden, cu_seqlens))
    return hidden.new_empty(shape, dtype=torch.float32), positions


@torch.library.register_fake("stair::vocab_topk_backward")
def _(
    grad_values: Tensor,
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
    grad_hidden = hidden.new_empty(hidden.shape if need_hidden else (0,))
    R = weight.shape[0] if rows is None else rows.shape[0]
    grad_weight = weight.new_empty((R, weight.shape[1]) if need_weight else (0,))
    return grad_hidden, grad_weight, weight.new_empty(weight.shape[:1], dtype=torch.float32)


@torch.library.register_fake("stair::vocab_pool_at")
def _(hidden: Tensor, weight: Tensor, bias: Tensor | None, positions: Tensor, activation: str) -> Tensor:
    return hidden.new_empty((hidden.shape[0], weight.shape[0]), dtype=torch.float32)


@torch.library.register_fake("stair::vocab_pool_backward")
def _(
    grad_out: Tensor,
    out: Tensor,
    positions: Tensor,
    hidden: Tensor,
    weight: Tensor,
    cu_seqlens: Tensor | None,
    activation: str,
    need_hidden: bool,
    need_weight: bool,
) -> tuple[Tensor, Tensor, Tensor]:
    grad_hidden = hidden.new_empty(hidden.shape if need_hidden else (0,), dtype=torch.float32)
    grad_weight = weight.new_empty(weight.shape if need_weight else (0,))
    return grad_hidden, grad_weight, weight.new_empty(weight.shape[:1], dtype=torch.float32)


@torch.library.register_fake("stair::pack_vocab")
def _(weight: Tensor) -> Tensor:
    V, D = weight.shape
    steps, width = (D, 16) if weight.dtype == torch.float32 else ((D + 31) // 32 * 16, 32)
    return weight.new_empty(((V + 127) // 128 * 8, steps, width))


@torch.library.register_fake("stair::topk")
def _(dense: Tensor, k: int) -> tuple[Tensor, Tensor]:
    shape = (dense.shape[0], k)
    return dense.new_empty(shape, dtype=torch.float32), dense.new_empty(shape, dtype=torch.int32)


@torch.library.register_fake("stair::topk_merge")
def _(keys_: Tensor, positions_: Tensor, raw: Tensor, raw_positions: Tensor, first: int, above_zero: bool) -> None: ...


@torch.library.register_fake("stair::sparse_dot")
def _(a_values: Tensor, a_indices: Tensor, b_values: Tensor, b_indices: Tensor, vocab_size: int) -> Tensor:
    return a_values.new_empty((a_values.shape[0], b_values.shape[0]))


@torch.library.register_fake("stair::sparse_dot_backward")
def _(grad_score: Tensor, a_indices: Tensor, b_values: Tensor, b_indices: Tensor, vocab_size: int) -> Tensor:
    return b_values.new_empty(a_indices.shape)


@torch.library.register_fake("stair::search")
def _(indices: Tensor, values: Tensor, ids: Tensor, *arrays_and_k: Any) -> tuple[Tensor, Tensor]:
    shape = (indices.shape[0], arrays_and_k[-1])
    return values.new_empty(shape), ids.new_empty(shape)


@torch.library.register_fake("stair::flops")
def _(values: Tensor, indices: Tensor, vocab_size: int) -> tuple[Tensor, Tensor]:
    return values.new_empty(()), values.new_empty((vocab_size,))


@torch.library.register_fake("stair::matmul_nt")
def _(a: Tensor, b: Tensor) -> Tensor:
    return a.new_empty((a.shape[0], b.shape[0]), dtype=torch.float32)


def _save_vocab_topk(ctx: Context, inputs: tuple[Any, ...], output: tuple[Tensor, ...]) -> None:
    hidden, weight, bias, _, cu_seqlens, _, _, ctx.activation, ctx.sparse_grad = inputs
    ctx.save_for_backward(*output, hidden, weight, cu_seqlens)
    ctx.bias_dtype = None if bias is None else bias.dtype


def _vocab_topk_backward(ctx: Context, grad_values: Tensor, *_: Any) -> tuple[Any, ...]:
    values, indices, positions, hidden, weight, cu_seqlens = ctx.saved_tensors
    rows = indices[indices >= 0].long().unique() if ctx.sparse_grad else None  # ascending
    need_hidden, need_weight = ctx.needs_input_grad[:2]
    grads = torch.ops.stair.vocab_topk_backward(
        grad_values,
        values,
        indices,
        positions,
        hidden,
        weight,
        cu_seqlens,
        rows,
        ctx.activation,
        need_hidden,
        need_weight,
    )
    grad_weight = grads[1] if need_weight else None
    if rows is not None and need_weight:
        grad_weight = torch.sparse_coo_tensor(
            rows[None], grads[1], weight.shape, check_invariants=False, is_coalesced=True
        )
    return grads[0] if need_hidden else None, grad_weight, _bias_grad(ctx, grads[2]), *[None] * 6


def _save_vocab_pool(ctx: Context, inputs: tuple[Any, ...], output: tuple[Tensor, ...]) -> None:
    hidden, weight, bias, _, cu_seqlens, _, ctx.activation = inputs
    ctx.save_for_backward(*output, hidden, weight, cu_seqlens)
    ctx.bias_dtype = None if bias is None else bias.dtype


def _vocab_pool_backward(ctx: Context, grad_out: Tensor, *_: Any) -> tuple[Any, ...]:
    out, positions, hidden, weight, cu_seqlens = ctx.saved_tensors
    need_hidden, need_weight = ctx.needs_input_grad[:2]
    grads = torch.ops.stair.vocab_pool_backward(
        grad_out, out, positions, hidden, weight, cu_seqlens, ctx.activation, need_hidden, need_weight
    )
    grad_hidden = grads[0].to(hidden.dtype) if need_hidden else None
    return grad_hidden, grads[1] if need_weight else None, _bias_grad(ctx, grads[2]), *[None] * 4


def _bias_grad(ctx: Context, grad: Tensor) -> Tensor | None:
    return None if ctx.bias_dtype is None else grad.to(ctx.bias_dtype)


def _save_topk(ctx: Context, inputs: tuple[Any, ...], output: tuple[Tensor, ...]) -> None:
    dense, _ = inputs
    ctx.save_for_backward(output[1])
    ctx.shape, ctx.dtype = dense.shape, dense.dtype


def _topk_backward(ctx: Context, grad_values: Tensor, *_: Any) -> tuple[Any, ...]:
    (indices,) = ctx.saved_tensors
    # indices are unique within a row: no element has two addends, so that the order cannot matter
    return scatter_rows(grad_values, indices, ctx.shape[1]).to(ctx.dtype), None


def _save_sparse_dot(ctx: Context, inputs: tuple[Any, ...], output: Tensor) -> None:
    ctx.save_for_backward(*inputs[:4])
    ctx.vocab_size = inputs[4]


def _sparse_dot_backward(ctx: Context, grad: Tensor) -> tuple[Any, ...]:
    a_values, a_indices, b_values, b_indices = ctx.saved_tensors
    V, backward = ctx.vocab_size, torch.ops.stair.sparse_dot_backward
    grad_a = backward(grad, a_indices, b_values, b_indices, V) if ctx.needs_input_grad[0] else None
    grad_b = backward(grad.T, b_indices, a_values, a_indices, V) if ctx.needs_input_grad[2] else None
    return grad_a, None, grad_b, None, None


def _save_flops(ctx: Context, inputs: tuple[Any, ...], output: tuple[Tensor, ...]) -> None:
    ctx.save_for_backward(inputs[1], output[1])


def _flops_backward(ctx: Context, grad: Tensor, *_: Any) -> tuple[Any, ...]:
    indices, means = ctx.saved_tensors
    scale = 2 * grad / max(indices.shape[0], 1)
    with_empty = torch.nn.functional.pad(means, (0, 1))  # empty slots read the 0 behind the last mean
    return scale * with_empty[torch.where(indices >= 0, indices, means.shape[0]).long()], None, None


def _no_double_backward(ctx: Context, *_: Any) -> tuple[Any, ...]:
    raise NotImplementedError("stair_kernels: operators are differentiable once; got a request for a second derivative")


register = torch.library.register_autograd
register("stair::vocab_topk", _vocab_topk_backward, setup_context=_save_vocab_topk)
register("stair::vocab_pool", _vocab_pool_backward, setup_context=_save_vocab_pool)
register("stair::topk", _topk_backward, setup_context=_save_topk)
register("stair::sparse_dot", _sparse_dot_backward, setup_context=_save_sparse_dot)
register("stair::flops", _flops_backward, setup_context=_save_flops)
for _name in ("vocab_topk_backward", "vocab_pool_at", "vocab_pool_backward", "sparse_dot_backward"):
    register(f"stair::{_name}", _no_double_backward)
