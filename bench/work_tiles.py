"""The kernels of vocab_pool on a case's inputs, each alone, and how far a result is from the reference's."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from functools import partial
from typing import Any

import torch
from cases import Case
from torch import Tensor
from variants import TOLERANCE, relative_error
from work_head import full, make_head

from stair_kernels import reference, tiles
from stair_kernels._triton import vocab_pool
from stair_kernels.autograd import positions_dtype
from stair_kernels.tiles import Call, Tile

ACTIVATION = "log_relu"
# Sums in float32 are closer to each other in whatever order, products in TF32 are not.
CLOSE = 5e-5


@dataclass(frozen=True)
class Subject:
    """A kernel, its inputs, and its tile."""

    call: Call
    present: Tile  # of the launcher as it is
    D: int
    device: torch.device
    run: Callable[[], Any]
    error: Callable[[Any], float]  # of a result of `run`
    tolerance: float

    @property
    def kernel(self) -> str:
        """As it is named in vocab_pool.py, without `_kernel`."""
        return "weight" if self.call.kernel == "gather" else self.call.kernel


def subjects(case: Case, device: torch.device) -> Iterator[Subject]:
    """The forward of a case of vocab_pool; both gradients of one of vocab_pool_grad."""
    torch.manual_seed(0)
    B, L, D, V = case.shape
    exact = case.dtype == "float32" and torch.get_float32_matmul_precision() == "highest"
    head = make_head(torch.device("cpu"), getattr(torch, case.dtype), case.inputs, B, L, D, V)
    arguments = full(head)
    # on the CPU, where the reference makes its positions
    raw, won = reference.pooled_logits(*arguments, None, torch.float32)
    hidden, weight, bias, mask, raw, positions = (
        tensor.to(device) for tensor in (*arguments, raw, won.to(positions_dtype(head.hidden, None)))
    )
    out = torch.where(positions >= 0, reference.ACTIVATIONS[ACTIVATION](raw), 0.0)
    arch, size = vocab_pool._arch(device), hidden.element_size()
    if case.op == "vocab_pool":
        call = Call("forward", arch, tiles.length_class(L), size, exact, masked=True)
        present = tiles.forward(B, L, size, arch, masked=True, exact=exact)

        def forward() -> tuple[Tensor, Tensor]:
            return vocab_pool.vocab_pool(hidden, weight, bias, mask, None, None, ACTIVATION)

        def error(result: tuple[Tensor, Tensor]) -> float:
            """Of the values, and of what the positions are worth: of equal maxima the kernel may name another."""
            return relative_error((result[0], _worth(hidden, weight, bias, mask, result[1])), (out, out))

        yield Subject(call, present, D, device, forward, error, CLOSE)
        return

    upstream = torch.randn(B, V).to(device)
    saved = upstream, out, positions, hidden, weight, None, ACTIVATION
    tolerance = CLOSE if exact else TOLERANCE[case.dtype]
    truth: Sequence[Tensor] = _gradients(upstream, out, positions, hidden, weight)
    for kernel, needs, parts in (("hidden", (True, False), slice(0, 1)), ("weight", (False, True), slice(1, 3))):
        call = Call(kernel, arch, tiles.length_class(L), size, exact)
        present = tiles.backward(L, D, size, exact=exact, arch=arch, kernel=kernel)
        if kernel == "weight" and tiles.gathers(L):
            call, present = Call("gather", arch, 0, size), tiles.gather(D, size, arch=arch)
        backward = partial(vocab_pool.vocab_pool_backward, *saved, *needs)
        yield Subject(call, present, D, device, backward, partial(_error_of, truth[parts], parts), tolerance)


def _error_of(truth: Sequence[Tensor], parts: slice, result: Sequence[Tensor]) -> float:
    return relative_error(result[parts], truth)


def _worth(hidden: Tensor, weight: Tensor, bias: Tensor, mask: Tensor, positions: Tensor) -> Tensor:
    """[B, V]: the activation of the logit at each position, 0 at a masked one or none."""
    rows = []
    for tokens, kept, position in zip(hidden.float(), mask, positions.long()):
        at = position.clamp(0, len(tokens) - 1)
        logit = (tokens[at] * weight.float()).sum(dim=1) + bias.float()
        rows.append(torch.where(kept[at] & (at == position), reference.ACTIVATIONS[ACTIVATION](logit), 0.0))
    return torch.stack(rows)


def _gradients(
    upstream: Tensor, out: Tensor, positions: Tensor, hidden: Tensor, weight: Tensor
) -> tuple[Tensor, Tensor, Tensor]:
    """In float32, a row of the batch at a time: of hidden, weight and bias."""
    grad = torch.where(out > 0, upstream * torch.exp(-out), 0.0)
    of_hidden, of_weight = torch.zeros_like(hidden, dtype=torch.float32), torch.zeros_like(weight, dtype=torch.float32)
    for row, position in enumerate(positions.long().clamp(min=0)):
        of_hidden[row].index_add_(0, position, grad[row, :, None] * weight.float())
        of_weight += grad[row, :, None] * hidden[row].float()[position]
    return of_hidden, of_weight, grad.sum(dim=0)
