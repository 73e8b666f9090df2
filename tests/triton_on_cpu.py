"""The GPU kernels on CPU tensors, launched by their own launchers: in Triton's interpreter, or run from their PTX."""

from __future__ import annotations

import math
import os
import warnings
from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor

OPERATORS = {"vocab_pool": ("vocab_pool", "vocab_pool_backward"), "vocab_topk": ("vocab_topk", "vocab_topk_backward")}
_LIBRARY = torch.library.Library("stair", "IMPL")  # a registration lives as long as it does


def replace_cpu_kernels() -> None:
    """From here on, in this process, the operators of OPERATORS run the Triton kernels, interpreted, on CPU tensors."""
    os.environ["TRITON_INTERPRET"] = "1"  # read when a kernel is defined
    from stair_kernels._triton import vocab_pool, vocab_topk

    modules = {"vocab_pool": vocab_pool, "vocab_topk": vocab_topk}
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # that the C++ kernel is replaced is what is wanted
        for module, operators in OPERATORS.items():
            for operator in operators:
                _LIBRARY.impl(operator, getattr(modules[module], operator), "CPU", allow_override=True)


class PtxKernel:
    """Stands in for a @triton.jit kernel: compiled for sm_80 for the arguments at hand, its PTX run on CPU tensors."""

    def __init__(self, kernel: Any, only_last: bool) -> None:
        self.kernel = kernel
        self.only_last = only_last

    def __getitem__(self, grid: tuple[int, ...]) -> Callable[..., None]:
        from ptx.launch import compile_for, run

        def launch(*args: Any, num_warps: int = 4, num_stages: int = 3, **constants: Any) -> None:
            named = dict(zip(self.kernel.arg_names, args))
            constants |= {name: None for name, value in named.items() if value is None}
            if "UPCAST" in constants:
                constants["UPCAST"] = False  # the interpreter's need
            given = {name: value for name, value in named.items() if value is not None}
            signature = {name: signature_of(value) for name, value in given.items()}
            aligned = [name for name, value in given.items() if isinstance(value, int) and value % 16 == 0]
            compiled = compile_for(self.kernel, signature, constants, 80, num_warps, num_stages, aligned)
            first_cta = math.prod(grid) - 1 if self.only_last else 0
            run(compiled, grid, {name: given[name] for name in compiled.signature}, first_cta=first_cta)

        return launch


def signature_of(value: Tensor | int) -> str:
    if isinstance(value, int):
        return "i32"
    kinds = {torch.bool: "i1", torch.float32: "fp32", torch.bfloat16: "bf16", torch.float16: "fp16"}
    return "*" + kinds.get(value.dtype, str(value.dtype).replace("torch.int", "i"))


def run_from_ptx(monkeypatch: pytest.MonkeyPatch, only_last: bool = False) -> None:
    """Until the test ends the launchers of vocab_pool and vocab_topk run the compiled kernels on CPU tensors.

    With `only_last`, the last program of each grid and no other.
    """
    from stair_kernels._triton import vocab_pool

    for name in ("forward_kernel", "hidden_kernel", "weight_kernel", "activate_kernel"):
        monkeypatch.setattr(vocab_pool, name, PtxKernel(getattr(vocab_pool, name), only_last))
