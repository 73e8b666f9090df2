"""The operators on the CUDA key that are not in csrc/cuda. Triton is imported when one of them first runs."""

from __future__ import annotations

import importlib
import importlib.util
from pathlib import Path
from types import ModuleType
from typing import Any

import torch
from torch import Tensor

LIBRARY_BUILT = Path(__file__).with_name("_C_cuda.so").exists()  # what csrc/cuda is compiled to


def _import(name: str) -> ModuleType:
    if importlib.util.find_spec("triton") is None:
        raise RuntimeError("stair_kernels: CUDA tensors need Triton, which is not installed: pip install triton")
    return importlib.import_module(f"stair_kernels._triton.{name}")


def _register(operator: str, module: str) -> None:
    @torch.library.impl(f"stair::{operator}", "CUDA")
    def _(*args: Any) -> Any:
        return getattr(_import(module), operator)(*args)


def require_library(operator: str) -> None:
    """Says what builds the library when it is not there."""
    if not LIBRARY_BUILT:
        raise RuntimeError(
            f"stair_kernels: {operator} on CUDA tensors needs _C_cuda.so, which is not built: install the CUDA toolkit "
            "and run `make setup STAIR_CUDA=ON`, or `STAIR_CUDA=ON pip install .`"
        )


_register("vocab_pool", "vocab_pool")
_register("vocab_pool_at", "vocab_pool")
_register("vocab_pool_backward", "vocab_pool")
_register("vocab_topk", "vocab_topk")


@torch.library.impl("stair::matmul_nt", "CUDA")
def _matmul_nt(a: Tensor, b: Tensor) -> Tensor:
    return a.float() @ b.float().T
