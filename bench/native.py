"""Compiles the benchmarks' own C++ for this machine."""

from __future__ import annotations

import os
import shutil
import subprocess
from pathlib import Path


def compiled_library(source: Path, folder: Path) -> Path:
    """The shared library of a source file, made again when the source is newer."""
    library = folder / source.with_suffix(".so").name
    if not library.exists() or library.stat().st_mtime < source.stat().st_mtime:
        compiler = os.environ.get("CXX") or shutil.which("c++") or "g++"
        folder.mkdir(parents=True, exist_ok=True)
        command = [compiler, "-O3", "-march=native", "-fPIC", "-shared", str(source), "-o", str(library)]
        subprocess.run(command, check=True)
    return library
