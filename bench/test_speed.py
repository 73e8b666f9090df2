"""The standard set under pytest-benchmark, for its comparisons: nothing here replaces run.py, which interleaves.

    .venv/bin/python -m pytest bench/ --benchmark-save=before
    .venv/bin/python -m pytest bench/ --benchmark-compare=0001 -k "vocab_topk and ours"

A result is compared with float32 PyTorch before it is timed. On the GPU where torch sees one.
"""

from __future__ import annotations

import functools
from collections.abc import Callable
from typing import Any

import pytest
import torch
from cases import COMPILED, STANDARD, Case
from run import UNCHECKED, is_judged
from variants import Work
from work import prepare

DEVICE = torch.device("cuda" if torch.cuda.is_available() else "cpu")
IMPLEMENTATIONS = ("ours", "packed", "positions", "eager", "compiled", "rival", "matmul")


def _name(case: Case) -> str:
    return f"{case.op}-{','.join(map(str, case.shape))}-{case.dtype}-{case.inputs}"


@functools.lru_cache(maxsize=1)
def _prepared(case: Case) -> Work:
    return prepare(case, DEVICE)


def _timed(run: Callable[[], Any]) -> Callable[[], Any]:
    """`run` until the device is done with it."""
    if DEVICE.type == "cpu":
        return run

    def waiting() -> Any:
        run()
        torch.cuda.synchronize()

    return waiting


@pytest.mark.parametrize(
    ("case", "implementation"),
    [
        pytest.param(case, name, id=f"{_name(case)}-{name}")
        for case in STANDARD
        for name in IMPLEMENTATIONS
        if name != "compiled" or case in COMPILED
    ],
)
def test_speed(benchmark: Any, case: Case, implementation: str) -> None:
    work = _prepared(case)
    variant = work.variants.get(implementation)
    lack = f"{case.op} has no {implementation}" if variant is None else variant.lacks(DEVICE)
    if variant is None or lack:
        pytest.skip(str(lack))
    if implementation not in UNCHECKED:
        error = work.error(variant)
        assert error <= work.tolerance(case.dtype) or not is_judged(case, implementation)
        benchmark.extra_info["relative_error"] = error
    benchmark.group = _name(case)
    benchmark(_timed(variant.run))
