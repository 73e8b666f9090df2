"""Makes a case's inputs, always the same numbers, and its implementations."""

from __future__ import annotations

from collections.abc import Callable

import torch
import work_head
import work_sparse
from cases import Case
from variants import Work


def _makers(op: str) -> dict[str, Callable[..., Work]]:
    if not op.startswith("accelerate_"):
        return work_head.MAKERS | work_sparse.MAKERS
    import work_models  # transformers and sentence-transformers take seconds to import

    return work_models.MAKERS


def prepare(case: Case, device: torch.device) -> Work:
    """The case on the device; its inputs are drawn on the CPU and moved."""
    torch.manual_seed(0)
    return _makers(case.op)[case.op](device, getattr(torch, case.dtype), case.inputs, **case.sizes)
