"""The README's plot, docs/images/speed.svg, from the standard set's table in docs/benchmarks.md.

python bench/speed_plot.py
"""

from __future__ import annotations

import itertools
from pathlib import Path

import matplotlib
from matplotlib.backends.backend_svg import FigureCanvasSVG
from matplotlib.figure import Figure
from matplotlib.ticker import FuncFormatter, NullFormatter
from page import RC, STYLES
from stair.files import replacing

ROOT = Path(__file__).resolve().parent.parent
TABLE, PLOT = ROOT / "docs" / "benchmarks.md", ROOT / "docs" / "images" / "speed.svg"
MARKS = {
    "matmul": "the bare matrix product (search, sparse_dot: SciPy's or a dense one)",
    "rival": "PyTorch as published (sparse_dot: SciPy)",
    "eager": "PyTorch in its better order (search: SciPy); its number",
}


def cases() -> list[dict[str, str]]:
    """The rows of the standard set's table, by column."""
    lines = TABLE.read_text(encoding="utf-8").partition("## The standard set\n")[2].lstrip().splitlines()
    head, _, *body = ([cell.strip() for cell in line.strip().strip("|").split("|")] for line in _table(lines))
    return [dict(zip(head, row)) for row in body]


def _table(lines: list[str]) -> list[str]:
    return list(itertools.takewhile(lambda line: line.startswith("|"), lines))


def draw(rows: list[dict[str, str]]) -> Figure:
    """A row a case: the others' times over ours, and the least possible time."""
    figure = Figure(figsize=(10.5, 0.6 + 0.33 * len(rows)), layout="constrained")
    FigureCanvasSVG(figure)
    axis = figure.subplots()
    axis.axvline(1, color=STYLES["ours"]["color"], linewidth=2.5, label="ours")
    limits = [float(row["limit/ours"].rstrip("%")) / 100 for row in rows]
    axis.plot(limits, range(len(rows)), "|", color="black", ms=13, mew=1.5, label="limit of the machine")
    for name, label in MARKS.items():
        found = [(float(row[f"{name}/ours"].rstrip("x")), at) for at, row in enumerate(rows) if row[f"{name}/ours"]]
        axis.plot(*zip(*found), **STYLES[name], linestyle="", label=label)
    for at, row in enumerate(rows):
        most = max(float(row[f"{name}/ours"].rstrip("x") or 1) for name in MARKS)
        axis.annotate(row["eager/ours"], (most, at), (9, 0), textcoords="offset points", va="center")
    axis.set_yticks(
        range(len(rows)), [f"{row['operator']}, {row['shape']}, {row['dtype']}, {row['input']}" for row in rows]
    )
    axis.set(xscale="log", xlim=(0.015, 400), ylim=(len(rows) - 0.5, -0.5), xlabel="time / time of ours")
    axis.xaxis.set_major_formatter(FuncFormatter(lambda value, _: f"{value:g}"))
    axis.xaxis.set_minor_formatter(NullFormatter())
    figure.legend(loc="outside lower center", ncols=3, frameon=False)
    return figure


def main() -> None:
    with matplotlib.rc_context(RC), replacing(PLOT) as stream:
        draw(cases()).savefig(stream, format="svg", metadata={"Date": None})


if __name__ == "__main__":
    main()
