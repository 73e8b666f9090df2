"""The sums of docs/capacity.md: the fit, the simulation, and that the page has what its record gives."""

from __future__ import annotations

import json
from pathlib import Path

import capacity
import capacity_sums
import numpy as np
import pytest
import tables

ROOT = Path(__file__).resolve().parent.parent
FAN_OUT = [{"workers": n, "call_us": 100 + 50 * n, "batch_us": 300 + 80 * n} for n in (2, 8)]


def test_fit_finds_a_line_and_never_a_negative_number() -> None:
    found = capacity_sums.fit([1e5, 1e6, 4e6], [20 + 3e-4 * n for n in (1e5, 1e6, 4e6)])
    np.testing.assert_allclose(found, (20, 3e-4), rtol=1e-9)
    assert found.at(1e7) == pytest.approx(3020)
    assert min(capacity_sums.fit([1, 2, 3], [3, 2, 1])) >= 0


def test_simulation_waits_for_the_last_shard_and_in_line() -> None:
    service = np.array([[3.0, 1.0], [1.0, 5.0], [1.0, 1.0]])
    # Arrivals at 1, 2 and 10: the first is done at 4 (shard 0); the second at 5 and 7; the third at 11.
    np.testing.assert_array_equal(capacity_sums.simulate(service, np.array([1.0, 1.0, 8.0])), [3, 5, 1])


def test_simulation_agrees_with_queueing_theory() -> None:
    """One shard with a constant service time: M/D/1 waits rho / (2 (1 - rho)) of it on average."""
    random = np.random.default_rng(0)
    spent = capacity_sums.simulate(np.ones((200_000, 1)), random.exponential(1 / 0.5, 200_000))
    assert spent.mean() == pytest.approx(1 + 0.5 / (2 * 0.5), rel=0.02)


def test_the_tail_grows_with_shards_and_load() -> None:
    times = 100 + 20 * np.random.default_rng(0).random((5, 50))
    few, many = (capacity_sums.tail(times, shards, 0.1, queries=2000) for shards in (1, 64))
    busy = capacity_sums.tail(times, 1, 0.8, queries=2000)
    assert few[0] < many[0]
    assert few[1] < many[1]
    assert few[1] < busy[1]


def test_a_small_measurement_becomes_tables(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(capacity, "alone", lambda function, *arguments: function(*arguments))
    monkeypatch.setattr(capacity, "QUERIES", 8)
    monkeypatch.setattr(capacity, "REPEATS", 1)
    monkeypatch.setattr(capacity, "fan_out", lambda *_: FAN_OUT)  # which starts Ray
    record = tmp_path / "capacity.json"
    arguments = ["capacity.py", "measure", "--sizes", "1100", "2200", "--shards", "2", "1100", "--texts", "8"]
    monkeypatch.setattr("sys.argv", [*arguments, "--out", str(record)])
    assert capacity.main() == 0
    found = json.loads(record.read_text())
    assert [line["documents"] for line in found["indexes"]] == [1100, 2200]
    assert all(line["query_us"][0][0] > 0 and line["bytes"] > 8 * line["postings"] for line in found["indexes"])
    assert len(found["sharded"]["search_us"]) == 8
    assert [line["load"] for line in found["two_shards"]] == list(capacity.LOADS)
    assert "| 1,100 |" in capsys.readouterr().out
    assert not list(tmp_path.glob("tmp*")), "indexes are left"


def test_a_wrong_score_ends_the_measurement(monkeypatch: pytest.MonkeyPatch) -> None:
    rows = capacity.make_documents(capacity.language(0), 200)
    index = capacity.sk.SparseIndex.build(rows * np.float32(1.001))
    with pytest.raises(SystemExit, match="200 documents"):
        capacity.check(index, rows)


def test_one_process_sends_as_the_fit_says() -> None:
    (one, single), (many, batch) = capacity_sums.fan_out({"fan_out": FAN_OUT})
    assert (one, many) == (1, 32)
    assert single.at(256) == pytest.approx(100 + 50 * 256)
    assert batch.at(256) == pytest.approx(300 + 80 * 256)


def test_what_is_built_at_a_time_fits_into_memory() -> None:
    record = json.loads(capacity.RECORD.read_text())
    largest = record["indexes"][-1]
    each = 8 * largest["terms"] + largest["build_mb"] * 2**20 / largest["documents"]  # rows, and beside them
    for documents in capacity_sums.DOCUMENTS:
        line = capacity_sums.sums(record, documents)
        assert 1 <= line.at_a_time <= capacity_sums.CORES
        assert (
            line.at_a_time * each * documents / line.shards
            < 1.15 * capacity_sums.FILLED * capacity_sums.MEMORY_GB * 1e9
        )


def test_the_page_has_the_tables_of_its_record() -> None:
    page = capacity_sums.PAGE.read_text()
    for name, table in capacity_sums.tables(json.loads(capacity.RECORD.read_text())).items():
        assert f"<!-- {name} -->\n{table}\n<!-- end of {name} -->" in page, name


def test_a_table_without_its_marks_is_refused(tmp_path: Path) -> None:
    page = tmp_path / "page.md"
    page.write_text("<!-- a -->\nold\n<!-- end of a -->\n")
    tables.write_tables(page, {"a": "new \\1"})
    assert page.read_text() == "<!-- a -->\nnew \\1\n<!-- end of a -->\n"
    with pytest.raises(ValueError, match=r"page.md: expected once <!-- b --> to <!-- end of b -->, found 0 times"):
        tables.write_tables(page, {"a": "newer", "b": ""})
    assert "newer" not in page.read_text()
