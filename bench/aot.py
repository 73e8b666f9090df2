"""The GPU kernels compiled for each architecture as their launchers would, without a GPU, and their machine code."""

from __future__ import annotations

import itertools
import re
import subprocess
import tempfile
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import triton
from triton.backends.compiler import GPUTarget
from triton.compiler import ASTSource

from stair_kernels import tiles
from stair_kernels._triton import backward, forward

# The instructions that multiply, by architecture: on matrices, and one by one (exact float32).
TENSOR_CORES = {80: "HMMA", 86: "HMMA", 89: "HMMA", 90: "HGMMA", 100: "UTCHMMA", 120: "HMMA"}
MULTIPLY_ADDS = {arch: "FFMA2" if arch == 100 else "FFMA" for arch in TENSOR_CORES}
PRODUCTS = {*TENSOR_CORES.values(), *MULTIPLY_ADDS.values()}
# Triton's name and bytes
DTYPES = {"bfloat16": ("bf16", 2), "float16": ("fp16", 2), "tf32": ("fp32", 4), "float32": ("fp32", 4)}
WIDTH = 768  # D: any that fills a tile of the backward
BATCH = 64  # B: any that fills a tile with rows
LENGTHS = (16, 32, 64, 128, 256)  # every tile that a rule chooses is for one of these


@dataclass(frozen=True)
class Compiled:
    """What Triton made of a kernel."""

    name: str
    ptx: str
    signature: Mapping[str, str]  # without the constants: name -> *bf16, i32, ...
    aligned: frozenset[str]  # the arguments that the kernel takes to be multiples of 16
    num_warps: int
    shared_bytes: int
    cubin: bytes


@dataclass(frozen=True)
class MachineCode:
    """What a cubin shows."""

    registers: int  # a thread
    stack_bytes: int  # spills and local arrays
    shared_bytes: int
    whole: Counter[str]  # instructions of a warp by name, each written once in the code
    main_loop: Counter[str]  # of these, the innermost loop around the matrix products


@dataclass(frozen=True)
class Variant:
    """A kernel with its tile and the constants that its launcher gives it."""

    kernel: str  # forward, hidden, weight or at
    arch: int
    dtype: str  # of DTYPES
    tile: tiles.Tile
    layout: str = "masked"  # padded, masked or varlen
    long: bool = False  # the form of the backward for long rows
    other: bool = False  # raw logits without a bias, int32 positions, a D that the tile's depth does not divide

    @property
    def exact(self) -> bool:
        return self.dtype == "float32"

    @property
    def product(self) -> str:
        """The instruction that multiplies."""
        alone = self.exact or self.kernel == "at" or (self.long and self.kernel == "weight")
        return (MULTIPLY_ADDS if alone else TENSOR_CORES)[self.arch]

    def compile(self, target: GPUTarget | None = None) -> Compiled:
        kernel = {
            "forward": forward.forward_kernel,
            "hidden": backward.hidden_kernel,
            "weight": backward.weight_kernel,
            "at": backward.pool_at_kernel,
        }[self.kernel]
        element, tile, varlen = DTYPES[self.dtype][0], self.tile, self.layout == "varlen"
        matrix = f"*{element}"
        signature = {"hidden": matrix, "weight": matrix, "grad_weight": matrix, "bias": "*fp32", "mask": "*i1"}
        signature |= {"lengths": "*i32", "cu_seqlens": "*i32", "positions": "*i16", "order": "*i64", "bounds": "*i64"}
        signature |= dict.fromkeys(("out", "grad_out", "grad_hidden", "grad_bias"), "*fp32")
        hidden_box = tile.boxes and (tile.rows == 1 or not varlen)
        constants: dict[str, Any] = {"VARLEN": varlen, "HAS_MASK": self.layout == "masked"}
        constants |= {"NEED_WEIGHT": True, "INTERPRETED": False}
        constants |= {"EVEN_D": not self.other, "HAS_BIAS": not self.other, "ACTIVATION": 0 if self.other else 1}
        constants |= {"SORTED": self.long, "GATHERED": self.long}
        constants |= {"PRECISION": "tf32" if self.dtype == "tf32" else "ieee"}
        constants |= {"WEIGHT_BOX": tile.boxes, "HIDDEN_BOX": hidden_box, "ROWS": tile.rows, "DEPTH": tile.depth}
        constants |= {"POSITIONS": tile.positions, "COLUMNS": tile.columns}
        if not varlen:
            constants["cu_seqlens"] = None
        if self.other:
            signature["positions"] = "*i32"
            constants["bias"] = None
        if not self.long:
            constants |= {"order": None, "bounds": None}
        if self.layout != "masked":
            constants |= {"mask": None, "lengths": None}
        if tile.boxes:
            signature["weight"] = f"tensordesc<{element}[{tile.columns}, {tile.depth}]>"
        if hidden_box:
            signature["hidden"] = f"tensordesc<{element}[{tile.rows}, {tile.positions}, {tile.depth}]>"
        names = kernel.arg_names
        constants = {name: value for name, value in constants.items() if name in names}
        rest = {name: signature.get(name, "i32") for name in names if name not in constants}
        shape = tile.warps, tile.stages, ["D"], tile.registers
        return compile_for(kernel, rest, constants, self.arch, *shape, target)


def compile_for(
    kernel: Any,
    signature: Mapping[str, str],
    constexprs: Mapping[str, Any] | None = None,
    arch: int = 80,
    num_warps: int = 4,
    num_stages: int = 3,
    aligned: Sequence[str] = (),
    maxnreg: int | None = None,
    target: GPUTarget | None = None,
) -> Compiled:
    """Compiles a @triton.jit kernel. `signature` has every argument but the constexprs, in any order.

    Pointers, and the arguments named in `aligned`, are taken to be multiples of 16, as Triton's launcher finds out
    from the values. `target`: another vendor's GPU, of which `cubin` is the machine code and `ptx` its assembly.
    """
    if not isinstance(kernel, triton.JITFunction):  # with TRITON_INTERPRET=1, @triton.jit makes something else
        raise TypeError(f"kernel: expected a function compiled by @triton.jit, got {type(kernel).__name__}")
    constexprs = dict(constexprs or {})
    names = [name for name in kernel.arg_names if name in signature]
    multiples = {name for name in names if signature[name].startswith("*") or name in aligned}
    source = ASTSource(
        fn=kernel,
        signature={name: "constexpr" if name in constexprs else signature[name] for name in kernel.arg_names},
        constexprs=constexprs,
        attrs={(kernel.arg_names.index(name),): [["tt.divisibility", 16]] for name in multiples},
    )
    options = {"num_warps": num_warps, "num_stages": num_stages} | ({} if target else {"maxnreg": maxnreg})
    compiled = triton.compile(source, target=target or GPUTarget("cuda", arch, 32), options=options)
    return Compiled(
        name=compiled.metadata.name,
        ptx=compiled.asm["amdgcn" if target else "ptx"],
        signature={name: signature[name] for name in names},
        aligned=frozenset(multiples),
        num_warps=num_warps,
        shared_bytes=compiled.metadata.shared,
        cubin=compiled.asm["hsaco" if target else "cubin"],
    )


def variants(arch: int) -> Iterator[Variant]:
    """Every tile that tiles.py can choose for the architecture, with each kind of input that compiles differently."""
    for dtype in DTYPES:
        yield from dict.fromkeys((*_forward_variants(arch, dtype), *_backward_variants(arch, dtype)))


def _lengths(arch: int) -> list[int]:
    return sorted({*LENGTHS, *(call.length for call in tiles.MEASURED if call.arch == arch and call.length)})


def _forward_variants(arch: int, dtype: str) -> Iterator[Variant]:
    itemsize, exact = DTYPES[dtype][1], dtype == "float32"
    layouts = ("masked",) if dtype in ("float16", "tf32") else ("padded", "masked", "varlen")
    for length, layout in itertools.product(_lengths(arch), layouts):
        masked = layout == "masked"
        tile = tiles.forward(BATCH, length, itemsize, arch, masked=masked, exact=exact)
        yield Variant("forward", arch, dtype, tile, layout)
        if dtype == "bfloat16" and layout == "padded":
            yield Variant("forward", arch, dtype, tile, layout, other=True)


def _backward_variants(arch: int, dtype: str) -> Iterator[Variant]:
    itemsize, exact = DTYPES[dtype][1], dtype == "float32"
    for length in _lengths(arch):
        for kernel, long in (("hidden", tiles.sorts(length)), ("weight", tiles.gathers(length))):
            tile = tiles.backward(length, WIDTH, itemsize, exact=exact, arch=arch, kernel=kernel)
            if kernel == "weight" and long:
                tile = tiles.gather(WIDTH, itemsize, arch=arch)
            yield Variant(kernel, arch, dtype, tile, "padded", long)
    yield Variant("at", arch, dtype, tiles.gather(WIDTH, itemsize, arch=arch), "padded")


def read(compiled: Compiled, product: str) -> MachineCode:
    """The resource usage and the instructions, by the tools in Triton's wheel."""
    folder = Path(triton.__file__).parent / "backends" / "nvidia" / "bin"
    with tempfile.NamedTemporaryFile(suffix=".cubin") as file:
        file.write(compiled.cubin)
        file.flush()
        usage, code = (
            subprocess.run([str(folder / tool), option, file.name], capture_output=True, text=True, check=True)
            for tool, option in (("cuobjdump", "-res-usage"), ("nvdisasm", "-c"))
        )
    found = re.search(r"REG:(\d+) STACK:(\d+)", usage.stdout + usage.stderr)
    assert found, usage
    lines = code.stdout.splitlines()
    return MachineCode(
        int(found[1]), int(found[2]), compiled.shared_bytes, _count(lines), _count(_main_loop(lines, product))
    )


_INSTRUCTION = re.compile(r"/\*[0-9a-f]{4,}\*/\s+(?:@!?U?P\w+\s+)?([A-Z][A-Z0-9]*)")


def _count(lines: Sequence[str]) -> Counter[str]:
    return Counter(match[1] for line in lines if (match := _INSTRUCTION.search(line)))


def _main_loop(lines: Sequence[str], product: str) -> Sequence[str]:
    """The shortest stretch from a label to a branch back to it with half of the products: the others may be peeled."""
    labels = {line.strip()[:-1]: at for at, line in enumerate(lines) if re.match(r"\.L_\w+:", line.strip())}
    branches = [(at, re.search(r"BRA.*`\((\.L_\w+)\)", line)) for at, line in enumerate(lines)]
    loops = [lines[labels[to[1]] : at + 1] for at, to in branches if to and labels.get(to[1], at) < at]
    most = max((_count(loop)[product] for loop in loops), default=0)
    return min((loop for loop in loops if most and 2 * _count(loop)[product] >= most), key=len, default=())
