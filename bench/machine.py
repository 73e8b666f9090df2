"""Where and on what a benchmark ran."""

from __future__ import annotations

import os
import platform
import re
import subprocess
from importlib import metadata
from pathlib import Path
from typing import Any

import numpy as np
import scipy
import torch

import stair_kernels as sk


def environment(device: torch.device, threads: int, cpu_time: bool = False) -> dict[str, Any]:
    """Machine, versions and commit: the part of a record that is the same for the whole run."""
    on_gpu = device.type == "cuda"
    versions = {
        "python": platform.python_version(),
        "stair_kernels": sk.__version__,
        "torch": torch.__version__,
        "numpy": np.__version__,
        "scipy": scipy.__version__,
    }
    if on_gpu:
        versions |= {"CUDA": str(torch.version.cuda), "triton": metadata.version("triton")}
    host = {"cpu": _cpu_name(), "cores": os.cpu_count(), "isa": sk.cpu_isa(), "load": round(os.getloadavg()[0], 2)}
    return {
        "device": str(device),
        "machine": host | (_gpu(device) if on_gpu else {}),
        "threads": threads,
        "clock": "CPU time" if cpu_time else "wall",
        "versions": versions,
        "commit": _commit(),
    }


def describe(record: dict[str, Any]) -> str:
    """The line under the table: where these numbers come from."""
    machine, roofline = record["machine"], record["roofline"]
    names = ", ".join(f"{name} {version}" for name, version in record["versions"].items())
    peaks = ", ".join(f"{gflops:,.0f} GFLOP/s {dtype}" for dtype, gflops in roofline["gflops"].items())
    clock = ", CPU time" if record.get("clock") == "CPU time" else ""
    where = (
        f"{machine['cpu']}, {record['threads']} thread(s){clock}, {machine['isa']}, load {machine['load']} at the start"
    )
    moved = "reads"
    if "gpu" in machine:
        clocks = ", ".join(f"{name} at most {mhz:,} MHz" for name, mhz in machine["clocks_mhz"].items())
        where = f"{machine['gpu']}, {machine['arch']}, {machine['sms']} SMs{clocks and ', ' + clocks}, driver " + (
            f"{machine['driver']}, in a machine with {where}"
        )
        moved = "copies"
    return (
        f"{where}; measured limits: {peaks}, {moved} {roofline['mem_gbps']:,.1f} GB/s; {names}; "
        f"commit {record['commit']}"
    )


def _gpu(device: torch.device) -> dict[str, Any]:
    of = torch.cuda.get_device_properties(device)
    kilohertz = {"SMs": getattr(of, "clock_rate", None), "memory": getattr(of, "memory_clock_rate", None)}
    return {
        "gpu": of.name,
        "arch": f"sm_{of.major}{of.minor}",
        "sms": of.multi_processor_count,
        "mem_bytes": of.total_memory,
        "l2_bytes": of.L2_cache_size,
        "clocks_mhz": {name: rate // 1000 for name, rate in kilohertz.items() if rate},  # not every torch tells
        "driver": _driver(),
    }


def _driver() -> str:
    """Of the kernel module; Windows' subsystem for Linux does not say."""
    version = Path("/proc/driver/nvidia/version")
    found = re.search(r"\d{3,}\.\d+(\.\d+)?", version.read_text()) if version.exists() else None
    return found[0] if found else "unknown"


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
