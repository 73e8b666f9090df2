"""Every operator with inputs that any device can be given, for the tests of devices (tests/test_gpu.py)."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import torch
from heads import make_head
from search_cases import arrays_of, documents
from test_sparse_dot import zipf_rows
from torch import Tensor

import stair_kernels as sk
from stair_kernels import SparseRows, VocabHead, index_gpu

Tensors = tuple[Tensor, ...]
V = 9000  # chunks of 4,096 and a rest


@dataclass(frozen=True)
class Step:
    """A call of an operator; the first result is differentiated by every floating input, where it can be."""

    operator: str
    make: Callable[[], Tensors]  # inputs on the CPU, of the same shapes every time
    run: Callable[..., Tensors]
    name: str = ""  # of the test, where it is not the operator's
    differentiable: bool = True


def masked() -> Tensors:
    head = make_head("masked", torch.bfloat16, 37, 33, 64, V)
    return head.hidden, head.weight, head.bias, head.mask


def packed() -> Tensors:
    lengths = torch.randperm(37)
    head = make_head("padded", torch.float16, 1, int(lengths.sum()), 64, V)
    return head.hidden[0], head.weight, head.bias, torch.nn.functional.pad(lengths.cumsum(0), (1, 0)).int()


def towers() -> Tensors:
    text, image = (make_head("masked", torch.float32, 37, L, 64, V) for L in (9, 33))
    scale = 20 * torch.rand(())
    return text.hidden, text.weight, text.bias, text.mask, image.hidden, image.weight, image.bias, scale


def sparse() -> Tensors:
    a, b = zipf_rows(37, 20, V), zipf_rows(29, 30, V)
    return a.values, a.indices, b.values, b.indices


def searching() -> Tensors:
    """A query's values and indices, and the arrays of an index that is always the same."""
    rows = documents("words", 20000, 500, 6)
    queries = zipf_rows(37, 20, 500)
    return queries.values, queries.indices, *arrays_of(rows).values()


def run_topk(hidden: Tensor, weight: Tensor, bias: Tensor, mask: Tensor) -> Tensors:
    rows = sk.vocab_topk(hidden, weight, bias, mask, k=50)
    return rows.values, rows.indices, rows.positions


def run_loss(*inputs: Tensor) -> Tensors:
    text, image = VocabHead(*inputs[:4]), VocabHead(*inputs[4:7])
    return tuple(sk.stair_loss(text, image, logit_scale=inputs[7], text_flops=0.1, normalize=True))


def run_topk_of_dense(dense: Tensor) -> Tensors:
    rows = sk.topk(dense, 50)
    return rows.values, rows.indices


def run_sparse_dot(a: Tensor, a_indices: Tensor, b: Tensor, b_indices: Tensor) -> Tensors:
    return (sk.sparse_dot(SparseRows(a, a_indices, None, V), SparseRows(b, b_indices, None, V)),)


def run_search(values: Tensor, indices: Tensor, *arrays: Tensor) -> Tensors:
    names = ("ids", "ranks", *index_gpu.COPIED)
    return index_gpu.DeviceIndex(dict(zip(names, arrays))).search(SparseRows(values, indices, None, 500), 10)


STEPS = [
    Step("vocab_pool", masked, lambda *head: (sk.vocab_pool(*head),)),
    Step("vocab_pool", packed, lambda *head: (sk.vocab_pool(*head[:3], cu_seqlens=head[3]),), "vocab_pool_packed"),
    Step("vocab_topk", masked, run_topk),
    Step("stair_loss", towers, run_loss),
    Step("topk", lambda: (torch.randn(37, V),), run_topk_of_dense),
    Step("sparse_dot", sparse, run_sparse_dot),
    Step("search", searching, run_search, differentiable=False),
    Step("flops", lambda: sparse()[:2], lambda *rows: (sk.flops(SparseRows(*rows, None, V)),)),
]


def forward(step: Step, inputs: Tensors) -> Tensors:
    with torch.no_grad():
        return step.run(*inputs)


def with_gradients(step: Step, inputs: Tensors) -> Tensors:
    if not step.differentiable:
        return forward(step, inputs)
    leaves = [tensor.detach().requires_grad_(tensor.is_floating_point()) for tensor in inputs]
    results = step.run(*leaves)
    grads = torch.autograd.grad(results[0].square().sum(), [leaf for leaf in leaves if leaf.requires_grad])
    return *(result.detach() for result in results), *grads
