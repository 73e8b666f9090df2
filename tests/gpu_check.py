"""make gpu-check: tests/gpu_check.py DEVICE [arguments of pytest] runs the operators' and the devices' tests on DEVICE.

Where there is no such device it says in one line what is missing.
"""

from __future__ import annotations

import ctypes
import importlib.util
import os
import platform
import shutil
import subprocess
import sys
from pathlib import Path

import torch

import stair_kernels as sk

HERE = Path(__file__).parent
OPERATORS = ("vocab_pool", "vocab_topk", "topk", "sparse_dot", "flops", "stair_loss", "head_properties")
TESTS = [str(HERE / f"test_{name}.py") for name in (*OPERATORS, "search_gpu", "gpu")]
# Forward and backward of every operator that has a kernel on the device, in small.
SANITIZED = [str(HERE / "test_gpu.py"), "-k", "same_bits_on_repeats"]
TOOLS = ("memcheck", "racecheck", "initcheck", "synccheck")
# PyTorch's allocator would hide what lies past a tensor in one large allocation of its own.
UNCACHED = {"PYTORCH_NO_CUDA_MEMORY_CACHING": "1"}


def missing(device: torch.device) -> str | None:
    """What keeps the kernels from running on the device, and what to install."""
    if device.type != "cuda":
        return None
    if torch.version.cuda is None:
        release = torch.__version__.partition("+")[0]
        return (
            f"torch {torch.__version__} is built without CUDA; install a build with it, such as PyPI's for Linux: "
            f"{sys.executable} -m pip install --force-reinstall --index-url https://pypi.org/simple torch=={release}"
        )
    if not torch.cuda.is_available():
        try:
            ctypes.CDLL("libcuda.so.1")
        except OSError:
            return f"no NVIDIA driver (libcuda.so.1); install one for CUDA {torch.version.cuda} or newer"
        visible = os.environ.get("CUDA_VISIBLE_DEVICES")
        return (
            f"torch for CUDA {torch.version.cuda} finds no device that it can use; see nvidia-smi for the driver's "
            f"version and the devices (CUDA_VISIBLE_DEVICES is {'not set' if visible is None else repr(visible)})"
        )
    if (device.index or 0) >= torch.cuda.device_count():
        return f"there is no {device}, but {torch.cuda.device_count()} CUDA devices from cuda:0 on"
    if importlib.util.find_spec("triton") is None:
        return f"no Triton; install it: {sys.executable} -m pip install triton"
    return None


def described(device: torch.device) -> str:
    """The device's name and the versions of what runs on it."""
    versions = f"torch {torch.__version__}, stair_kernels {sk.__version__}, Python {platform.python_version()}"
    if device.type != "cuda":
        return f"{device}: {sk.cpu_isa()}, {versions}"
    import triton

    properties = torch.cuda.get_device_properties(device)
    memory = f"{properties.total_memory / 2**30:.0f} GiB"
    name = f"{properties.name}, sm_{properties.major}{properties.minor}, {memory}, {torch.cuda.device_count()} devices"
    return f"{device}: {name}, CUDA {torch.version.cuda}, Triton {triton.__version__}, {versions}"


def run(device: torch.device, *command: str, **environment: str) -> int:
    print("+", *command, flush=True)
    return subprocess.run(command, env={**os.environ, "STAIR_TEST_DEVICE": str(device), **environment}).returncode


def sanitized(device: torch.device, pytest: list[str]) -> int:
    """A few tests under each of compute-sanitizer's tools."""
    sanitizer = shutil.which("compute-sanitizer")
    if device.type != "cuda":
        print(f"compute-sanitizer: not run, {device} is no CUDA device")
        return 0
    if sanitizer is None:
        print("compute-sanitizer: not run, it is not on the PATH (it comes with NVIDIA's CUDA toolkit)")
        return 0
    options = ["--error-exitcode", "1", "--target-processes", "all"]
    codes = [run(device, sanitizer, "--tool", tool, *options, *pytest, *SANITIZED, **UNCACHED) for tool in TOOLS]
    return max(codes)


def main(name: str, *arguments: str) -> int:
    device = torch.device(name)
    if lacking := missing(device):
        sys.exit(f"gpu-check: {lacking}")
    print(described(device), flush=True)
    pytest = [sys.executable, "-m", "pytest", "-p", "no:cacheprovider"]
    tests = [] if any(".py" in argument for argument in arguments) else TESTS
    code = run(device, *pytest, *tests, *arguments)
    return code or sanitized(device, pytest)


if __name__ == "__main__":
    sys.exit(main(*sys.argv[1:]))
