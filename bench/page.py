"""A run as one HTML page without other files: plots of time, throughput and memory, and the table."""

from __future__ import annotations

import io
import math
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from html import escape
from typing import Any

import matplotlib
from machine import describe
from matplotlib.axes import Axes
from matplotlib.axis import Axis
from matplotlib.figure import Figure
from matplotlib.ticker import FuncFormatter, LogLocator, NullFormatter, NullLocator
from report import TEXTS, Record, by_case, rows, shape_of

# Okabe and Ito's colours, told apart by the colour-blind; a marker of its own each, for print without colour.
STYLES: dict[str, dict[str, Any]] = {
    "matmul": {"color": "#009E73", "marker": "P", "markerfacecolor": "white"},  # hollow: less work than the operator
    "rival": {"color": "#E69F00", "marker": "v"},
    "compiled": {"color": "#CC79A7", "marker": "D"},
    "eager": {"color": "#D55E00", "marker": "^"},
    "packed": {"color": "#56B4E9", "marker": "s"},
    "positions": {"color": "#56B4E9", "marker": "s"},
    "ours": {"color": "#0072B2", "marker": "o", "linewidth": 2.5, "markersize": 7},  # drawn last, on top
}
RC: dict[Any, Any] = {
    "font.size": 9,
    "axes.titlesize": 9,
    "axes.titlelocation": "left",
    "axes.grid": True,
    "axes.spines.top": False,
    "axes.spines.right": False,
    "grid.color": "#dddddd",
    "lines.linewidth": 1.3,
    "lines.markersize": 5.5,
    "svg.fonttype": "none",  # text stays text
    "svg.hashsalt": "stair_kernels",  # the same records give the same bytes
}
CURVE_SIZES = 3  # a curve has at least that many points
WIDTH = 11.0  # inches

Number = Callable[[Record], float | None]
PANELS: dict[str, tuple[Number, Number]] = {  # title -> of an implementation, of the limit
    "time, ms": (lambda record: record["median_ms"], lambda record: record["roofline_ms"]),
    "GFLOP/s": (
        lambda record: record["flops"] / record["median_ms"] / 1e6,
        lambda record: record["flops"] / record["roofline_ms"] / 1e6,
    ),
    "peak memory, MB": (
        lambda record: None if record["peak_bytes"] is None else record["peak_bytes"] / 1e6,
        lambda record: record["result_bytes"] / 1e6,
    ),
}

EXPLANATION = """
Medians of interleaved runs, each result checked against float32 PyTorch first. <b>ours</b>: the public call;
<b>packed</b>: ours with pack_vocab; <b>positions</b>: ours with save="positions"; <b>eager</b>: PyTorch (SciPy for
the search); <b>compiled</b>: torch.compile of the eager head; <b>rival</b>: the published order in PyTorch, or
SciPy's product; <b>matmul</b>: the matrix product alone, less work than the operator, into memory that is there
already. GFLOP/s count the arithmetic that nobody can avoid, memory the peak beyond the inputs, results included.
<b>limit</b>: the time that this arithmetic or the compulsory bytes take at the measured limits of the machine, and
the memory of the results. All scales are logarithmic.
"""

STYLE = """
body { font: 15px/1.45 "DejaVu Sans", Helvetica, Arial, sans-serif; color: #111; background: #fff;
       max-width: 1120px; margin: 2em auto; padding: 0 1em; }
h1 { font-size: 1.5em; } h2 { font-size: 1.2em; margin: 2em 0 .3em; border-bottom: 1px solid #bbb; }
figure { margin: 1em 0; break-inside: avoid; } figcaption { font-weight: bold; font-size: .9em; }
svg { width: 100%; height: auto; } .wide { overflow-x: auto; }
table { border-collapse: collapse; font-size: .68em; white-space: nowrap; }
th, td { padding: .3em .45em; border-bottom: 1px solid #ddd; text-align: left; }
td.number, th.number { text-align: right; font-variant-numeric: tabular-nums; }
.notes { font-size: .85em; color: #333; }
@media print { body { max-width: none; margin: 0; font-size: 11px; } .wide { overflow: visible; }
               table { font-size: .58em; } }
"""


@dataclass(frozen=True)
class Curve:
    """Cases that differ in one size."""

    name: str  # of that size
    fixed: str  # what they have in common
    cases: list[dict[str, Record]]  # ascending


def html(records: Sequence[Record]) -> str:
    with matplotlib.rc_context(RC):
        plots = "\n".join(_plots(records))
    head, *body = rows(records)
    return (
        '<!DOCTYPE html>\n<html lang="en"><head><meta charset="utf-8"><title>stair_kernels: benchmarks</title>'
        f"<style>{STYLE}</style></head><body>\n<h1>stair_kernels: benchmarks</h1>\n"
        f'<p class="notes">{escape(describe(records[0]))}</p>\n<p class="notes">{EXPLANATION}</p>\n{plots}\n'
        f'<h2>Table</h2>\n<div class="wide">{_table(head, body)}</div>\n</body></html>\n'
    )


def _plots(records: Sequence[Record]) -> Iterator[str]:
    """For each operator the curves, then the cases that lie on none."""
    by_op: dict[str, list[dict[str, Record]]] = {}
    for by_impl in by_case(records):
        if case := {impl: record for impl, record in by_impl.items() if impl in STYLES}:  # `rescaled`: other threads
            by_op.setdefault(_any(case)["op"], []).append(case)
    for op, cases in by_op.items():
        yield f"<h2>{escape(op)}</h2>"
        curves = _curves(cases)
        for curve in curves:
            yield _svg(_draw_curve(curve), f"by {curve.name}, at {curve.fixed}")
        others = [case for case in cases if not any(case in curve.cases for curve in curves)]
        if others:
            yield _svg(_draw_cases(others), "other cases" if curves else "by case")


def _any(case: dict[str, Record]) -> Record:
    return next(iter(case.values()))


def _curves(cases: list[dict[str, Record]]) -> list[Curve]:
    """A curve for each size that changes while the others stand still; a case may lie on several."""
    groups: dict[tuple[str, str], list[dict[str, Record]]] = {}
    for case in cases:
        record = _any(case)
        for name in record["shape"]:
            fixed = shape_of({"shape": {key: size for key, size in record["shape"].items() if key != name}})
            groups.setdefault((name, f"{fixed}, {record['dtype']}, {record['inputs']}"), []).append(case)
    return [
        Curve(name, fixed, sorted(group, key=lambda case: _any(case)["shape"][name]))
        for (name, fixed), group in groups.items()
        if len(group) >= CURVE_SIZES
    ]


def _draw_curve(curve: Curve) -> Figure:
    figure = Figure(figsize=(WIDTH, 3.3), layout="constrained")
    axes = figure.subplots(1, len(PANELS))
    sizes = [_any(case)["shape"][curve.name] for case in curve.cases]
    for axis, (title, (value_of, limit_of)) in zip(axes, PANELS.items()):
        for impl, look in STYLES.items():
            values = [value_of(case[impl]) if impl in case else None for case in curve.cases]
            if points := [(size, value) for size, value in zip(sizes, values) if value]:
                axis.plot(*zip(*points), **look, label=impl)
        limits = [limit_of(_any(case)) for case in curve.cases]
        axis.plot(sizes, limits, color="black", linestyle="--", linewidth=1, label="limit")
        axis.set(title=title, xlabel=curve.name, xscale="log", yscale="log")
        axis.set_xticks(sizes, _apart(sizes))
        axis.xaxis.set_minor_locator(NullLocator())
        _number(axis.yaxis)
    _legend(figure, axes)
    return figure


def _draw_cases(cases: list[dict[str, Record]]) -> Figure:
    """A row a case, a mark an implementation."""
    figure = Figure(figsize=(WIDTH, 1.2 + 0.42 * len(cases)), layout="constrained")
    axes = figure.subplots(1, len(PANELS), sharey=True)
    for axis, (title, (value_of, limit_of)) in zip(axes, PANELS.items()):
        for impl, look in STYLES.items():
            values = [value_of(case[impl]) if impl in case else None for case in cases]
            if points := [(value, row) for row, value in enumerate(values) if value]:
                axis.plot(*zip(*points), **look | {"linestyle": ""}, label=impl)
        limits = [limit_of(_any(case)) for case in cases]
        axis.plot(limits, range(len(cases)), color="black", marker="|", ms=14, mew=1.5, linestyle="", label="limit")
        axis.set(title=title, xscale="log", ylim=(len(cases) - 0.5, -0.5))
        axis.set_yticks(range(len(cases)), [_label(_any(case)) for case in cases])
        _number(axis.xaxis)
    _legend(figure, axes)
    return figure


def _label(record: Record) -> str:
    return f"{shape_of(record)}\n{record['dtype']}, {record['inputs']}"


def _apart(sizes: list[int]) -> list[str]:
    """The sizes as labels, without those that would run into the one before."""
    labels: list[str] = []
    last, width = 0, math.log(sizes[-1] / sizes[0])
    for size in sizes:
        label = f"{size:,}"
        fits = not labels or math.log(size / last) >= 0.027 * len(label) * width  # of the axis, a character
        labels.append(label if fits else "")
        last = size if fits else last
    return labels


def _number(axis: Axis) -> None:
    """Plain numbers on a logarithmic axis: at 1, 2 and 5 where it spans few decades."""
    low, high = sorted(axis.get_view_interval())
    steps = (1.0, 2.0, 5.0) if high < 30 * low else (1.0, 3.0) if high < 300 * low else (1.0,)
    axis.set_major_locator(LogLocator(subs=steps))
    axis.set_major_formatter(FuncFormatter(lambda value, _: f"{value:,g}"))
    axis.set_minor_formatter(NullFormatter())


def _legend(figure: Figure, axes: Sequence[Axes]) -> None:
    handles = {label: handle for axis in axes for handle, label in zip(*axis.get_legend_handles_labels())}
    names = [name for name in (*reversed(STYLES), "limit") if name in handles]
    marks = [handles[name] for name in names]
    figure.legend(marks, names, loc="outside upper left", ncols=len(names), frameon=False)


def _svg(figure: Figure, caption: str) -> str:
    stream = io.StringIO()
    figure.savefig(stream, format="svg", metadata={"Date": None})
    image = stream.getvalue()
    return f"<figure><figcaption>{escape(caption)}</figcaption>\n{image[image.index('<svg') :]}</figure>"


def _table(head: list[str], body: list[list[str]]) -> str:
    def row(tag: str, cells: list[str]) -> str:
        kinds = ["" if name in TEXTS else ' class="number"' for name in head]
        return "<tr>" + "".join(f"<{tag}{kind}>{escape(cell)}</{tag}>" for kind, cell in zip(kinds, cells)) + "</tr>"

    return "<table>\n" + "\n".join([row("th", head), *(row("td", cells) for cells in body)]) + "\n</table>"
