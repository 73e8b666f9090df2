"""Launches of vocab_pool's GPU kernels, with the schemas of csrc/ops.cpp."""

from __future__ import annotations

from typing import Any

import torch
import triton
from torch import Tensor
from torch.nn.functional import pad
from triton.tools.tensor_descriptor import TensorDescriptor

from stair_kernels import reference, tiles
from stair_kernels._triton.arithmetic import CODES, activate_kernel
from stair_kernels._triton.backward import hidden_kernel, pool_at_kernel, weight_kernel
from stair_kernels._triton.forward import forward_kernel
from stair_kernels.autograd import positions_dtype

ELEMENTS = 1024  # a program of activate_kernel
MAX_PARTS = 16  # programs that share the tokens of a row in the backward


def vocab_pool(
    hidden: Tensor,  # [B, L, D], or [T, D] with cu_seqlens
    weight: Tensor,  # [V, D]
    bias: Tensor | None,  # [V]
    mask: Tensor | None,  # [B, L]
    cu_seqlens: Tensor | None,  # [B + 1]
    packed_vocab: int | None,
    activation: str,
) -> tuple[Tensor, Tensor]:  # [B, V] float32 and int16 or int32
    """stair::vocab_pool; activation "raw" leaves the logits as they are, -inf in a row without a position."""
    if packed_vocab is not None:
        raise ValueError("weight: expected a tensor on a GPU, got a PackedVocab (packing serves the CPU)")
    batch, weight = _Batch(hidden, cu_seqlens), operand(weight)
    V, D = weight.shape
    out = hidden.new_empty((batch.B, V), dtype=torch.float32)
    positions = hidden.new_empty((batch.B, V), dtype=positions_dtype(hidden, cu_seqlens))
    if out.numel() == 0:
        return out, positions
    tile = tiles.forward(
        batch.B,
        batch.length,
        hidden.element_size(),
        _arch(hidden.device),
        masked=mask is not None,
        exact=_exact(hidden.dtype),
    )
    # one row, or rows at equal distances; there is no box of nothing
    hidden_box = tile.boxes and (tile.rows == 1 or cu_seqlens is None) and len(batch.tokens) > 0
    count = triton.cdiv(batch.B, tile.rows) * triton.cdiv(V, tile.columns)
    with _on(hidden.device):
        forward_kernel[(min(count, tile.programs * _multiprocessors(hidden.device)),)](
            batch.boxes(tile) if hidden_box else batch.tokens,
            TensorDescriptor.from_tensor(weight, [tile.columns, tile.depth]) if tile.boxes else weight,
            None if bias is None else bias.float().contiguous(),
            None if mask is None else mask.contiguous(),
            None if mask is None else _lengths(mask),
            batch.cu_seqlens,
            out,
            positions,
            batch.B,
            batch.L,
            D,
            V,
            DEPTH=tile.depth,
            VARLEN=cu_seqlens is not None,
            HAS_MASK=mask is not None,
            HAS_BIAS=bias is not None,
            EVEN_D=D % tile.depth == 0,
            WEIGHT_BOX=tile.boxes,
            HIDDEN_BOX=hidden_box,
            **_shape(tile),
            **_numbers(hidden, activation),
        )
    return out, positions


def vocab_pool_backward(
    grad_out: Tensor,  # [B, V]
    out: Tensor,  # [B, V]
    positions: Tensor,  # [B, V]
    hidden: Tensor,
    weight: Tensor,
    cu_seqlens: Tensor | None,
    activation: str,
    need_hidden: bool,
    need_weight: bool,
) -> tuple[Tensor, Tensor, Tensor]:
    """stair::vocab_pool_backward."""
    batch = _Batch(hidden, cu_seqlens)
    given_D, weight = weight.shape[1], operand(weight)
    V, D = weight.shape
    # with cu_seqlens there may be tokens that are in no row
    new_hidden = hidden.new_empty if cu_seqlens is None else hidden.new_zeros
    grad_hidden = new_hidden((*hidden.shape[:-1], D) if need_hidden else (0,), dtype=torch.float32)
    grad_weight = weight.new_empty(weight.shape if need_weight else (0,))
    grad_bias = weight.new_empty((V,), dtype=torch.float32)
    saved = [tensor.contiguous() for tensor in (grad_out.float(), out, positions)]
    sizes = batch.B, batch.L, D, V
    numbers = {"VARLEN": cu_seqlens is not None, **_numbers(hidden, activation)}
    itemsize, exact, arch = hidden.element_size(), _exact(hidden.dtype), _arch(hidden.device)
    with _on(hidden.device):
        if grad_hidden.numel() > 0:
            tile = tiles.backward(batch.length, D, itemsize, exact=exact, arch=arch, kernel="hidden")
            parts = min(MAX_PARTS, triton.cdiv(batch.length, tile.positions))
            grid = (triton.cdiv(batch.B, tile.rows), triton.cdiv(D, tile.depth), parts)
            is_sorted = tiles.sorts(batch.length)
            assert tile.rows == 1 or not is_sorted, tile  # one order, of one row
            order = _order(saved, activation, batch, tile.positions) if is_sorted else (None, None, 0)
            operands = (*saved, weight, batch.cu_seqlens, *order, grad_hidden)
            hidden_kernel[grid](*operands, *sizes, SORTED=is_sorted, DEPTH=tile.depth, **_shape(tile), **numbers)
        if V > 0:
            is_gathered = tiles.gathers(batch.length)
            if is_gathered:
                tile = tiles.gather(D, itemsize, arch=arch)
            else:
                tile = tiles.backward(batch.length, D, itemsize, exact=exact, arch=arch, kernel="weight")
            blocks = (triton.cdiv(V, tile.columns), max(1, triton.cdiv(D, tile.depth) if need_weight else 1))
            operands = (*saved, batch.tokens, batch.cu_seqlens, grad_weight, grad_bias)
            needs = {"NEED_WEIGHT": need_weight, "GATHERED": is_gathered, "DEPTH": tile.depth}
            weight_kernel[blocks](*operands, *sizes, **needs, **_shape(tile), **numbers)
    if given_D != D:
        grad_hidden, grad_weight = (grad[..., :given_D].contiguous() for grad in (grad_hidden, grad_weight))
    return grad_hidden, grad_weight, grad_bias


def vocab_pool_at(
    hidden: Tensor,  # [B, L, D]
    weight: Tensor,  # [V, D]
    bias: Tensor | None,  # [V]
    positions: Tensor,  # [B, V]
    activation: str,
) -> Tensor:  # [B, V] float32
    """stair::vocab_pool_at."""
    batch, weight = _Batch(hidden, None), operand(weight)
    V, D = weight.shape
    out = hidden.new_empty((batch.B, V), dtype=torch.float32)
    if out.numel() == 0:
        return out
    tile = tiles.gather(D, hidden.element_size(), arch=_arch(hidden.device))
    blocks = triton.cdiv(V, tile.columns)
    programs = 4 * tile.programs * _multiprocessors(hidden.device)
    added = None if bias is None else bias.float().contiguous()
    with _on(hidden.device):
        pool_at_kernel[(blocks, max(1, min(batch.B, programs // blocks)))](
            positions.contiguous(),
            batch.tokens,
            weight,
            added,
            out,
            batch.B,
            batch.L,
            D,
            V,
            COLUMNS=tile.columns,
            DEPTH=tile.depth,
            ACTIVATION=CODES[activation],
            HAS_BIAS=bias is not None,
            num_warps=tile.warps,
        )
    return out


def operand(matrix: Tensor) -> Tensor:
    """[..., D] as the kernels take it: contiguous from a multiple of 16 bytes on, D a multiple of 16 by added zeros.

    Others would be read element by element, not pipelined, and could not come in boxes; few models have any.
    """
    D = matrix.shape[-1]
    missing = -D % 16 if D else 16
    if missing:
        return pad(matrix, (0, missing))
    matrix = matrix.contiguous()
    return matrix.clone() if matrix.data_ptr() % 16 else matrix


def _order(saved: list[Tensor], activation: str, batch: _Batch, height: int) -> tuple[Tensor, Tensor, int]:
    """Each row's columns by the tile of `height` positions that they flow to, where each tile's begin, and the number
    of tiles; columns without a gradient come last. 8 bytes for each column, and for each tile that a row might have."""
    grad_out, out, positions = saved
    count = triton.cdiv(batch.L or len(batch.tokens), height)
    live = (grad_out != 0) & (positions >= 0)
    if activation in reference.RELU_FAMILY:
        live &= out != 0
    tile, order = torch.where(live, positions // height, count).sort(dim=1, stable=True)
    edges = torch.arange(count + 1, device=out.device, dtype=tile.dtype).expand(batch.B, -1)
    return order, torch.searchsorted(tile, edges.contiguous()), count


def activated(raw: Tensor, activation: str) -> Tensor:
    """[n] activations of raw logits, with the bits that vocab_pool gives."""
    out = torch.empty_like(raw)
    if raw.numel() > 0:
        with _on(raw.device):
            activate_kernel[(triton.cdiv(raw.numel(), ELEMENTS),)](
                raw, out, raw.numel(), ACTIVATION=CODES[activation], ELEMENTS=ELEMENTS
            )
    return out


class _Batch:
    """hidden as a matrix of tokens."""

    def __init__(self, hidden: Tensor, cu_seqlens: Tensor | None) -> None:
        self.tokens = operand(hidden).flatten(0, -2)
        self.cu_seqlens = None if cu_seqlens is None else cu_seqlens.contiguous()
        self.B = hidden.shape[0] if cu_seqlens is None else cu_seqlens.shape[0] - 1
        self.L = hidden.shape[1] if cu_seqlens is None else 0
        # of a row, on average: looking at the longest would wait for the device
        self.length = self.L if cu_seqlens is None else -(-hidden.shape[0] // max(self.B, 1))

    def boxes(self, tile: tiles.Tile) -> TensorDescriptor:
        rows = 1 if self.cu_seqlens is not None else self.B
        tokens = self.tokens.view(rows, -1, self.tokens.shape[1])
        return TensorDescriptor.from_tensor(tokens, [tile.rows, tile.positions, tile.depth])


def _lengths(mask: Tensor) -> Tensor:
    """[B] int32: the positions of each row up to its last unmasked one."""
    ends = torch.arange(1, mask.shape[1] + 1, dtype=torch.int32, device=mask.device)
    return torch.where(mask, ends, 0).amax(dim=1) if mask.shape[1] else mask.new_zeros(len(mask), dtype=torch.int32)


def _shape(tile: tiles.Tile) -> dict[str, int]:
    """The tile, and how to compile it: told how many registers there are, ptxas does not spill to use fewer."""
    shape = {"ROWS": tile.rows, "POSITIONS": tile.positions, "COLUMNS": tile.columns}
    if torch.version.hip:  # 64 KiB of shared memory, and no such limit
        return shape | {"num_warps": tile.warps, "num_stages": 2}
    return shape | {"num_warps": tile.warps, "num_stages": tile.stages, "maxnreg": tile.registers}


def _exact(dtype: torch.dtype) -> bool:
    """Whether products are of float32 numbers as they are; PyTorch's setting for CUDA, by its new name or
    torch.set_float32_matmul_precision(), may allow TF32."""
    return dtype == torch.float32 and torch.backends.cuda.matmul.fp32_precision in ("none", "ieee")


def _numbers(hidden: Tensor, activation: str) -> dict[str, Any]:
    return {
        "ACTIVATION": CODES[activation],
        "PRECISION": "tf32" if hidden.dtype == torch.float32 and not _exact(hidden.dtype) else "ieee",
        "INTERPRETED": hidden.device.type == "cpu",
    }


def _on(device: torch.device) -> Any:
    """The device that is launched on; the interpreter needs none."""
    return torch.cuda.device(device) if device.type == "cuda" else torch.no_grad()


def _arch(device: torch.device) -> int:
    """10 * major + minor; AMD's GPUs, which have capabilities of their own, take the tiles of sm_80."""
    if device.type != "cuda" or torch.version.hip is not None:
        return 80
    major, minor = torch.cuda.get_device_capability(device)
    return 10 * major + minor


def _multiprocessors(device: torch.device) -> int:
    return torch.cuda.get_device_properties(device).multi_processor_count if device.type == "cuda" else 4
