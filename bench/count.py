"""Instructions of fixed cases, one thread with AVX2, counted by valgrind inside the operators (what they call included)
and compared with instructions.json. A busy machine moves times; counts stay. They see no caches: a hint, not a time."""

from __future__ import annotations

import argparse
import json
import os
import re
import shutil
import subprocess
import sys
import tempfile
from collections import Counter
from collections.abc import Sequence
from pathlib import Path

CASES = {
    "vocab_topk": (8, 16, 128, 4096, 32),
    "vocab_pool_grad": (8, 16, 128, 4096),
    "sparse_dot": (32, 128, 64, 4096),
}
RECORD = Path(__file__).with_name("instructions.json")
TOLERANCE = 0.01  # of a recorded count
# valgrind 3.19 has no AVX-512; nothing may depend on the number of cores or on the order of a hash table.
ENVIRONMENT = {"STAIR_CPU_ISA": "avx2", "OMP_NUM_THREADS": "1", "PYTHONHASHSEED": "0"}
OPERATOR = "torch::stable::detail::boxer<*>::boxed_fn*"  # where torch's dispatcher enters an operator of _C.so


def main(arguments: Sequence[str] | None = None) -> int:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--record", action="store_true", help=f"write the counts to {RECORD.name}")
    parser.add_argument("--run", action="store_true", help="only run the cases, for valgrind to watch")
    options = parser.parse_args(arguments)
    if options.run:
        _run()
        return 0
    counts = _count()
    if options.record:
        RECORD.write_text(json.dumps(counts, indent=2) + "\n", encoding="utf-8")
    return _compare(json.loads(RECORD.read_text(encoding="utf-8")), counts)


def _run() -> None:
    import torch
    from cases import Case
    from work import prepare

    for op, shape in CASES.items():
        prepare(Case(op, shape), torch.device("cpu")).variants["ours"].run()


def _count() -> dict[str, int]:
    """operator -> instructions over all of its calls, those that make the inputs (pack_vocab) as well."""
    valgrind = shutil.which("valgrind") or sys.exit("make count: valgrind is needed (Debian: apt install valgrind)")
    with tempfile.TemporaryDirectory() as folder:
        profile = Path(folder) / "profile"
        command = [valgrind, "--tool=callgrind", f"--callgrind-out-file={profile}", f"--toggle-collect={OPERATOR}"]
        command += [sys.executable, __file__, "--run"]
        result = subprocess.run(command, env={**os.environ, **ENVIRONMENT}, capture_output=True, text=True)
        counts = _read(profile.read_text()) if profile.exists() else {}
    if result.returncode != 0 or not counts:
        sys.exit(f"make count: valgrind counted no operator\n{result.stderr}")
    return counts


def _read(profile: str) -> dict[str, int]:
    """Adds up the lines under each operator's function: its own instructions and those of the functions it calls."""
    names: dict[str, str] = {}
    counts: Counter[str] = Counter()
    operator = None
    for line in profile.splitlines():
        if match := re.match(r"c?fn=(\(\d+\)) (.+)", line):  # a name stands where its number is first used
            names[match[1]] = match[2]
        if line.startswith("fn="):
            function = names[line[3:].split(" ")[0]]
            operator = re.match(r"torch::stable::detail::boxer<.*::(\w+)>::boxed_fn", function)
        elif operator and (match := re.match(r"[-+*\d]\S* (\d+)$", line)):
            counts[operator[1]] += int(match[1])
    return dict(sorted(counts.items()))


def _compare(recorded: dict[str, int], counts: dict[str, int]) -> int:
    moved = 0
    for operator in sorted({*recorded, *counts}):
        before, now = recorded.get(operator, 0), counts.get(operator, 0)
        differs = abs(now - before) > TOLERANCE * before
        moved += differs
        change = f"{now / before - 1:+.2%}" if before else "new"
        print(f"{operator:<24}{before:>14,} -> {now:>14,} {change:>9}{'  differs' if differs else ''}")
    if moved:
        print(f"more than {TOLERANCE:.0%} off the record; `make count ARGS=--record` accepts the new counts")
    return int(moved > 0)


if __name__ == "__main__":
    sys.exit(main())
