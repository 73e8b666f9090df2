"""What the README and the benchmarks' page show: the columns of their tables, the cases of make bench, the licences."""

from __future__ import annotations

import importlib
import itertools
import json
import re
from pathlib import Path
from typing import Any

import pytest

ROOT = Path(__file__).resolve().parents[1]


def test_the_readme_s_numbers_are_those_of_the_pages_that_have_them_all() -> None:
    lines = (ROOT / "README.md").read_text(encoding="utf-8").splitlines()
    start = next(at for at, line in enumerate(lines) if "| ours | beside |" in line)
    pages = " ".join(
        (ROOT / "docs" / f"{page}.md").read_text("utf-8") for page in ("benchmarks", "search", "accelerate")
    )
    rows = list(itertools.takewhile(lambda line: line.startswith("| "), lines[start + 2 :]))
    assert len(rows) >= 5
    for row in rows:
        _, ours, beside, ratio, made = (cell.strip() for cell in row.strip("|").split(" | "))
        numbers = [re.findall(r"[\d,.]+(?= [mu]s)", cell) for cell in (ours, beside)]
        (mine,), (theirs,) = numbers
        (shown,) = [line for line in re.findall(r"\|.*\|", pages) if f"| {mine} |" in line and f"| {theirs} |" in line]
        quotient = float(theirs.replace(",", "")) / float(mine.replace(",", ""))
        assert float(ratio.removesuffix("x")) == pytest.approx(quotient, rel=0.02), row
        assert "bench" in made
        assert shown


def test_the_plot_of_the_readme_is_of_the_published_table(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.syspath_prepend(ROOT / "bench")
    rows = importlib.import_module("speed_plot").cases()
    drawn = re.findall(r"<text[^>]*>([^<]*)</text>", (ROOT / "docs/images/speed.svg").read_text(encoding="utf-8"))
    ratios = [row["eager/ours"] for row in rows]
    assert len(ratios) >= 10
    assert [text for text in drawn if re.fullmatch(r"[\d.]+x", text)] == ratios
    assert {", ".join(row[name] for name in ("operator", "shape", "dtype", "input")) for row in rows} <= {*drawn}
    assert "](docs/images/speed.svg)" in (ROOT / "README.md").read_text(encoding="utf-8")


def test_the_table_of_numbers_has_the_columns_that_make_bench_prints(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.syspath_prepend(ROOT / "bench")
    report = importlib.import_module("report")
    lines = (ROOT / "docs/benchmarks.md").read_text(encoding="utf-8").splitlines()
    heads = [line.strip("| ").split(" | ") for line in lines if line.startswith("| operator |")]
    assert heads
    printed = [*report.TEXTS, *report.NUMBERS, *report.MEGABYTES]  # a column without numbers is left out
    for head in heads:
        assert head == [column for column in printed if column in head]
        assert {*report.TEXTS, "ours, ms", "eager", "eager/ours", "limit/ours"} <= {*head}


@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
def test_make_bench_runs(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], threads: Any, dtype: str
) -> None:
    """Every operator's case at a small size, its results compared with PyTorch's."""
    monkeypatch.syspath_prepend(ROOT / "bench")
    bench = importlib.import_module("run")
    threads(1)
    sizes = {
        "vocab_topk": "2,3,8,100,4",
        "vocab_topk_grad": "2,3,8,100,4",
        "vocab_pool": "2,3,8,100",
        "vocab_pool_grad": "2,3,8,100",
        "stair_loss_grad": "3,3,8,100",
        "topk": "2,50,4",
        "sparse_dot": "3,4,5,100",
        "sparse_dot_grad": "3,4,5,100",
        "search": "3,40,5,100,4",
    }
    if dtype == "bfloat16":  # the heads are what differs
        sizes = {op: sizes[op] for op in ("vocab_topk", "vocab_pool_grad", "stair_loss_grad")}
    for op, shape in sizes.items():
        words = ["--op", op, "--shape", shape, "--dtype", dtype, "--threads", "1", "--seconds", "0.001"]
        assert bench.main([*words, "--out", str(tmp_path)]) == 0, capsys.readouterr().err
        assert f"| {op} |" in capsys.readouterr().out
        assert json.loads((tmp_path / "bench.jsonl").read_text().splitlines()[0])["op"] == op


def test_the_licences_of_the_demos_data_are_stated() -> None:
    from stair.emoji import ATTRIBUTIONS

    table = (ROOT / "README.md").read_text(encoding="utf-8").partition("## Data and models")[2]
    for source in ATTRIBUTIONS.values():
        (row,) = [line for line in table.splitlines() if f"[{source['name']}]({source['url']})" in line]
        assert row.endswith(f"| {source['licence']} |")
