"""Where and on what a benchmark ran, and its results as a markdown table."""

from __future__ import annotations

import os
import platform
import subprocess
from collections.abc import Iterable
from pathlib import Path
from typing import Any

import numpy as np
import scipy
import torch

import stair_kernels as sk

TEXTS = ("operator", "shape", "dtype", "input")
NUMBERS = ("ours, ms", "packed", "eager", "eager/ours", "rival/ours", "matmul/ours", "limit/ours", "scaling")


def environment(threads: int) -> dict[str, Any]:
    """Machine, versions and commit: the part of a record that is the same for the whole run."""
    return {
        "machine": {
            "cpu": _cpu_name(),
            "cores": os.cpu_count(),
            "isa": sk.cpu_isa(),
            "load": round(os.getloadavg()[0], 2),
        },
        "threads": threads,
        "versions": {
            "python": platform.python_version(),
            "stair_kernels": sk.__version__,
            "torch": torch.__version__,
            "numpy": np.__version__,
            "scipy": scipy.__version__,
        },
        "commit": _commit(),
    }


def table(records: Iterable[dict[str, Any]]) -> str:
    """One row a case; `limit` is the roofline's time for the unavoidable work, `scaling` the time on one thread over
    that on several. A column without a number is left out."""
    cases: dict[tuple[Any, ...], dict[str, dict[str, Any]]] = {}
    for record in records:
        shape = ", ".join(f"{name}={size:,}" for name, size in record["shape"].items())
        cases.setdefault((record["op"], shape, record["dtype"], record["inputs"]), {})[record["impl"]] = record
    rows = []
    for key, by_impl in cases.items():
        times = {impl: record["median_ms"] for impl, record in by_impl.items()}
        ours = times.get("ours")
        cells = [_ms(times.get(impl)) for impl in ("ours", "packed", "eager")]
        cells += [_ratio(times.get(impl), ours) for impl in ("eager", "rival", "matmul")]
        cells.append(f"{by_impl['ours']['roofline_ms'] / ours:.0%}" if ours else "")
        cells.append(_scaling(by_impl))
        rows.append([*key, *cells])
    lines = [[*TEXTS, *NUMBERS], ["---"] * len(TEXTS) + ["---:"] * len(NUMBERS), *rows]
    filled = [any(row[column] for row in rows) for column in range(len(TEXTS + NUMBERS))]
    return "\n".join("| " + " | ".join(cell for cell, kept in zip(line, filled) if kept) + " |" for line in lines)


def describe(run: dict[str, Any]) -> str:
    """The line under the table: where these numbers come from."""
    machine, versions, roofline = run["machine"], run["versions"], run["roofline"]
    names = ", ".join(f"{name} {version}" for name, version in versions.items())
    peaks = ", ".join(f"{gflops:.0f} GFLOP/s {dtype}" for dtype, gflops in roofline["gflops"].items())
    return (
        f"{machine['cpu']}, {run['threads']} thread(s), {machine['isa']}, load {machine['load']} at the start; "
        f"measured limits: {peaks}, reads {roofline['read_gbps']:.1f} GB/s; {names}; commit {run['commit']}"
    )


def _scaling(by_impl: dict[str, dict[str, Any]]) -> str:
    """How many times faster ours is on the more threads of `ours` and `rescaled`."""
    if not {"ours", "rescaled"} <= by_impl.keys():
        return ""
    fewer, more = sorted((by_impl[impl] for impl in ("ours", "rescaled")), key=lambda record: record["threads"])
    return _ratio(fewer["median_ms"], more["median_ms"])


def _ratio(value: float | None, ours: float | None) -> str:
    return "" if value is None or ours is None else f"{value / ours:.3g}x"


def _ms(value: float | None) -> str:
    return "" if value is None else f"{value:.3g}" if value < 100 else f"{value:.0f}"


def _cpu_name() -> str:
    cpuinfo = Path("/proc/cpuinfo")
    lines = cpuinfo.read_text().splitlines() if cpuinfo.exists() else []
    names = [line.partition(":")[2].strip() for line in lines if line.startswith("model name")]
    return names[0] if names else platform.processor() or platform.machine()


def _commit() -> str:
    root = Path(__file__).parent
    command = ["git", "describe", "--always", "--dirty", "--abbrev=9", "--exclude=*"]
    result = subprocess.run(command, cwd=root, capture_output=True, text=True)
    return result.stdout.strip() if result.returncode == 0 else "unknown (no git checkout)"
