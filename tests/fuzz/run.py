"""make fuzz: atheris, which steers by the coverage of stair_kernels/index*.py; arguments are libFuzzer's.

A finding is written to the working directory, as libFuzzer does, and ends the run.
"""

from __future__ import annotations

import os
import sys
import tempfile
from pathlib import Path

import atheris
import numpy as np

with atheris.instrument_imports(include=["stair_kernels"]):
    from index_target import Target, encoded

KINDS = 4  # of damage
SEEDS = 16  # of each, on each index


def main() -> None:
    memory = Path("/dev/shm")
    with tempfile.TemporaryDirectory(dir=memory if memory.is_dir() else None) as folder:
        target, seeds, random = Target(Path(folder)), Path(folder, "seeds"), np.random.default_rng(0)
        seeds.mkdir()
        for number in range(2 * KINDS * SEEDS):
            start = encoded(number % 2, number // 2 % KINDS)
            (seeds / str(number)).write_bytes(start + random.bytes(int(random.integers(8, 200))))
        os.fsync = lambda descriptor: None  # type: ignore[assignment]
        atheris.Setup([*sys.argv, str(seeds)], target.run)
        atheris.Fuzz()


main()
