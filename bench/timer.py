"""Interleaved medians: every variant runs once a round, so that clocks, heat and neighbours are the same for all."""

from __future__ import annotations

import statistics
import time
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch


@dataclass(frozen=True)
class Timing:
    """The times of one variant over the rounds."""

    median_ms: float
    min_ms: float
    rounds: int


def interleaved(variants: dict[str, Callable[[], Any]], seconds: float, min_rounds: int = 3) -> dict[str, Timing]:
    """Runs all variants in turn for `seconds` a variant, at least `min_rounds` times; each starts some rounds."""
    for run in variants.values():
        run()
    names = list(variants)
    times_ms: dict[str, list[float]] = {name: [] for name in names}
    deadline = time.perf_counter() + seconds * len(names)
    rounds = 0
    while rounds < min_rounds or time.perf_counter() < deadline:
        first = rounds % len(names)
        for name in names[first:] + names[:first]:
            start = time.perf_counter()
            variants[name]()
            times_ms[name].append(1e3 * (time.perf_counter() - start))
        rounds += 1
    return {name: Timing(statistics.median(times), min(times), rounds) for name, times in times_ms.items()}


def on_threads(run: Callable[[], Any], threads: int, afterwards: int) -> Callable[[], Any]:
    """The same on another number of threads."""

    def rescaled() -> Any:
        torch.set_num_threads(threads)
        try:
            return run()
        finally:
            torch.set_num_threads(afterwards)

    return rescaled
