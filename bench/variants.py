"""The parts of a benchmark case: its implementations, the truth, the arithmetic and memory traffic nobody can avoid.

Implementations: `ours`; `packed`, ours with pack_vocab; `positions`, ours with save="positions"; `eager`, PyTorch in
its best order (pool first, activation on the pooled row; SciPy for the search); `compiled`, torch.compile of the
eager head; `rival`, what else one may have (for the head, the activation on every logit before the pool, as SPLADE
and STAIR are published; for sparse_dot, SciPy's product); `matmul`, only the matrix product inside, on the unmasked
tokens (for the search: SciPy's product without the selection). `matmul` does less than the operator and is not
checked.
"""

from __future__ import annotations

import functools
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

# Of the largest true value. Half precision rounds the gradients once; eager PyTorch rounds its logits as well, so that
# another position may win and take the whole gradient. So does the activation of the logits before their maximum, which
# makes ties. These errors are recorded, not judged.
TOLERANCE = {"float32": 1e-4, "bfloat16": 1e-2, "float16": 2e-3}


# Of the norm of the true value, for gradients over millions of maxima: some nearly equal logits swap their order in
# float32, in eager PyTorch as in ours, and the whole gradient of an entry moves to another position. At B=128, L=32,
# D=256, V=30,522, all entries active, each of the two is 6e-4 to 8e-4 from float64 (5e-2 of the largest value).
NORM_TOLERANCE = {"float32": 3e-3, "bfloat16": 1e-2, "float16": 5e-3}


class WrongResultError(Exception):
    """An implementation's result is not that of float32 PyTorch."""


@dataclass(frozen=True)
class Variant:
    """One implementation of a case."""

    run: Callable[[], Any]
    operators: tuple[str, ...] = ()  # of torch.ops.stair that it calls
    on_host: bool = False  # SciPy's, the index's: on the CPU whatever the device

    def lacks(self, device: torch.device) -> str | None:
        """What stops it from running on the device, as PyTorch's dispatcher knows it."""
        if self.on_host and device.type != "cpu":
            return "it runs on the CPU only"
        key, has_kernel = device.type.upper(), torch._C._dispatch_has_kernel_for_dispatch_key
        missing = [name for name in self.operators if not has_kernel(f"stair::{name}", key)]
        return f"no {key} kernel for {', '.join(missing)}" if missing else None


@dataclass(frozen=True)
class Work:
    """A case with its inputs made."""

    variants: dict[str, Variant]
    read: Callable[[Any], Sequence[Tensor]]  # a variant's result as tensors that must be close to `truth`
    truth: Sequence[Tensor]
    flops: float  # that no implementation can avoid
    read_bytes: float  # inputs, once
    result_bytes: float  # outputs, once
    by_norm: bool = False  # judge by `norm_error` and NORM_TOLERANCE

    def error(self, variant: Variant) -> float:
        measure = norm_error if self.by_norm else relative_error
        return measure(self.read(variant.run()), self.truth)

    def tolerance(self, dtype: str) -> float:
        return (NORM_TOLERANCE if self.by_norm else TOLERANCE)[dtype]


def compiled(function: Callable[..., Any]) -> Callable[..., Any]:
    """torch.compile of `function` for one set of sizes, made at the first call (importing it takes seconds)."""

    @functools.cache
    def made() -> Callable[..., Any]:
        torch.compiler.reset()  # the sizes of earlier cases count against the limit of recompilations
        return torch.compile(function, fullgraph=True, dynamic=False)

    return lambda *args: made()(*args)


def relative_error(result: Sequence[Tensor], truth: Sequence[Tensor]) -> float:
    """The largest |got - true| over the tensors, each in units of its largest true value."""
    worst = 0.0
    for got, true in zip(result, truth, strict=True):
        scale = float(true.abs().max()) if true.numel() else 1.0
        error = float((got.float() - true).abs().max()) if true.numel() else 0.0
        worst = max(worst, error / max(scale, 1e-30)) if error == error else float("nan")
    return worst


def norm_error(result: Sequence[Tensor], truth: Sequence[Tensor]) -> float:
    """The largest ||got - true|| / ||true|| over the tensors."""
    errors = [float((got.float() - true).norm() / true.norm().clamp(min=1e-30)) for got, true in zip(result, truth)]
    return max(errors) if all(error == error for error in errors) else float("nan")


def size(*tensors: Tensor) -> int:
    """Bytes."""
    return sum(tensor.numel() * tensor.element_size() for tensor in tensors)
