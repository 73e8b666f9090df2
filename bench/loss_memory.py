"""Memory of a training step of stair_loss beside its gradients, and what eager PyTorch would hold.

    python bench/loss_memory.py                    # B = 512 and 4,096, about two minutes on 2 cores
    python bench/loss_memory.py --batch 512 --length 32 --width 256

Each batch runs in a process of its own under allocations.cpp, which counts the live bytes of malloc. "Beside" is the
peak beyond inputs and gradients. Eager PyTorch keeps at least one [B, L, V] of logits a tower for its backward, and
[B, V] rows.
"""

from __future__ import annotations

import argparse
import ctypes
import os
import subprocess
import sys
from pathlib import Path

import torch
from native import compiled_library

import stair_kernels as sk

HERE = Path(__file__).parent
MB = 1e6


def head(B: int, L: int, D: int, V: int, dtype: torch.dtype) -> sk.VocabHead:
    """Random activations: every entry has a gradient."""
    floats = torch.randn(B, L, D, dtype=dtype), torch.randn(V, D, dtype=dtype) / D**0.5, torch.zeros(V)
    return sk.VocabHead(*(tensor.requires_grad_() for tensor in floats), torch.ones(B, L, dtype=torch.bool))


def step(text: sk.VocabHead, image: sk.VocabHead, save: str) -> int:
    """Forward and backward; gives the bytes of the gradients."""
    parts = sk.stair_loss(text, image, logit_scale=20.0, text_flops=1e-3, image_flops=1e-3, normalize=True, save=save)
    inputs = [*text[:3], *image[:3]]
    return sum(grad.nbytes for grad in torch.autograd.grad(parts.loss, inputs))


def beside_gradients(B: int, L: int, D: int, V: int, dtype: torch.dtype, save: str) -> int:
    """Peak bytes of a step beyond its inputs and gradients; allocations.cpp must be preloaded."""
    counter = ctypes.CDLL(None)
    counter.allocations_restart.restype = counter.allocations_peak.restype = ctypes.c_int64
    torch.manual_seed(0)
    step(head(2, 3, D, 200, dtype), head(2, 3, D, 200, dtype), save)  # what is made once
    towers = head(B, L, D, V, dtype), head(B, L, D, V, dtype)
    before = counter.allocations_restart()
    gradients = step(*towers, save)
    return counter.allocations_peak() - before - gradients


def measured(*arguments: object) -> int:
    """`beside_gradients` in a new process."""
    library = compiled_library(HERE / "allocations.cpp", HERE.parent / "build" / "bench")
    command = [sys.executable, __file__, "--one", *map(str, arguments)]
    environment = {**os.environ, "LD_PRELOAD": str(library)}
    return int(subprocess.run(command, env=environment, stdout=subprocess.PIPE, check=True, text=True).stdout)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--batch", type=int, nargs="+", default=[512, 4096])
    parser.add_argument("--length", type=int, default=8, help="L, positions of a row")
    parser.add_argument("--width", type=int, default=256, help="D")
    parser.add_argument("--vocabulary", type=int, default=30522, help="V")
    parser.add_argument("--dtype", choices=("float32", "bfloat16"), default="float32")
    parser.add_argument("--one", nargs=6, help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.one:
        *sizes, dtype, save = options.one
        print(beside_gradients(*map(int, sizes), getattr(torch, dtype), save))
        return
    L, D, V, dtype = options.length, options.width, options.vocabulary, options.dtype
    width = 4 if dtype == "float32" else 2
    print(f"L={L}, D={D}, V={V:,}, {dtype}; MB beside inputs and gradients\n")
    print('| B | two [B, V] float32 | ours | ours, save="positions" | eager, at least |')
    print("| ---: | ---: | ---: | ---: | ---: |")
    for B in options.batch:
        ours, kept = (measured(B, L, D, V, dtype, save) / MB for save in ("none", "positions"))
        rows = 2 * B * V * 4 / MB
        print(
            f"| {B:,} | {rows:,.0f} | {ours:,.0f} | {kept:,.0f} | {rows + 2 * B * L * V * width / MB:,.0f} |",
            flush=True,
        )


if __name__ == "__main__":
    main()
