"""What the GPU kernels should take on GPUs that are not here: predicted, never measured.

    python bench/predict.py                # prints both tables of docs/gpu.md: machine code, predictions
    python bench/predict.py --write        # compiles every tile, minutes, and writes them there
    python bench/predict.py --shape 256,64,768,30522

A prediction adds up what the compiled kernel does and divides by what the data sheet promises. It knows nothing of
clocks that fall under load, of latencies, or of caches beyond the bytes that must pass through L2.
"""

from __future__ import annotations

import argparse
import functools
import sys
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from math import ceil
from pathlib import Path

import aot
from rich.progress import track
from tables import write_tables

from stair_kernels import tiles
from stair_kernels._triton.forward import TOGETHER

PAGE = Path(__file__).resolve().parent.parent / "docs" / "gpu.md"
SCHEDULERS = 4  # of a multiprocessor; each issues an instruction of a warp a clock
# These share a pipe that takes 16 lanes a clock, half of what a scheduler issues.
ALU = {
    "FSETP",
    "FSEL",
    "FMNMX",
    "FMNMX3",
    "SEL",
    "ISETP",
    "IMNMX",
    "VIMNMX",
    "VIMNMX3",
    "LOP3",
    "SHF",
    "IADD3",
    "PLOP3",
}


@dataclass(frozen=True)
class Device:
    """A data sheet: dense rates, float32 sums. L2 of the A100 as published, of the others assumed to scale with it."""

    name: str
    arch: int
    multiprocessors: int
    ghz: float  # boost
    bf16_tflops: float
    hbm_gbps: float
    l2_mb: float
    l2_bytes_per_clock: float

    @property
    def l2_gbps(self) -> float:
        return self.l2_bytes_per_clock * self.ghz


DEVICES = (
    Device("A100", 80, 108, 1.41, 312, 2039, 40, 5120),
    Device("H100", 90, 132, 1.83, 989, 3350, 50, 5120),
    Device("H200", 90, 132, 1.83, 989, 4800, 50, 5120),
    Device("B200", 100, 148, 1.85, 2250, 8000, 126, 10240),
    Device("RTX 4090", 89, 128, 2.52, 165, 1008, 72, 5120),
    Device("RTX 5090", 120, 170, 2.41, 210, 1792, 96, 6144),
)
SHAPES = ((256, 24, 768, 30522), (256, 64, 768, 30522), (1024, 77, 512, 49408), (256, 197, 768, 30522))


@dataclass(frozen=True)
class Prediction:
    """Milliseconds of vocab_pool's forward, bfloat16, no mask; each bound alone, and together."""

    flop: float  # of the tiles, padding included
    hbm: float
    l2: float
    issue: float  # of the main loop
    epilogue: float  # all instructions beside the main loop
    total: float
    matmul: float  # the product alone: its arithmetic, or its bytes with [T, V] written
    eager: float  # and [T, V] read for the mask, written, read for the maximum


@functools.cache
def code_of(variant: aot.Variant) -> aot.MachineCode:
    return aot.read(variant.compile(), variant.product)


def predict(device: Device, B: int, L: int, D: int, V: int) -> Prediction:
    """The slowest of the bounds; where one program has a multiprocessor to itself, nothing hides its epilogue."""
    itemsize, arch = 2, device.arch
    tile = tiles.forward(B, L, itemsize, arch, masked=False, exact=False)
    code = code_of(aot.Variant("forward", arch, "bfloat16", tile, "padded"))
    groups, blocks = ceil(B / tile.rows), ceil(V / tile.columns)
    folds = groups * blocks * ceil(L / tile.positions)
    steps = folds * ceil(D / tile.depth)
    clocks_ms = 1e3 / (device.multiprocessors * device.ghz * 1e9)  # of all multiprocessors together
    flop = 1e3 * 2 * steps * tile.tokens * tile.columns * tile.depth / (device.bf16_tflops * 1e12)
    l2 = 1e3 * steps * (tile.tokens + tile.columns) * tile.depth * itemsize / (device.l2_gbps * 1e9)
    weight_bytes, token_bytes = V * D * itemsize, B * L * D * itemsize
    passes = (
        1 if weight_bytes < device.l2_mb * 5e5 else ceil(groups / TOGETHER.value)
    )  # half of L2 holds the weight, or none
    hbm = 1e3 * (weight_bytes * passes + token_bytes + B * V * 6) / (device.hbm_gbps * 1e9)
    issue = steps * code.main_loop.total() * tile.warps / SCHEDULERS * clocks_ms
    beside = code.whole - code.main_loop
    alu = sum(count for name, count in beside.items() if name in ALU)
    epilogue = folds * max(beside.total(), 2 * alu) * tile.warps / SCHEDULERS * clocks_ms
    busy = max(flop, l2, hbm, issue + epilogue) if tile.programs > 1 else max(flop, l2, hbm, issue) + epilogue
    logits = 1e3 * B * L * V * itemsize / (device.hbm_gbps * 1e9)
    matmul = max(1e3 * 2 * B * L * D * V / (device.bf16_tflops * 1e12), logits)
    return Prediction(flop, hbm, l2, issue, epilogue, busy, matmul, matmul + 3 * logits)


def predictions(shapes: Iterable[Sequence[int]]) -> str:
    """A markdown table."""
    head = "| predicted, ms | B, L, D, V | FLOP | L2 | HBM | issue | epilogue | total | of matmul | eager / total |"
    lines = [head, "| --- | --- " + "| ---: " * 8 + "|"]
    for device in DEVICES:
        for shape in shapes:
            p = predict(device, *shape)
            times = " | ".join(f"{t:.2f}" for t in (p.flop, p.l2, p.hbm, p.issue, p.epilogue, p.total))
            sizes = ", ".join(f"{size:,}" for size in shape)
            lines.append(
                f"| {device.name} | {sizes} | {times} | {p.total / p.matmul:.2f}x | {p.eager / p.total:.1f}x |"
            )
    return "\n".join(lines)


def machine_code() -> str:
    """A markdown table of every tile of every architecture."""
    texts = ("kernel", "dtype", "input", "rows x positions x columns x depth", "warps x programs", "boxes")
    numbers = ("sm", "registers", "spills", "shared, KiB", "main loop", "products in it")
    heads = [numbers[0], *texts, *numbers[1:]]
    lines = ["| " + " | ".join(heads) + " |", "|" + "|".join(" --- " if h in texts else " ---: " for h in heads) + "|"]
    variants = [variant for arch in tiles.ARCHITECTURES for variant in aot.variants(arch)]
    for variant in track(variants, "compiling", disable=not sys.stderr.isatty()):
        code, tile, loop = code_of(variant), variant.tile, code_of(variant).main_loop
        shape = f"{tile.rows} x {tile.positions} x {tile.columns} x {tile.depth}"
        share = f"{loop[variant.product]} {variant.product} of {loop.total()}"
        kernel = variant.kernel + (" (long rows)" if variant.long else "")
        cells = [
            variant.arch,
            kernel,
            variant.dtype,
            "raw" if variant.other else variant.layout,
            shape,
            f"{tile.warps} x {tile.programs}",
        ]
        cells += ["yes" if tile.boxes else "", code.registers, code.stack_bytes, f"{code.shared_bytes / 1024:.0f}"]
        cells += [share, f"{loop[variant.product] / loop.total():.0%}"]
        lines.append("| " + " | ".join(str(cell) for cell in cells) + " |")
    return "\n".join(lines)


def main(arguments: Sequence[str] | None = None) -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--write", action="store_true", help=f"write both tables into docs/{PAGE.name}")
    parser.add_argument("--shape", help="predict B,L,D,V alone")
    options = parser.parse_args(arguments)
    if options.shape:
        sizes = options.shape.split(",")
        if len(sizes) != 4 or not all(size.isdecimal() and int(size) > 0 for size in sizes):
            parser.error(f"--shape: expected B,L,D,V as positive integers, got {options.shape}")
        print(predictions([tuple(map(int, sizes))]))
        return 0
    tables = {"predictions": predictions(SHAPES), "machine code": machine_code()}
    write_tables(PAGE, tables) if options.write else print("\n\n".join(tables.values()))
    return 0


if __name__ == "__main__":
    sys.exit(main())
