"""Makes the project that Hugging Face's kernel-builder builds, from this repository's own sources.

    python hub/make.py            # writes out/hub/stair-kernels

kernel-builder wants relative imports, and every operator in a namespace that is unique to the build, so that several
versions can be loaded into one process. The rules below rewrite the few lines of Python and C++ that name the package
or the namespace; one that no longer applies is an error.
"""

from __future__ import annotations

import argparse
import re
import shutil
import sys
from pathlib import Path

ROOT = Path(__file__).resolve().parents[1]
HUB = Path(__file__).resolve().parent
NAME = "stair_kernels"
MODULES = (
    "autograd",
    "cuda",
    "distributed",
    "loss",
    "ops",
    "reference",
    "rows",
    "rows_loss",
    "tiles",
    "version",
)  # no index
INDEX = (
    (", and an exact sparse search index.", "."),
    ("from stair_kernels.index import SparseIndex  # noqa: E402\n", ""),
    ("from stair_kernels.semantic_search import semantic_search_stair  # noqa: E402\n", ""),
    ('    "semantic_search_stair",\n', ""),
    ('    "SparseIndex",\n', ""),
)

RULES = (
    # cuda.py asks for a file beside it; a build of kernel-builder is one library, for one backend.
    (
        'Path(__file__).with_name("_C_cuda.so").exists()  # what csrc/cuda is compiled to',
        'torch._C._dispatch_has_kernel_for_dispatch_key(add_op_namespace_prefix("topk"), "CUDA")',
    ),
    ('f"stair_kernels._triton.{name}")', 'f"._triton.{name}", __package__)'),
    ('serialized_type_name="stair_kernels.SparseRows"', 'serialized_type_name=add_op_namespace_prefix("SparseRows")'),
)


def main(arguments: list[str] | None = None) -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--out", type=Path, default=ROOT / "out" / "hub" / "stair-kernels")
    out = parser.parse_args(arguments).out
    shutil.rmtree(out, ignore_errors=True)
    write(out / "build.toml", (HUB / "build.toml").read_text() + instruction_sets(out))
    for name in ("flake.nix", "CARD.md"):
        write(out / name, (HUB / name).read_text())
    write(out / "torch-ext" / "torch_binding.cpp", binding())
    for folder in ("cpu", "cuda", ""):
        for source in sorted((ROOT / "csrc" / folder).glob("*.*")):
            if source.name != "ops.cpp":
                write(out / "csrc" / folder / source.name, native(source.read_text()))
    shutil.copytree(ROOT / "csrc/cpu/simd", out / "csrc/cpu/simd", dirs_exist_ok=True)
    package = out / "torch-ext" / NAME
    write(package / "__init__.py", initial())
    for name in MODULES:
        write(package / f"{name}.py", python((ROOT / NAME / f"{name}.py").read_text(), "."))
    for source in sorted((ROOT / NAME / "_triton").glob("*.py")):
        write(package / "_triton" / source.name, python(source.read_text(), ".."))
    print(out)
    return 0


def write(path: Path, text: str) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(text, encoding="utf-8")


def replaced(text: str, *pairs: tuple[str, str]) -> str:
    for old, new in pairs:
        if old not in text:
            raise ValueError(f"hub/make.py: {old!r} is in no source any more")
        text = text.replace(old, new)
    return text


def python(text: str, parent: str) -> str:
    """A module with relative imports, and operators in the build's namespace, which _ops.py of the builder names."""
    text = re.sub(rf"\bfrom {NAME} import", f"from {parent} import", text)
    text = re.sub(rf"\bfrom {NAME}\.(_triton\.)?", lambda m: "from ." if m[1] else f"from {parent}", text)
    for old, new in RULES:
        text = text.replace(old, new)
    text = re.sub(r"(?<!_)torch\.ops\.stair\.", "ops.", text)
    text = re.sub(r'f?"stair::([\w{}]+)"', lambda m: f'add_op_namespace_prefix({"f" * ("{" in m[1])}"{m[1]}")', text)
    needed = [name for name in ("add_op_namespace_prefix", "ops") if re.search(rf"\b{name}[.(]", text)]
    if needed:
        text = replaced(text, ("import torch\n", f"import torch\nfrom {parent}_ops import {', '.join(needed)}\n"))
    return text


def initial() -> str:
    """The package: everything that it exports but the index; the builder's _ops.py loads the library."""
    text = replaced((ROOT / NAME / "__init__.py").read_text(), *INDEX)
    start, end = text.index("from pathlib import Path"), text.index("from stair_kernels import autograd")
    version = "from stair_kernels.version import __version__\n"
    return python(text[:start] + text[end:] + version, ".")


def native(text: str) -> str:
    """A C++ source whose operators are registered in the build's namespace."""
    registers = "STABLE_TORCH_LIBRARY_IMPL(stair, "
    if registers not in text:
        return text
    text = text.replace(registers, "STABLE_TORCH_LIBRARY_IMPL_EXPAND(TORCH_EXTENSION_NAME, ")
    return '#include "registration.h"\n' + text


def binding() -> str:
    """The schemas, and the Python module that importing loads."""
    text = (ROOT / "csrc" / "ops.cpp").read_text()
    text = replaced(text, ("STABLE_TORCH_LIBRARY(stair, m)", "STABLE_TORCH_LIBRARY_EXPAND(TORCH_EXTENSION_NAME, m)"))
    include = "#include <torch/csrc/stable/library.h>\n"
    text = replaced(text, (include, f'{include}\n#include "registration.h"\n'))
    return text + "\nREGISTER_EXTENSION(TORCH_EXTENSION_NAME)\n"


def instruction_sets(out: Path) -> str:
    """For each of CMakeLists.txt's a source that compiles the inner loops for it, and its section of build.toml."""
    sections = []
    for name, flags in re.findall(r"stair_isa\((\w+)([^)]*)\)", (ROOT / "CMakeLists.txt").read_text()):
        if name == "name":  # the function's own line
            continue
        write(
            out / "csrc" / "cpu" / "simd" / f"{name}.cpp", f'#define STAIR_ISA {name}\n#include "cpu/simd/table.cpp"\n'
        )
        listed = ", ".join(f'"{flag}"' for flag in ["-O3", "-ffp-contract=fast", *flags.split()])
        headers = sorted(path.name for path in (ROOT / "csrc/cpu/simd").glob("*.h"))
        sources = ", ".join(f'"csrc/cpu/simd/{file}"' for file in [f"{name}.cpp", *headers, "table.cpp"])
        sections.append(
            f'\n[kernel.stair_{name}]\nbackend = "cpu"\ndepends = ["torch"]\ninclude = ["csrc"]\n'
            f"cxx-flags = [{listed}]\nsrc = [{sources}]\n"
        )
    return "".join(sections)


if __name__ == "__main__":
    sys.exit(main())
