"""make bench, end to end on a tiny case: what it writes, what it refuses, and that a wrong result is not timed."""

from __future__ import annotations

import importlib
import json
import os
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path
from types import ModuleType, SimpleNamespace
from typing import Any

import pytest
import torch

import stair_kernels as sk

BENCH = Path(__file__).resolve().parents[1] / "bench"
SHAPE = {"B": 8, "L": 16, "D": 32, "V": 2000, "k": 8}
TINY = ["--op", "vocab_topk", "--shape", ",".join(map(str, SHAPE.values())), "--seconds", "0.01", "--threads", "2"]
ORDER = ["ours", "packed", "eager", "compiled", "rival", "matmul", "rescaled"]
LOGIT_BYTES = 8 * 16 * 2000 * 4  # [B, L, V] float32


@pytest.fixture(scope="module")
def out(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("bench")
    command = [sys.executable, BENCH / "run.py", *TINY, "--device", "cpu", "--out", folder]
    command += [word for name in ORDER for word in ("--impl", name)]
    done = subprocess.run(command, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    assert done.stdout == (folder / "bench.md").read_text()
    return folder


@pytest.fixture
def bench(monkeypatch: pytest.MonkeyPatch, threads: Callable[[int], None]) -> Callable[[str], ModuleType]:
    """bench(name) imports a module of bench/; the number of threads is restored afterwards."""
    monkeypatch.syspath_prepend(str(BENCH))
    return importlib.import_module


def records_of(folder: Path) -> dict[str, dict[str, Any]]:
    records = [json.loads(line) for line in (folder / "bench.jsonl").read_text().splitlines()]
    return {record["impl"]: record for record in records}


def test_records(out: Path) -> None:
    records = records_of(out)
    assert list(records) == ORDER
    for record in records.values():
        assert record["op"] == "vocab_topk"
        assert record["shape"] == SHAPE
        assert record["device"] == "cpu"
        assert 0 < record["min_ms"] <= record["q1_ms"] <= record["median_ms"] <= record["q3_ms"]
        assert record["rounds"] >= 3
        assert record["roofline_ms"] > 0
        assert record["machine"].keys() == {"cpu", "cores", "isa", "load"}
        assert record["commit"]
    for name in ("ours", "packed", "eager", "compiled", "rival"):
        assert records[name]["relative_error"] < 1e-4
    assert records["rescaled"]["threads"] == 1


@pytest.mark.skipif(sys.platform != "linux", reason="malloc is counted where it is glibc's")
def test_peak_memory_counts_the_logits_of_eager_and_the_results_of_all(out: Path) -> None:
    peaks = {name: record["peak_bytes"] for name, record in records_of(out).items()}
    assert LOGIT_BYTES < peaks["eager"] < 3 * LOGIT_BYTES
    assert 12 * 8 * 8 <= peaks["ours"] < LOGIT_BYTES / 2
    assert peaks["matmul"] < 12 * 8 * 8 + 4096  # into memory that is there
    assert peaks["rescaled"] is None


def test_page_has_a_plot_and_needs_no_other_file(out: Path) -> None:
    page = (out / "report.html").read_text()
    assert page.count("<svg") == page.count("</svg>") == 1
    for name in ("time, ms", "GFLOP/s", "peak memory, MB", "matmul", "limit", "B=8, L=16, D=32, V=2,000, k=8"):
        assert name in page, name
    assert "src=" not in page
    assert "<link" not in page


def test_report_is_made_again_from_the_records_alone(out: Path, bench: Any, tmp_path: Path) -> None:
    assert bench("run").main(["--report", str(out / "bench.jsonl"), "--out", str(tmp_path)]) == 0
    assert sorted(path.name for path in tmp_path.iterdir()) == ["bench.md", "report.html"]
    for path in tmp_path.iterdir():
        assert path.read_bytes() == (out / path.name).read_bytes()


def test_curves_are_drawn_where_one_size_changes(out: Path, bench: Any, tmp_path: Path) -> None:
    lines = [json.dumps({**records_of(out)["ours"], "shape": {**SHAPE, "L": length}}) for length in (4, 16, 64)]
    (tmp_path / "in.jsonl").write_text("\n".join(lines))
    assert bench("run").main(["--report", str(tmp_path / "in.jsonl"), "--out", str(tmp_path)]) == 0
    page = (tmp_path / "report.html").read_text()
    assert "by L, at B=8, D=32, V=2,000, k=8, float32, trained" in page
    assert page.count("<svg") == 1


@pytest.mark.parametrize(("factor", "verdict"), [(1.015, "within the noise"), (0.97, "slower"), (1.03, "faster")])
def test_compare(
    out: Path, bench: Any, tmp_path: Path, capsys: pytest.CaptureFixture[str], factor: float, verdict: str
) -> None:
    """Two runs whose times differ by the factor and spread by 2%; the old one lacks an implementation."""
    for name, by, skipped in (("new", 1, None), ("old", factor, "rival")):
        times = {"median_ms": 2.0 * by, "q1_ms": 1.98 * by, "q3_ms": 2.02 * by}
        records = [record | times for impl, record in records_of(out).items() if impl != skipped]
        (tmp_path / f"{name}.jsonl").write_text("\n".join(map(json.dumps, records)))
    files = ["--report", str(tmp_path / "new.jsonl"), "--compare", str(tmp_path / "old.jsonl"), "--out", str(tmp_path)]
    assert bench("run").main(files) == 0
    *compared, single = capsys.readouterr().out.partition("\n\nvocab_topk")[2].splitlines()
    assert len(compared) == len(ORDER) - 1
    assert all(line.endswith(f"{1 / factor:.3f}x  {verdict}") for line in compared)
    assert single == "only in the old run: 0, only in the new: 1"


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ("--device cuda:99", "--device: expected one of cpu"),
        ("--threads 0", "--threads: expected an integer >= 1, got 0"),
        ("--cpu-time --threads 2", "--cpu-time: expected --device cpu --threads 1, got cpu, 2"),
        ("--seconds 0", "--seconds: expected a number > 0, got 0.0"),
        ("--shape 1,2", "--shape: expected --op beside it, got none"),
        ("--op topk --shape 1,2", "--shape: expected B,V,k as positive integers, got 1,2"),
        ("--set limits --op search", "--set: expected one with --op search, limits has none"),
        ("--model splade-v3 --op topk", "--op: expected one of vocab_topk, vocab_topk_grad"),
        ("--model splade-v3 --shape 1", "--shape: expected --model or this, got both"),
        ("--impl fastest", "argument --impl: invalid choice: 'fastest'"),
        ("--sweep --op topk", "--sweep: expected --op vocab_pool or vocab_pool_grad, got topk"),
        ("--sweep --impl ours", "--impl: expected a run that times operators, got --sweep"),
        ("--compare absent.jsonl", "--compare: expected a file of JSON lines as make bench writes them"),
        (f"--report {__file__}", "--report: expected a file of JSON lines as make bench writes them"),
    ],
)
def test_a_bad_option_is_one_line(bench: Any, capsys: pytest.CaptureFixture[str], options: str, message: str) -> None:
    with pytest.raises(SystemExit) as stopped:
        bench("run").main(options.split())
    assert stopped.value.code == 2
    error = capsys.readouterr().err
    assert message in error
    assert error.count("\n") == 1


def test_cpu_time_is_what_this_process_has_used(bench: Any) -> None:
    clock = bench("timer").clock_of(torch.device("cpu"), cpu_time=True)
    assert clock.time_ms(lambda: time.sleep(0.2)) < 100
    assert clock.time_ms(lambda: [sum(range(1000)) for _ in range(2000)]) > 1
    record = bench("machine").environment(torch.device("cpu"), 1, True)
    assert "1 thread(s), CPU time" in bench("machine").describe({**record, "roofline": {"gflops": {}, "mem_gbps": 1.0}})


def test_a_model_names_the_cases_of_its_head(bench: Any) -> None:
    parse, models = bench("run")._parse, bench("cases").MODEL_SHAPES
    for name, sizes in models.items():
        cases = parse(["--model", name, "--dtype", "bfloat16", "--device", "cpu"]).cases
        assert [case.op for case in cases] == list(bench("cases").MODEL_OPS)
        assert all(case.dtype == "bfloat16" and sizes.items() <= case.sizes.items() for case in cases)
    (case,) = parse(["--model", "clip-vit-b32", "--op", "vocab_topk", "--device", "cpu"]).cases
    assert case.shape == (8, 49, 768, 49408, 256)


def test_the_same_through_pytest_benchmark(tmp_path: Path) -> None:
    """`pytest bench/`: the standard set, checked, then timed by the plugin, which writes a file to compare with."""
    pytest.importorskip("pytest_benchmark", reason="pip install 'stair-kernels[test]'")
    command = [sys.executable, "-m", "pytest", "-q", str(BENCH), "-k", "speed[topk-256 and trained and not untrained"]
    options = ["--benchmark-max-time=0.01", "--benchmark-min-rounds=1", f"--benchmark-json={tmp_path / 'out.json'}"]
    # beside other workers the plugin times nothing
    alone = {name: value for name, value in os.environ.items() if not name.startswith("PYTEST_XDIST")}
    done = subprocess.run([*command, *options], capture_output=True, text=True, cwd=BENCH.parent, env=alone)
    assert done.returncode == 0, done.stdout + done.stderr
    timed = {entry["name"]: entry for entry in json.loads((tmp_path / "out.json").read_text())["benchmarks"]}
    names = [f"test_speed[topk-256,30522,64-float32-trained-{name}]" for name in ("ours", "eager")]
    assert sorted(timed) == sorted(names)
    for entry in timed.values():
        assert entry["stats"]["median"] > 0
        assert entry["extra_info"]["relative_error"] < 1e-4


def test_a_record_without_a_field_is_refused(bench: Any, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (tmp_path / "old.jsonl").write_text('{"op": "topk"}\n')
    with pytest.raises(SystemExit):
        bench("run").main(["--compare", str(tmp_path / "old.jsonl")])
    assert "expected records with shape, dtype, inputs, impl" in capsys.readouterr().err


def test_a_wrong_result_is_not_timed(
    bench: Any, monkeypatch: pytest.MonkeyPatch, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    def wrong(dense: torch.Tensor, k: int) -> sk.SparseRows:
        rows = right(dense, k)
        return sk.SparseRows(rows.values * 1.001, rows.indices, None, rows.vocab_size)

    right = sk.topk
    monkeypatch.setattr(sk, "topk", wrong)
    assert bench("run").main(["--op", "topk", "--shape", "4,100,5", "--device", "cpu", "--out", str(tmp_path)]) == 1
    assert "topk: ours is wrong: relative error 1.00e-03; not timed" in capsys.readouterr().err
    assert list(tmp_path.iterdir()) == []


def test_on_the_cpu_few_cases_are_compiled_unless_it_is_asked_for(bench: Any) -> None:
    run, cases = bench("run"), bench("cases")
    compiled = [case for case in cases.STANDARD if "compiled" in run._by_default(case, torch.device("cpu"))]
    assert set(compiled) == set(cases.COMPILED)
    assert len(compiled) == 3
    first = cases.STANDARD[0]
    assert run._by_default(first, torch.device("cpu")) == [name for name in run.IMPLEMENTATIONS if name != "compiled"]
    assert run._by_default(first, torch.device("cuda")) == [name for name in run.IMPLEMENTATIONS if name != "rescaled"]


def test_what_a_device_lacks_is_asked_of_the_dispatcher(bench: Any) -> None:
    variants, cuda = bench("variants"), torch.device("cuda")
    assert variants.Variant(print, ("vocab_pool", "vocab_pool_backward", "matmul_nt")).lacks(cuda) is None
    assert variants.Variant(print, ("vocab_pool", "pack_vocab")).lacks(cuda) == "no CUDA kernel for pack_vocab"
    assert variants.Variant(print, on_host=True).lacks(cuda) == "it runs on the CPU only"
    assert variants.Variant(print, ("pack_vocab",), on_host=True).lacks(torch.device("cpu")) is None


def test_variants_take_turns(bench: Any) -> None:
    """Each starts some rounds; a clock that tells 1, 2, 3 .. milliseconds shows the order and the quartiles."""
    timer, order = bench("timer"), []

    def time_ms(run: Callable[[], Any]) -> float:
        run()
        return float(len(order))

    runs = {name: (lambda name=name: order.append(name)) for name in "ab"}
    timings = timer.interleaved(runs, SimpleNamespace(time_ms=time_ms), seconds=1e-9, min_rounds=3)
    assert "".join(order) == "ab" + "abbaab"
    assert timings["a"] == timer.Timing(median_ms=6, q1_ms=4.5, q3_ms=6.5, min_ms=3, rounds=3)


def test_device_clock_flushes_then_waits_then_times(bench: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    done: list[str] = []

    class Event:
        def __init__(self, enable_timing: bool) -> None:
            assert enable_timing

        def record(self) -> None:
            done.append("record")

        def synchronize(self) -> None:
            done.append("synchronize")

        def elapsed_time(self, end: Event) -> float:
            return 7.0 if end is not self else 0.0

    monkeypatch.setattr(torch.cuda, "Event", Event)
    monkeypatch.setattr(torch.cuda, "_sleep", lambda cycles: done.append("wait"))
    monkeypatch.setattr(torch.cuda, "get_device_properties", lambda device: SimpleNamespace(L2_cache_size=1 << 10))
    clock = bench("timer").DeviceClock(torch.device("cpu"))
    assert clock.time_ms(lambda: done.append("run")) == 7.0
    assert done == ["wait", "record", "run", "record", "synchronize"]
    assert clock._elsewhere.nbytes == 4 << 10


def test_limits_of_a_device_are_rates_of_the_best_run(bench: Any) -> None:
    def time_ms(run: Callable[[], Any]) -> float:
        run()
        return next(times_ms)

    times_ms = iter([3.0, 2.0, 4.0, 4.0, 4.0] * 4)
    clock = SimpleNamespace(time_ms=time_ms)
    limits = bench("roofline").measure_device(torch.device("cpu"), clock, matrix=32, copied_bytes=1000)
    assert limits.gflops == {name: pytest.approx(2 * 32**3 / 2e-3 / 1e9) for name in ("float32", "float16", "bfloat16")}
    assert limits.mem_gbps == pytest.approx(2 * 1000 / 2e-3 / 1e9)
