"""stair_kernels on a device, under the operators' names, for tests that hold CPU tensors.

Arguments go to the device with their strides and offsets, results come back, and so do gradients.
"""

from __future__ import annotations

import dataclasses
import os
from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor
from torch.utils._pytree import tree_map

import stair_kernels as sk


def named_device() -> str | None:
    """STAIR_TEST_DEVICE (a device, or none); where it is not set, cuda if there is one."""
    name = os.environ.get("STAIR_TEST_DEVICE") or ("cuda" if torch.cuda.is_available() else "none")
    return None if name == "none" else str(torch.device(name))


def require_kernel(operator: str, device: str | torch.device) -> None:
    """Skips the test where PyTorch's dispatcher has no kernel of stair::operator for the device."""
    key = torch._C._dispatch_key_for_device(torch.device(device).type)
    if not torch._C._dispatch_has_computed_kernel_for_dispatch_key(f"stair::{operator}", key):
        pytest.skip(f"stair::{operator} has no kernel on the key {key}")


class OnDevice:
    """The public operators; the test is skipped when it calls one without a kernel."""

    def __init__(self, device: str) -> None:
        self.device = torch.device(device)

    def __getattr__(self, name: str) -> Callable[..., Any]:
        def call(*args: Any, **kwargs: Any) -> Any:
            require_kernel(name, self.device)
            args, kwargs = moved((args, kwargs), self.device)
            return moved(getattr(sk, name)(*args, **kwargs), torch.device("cpu"))

        return call


def moved(values: Any, device: torch.device) -> Any:
    """`values`, nested in any way, with every tensor on `device`; differentiable."""

    def move(leaf: Any) -> Any:
        if isinstance(leaf, sk.PackedVocab):
            return dataclasses.replace(leaf, panels=move(leaf.panels), bias=move(leaf.bias))
        return _Moved.apply(leaf, device) if isinstance(leaf, Tensor) and leaf.layout == torch.strided else leaf

    return tree_map(move, values)


class _Moved(torch.autograd.Function):
    """A copy of the storage, seen through the same sizes, strides and offset: t.to(device) would straighten it."""

    @staticmethod
    def forward(ctx: Any, t: Tensor, device: torch.device) -> Tensor:
        ctx.home = t.device
        storage = torch.empty(0, dtype=t.dtype, device=t.device).set_(t.untyped_storage())
        return storage.to(device, copy=True).as_strided(t.shape, t.stride(), t.storage_offset())

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor, None]:
        return grad.to(ctx.home), None
