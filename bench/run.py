"""Times every operator beside its rivals on this machine.

    python bench/run.py                                        # the standard set, about 5 minutes on 2 cores
    python bench/run.py --set limits --threads 1               # what the CPU kernels are held to
    python bench/run.py --set sweep --threads 1                # all kinds of sizes
    python bench/run.py --op vocab_topk --shape 64,49,128,30522,64 --dtype bfloat16 --impl ours --threads 1

Prints a table, writes it to out/bench/bench.md, and one JSON line a measurement to out/bench/bench.jsonl. A result is
compared with float32 PyTorch before it is timed; a wrong one ends the run with exit code 1.
"""

from __future__ import annotations

import argparse
import json
import os
import sys
from collections.abc import Sequence
from dataclasses import asdict, replace
from pathlib import Path
from typing import Any

import report
import roofline
import torch
from cases import DIMENSIONS, INPUTS, SETS, Case
from timer import interleaved, on_threads
from work import Work, prepare

ROOT = Path(__file__).resolve().parent.parent
IMPLEMENTATIONS = ("ours", "packed", "eager", "rival", "matmul", "rescaled")
UNCHECKED = ("matmul", "rescaled")  # does less than the operator; is ours, which has been checked
# Of the largest true value. Half precision rounds the gradients once; eager PyTorch rounds its logits as well, so that
# another position may win and take the whole gradient. So does the activation of the logits before their maximum, which
# makes ties. These errors are recorded, not judged.
TOLERANCE = {"float32": 1e-4, "bfloat16": 1e-2, "float16": 2e-3}


def main(arguments: Sequence[str] | None = None) -> int:
    options = _parse(arguments)
    torch.set_num_threads(options.threads)
    run = report.environment(options.threads)
    cases = _cases(options)
    limits = roofline.Roofline({}, 0.0)
    records: list[dict[str, Any]] = []
    for number, case in enumerate(cases, 1):
        print(f"[{number}/{len(cases)}] {case.op} {case.sizes} {case.dtype} {case.inputs}", file=sys.stderr)
        work = prepare(case)
        rescaled = on_threads(work.variants["ours"], _other_threads(options.threads), options.threads)
        variants = {**work.variants, "rescaled": rescaled}
        work = replace(work, variants={name: variants[name] for name in options.impl if name in variants})
        errors = {name: _error(work, name) for name in work.variants if name not in UNCHECKED}
        for name, error in errors.items():
            if not error <= TOLERANCE[case.dtype] and _is_judged(case, name):
                print(f"{case.op}: {name} is wrong: relative error {error:.2e}; not timed", file=sys.stderr)
                return 1
        # Before every case: a machine that others use as well shows what it can do only now and then.
        limits = limits.best(roofline.measure(options.threads, ROOT / "build" / "bench", min(0.2, options.seconds)))
        records += _measure(case, work, errors, options)
    for record in records:
        record["roofline_ms"] = limits.time_ms(record["dtype"], record["flops"], record["mem_bytes"])
    _write(records, {**run, "roofline": asdict(limits)}, options.out, options.json)
    return 0


def _other_threads(threads: int) -> int:
    """What ours is timed on as well: one thread, or all cores when the run is on one."""
    return 1 if threads > 1 else os.cpu_count() or 1


def _measure(case: Case, work: Work, errors: dict[str, float], options: argparse.Namespace) -> list[dict[str, Any]]:
    """One record for each implementation."""
    common = {"op": case.op, "shape": case.sizes, "dtype": case.dtype, "inputs": case.inputs}
    least = {"flops": work.flops, "mem_bytes": work.mem_bytes}
    threads = {"rescaled": _other_threads(options.threads)}
    return [
        {
            **common,
            "impl": name,
            "threads": threads.get(name, options.threads),
            **asdict(timing),
            "relative_error": errors.get(name),
            **least,
        }
        for name, timing in interleaved(work.variants, options.seconds).items()
    ]


def _write(records: list[dict[str, Any]], run: dict[str, Any], folder: Path, as_json: bool) -> None:
    lines = "".join(json.dumps({**run, **record}) + "\n" for record in records)
    text = f"{report.table(records)}\n\n{report.describe(run)}\n"
    folder.mkdir(parents=True, exist_ok=True)
    (folder / "bench.jsonl").write_text(lines, encoding="utf-8")
    (folder / "bench.md").write_text(text, encoding="utf-8")
    print(lines if as_json else text, end="")


def _is_judged(case: Case, name: str) -> bool:
    if name in ("ours", "packed"):
        return True
    return case.dtype == "float32" and not (name == "rival" and case.op.endswith("_grad"))


def _error(work: Work, name: str) -> float:
    """The largest |got - truth| over a result's tensors, each in units of its largest true value."""
    worst = 0.0
    for got, truth in zip(work.read(work.variants[name]()), work.truth, strict=True):
        scale = float(truth.abs().max()) if truth.numel() else 1.0
        error = float((got.float() - truth).abs().max()) if truth.numel() else 0.0
        worst = max(worst, error / max(scale, 1e-30)) if error == error else float("nan")
    return worst


def _cases(options: argparse.Namespace) -> list[Case]:
    """The cases of the set that fit the options, or the one case that --op and --shape describe."""
    if options.shape:
        return [Case(options.op, options.shape, options.dtype or "float32", options.inputs or "trained")]
    wanted = {"op": options.op, "dtype": options.dtype, "inputs": options.inputs}
    return [
        case
        for case in SETS[options.set]
        if all(value in (None, getattr(case, name)) for name, value in wanted.items())
    ]


def _parse(arguments: Sequence[str] | None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--set", choices=SETS, default="standard", help="a group of cases")
    parser.add_argument("--op", choices=DIMENSIONS, help="only this operator")
    parser.add_argument("--impl", choices=IMPLEMENTATIONS, action="append", help="only this implementation; repeatable")
    shapes = "; ".join(f"{op}: {','.join(names)}" for op, names in DIMENSIONS.items())
    parser.add_argument("--shape", help=f"one case of these sizes, with --op. {shapes}")
    parser.add_argument("--dtype", choices=TOLERANCE)
    parser.add_argument("--inputs", choices=INPUTS)
    parser.add_argument("--threads", type=int, default=os.cpu_count() or 1)
    parser.add_argument("--seconds", type=float, default=1.5, help="time given to each implementation of each case")
    parser.add_argument("--json", action="store_true", help="print JSON lines instead of the table")
    parser.add_argument("--out", type=Path, default=ROOT / "out" / "bench")
    options = parser.parse_args(arguments)
    options.impl = options.impl or IMPLEMENTATIONS
    if options.threads < 1:
        parser.error(f"--threads: expected an integer >= 1, got {options.threads}")
    if options.shape:
        options.shape = _shape(parser, options)
    return options


def _shape(parser: argparse.ArgumentParser, options: argparse.Namespace) -> tuple[int, ...]:
    if options.op is None:
        parser.error("--shape: expected --op beside it, got none")
    names = DIMENSIONS[options.op]
    sizes = options.shape.split(",")
    if len(sizes) != len(names) or not all(size.isdecimal() and int(size) > 0 for size in sizes):
        parser.error(f"--shape: expected {','.join(names)} as positive integers, got {options.shape}")
    return tuple(int(size) for size in sizes)


if __name__ == "__main__":
    sys.exit(main())
