"""The launchers of the GPU kernels without a GPU: on CPU tensors, in Triton's interpreter or from their PTX; on meta
tensors, without kernels, to see what would wait for the device."""

from __future__ import annotations

import contextlib
import math
import os
import warnings
from collections.abc import Callable, Iterator
from typing import Any

import pytest
import torch
from torch import Tensor
from torch.overrides import TorchFunctionMode
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves

OPERATORS = {"vocab_pool": ("vocab_pool", "vocab_pool_at", "vocab_pool_backward"), "vocab_topk": ("vocab_topk",)}
KERNELS = ("forward_kernel", "hidden_kernel", "weight_kernel", "pool_at_kernel", "activate_kernel")
_LIBRARY = torch.library.Library("stair", "IMPL")  # a registration lives as long as it does


def replace_cpu_kernels() -> None:
    """From here on, in this process, the operators of OPERATORS run the Triton kernels, interpreted, on CPU tensors.

    STAIR_TEST_ARCH: with the tiles of another architecture than sm_80.
    """
    os.environ["TRITON_INTERPRET"] = "1"  # read when a kernel is defined
    from stair_kernels._triton import vocab_pool, vocab_topk

    arch = int(os.environ.get("STAIR_TEST_ARCH", "80"))
    vocab_pool._arch = lambda device: arch
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
        from aot import compile_for
        from ptx.launch import run

        def launch(
            *args: Any, num_warps: int = 4, num_stages: int = 3, maxnreg: int | None = None, **constants: Any
        ) -> None:
            named = dict(zip(self.kernel.arg_names, args))
            constants |= {name: None for name, value in named.items() if value is None}
            if "INTERPRETED" in constants:
                constants["INTERPRETED"] = False  # the interpreter's need
            constants |= {
                name: 1 for name, value in named.items() if isinstance(value, int) and value == 1
            }  # as Triton
            given = {name: value for name, value in named.items() if value is not None and name not in constants}
            signature = {name: signature_of(value) for name, value in given.items()}
            aligned = [name for name, value in given.items() if isinstance(value, int) and value % 16 == 0]
            compiled = compile_for(self.kernel, signature, constants, 80, num_warps, num_stages, aligned, maxnreg)
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

    for name in KERNELS:
        monkeypatch.setattr(vocab_pool, name, PtxKernel(getattr(vocab_pool, name), only_last))


def launch_nothing(monkeypatch: pytest.MonkeyPatch) -> None:
    """Until the test ends the launchers of vocab_pool and vocab_topk take meta tensors and start no kernel."""
    from stair_kernels._triton import vocab_pool

    class Nothing:
        def __getitem__(self, grid: tuple[int, ...]) -> Callable[..., None]:
            return lambda *args, **constants: None

    for name in KERNELS:
        monkeypatch.setattr(vocab_pool, name, Nothing())
    monkeypatch.setattr(vocab_pool, "_on", contextlib.nullcontext)
    monkeypatch.setattr(vocab_pool, "_arch", lambda device: 80)
    monkeypatch.setattr(vocab_pool, "_multiprocessors", lambda device: 108)
    monkeypatch.setattr(torch, "autocast", lambda *args, **kwargs: contextlib.nullcontext())  # which refuses meta


@contextlib.contextmanager
def never_waiting() -> Iterator[None]:
    """Raises at what a GPU would have to be waited for. On meta tensors PyTorch itself refuses what reads their data
    (.item(), boolean indexing, .cpu()); this adds tensors made of the host's numbers, and two devices in one call."""
    with _NothingFromTheHost(), _OneDevice():
        yield


class _NothingFromTheHost(TorchFunctionMode):
    def __torch_function__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        assert func not in (torch.tensor, torch.as_tensor, torch.from_numpy), f"{func.__name__} copies from the host"
        return func(*args, **(kwargs or {}))


class _OneDevice(TorchDispatchMode):
    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        out = func(*args, **(kwargs or {}))
        devices = {leaf.device for leaf in tree_leaves((args, kwargs, out)) if isinstance(leaf, Tensor)}
        assert len(devices) <= 1, f"{func} has tensors on {devices}"
        return out
