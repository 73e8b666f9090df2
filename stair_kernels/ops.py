"""The public operators: checks, then one torch.ops.stair call each. Fakes and gradients: `stair_kernels/autograd.py`.

Meaning, ties, empty rows and NaN: `stair_kernels/reference.py`. Schemas: `csrc/ops.cpp`. Every operator works under
autograd, autocast (matmul inputs are cast to the autocast dtype) and torch.compile(fullgraph=True), accumulates in
float32 and gives the same bits whatever the number of threads and whatever else is in the batch (gradients on a GPU:
among batches of the same length). float32 products are exact on the CPU and follow PyTorch's setting for CUDA matrix
products on a GPU. bfloat16 products and sums that are subnormal count as 0 where cpu_isa() is amx or avx512_bf16: the
hardware's pair products flush them. On a GPU cu_seqlens are trusted: looking at them would wait for it.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from stair_kernels import cuda
from stair_kernels.reference import ACTIVATIONS
from stair_kernels.rows import SparseRows, _readable, trusted_rows
from stair_kernels.version import __version__

DTYPES = (torch.float32, torch.bfloat16, torch.float16)


@dataclass(frozen=True)
class PackedVocab:
    """A vocabulary head laid out once for serving (see pack_vocab); accepted wherever `weight` is; inference only."""

    panels: Tensor  # the weight in the order in which the kernels read it, in its dtype
    bias: Tensor | None  # [V]
    shape: tuple[int, int]  # (V, D), of the weight

    def __post_init__(self) -> None:
        (V, D), panels, bias = self.shape, self.panels, self.bias
        steps, width = (D, 16) if panels.dtype == torch.float32 else ((D + 31) // 32 * 16, 32)
        expected = (V + 127) // 128 * 8, steps, width
        if panels.dtype not in DTYPES or panels.shape != expected or not panels.is_contiguous():
            raise ValueError(
                f"panels: expected contiguous {list(expected)} for [V, D] = {list(self.shape)}, as pack_vocab makes "
                f"them, got {list(panels.shape)} {panels.dtype}{'' if panels.is_contiguous() else ', not contiguous'}"
            )
        if bias is not None and (bias.shape != (V,) or bias.dtype not in DTYPES):
            raise ValueError(f"bias: expected [{V}] in {_names(DTYPES)}, got {list(bias.shape)} {bias.dtype}")


def vocab_topk(
    hidden: Tensor,  # [B, L, D], [B, D] (no pooling) or packed [T, D] with cu_seqlens
    weight: Tensor | PackedVocab,  # [V, D]
    bias: Tensor | None = None,  # [V]
    mask: Tensor | None = None,  # [B, L] bool, True = use
    *,
    k: int,
    activation: str = "log_relu",
    cu_seqlens: Tensor | None = None,  # [B + 1] int32
    sparse_grad: bool = False,
) -> SparseRows:  # [B, k]
    """The k largest of act[b, v] = activation(max_l hidden[b, l] . weight[v] + bias[v]), l over unmasked positions.

    Projection, max-pool, activation and top-k in one; neither [B, L, V] nor [B, V] exists. Differentiable in hidden,
    weight and bias through the k survivors; the gradient of a maximum goes to its lowest winning position.

    Args:
        hidden, weight: float32, bfloat16 or float16, the same; bias: any of these.
        k: entries kept a row, >= 1; a row with fewer (k > V, or a relu activation <= 0) ends in empty slots.
        activation: log_relu log(1+relu(x)) (STAIR, arXiv 2301.13081, section 3.1; SPLADE-max), relu,
            log_log_relu log(1+log(1+relu(x))), elu1p elu(x)+1 (VDR).
        sparse_grad: the weight's gradient is a torch.sparse_coo tensor of the vocabulary rows that survived anywhere in
            the batch, each once (for torch.optim.SparseAdam), instead of a dense [V, D]; not under torch.compile, and
            on a GPU the backward waits for the device, since the data decide the size.

    Raises:
        ValueError: naming the argument, what was expected and what came.
        RuntimeError: on a GPU, where k is above 2,048.
    """
    _check_k(k)
    args = _head_args(hidden, weight, bias, mask, cu_seqlens, activation)
    if args[0].is_cuda:
        cuda.require_library("vocab_topk")
    values, indices, positions = torch.ops.stair.vocab_topk(*args, k, activation, sparse_grad)
    return trusted_rows(values, indices, positions, weight.shape[0])


def vocab_pool(
    hidden: Tensor,  # [B, L, D], [B, D] (no pooling) or packed [T, D] with cu_seqlens
    weight: Tensor | PackedVocab,  # [V, D]
    bias: Tensor | None = None,  # [V]
    mask: Tensor | None = None,  # [B, L] bool, True = use
    *,
    activation: str = "log_relu",
    cu_seqlens: Tensor | None = None,  # [B + 1] int32
) -> Tensor:  # [B, V] float32
    """out[b, v] = activation(max_l hidden[b, l] . weight[v] + bias[v]), l over unmasked positions.

    [B, L, V] is not made. A row with no unmasked position is 0; a NaN logit makes its entry NaN. Arguments and errors
    are those of vocab_topk.
    """
    args = _head_args(hidden, weight, bias, mask, cu_seqlens, activation)
    return torch.ops.stair.vocab_pool(*args, activation)[0]


def pack_vocab(weight: Tensor, bias: Tensor | None = None) -> PackedVocab:
    """The head's weight [V, D] and bias [V] laid out once for serving; pass the result as `weight`.

    Saves the packing that every call does for weights that may have changed. Keeps weight's dtype. Not differentiable.

    Raises:
        ValueError: on a wrong shape or dtype.
    """
    _check_weight(weight, bias)
    panels = torch.ops.stair.pack_vocab(weight.detach())
    return PackedVocab(panels, None if bias is None else bias.detach(), (weight.shape[0], weight.shape[1]))


def topk(dense: Tensor, k: int) -> SparseRows:
    """The k largest positive entries of each row of dense [B, V] (float32, bfloat16, float16); ties by lower index.

    Differentiable: the gradient [B, V] holds the entries' gradients and zeros. A row with a NaN has value NaN.

    Raises:
        ValueError: on a wrong shape or dtype, or k < 1.
        RuntimeError: on a GPU, where min(k, V) is above 2,048.
    """
    _check_tensor("dense", dense)
    if dense.dim() != 2 or dense.dtype not in DTYPES:
        raise ValueError(f"dense: expected [B, V] in {_names(DTYPES)}, got {list(dense.shape)} {dense.dtype}")
    _check_k(k)
    _check_device("dense", dense, on_gpu=True)
    if dense.is_cuda:
        cuda.require_library("topk")
    values, indices = torch.ops.stair.topk(dense, k)
    return trusted_rows(values, indices, None, dense.shape[1])


def sparse_dot(a: SparseRows, b: SparseRows) -> Tensor:  # [Q, N] float32
    """score[q, n] = sum_v a[q, v] * b[n, v]; differentiable in both values.

    A row with a value that is not finite has score NaN with every other row.

    Raises:
        ValueError: when the two differ in vocab_size or device.
        RuntimeError: on a GPU, where the rows of b, or for a gradient those of a, have 2^31 - 1,024 slots or more.
    """
    for name, rows in (("a", a), ("b", b)):
        if not isinstance(rows, SparseRows):
            raise ValueError(f"{name}: expected SparseRows, got {type(rows).__name__}")
    if a.vocab_size != b.vocab_size:
        raise ValueError(f"b: expected vocab_size {a.vocab_size} like a, got {b.vocab_size}")
    if a.device != b.device:
        raise ValueError(f"b: expected device {a.device} like a, got {b.device}")
    _check_device("a", a.values, on_gpu=True)
    if a.values.is_cuda:
        cuda.require_library("sparse_dot")
    return torch.ops.stair.sparse_dot(a.values, a.indices, b.values, b.indices, a.vocab_size)


def flops(rows: SparseRows) -> Tensor:  # [] float32
    """sum_v (mean_b value[b, v])^2, the FLOPS penalty (Paria et al. 2020, arXiv 2004.05665, eq. 4); differentiable."""
    _check_device("rows", rows.values)
    return torch.ops.stair.flops(rows.values, rows.indices, rows.vocab_size)[0]


def cpu_isa() -> str:
    """The instruction set of the CPU kernels: amx, avx512_bf16, avx512, avx2 or generic; STAIR_CPU_ISA forces one."""
    return torch.ops.stair.cpu_isa()


def _names(dtypes: tuple[torch.dtype, ...]) -> str:
    return ", ".join(str(dtype).removeprefix("torch.") for dtype in dtypes)


def _check_tensor(name: str, value: Any) -> None:
    if not isinstance(value, Tensor) or value.layout != torch.strided:
        got = str(value.layout) if isinstance(value, Tensor) else type(value).__name__
        raise ValueError(f"{name}: expected a dense tensor, got {got}")


def _check_k(k: Any) -> None:
    if isinstance(k, bool) or not isinstance(k, (int, torch.SymInt)) or not 1 <= k < 2**31:
        raise ValueError(f"k: expected an integer >= 1 and < 2^31, got {k!r}")


def _check_device(name: str, tensor: Tensor, on_gpu: bool = False) -> None:
    """A CPU tensor, or where the operator has GPU kernels a CUDA tensor."""
    if tensor.device.type not in ("cpu", "meta", *(["cuda"] if on_gpu else [])):
        raise ValueError(
            f"{name}: expected a CPU tensor, got one on {tensor.device}: stair_kernels {__version__} has no "
            f"{tensor.device.type} kernels; move it with .cpu()"
        )


def _check_weight(weight: Tensor, bias: Tensor | None, on_gpu: bool = False) -> None:
    _check_tensor("weight", weight)
    if weight.dim() != 2 or weight.dtype not in DTYPES:
        raise ValueError(f"weight: expected [V, D] in {_names(DTYPES)}, got {list(weight.shape)} {weight.dtype}")
    _check_device("weight", weight, on_gpu)
    if bias is None:
        return
    _check_tensor("bias", bias)
    if bias.shape != weight.shape[:1] or bias.dtype not in DTYPES:
        raise ValueError(f"bias: expected [{weight.shape[0]}] in {_names(DTYPES)}, got {list(bias.shape)} {bias.dtype}")
    if bias.device != weight.device:
        raise ValueError(f"bias: expected device {weight.device} like weight, got {bias.device}")


def _check_layout(hidden: Tensor, mask: Tensor | None, cu_seqlens: Tensor | None) -> None:
    shape = list(hidden.shape)
    if cu_seqlens is not None:
        if hidden.dim() != 2:
            raise ValueError(f"hidden: expected packed [T, D] with cu_seqlens, got {shape}")
        if mask is not None:
            raise ValueError(
                "mask: expected None with cu_seqlens (leave masked tokens out of the packing), got a tensor"
            )
        if cu_seqlens.dim() != 1 or cu_seqlens.shape[0] < 1 or cu_seqlens.dtype != torch.int32:
            raise ValueError(f"cu_seqlens: expected [B + 1] int32, got {list(cu_seqlens.shape)} {cu_seqlens.dtype}")
        if _readable(cu_seqlens):
            bounds = cu_seqlens.tolist()
            if bounds[0] != 0 or bounds[-1] != shape[0] or bounds != sorted(bounds):
                raise ValueError(f"cu_seqlens: expected ascending offsets from 0 to T = {shape[0]}, got {bounds}")
    elif hidden.dim() not in (2, 3):
        raise ValueError(f"hidden: expected [B, L, D] or [B, D], got {shape}")
    if mask is not None and (hidden.dim() != 3 or mask.shape != hidden.shape[:2] or mask.dtype != torch.bool):
        wanted = f"{shape[:2]} bool like hidden" if hidden.dim() == 3 else "None with hidden [B, D]"
        raise ValueError(f"mask: expected {wanted}, got {list(mask.shape)} {mask.dtype}")
    for name, tensor in (("mask", mask), ("cu_seqlens", cu_seqlens)):
        if tensor is not None and tensor.device != hidden.device:
            raise ValueError(f"{name}: expected device {hidden.device} like hidden, got {tensor.device}")


def _head_args(
    hidden: Tensor,
    weight: Tensor | PackedVocab,
    bias: Tensor | None,
    mask: Tensor | None,
    cu_seqlens: Tensor | None,
    activation: str,
) -> tuple[Any, ...]:
    """The checked arguments that vocab_topk and vocab_pool share, in the order of their schemas."""
    if not isinstance(activation, str) or activation not in ACTIVATIONS:
        raise ValueError(f"activation: expected one of {', '.join(ACTIVATIONS)}, got {activation!r}")
    for name, tensor in (("hidden", hidden), ("mask", mask), ("cu_seqlens", cu_seqlens)):
        if tensor is not None or name == "hidden":
            _check_tensor(name, tensor)
    packed_vocab = None
    if isinstance(weight, PackedVocab):
        if bias is not None:
            raise ValueError("bias: expected None with a PackedVocab (pack_vocab(weight, bias) holds it), got a tensor")
        if torch.is_grad_enabled() and hidden.requires_grad:
            raise ValueError("weight: expected a tensor where gradients are wanted, got a PackedVocab (inference only)")
        (packed_vocab, width), bias, weight = weight.shape, weight.bias, weight.panels
    else:
        _check_weight(weight, bias, on_gpu=True)
        width = weight.shape[1]
    device = hidden.device
    if weight.device != device:
        raise ValueError(f"weight: expected device {device} like hidden, got {weight.device}")
    if device.type != "meta" and torch.is_autocast_enabled(device.type):
        # a packed weight keeps the dtype that it was packed in: its layout goes with it
        dtype = torch.get_autocast_dtype(device.type) if packed_vocab is None else weight.dtype
        hidden, weight = hidden.to(dtype), weight.to(dtype)
    if hidden.dtype not in DTYPES:
        raise ValueError(f"hidden: expected {_names(DTYPES)}, got {hidden.dtype}")
    if weight.dtype != hidden.dtype:
        raise ValueError(f"weight: expected {hidden.dtype} like hidden, got {weight.dtype}")
    _check_layout(hidden, mask, cu_seqlens)
    if hidden.shape[-1] != width:
        raise ValueError(f"weight: expected [V, {hidden.shape[-1]}] like hidden, got [V, {width}]")
    if hidden.dim() == 2 and cu_seqlens is None:
        hidden = hidden.unsqueeze(1)
    return hidden, weight, bias, mask, cu_seqlens, packed_vocab
