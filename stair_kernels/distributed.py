"""Training over several processes (torch.distributed): negatives, FLOPS means and the vocabulary span all ranks.

One rule makes the gradients right: every rank has the loss of the whole batch, `all_gather` sums what flows back to a
rank's own part, and DDP, FSDP2 or the caller averages the gradients of replicated parameters over the ranks. What comes
out is the gradient of a single process with the whole batch. `group=None` is the default group. All ranks give tensors
of the same shapes.

    data parallel, sparse rows:   rows = sk.vocab_topk(hidden, weight, bias, mask, k=k), ...
                                  sk.loss_of_rows(rows, others, logit_scale=scale, group=group)
    vocabulary sharded, exact:    head = VocabHead(all_gather(hidden), shard(weight), shard(bias), all_gather(mask))
                                  sk.stair_loss(head, ..., logit_scale=scale, group=group)
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, TypeAlias

import torch
import torch.distributed as dist
from torch import Tensor

from stair_kernels.rows import SparseRows, trusted_rows

_collectives = torch.ops._c10d_functional  # on one name from torch 2.10 to 2.14, and torch.compile takes them
_waited = _collectives.wait_tensor

Group: TypeAlias = "dist.ProcessGroup | None"


def all_gather(tensor: Tensor, group: Group = None) -> Tensor:
    """[P * B, ...]: the [B, ...] of every rank, in the order of ranks; differentiable.

    The gradient of a rank's part is the sum over ranks of what flows back to it.
    """
    return _AllGather.apply(tensor, checked(group))


def gather_rows(rows: SparseRows, group: Group = None) -> SparseRows:
    """[P * B, K]: the rows of every rank, in the order of ranks; differentiable in the values, as all_gather.

    A rank sends 8 K bytes a row in place of the dense row's 4 V: 2 KiB for 119 KiB at K = 256, V = 30,522. The
    positions, which mean something to their own rank only, are left behind.
    """
    values, indices = _GatherRows.apply(rows.values, rows.indices, checked(group))
    return trusted_rows(values, indices, None, rows.vocab_size)


def shard(parameter: Tensor, group: Group = None) -> Tensor:
    """[<= ceil(V / P), ...]: this rank's consecutive part of a parameter [V, ...] that all ranks have.

    Differentiable: the gradient is that of the part times P, and 0 elsewhere, for the average over ranks to be that of
    the parameter. A parameter of which a rank stores its part alone needs no such thing.
    """
    return _Shard.apply(parameter, checked(group))


class _AllGather(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, tensor: Tensor, group: dist.ProcessGroup) -> Tensor:
        ctx.group = group
        return _gathered(tensor, group)

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor, None]:
        return _own_part_of_sum(grad, ctx.group), None


class _GatherRows(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, values: Tensor, indices: Tensor, group: dist.ProcessGroup) -> tuple[Tensor, Tensor]:
        ctx.group = group
        both = _gathered(torch.stack([values.view(torch.int32), indices], dim=1), group)  # one message
        out = both[:, 0].contiguous().view(torch.float32), both[:, 1].contiguous()
        ctx.mark_non_differentiable(out[1])
        return out

    @staticmethod
    def backward(ctx: Any, grad: Tensor, _: Any) -> tuple[Tensor, None, None]:
        return _own_part_of_sum(grad, ctx.group), None, None


class _Shard(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, parameter: Tensor, group: dist.ProcessGroup) -> Tensor:
        ctx.shape, ctx.ranks, ctx.part = parameter.shape, group.size(), _part(len(parameter), group)
        return parameter[ctx.part].clone()

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor, None]:
        whole = grad.new_zeros(ctx.shape)
        whole[ctx.part] = grad * ctx.ranks
        return whole, None


def checked(group: Group) -> dist.ProcessGroup:
    if not dist.is_available() or not dist.is_initialized():
        raise ValueError(
            "group: expected an initialised process group (torch.distributed.init_process_group), got none"
        )
    group = dist.group.WORLD if group is None else group
    assert group is not None
    return group


def _part(length: int, group: dist.ProcessGroup) -> slice:
    each = -(-length // group.size())
    return slice(min(group.rank() * each, length), min((group.rank() + 1) * each, length))


def summed(parts: Sequence[Tensor], group_name: str) -> list[Tensor]:
    """Each tensor's sum over the ranks of a group, in one message; not differentiable. "" is no group."""
    if not group_name:
        return list(parts)
    total = _waited(_collectives.all_reduce(torch.cat([part.flatten() for part in parts]), "sum", group_name))
    sums = total.split([part.numel() for part in parts])
    return [part.view_as(like).clone() for part, like in zip(sums, parts)]


def _gathered(tensor: Tensor, group: dist.ProcessGroup) -> Tensor:
    return _waited(_collectives.all_gather_into_tensor(tensor.contiguous(), group.size(), group.group_name))


def _own_part_of_sum(tensor: Tensor, group: dist.ProcessGroup) -> Tensor:
    out = _collectives.reduce_scatter_tensor(tensor.contiguous(), "sum", group.size(), group.group_name)
    return _waited(out)
