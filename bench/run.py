"""Times every operator beside its rivals on this machine.

    python bench/run.py                                        # the standard set, minutes on 2 cores
    python bench/run.py --device cuda                          # on the GPU; the default where torch sees one
    python bench/run.py --set limits --threads 1               # what the CPU kernels are held to
    python bench/run.py --set sizes --threads 1                # all kinds of sizes
    python bench/run.py --model splade-v3 --dtype bfloat16     # the head of a known model: bench/cases.py lists them
    python bench/run.py --set models                           # whole models, as published and after stair.accelerate
    python bench/run.py --op vocab_topk --shape 64,49,128,30522,64 --dtype bfloat16 --impl ours --threads 1
    python bench/run.py --sweep                                # searches the GPU kernels' tiles, prints what to paste
    python bench/run.py --compare out/bench/before.jsonl       # and says what became faster or slower
    python bench/run.py --report out/bench/bench.jsonl         # makes the table and the page again, times nothing

Prints a table, writes it to out/bench/bench.md, with plots to out/bench/report.html, and one JSON line a measurement
to out/bench/bench.jsonl. A result is compared with float32 PyTorch before it is timed; a wrong one ends the run with
exit code 1.
"""

from __future__ import annotations

import argparse
import importlib.util
import json
import os
import sys
from collections.abc import Sequence
from dataclasses import asdict, replace
from pathlib import Path
from typing import NoReturn

import page
import report
import torch
from cases import COMPILED, DIMENSIONS, INPUTS, INTERPRETED, MODEL_BATCH, MODEL_SHAPES, SETS, SWEPT, Case, of_model
from machine import environment
from memory import meter
from report import Record
from roofline import Roofline, measure_device, measure_host
from timer import Clock, clock_of, interleaved, on_threads
from variants import TOLERANCE, Variant, Work, WrongResultError
from work import prepare

ROOT = Path(__file__).resolve().parent.parent
BUILD = ROOT / "build" / "bench"
IMPLEMENTATIONS = ("ours", "packed", "positions", "eager", "compiled", "rival", "matmul", "rescaled")
UNCHECKED = ("matmul", "rescaled")  # does less than the operator; is ours, which has been checked


def main(arguments: Sequence[str] | None = None) -> int:
    options = _parse(arguments)
    if options.sweep:
        if options.device.type == "cpu":
            os.environ["TRITON_INTERPRET"] = "1"  # read when a kernel is defined
        import sweep

        return sweep.main(options.cases, options.device, options.seconds, options.out / "sweep.md")
    if options.report is None:
        try:
            records = _measured(options)
        except WrongResultError as error:
            print(error, file=sys.stderr)
            return 1
        if not records:
            print("nothing was timed", file=sys.stderr)
            return 1
        _write(options.out / "bench.jsonl", _lines(records))
    else:
        records = options.report
    table = report.markdown(records)
    _write(options.out / "bench.md", table)
    _write(options.out / "report.html", page.html(records))
    print(_lines(records) if options.json else table, end="")
    if options.compare is not None:
        print("\n" + report.comparison(options.compare, records), end="")
    return 0


def _measured(options: argparse.Namespace) -> list[Record]:
    """One record for each implementation of each case."""
    device, cases = options.device, options.cases
    torch.set_num_threads(options.threads)
    if device.type == "cuda":
        torch.cuda.set_device(device)
    run, limits = environment(device, options.threads, options.cpu_time), Roofline({}, 0.0)
    clock = clock_of(device, options.cpu_time)
    records: list[Record] = []
    with meter(device, options.threads, BUILD) as peaks_of:
        for number, case in enumerate(cases, 1):
            print(f"[{number}/{len(cases)}] {case.op} {case.sizes} {case.dtype} {case.inputs}", file=sys.stderr)
            work = _chosen(case, prepare(case, device), options)
            if not work.variants:
                continue
            errors = _checked(case, work)
            # Before every case: a machine that others use as well shows what it can do only now and then.
            limits = limits.best(_limits(clock, options))
            peaks = peaks_of(case, work)
            records += _records(case, work, clock, errors, peaks, options)
    for record in records:
        mem_bytes = record["read_bytes"] + record["result_bytes"]
        record["roofline_ms"] = limits.time_ms(record["dtype"], record["flops"], mem_bytes)
    return [{**run, "roofline": asdict(limits), **record} for record in records]


def _chosen(case: Case, work: Work, options: argparse.Namespace) -> Work:
    """The case with the implementations that were asked for and that the device has."""
    variants = dict(work.variants)
    if "ours" in variants:
        threads = _other_threads(options.threads)
        variants["rescaled"] = Variant(on_threads(variants["ours"].run, threads, options.threads), on_host=True)
    chosen = {}
    for name in options.impl or _by_default(case, options.device):
        if name in variants and (lack := variants[name].lacks(options.device)):
            print(f"{case.op}: {name} is left out: {lack}", file=sys.stderr)
        elif name in variants:
            chosen[name] = variants[name]
    return replace(work, variants=chosen)


def _by_default(case: Case, device: torch.device) -> list[str]:
    """What is timed where nobody says: all but what takes long to make, or is about the CPU's threads."""
    left_out = "rescaled" if device.type == "cuda" else "" if case in COMPILED else "compiled"
    return [name for name in IMPLEMENTATIONS if name != left_out]


def _checked(case: Case, work: Work) -> dict[str, float]:
    """The error of each implementation that is to be checked."""
    errors = {name: work.error(variant) for name, variant in work.variants.items() if name not in UNCHECKED}
    for name, error in errors.items():
        if not error <= work.tolerance(case.dtype) and is_judged(case, name):
            raise WrongResultError(f"{case.op}: {name} is wrong: relative error {error:.2e}; not timed")
    return errors


def _limits(clock: Clock, options: argparse.Namespace) -> Roofline:
    if options.device.type == "cuda":
        return measure_device(options.device, clock)
    return measure_host(options.threads, BUILD, min(0.2, options.seconds))


def _other_threads(threads: int) -> int:
    """What ours is timed on as well: one thread, or all cores when the run is on one."""
    return 1 if threads > 1 else os.cpu_count() or 1


def _records(
    case: Case,
    work: Work,
    clock: Clock,
    errors: dict[str, float],
    peaks: dict[str, int],
    options: argparse.Namespace,
) -> list[Record]:
    """One record for each implementation."""
    threads = {"rescaled": _other_threads(options.threads)}
    runs = {name: variant.run for name, variant in work.variants.items()}
    common = {"op": case.op, "shape": case.sizes, "dtype": case.dtype, "inputs": case.inputs}
    least = {"flops": work.flops, "read_bytes": work.read_bytes, "result_bytes": work.result_bytes}
    return [
        {
            **common,
            "impl": name,
            "threads": threads.get(name, options.threads),
            **asdict(timing),
            "peak_bytes": peaks.get(name),
            "relative_error": errors.get(name),
            **least,
        }
        for name, timing in interleaved(runs, clock, options.seconds).items()
    ]


def _lines(records: list[Record]) -> str:
    return "".join(json.dumps(record) + "\n" for record in records)


def _write(path: Path, text: str) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(text, encoding="utf-8")


def is_judged(case: Case, name: str) -> bool:
    if name in ("ours", "packed", "positions"):
        return True
    return case.dtype == "float32" and not (name == "rival" and case.op.endswith("_grad"))


class _Parser(argparse.ArgumentParser):
    """Says what is wrong in one line, without the usage."""

    def error(self, message: str) -> NoReturn:
        self.exit(2, f"{self.prog}: {message}\n")


def _parse(arguments: Sequence[str] | None) -> argparse.Namespace:
    parser = _Parser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--device", help="cpu, cuda or cuda:N; cuda where torch sees one")
    parser.add_argument("--set", choices=SETS, help="a group of cases: standard, with --sweep tiles")
    parser.add_argument("--op", choices=DIMENSIONS, help="only this operator")
    parser.add_argument("--impl", choices=IMPLEMENTATIONS, action="append", help="only this implementation; repeatable")
    shapes = "; ".join(f"{op}: {','.join(names)}" for op, names in DIMENSIONS.items())
    parser.add_argument("--shape", help=f"one case of these sizes, with --op. {shapes}")
    batch = ", ".join(f"{name}={size}" for name, size in MODEL_BATCH.items())
    parser.add_argument(
        "--model", choices=MODEL_SHAPES, help=f"cases of this model's head with {batch}; --op picks one"
    )
    parser.add_argument("--dtype", choices=TOLERANCE)
    parser.add_argument("--inputs", choices=INPUTS)
    parser.add_argument("--threads", type=int, default=os.cpu_count() or 1, help="of the CPU")
    parser.add_argument("--cpu-time", action="store_true", help="CPU time of one thread, on a machine that others use")
    parser.add_argument("--seconds", type=float, default=1.5, help="time given to each implementation of each case")
    parser.add_argument(
        "--sweep", action="store_true", help="search the GPU kernels' tiles instead; --op vocab_pool or vocab_pool_grad"
    )
    parser.add_argument("--json", action="store_true", help="print JSON lines instead of the table")
    parser.add_argument("--out", type=Path, default=ROOT / "out" / "bench")
    parser.add_argument("--compare", type=Path, metavar="OLD", help="the JSON lines of an earlier run")
    parser.add_argument("--report", type=Path, metavar="FILE", help="show these JSON lines instead of timing anything")
    options = parser.parse_args(arguments)
    try:
        _check(options)
    except ValueError as error:
        parser.error(str(error))
    return options


def _check(options: argparse.Namespace) -> None:
    """Replaces device, shape and files by what they name; ValueError names the option."""
    if options.threads < 1:
        raise ValueError(f"--threads: expected an integer >= 1, got {options.threads}")
    if not options.seconds > 0:
        raise ValueError(f"--seconds: expected a number > 0, got {options.seconds}")
    options.device = _device(options.device)
    if options.cpu_time and (options.device.type != "cpu" or options.threads != 1):
        raise ValueError(f"--cpu-time: expected --device cpu --threads 1, got {options.device}, {options.threads}")
    if options.sweep:
        _check_sweep(options)
    options.set = options.set or ("tiles" if options.sweep else "standard")
    options.cases = _cases(options)
    for name, fields in (("compare", report.COMPARED), ("report", report.SHOWN)):
        if path := getattr(options, name):
            try:
                setattr(options, name, report.read(path, fields))
            except ValueError as error:
                raise ValueError(f"--{name}: {error}") from error


def _check_sweep(options: argparse.Namespace) -> None:
    if options.op not in (None, *SWEPT):
        raise ValueError(f"--sweep: expected --op {' or '.join(SWEPT)}, got {options.op}")
    for name in ("impl", "json", "compare", "report"):
        if getattr(options, name):
            raise ValueError(f"--{name}: expected a run that times operators, got --sweep")
    if importlib.util.find_spec("triton") is None:
        raise ValueError("--sweep: expected Triton, which is not installed: pip install triton")
    if torch.version.hip:
        raise ValueError("--sweep: expected an NVIDIA GPU or cpu: measured tiles go by its architectures")


def _device(name: str | None) -> torch.device:
    count = torch.cuda.device_count()
    allowed = ["cpu", *(["cuda"] if count else []), *(f"cuda:{number}" for number in range(count))]
    name = name or ("cuda" if count else "cpu")
    if name not in allowed:
        raise ValueError(f"--device: expected one of {', '.join(allowed)}, got {name}")
    return torch.device("cuda:0" if name == "cuda" else name)


def _cases(options: argparse.Namespace) -> list[Case]:
    """The cases of the set that fit the options, or the one case that --op and --shape describe."""
    if options.model:
        if options.shape or options.sweep:
            raise ValueError(f"--{'shape' if options.shape else 'sweep'}: expected --model or this, got both")
        return of_model(options.model, options.op, options.dtype or "float32", options.inputs or "trained")
    if options.shape:
        return [Case(options.op, _shape(options), options.dtype or "float32", options.inputs or "trained")]
    if options.sweep and options.device.type == "cpu":
        return [
            replace(case, dtype=options.dtype or case.dtype) for case in INTERPRETED if options.op in (None, case.op)
        ]
    wanted = {name: value for name in ("op", "dtype", "inputs") if (value := getattr(options, name))}
    fitting = [
        case
        for case in SETS[options.set]
        if all(value == getattr(case, name) for name, value in wanted.items())
        and not (options.sweep and case.op not in SWEPT)
    ]
    if not fitting:
        asked = " ".join(f"--{name} {value}" for name, value in wanted.items())
        raise ValueError(f"--set: expected one with {asked}, {options.set} has none; --shape makes a case")
    return fitting


def _shape(options: argparse.Namespace) -> tuple[int, ...]:
    if options.op is None:
        raise ValueError("--shape: expected --op beside it, got none")
    names = DIMENSIONS[options.op]
    sizes = options.shape.split(",")
    if len(sizes) != len(names) or not all(size.isdecimal() and int(size) > 0 for size in sizes):
        raise ValueError(f"--shape: expected {','.join(names)} as positive integers, got {options.shape}")
    return tuple(int(size) for size in sizes)


if __name__ == "__main__":
    sys.exit(main())
