"""The operators on the CUDA key. Triton is imported when the first of them runs, not before."""

from __future__ import annotations

import importlib
import importlib.util
from types import ModuleType
from typing import Any

import torch
from torch import Tensor


def _import(name: str) -> ModuleType:
    if importlib.util.find_spec("triton") is None:
        raise RuntimeError("stair_kernels: CUDA tensors need Triton, which is not installed: pip install triton")
    return importlib.import_module(f"stair_kernels._triton.{name}")


def _register(operator: str, module: str) -> None:
    @torch.library.impl(f"stair::{operator}", "CUDA")
    def _(*args: Any) -> Any:
        return getattr(_import(module), operator)(*args)


_register("vocab_pool", "vocab_pool")
_register("vocab_pool_backward", "vocab_pool")
_register("vocab_topk", "vocab_topk")
_register("vocab_topk_backward", "vocab_topk")


@torch.library.impl("stair::matmul_nt", "CUDA")
def _matmul_nt(a: Tensor, b: Tensor) -> Tensor:
    return a.float() @ b.float().T
