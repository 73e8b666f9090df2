"""flops: the FLOPS penalty of a sparse batch."""

from __future__ import annotations

import pytest
import torch
from conftest import Implementation
from on_device import require_kernel
from test_sparse_dot import zipf_rows
from tolerance import assert_close

import stair_kernels as sk
from stair_kernels import SparseRows, reference


@pytest.mark.parametrize(
    ("B", "K", "V"), [(5, 8, 100), (1, 1, 1), (64, 32, 300), (0, 3, 10), (3, 2, 0), (3, 3, 1 << 20)]
)
def test_value_and_gradient_match_float64(impl: Implementation, B: int, K: int, V: int) -> None:
    rows = zipf_rows(B, K, V)

    def run(operators: object, **extra: object) -> tuple[torch.Tensor, torch.Tensor]:
        values = rows.values.clone().requires_grad_()
        out = operators.flops(SparseRows(values, rows.indices, None, V), **extra)
        return out.detach(), torch.autograd.grad(out * 3, values)[0]

    for got, truth, eager in zip(run(impl.operators), run(reference, compute_dtype=torch.float64), run(reference)):
        assert_close(got, truth, eager)


def test_nan_reaches_the_penalty(impl: Implementation) -> None:
    rows = zipf_rows(4, 6, 20)
    rows.values[2, 0], rows.indices[2, 0] = torch.nan, 3
    assert impl.operators.flops(rows).isnan()


def test_opcheck_and_compile(device: str) -> None:
    require_kernel("flops", device)
    rows = zipf_rows(4, 6, 20).to(device)
    rows.values.requires_grad_()
    torch.library.opcheck(torch.ops.stair.flops.default, (rows.values, rows.indices, 20))
    assert torch.equal(torch.compile(sk.flops, fullgraph=True, backend="aot_eager")(rows), sk.flops(rows))
