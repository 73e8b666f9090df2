"""bench/predict_cuda.py: what it counts of a kernel, and what it makes of that."""

from __future__ import annotations

import importlib
from pathlib import Path
from types import ModuleType

import pytest
from cuda_library import built

ROOT = Path(__file__).resolve().parents[1]


@pytest.fixture
def predict_cuda(monkeypatch: pytest.MonkeyPatch) -> ModuleType:
    monkeypatch.syspath_prepend(str(ROOT / "bench"))
    return importlib.import_module("predict_cuda")


def test_a_prediction_is_its_largest_bound_and_the_launches(predict_cuda: ModuleType) -> None:
    """1,000 GB/s, 2,000 GB/s, two multiprocessors at 1 GHz."""
    card = predict_cuda.Card(1000, 2000, 2, 1.0, 0.25)
    cost = predict_cuda.Cost("kernel", "sizes", 1e9, 4e9, 6e6, 16e6, launches=2, share=2)
    assert cost.parts_ms(card) == {"memory": 0.5, "L2": 1.0, "banks": 1.5, "issue": 1.0, "launches": 0.25}
    parts = cost.parts_ms()
    assert cost.total_ms() == max(parts["memory"], parts["L2"], parts["banks"], parts["issue"]) + parts["launches"]


@built
def test_what_is_counted_of_topk(predict_cuda: ModuleType) -> None:
    one, two = (predict_cuda.topk(B, 16) for B in (1, 2))
    row_bytes = 4 * predict_cuda.V + 8 * 16
    assert row_bytes <= one.mem_bytes <= row_bytes + 64
    assert two.mem_bytes == 2 * one.mem_bytes
    assert one.instructions > predict_cuda.V / 32 * 4  # no element comes with fewer than four
    assert one.turns > 0


def test_the_page_has_a_row_for_every_kernel(predict_cuda: ModuleType) -> None:
    page = (ROOT / "docs" / "gpu.md").read_text().split("<!-- predicted CUDA kernels -->")[1]
    table = page.split("<!-- end of predicted CUDA kernels -->")[0]
    for kernel in ("topk", "sparse_dot", "sparse_dot, a gradient", "search, a query"):
        assert f"\n| {kernel} | " in table
    assert table.startswith("\n| predicted, us |")
