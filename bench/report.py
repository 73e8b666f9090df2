"""Records of a run: read from their JSON lines, shown as a table in markdown, compared with those of another run."""

from __future__ import annotations

import json
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Any

from machine import describe

Record = dict[str, Any]
CASE = ("op", "shape", "dtype", "inputs")
COMPARED = (*CASE, "impl", "threads", "median_ms", "q1_ms", "q3_ms")
SHOWN = (*COMPARED, "peak_bytes", "flops", "result_bytes", "roofline_ms", "machine", "roofline", "versions", "commit")

TEXTS = ("operator", "shape", "dtype", "input")
TIMES = ("ours", "packed", "positions", "eager", "compiled")
RIVALS = ("eager", "compiled", "rival", "matmul")
MEMORY = ("ours", "eager")
NUMBERS = ("ours, ms", *TIMES[1:], *(f"{name}/ours" for name in RIVALS), "limit/ours", "scaling")
MEGABYTES = tuple(f"{name}, MB" for name in MEMORY)


def read(path: Path, fields: Iterable[str]) -> list[Record]:
    """The records of a file of JSON lines; ValueError in one line when they are not, or lack a field."""
    try:
        records = [json.loads(line) for line in path.read_text(encoding="utf-8").splitlines() if line.strip()]
    except (OSError, UnicodeDecodeError, json.JSONDecodeError) as error:
        raise ValueError(f"expected a file of JSON lines as make bench writes them, got {path}: {error}") from error
    for number, record in enumerate(records, 1):
        lacking = [field for field in fields if not isinstance(record, dict) or field not in record]
        if lacking:
            raise ValueError(f"expected records with {', '.join(lacking)}, line {number} of {path} has none")
    if not records:
        raise ValueError(f"expected records, {path} has none")
    return records


def shape_of(record: Record) -> str:
    return ", ".join(f"{name}={size:,}" for name, size in record["shape"].items())


def by_case(records: Iterable[Record]) -> list[dict[str, Record]]:
    """For each case, its records by implementation."""
    cases: dict[str, dict[str, Record]] = {}
    for record in records:
        cases.setdefault(json.dumps([record[name] for name in CASE]), {})[record["impl"]] = record
    return list(cases.values())


def rows(records: Iterable[Record]) -> list[list[str]]:
    """The table's head and one row a case; `limit` is the roofline's time for the unavoidable work, `scaling` the time
    on one thread over that on several. A column without a number is left out."""
    table = [[*TEXTS, *NUMBERS, *MEGABYTES]]
    for by_impl in by_case(records):
        case = next(iter(by_impl.values()))
        times = {impl: record["median_ms"] for impl, record in by_impl.items()}
        ours = times.get("ours")
        cells = [case["op"], shape_of(case), case["dtype"], case["inputs"]]
        cells += [_ms(times.get(impl)) for impl in TIMES]
        cells += [_ratio(times.get(impl), ours) for impl in RIVALS]
        cells.append(f"{by_impl['ours']['roofline_ms'] / ours:.0%}" if ours else "")
        cells.append(_scaling(by_impl))
        cells += [_megabytes(by_impl[impl]["peak_bytes"]) if impl in by_impl else "" for impl in MEMORY]
        table.append(cells)
    filled = [any(row[column] for row in table[1:]) for column in range(len(table[0]))]
    return [[cell for cell, kept in zip(row, filled) if kept] for row in table]


def markdown(records: Sequence[Record]) -> str:
    """The table and the line under it."""
    head, *body = rows(records)
    ruler = ["---" if name in TEXTS else "---:" for name in head]
    lines = ["| " + " | ".join(cells) + " |" for cells in (head, ruler, *body)]
    return "\n".join(lines) + f"\n\n{describe(records[0])}\n"


def comparison(old: Sequence[Record], new: Sequence[Record]) -> str:
    """Old and new medians of what both runs timed. `faster`, `slower`: the middle halves of the two runs' times,
    between their first and third quartiles, do not overlap."""
    before, now = ({_identity(record): record for record in records} for records in (old, new))
    lines = []
    for key, record in now.items():
        if key not in before:
            continue
        ratio = record["median_ms"] / before[key]["median_ms"]
        apart = record["q1_ms"] > before[key]["q3_ms"] or record["q3_ms"] < before[key]["q1_ms"]
        verdict = ("slower" if ratio > 1 else "faster") if apart else "within the noise"
        name = f"{record['op']} {shape_of(record)} {record['dtype']} {record['inputs']}"
        medians = f"{_ms(before[key]['median_ms']):>8} -> {_ms(record['median_ms']):>8} ms"
        lines.append(f"{name:<70} {record['impl']:<9} {medians} {ratio:>6.3f}x  {verdict}")
    single = (
        f"only in the old run: {len(before.keys() - now.keys())}, only in the new: {len(now.keys() - before.keys())}"
    )
    return "\n".join([*lines, single]) + "\n"


def _identity(record: Record) -> str:
    return json.dumps([record[name] for name in (*CASE, "impl", "threads")])


def _scaling(by_impl: dict[str, Record]) -> str:
    """How many times faster ours is on the more threads of `ours` and `rescaled`."""
    if not {"ours", "rescaled"} <= by_impl.keys():
        return ""
    fewer, more = sorted((by_impl[impl] for impl in ("ours", "rescaled")), key=lambda record: record["threads"])
    return _ratio(fewer["median_ms"], more["median_ms"])


def _ratio(value: float | None, ours: float | None) -> str:
    return "" if value is None or ours is None else f"{value / ours:.3g}x"


def _ms(value: float | None) -> str:
    return "" if value is None else f"{value:.3g}" if value < 100 else f"{value:.0f}"


def _megabytes(value: int | None) -> str:
    return "" if value is None else f"{value / 1e6:.3g}" if value < 100e6 else f"{value / 1e6:.0f}"
