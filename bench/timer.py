"""Interleaved medians: every variant runs once a round, so that clocks, heat and neighbours are the same for all."""

from __future__ import annotations

import statistics
import time
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, Protocol, TypeVar

import torch

Name = TypeVar("Name")  # of a variant


class Clock(Protocol):
    """Times one run, in milliseconds."""

    def time_ms(self, run: Callable[[], Any]) -> float: ...


class HostClock:
    """For runs that have ended when they return."""

    def time_ms(self, run: Callable[[], Any]) -> float:
        start = time.perf_counter()
        run()
        return 1e3 * (time.perf_counter() - start)


class ProcessorClock:
    """CPU time of this process instead: what others do on the machine counts only through caches and clocks."""

    def time_ms(self, run: Callable[[], Any]) -> float:
        start = time.process_time()
        run()
        return 1e3 * (time.process_time() - start)


class DeviceClock:
    """For runs that are queued on the current CUDA stream: the device's time between two events around the run.

    Each run starts on an idle device, with other memory in its L2 and a wait of about a millisecond in front, in which
    the host queues the run's kernels. Launches then cost nothing; those that take longer show, as they do in use.
    """

    FLUSHED = 4  # times the L2
    WAIT_CYCLES = 2_000_000

    def __init__(self, device: torch.device) -> None:
        l2_bytes = torch.cuda.get_device_properties(device).L2_cache_size
        self._elsewhere = torch.empty(self.FLUSHED * l2_bytes, dtype=torch.uint8, device=device)
        self._start, self._end = torch.cuda.Event(enable_timing=True), torch.cuda.Event(enable_timing=True)

    def time_ms(self, run: Callable[[], Any]) -> float:
        self._elsewhere.zero_()
        torch.cuda._sleep(self.WAIT_CYCLES)
        self._start.record()
        run()
        self._end.record()
        self._end.synchronize()
        return self._start.elapsed_time(self._end)


def clock_of(device: torch.device, cpu_time: bool = False) -> Clock:
    if device.type == "cuda":
        return DeviceClock(device)
    return ProcessorClock() if cpu_time else HostClock()


@dataclass(frozen=True)
class Timing:
    """The times of one variant over the rounds; half of them lie between the quartiles."""

    median_ms: float
    q1_ms: float
    q3_ms: float
    min_ms: float
    rounds: int


def interleaved(
    variants: dict[Name, Callable[[], Any]], clock: Clock, seconds: float, min_rounds: int = 3
) -> dict[Name, Timing]:
    """Runs all variants in turn for `seconds` a variant, at least `min_rounds` times; each starts some rounds."""
    for run in variants.values():
        run()
    names = list(variants)
    times_ms: dict[Name, list[float]] = {name: [] for name in names}
    deadline = time.perf_counter() + seconds * len(names)
    rounds = 0
    while rounds < min_rounds or time.perf_counter() < deadline:
        first = rounds % len(names)
        for name in names[first:] + names[:first]:
            times_ms[name].append(clock.time_ms(variants[name]))
        rounds += 1
    return {name: _summary(times) for name, times in times_ms.items()}


def _summary(times_ms: list[float]) -> Timing:
    q1, median, q3 = statistics.quantiles(times_ms, n=4, method="inclusive")
    return Timing(median, q1, q3, min(times_ms), len(times_ms))


def on_threads(run: Callable[[], Any], threads: int, afterwards: int) -> Callable[[], Any]:
    """The same on another number of threads."""

    def rescaled() -> Any:
        torch.set_num_threads(threads)
        try:
            return run()
        finally:
            torch.set_num_threads(afterwards)

    return rescaled
