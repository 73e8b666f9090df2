"""Packaging only: names the two packages and hands every compiled file to CMake."""

from __future__ import annotations

import importlib.util
import os
import re
import shutil
import subprocess
import sys
import sysconfig
from pathlib import Path

from setuptools import Extension, setup
from setuptools.command.build_ext import build_ext
from setuptools.command.build_py import build_py

ROOT = Path(__file__).resolve().parent
CHOICES = ("AUTO", "ON", "OFF")


def version() -> str:
    text = (ROOT / "stair_kernels" / "version.py").read_text()
    return re.search(r'__version__ = "(.+)"', text).group(1)


def torch_root() -> Path | None:
    """The installed torch whose headers are compiled against; an isolated build finds it by its interpreter's paths."""
    spec = importlib.util.find_spec("torch")
    roots = [Path(spec.submodule_search_locations[0])] if spec and spec.submodule_search_locations else []
    roots += [Path(sysconfig.get_path(key)) / "torch" for key in ("platlib", "purelib")]
    return next((root for root in roots if (root / "include/torch/csrc/stable/library.h").exists()), None)


def nvcc() -> str | None:
    """The CUDA compiler: CUDACXX, else on PATH, else where the toolkit is usually installed."""
    return shutil.which(os.environ.get("CUDACXX", "nvcc")) or shutil.which("/usr/local/cuda/bin/nvcc")


def with_cuda() -> bool:
    """Whether `_C_cuda.so` is built: STAIR_CUDA=ON|OFF decides, otherwise the presence of nvcc (no GPU is needed)."""
    choice = os.environ.get("STAIR_CUDA", "AUTO").upper()
    if choice not in CHOICES:
        sys.exit(f"STAIR_CUDA: expected one of {', '.join(CHOICES)}, got {choice!r}")
    found = nvcc() is not None
    if choice == "ON" and not found:
        sys.exit("STAIR_CUDA=ON needs nvcc (CUDA toolkit 12.8 or newer) on PATH or in CUDACXX; none was found")
    if choice == "AUTO" and not found:
        print("stair_kernels: no nvcc found, building for the CPU only (install the CUDA toolkit to add _C_cuda.so)")
    return choice != "OFF" and found


def tool(name: str) -> str:
    """cmake or ninja: the one beside this interpreter, which PyPI brought, or the one on PATH (an isolated build's)."""
    found = shutil.which(name, path=sysconfig.get_path("scripts")) or shutil.which(name)
    return found or sys.exit(f"stair_kernels: {name} is needed to build: pip install cmake ninja")


class CMakeBuild(build_ext):
    """Builds each extension as the CMake target of the same name."""

    def get_ext_filename(self, fullname: str) -> str:
        if fullname.rpartition(".")[2] == "_index":  # a pybind11 module, tied to this CPython
            return super().get_ext_filename(fullname)
        return str(Path(*fullname.split("."))) + ".so"  # an operator library: never touches Python.h

    def run(self) -> None:
        # A library that is no longer asked for must not be loaded by the next import.
        for stale in {"_C", "_C_cuda"} - {ext.name.rpartition(".")[2] for ext in self.extensions}:
            Path(self.get_ext_fullpath(f"stair_kernels.{stale}")).unlink(missing_ok=True)
        super().run()

    def build_extension(self, ext: Extension) -> None:
        import pybind11

        root = torch_root()
        if root is None:
            sys.exit(
                "stair_kernels: torch >= 2.10 must be installed to build (its headers are needed): pip install torch"
            )
        # One build tree per CPython, outside setuptools' temporary folders, so that rebuilding takes seconds.
        tree = Path(os.environ.get("STAIR_BUILD_DIR", ROOT / "build" / f"cmake-{sys.implementation.cache_tag}"))
        settings = {
            "CMAKE_BUILD_TYPE": "Release",
            "STAIR_CUDA": "ON" if with_cuda() else "OFF",
            "STAIR_SANITIZE": os.environ.get("STAIR_SANITIZE", ""),
            "TORCH_ROOT": root,
            "Python_EXECUTABLE": sys.executable,
            "pybind11_DIR": pybind11.get_cmake_dir(),
            "CMAKE_MAKE_PROGRAM": tool("ninja"),  # the one in the tree's cache may have been an isolated build's
        }
        if with_cuda():
            settings["CMAKE_CUDA_COMPILER"] = nvcc()
        defines = [f"-D{key}={value}" for key, value in settings.items()]
        subprocess.run([tool("cmake"), "-G", "Ninja", "-S", ROOT, "-B", tree, *defines], check=True)
        subprocess.run([tool("cmake"), "--build", tree, "--target", ext.name.rpartition(".")[2]], check=True)
        self._install(tree, Path(self.get_ext_fullpath(ext.name)))

    def _install(self, tree: Path, target: Path) -> None:
        """Copies and renames: a process that has the old library mapped keeps it."""
        target.parent.mkdir(parents=True, exist_ok=True)
        staged = target.with_name(f".{target.name}.{os.getpid()}")
        shutil.copy2(tree / target.name, staged)
        os.replace(staged, target)


class FreshBuild(build_py):
    """Starts from an empty folder, or a wheel would keep modules that have been removed since the last one."""

    def run(self) -> None:
        if not self.editable_mode:
            for package in self.packages:
                shutil.rmtree(Path(self.build_lib, *package.split(".")), ignore_errors=True)
        super().run()


libraries = ["_C", "_index", *(["_C_cuda"] if with_cuda() else [])]
setup(
    version=version(),
    packages=[
        "stair_kernels",
        "stair_kernels._triton",
        "stair",
        "stair.adapters",
        "stair.cluster",
        "stair.datasets",
        "stair.formats",
        "stair.serve",
        "stair.templates",
    ],
    package_dir={"stair": "python/stair"},
    package_data={"stair_kernels": ["py.typed"], "stair": ["py.typed"], "stair.templates": ["*"]},
    ext_modules=[Extension(f"stair_kernels.{name}", []) for name in libraries],
    cmdclass={"build_ext": CMakeBuild, "build_py": FreshBuild},
    setup_requires=[] if torch_root() else ["torch>=2.10,<2.15"],
)
