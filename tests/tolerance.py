"""The one rule for closeness: our error against float64 is at most FACTOR times that of PyTorch in the same dtype.

PyTorch's own error is measured on the same inputs. A floor covers cases where PyTorch happens to be exact: the rounding
of a few operations at the size of the largest true value.
"""

from __future__ import annotations

import torch
from torch import Tensor

# PyTorch sums a short row in 16 lanes, our tiles in one chain over D: up to about 5 times the rounding at D = 130.
FACTOR = 8.0
FLOOR_ULPS = 4.0


def max_error(got: Tensor, truth: Tensor) -> float:
    """max |got - truth| in float64; NaN must stand where NaN stands, infinities must be equal."""
    got, truth = got.double(), truth.double()
    assert got.shape == truth.shape, f"shape {list(got.shape)} instead of {list(truth.shape)}"
    assert torch.equal(got.isnan(), truth.isnan()), "NaN in other places than in the truth"
    special = truth.isnan() | truth.isinf()
    infinite = truth.isinf()
    assert torch.equal(got[infinite], truth[infinite]), "infinities differ"
    error = (got - truth)[~special].abs()
    assert error.isfinite().all(), "not finite where the truth is"
    return float(error.max()) if error.numel() else 0.0


def assert_close(
    got: Tensor, truth: Tensor, pytorch: Tensor | tuple[Tensor, Tensor], what: str = "", addend: float = 0.0
) -> None:
    """`got` is as close to the float64 `truth` as `pytorch`, the same arithmetic in plain PyTorch in the same dtype.

    `pytorch` may be a pair (result, its own float64 truth) where the two computed different elements. `addend` is the
    size of the largest addend where the truth is what is left of a cancelling sum.
    """
    result, result_truth = pytorch if isinstance(pytorch, tuple) else (pytorch, truth)
    allowed = FACTOR * max_error(result, result_truth)
    finite = truth.double()[truth.double().isfinite()]
    scale = max(addend, float(finite.abs().max()) if finite.numel() else 0.0)
    ulp = torch.finfo(got.dtype if got.dtype.is_floating_point else torch.float32).eps
    allowed = max(allowed, FLOOR_ULPS * ulp * scale)
    error = max_error(got, truth)
    assert error <= allowed, (
        f"{what}: error {error:.3e} against float64, allowed {allowed:.3e} (largest value {scale:.3e})"
    )
