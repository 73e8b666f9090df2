"""Makes a case's inputs, always the same numbers, and its implementations."""

from __future__ import annotations

import torch
import work_head
import work_sparse
from cases import Case
from variants import Work

MAKERS = work_head.MAKERS | work_sparse.MAKERS


def prepare(case: Case, device: torch.device) -> Work:
    """The case on the device; its inputs are drawn on the CPU and moved."""
    torch.manual_seed(0)
    return MAKERS[case.op](device, getattr(torch, case.dtype), case.inputs, **case.sizes)
