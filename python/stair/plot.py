"""The training curves as inline SVG that follows the page's colours, light or dark."""

from __future__ import annotations

import io
import re
from collections.abc import Sequence
from typing import Any

from stair.losses import Stage

INK = "#010203"  # becomes currentColor
SERIES = {"#a00001": "c1", "#a00002": "c2", "#a00003": "c3"}  # become the page's classes of that name
ROSE, BLUE, SAND = SERIES


def training_curves(
    curve: Sequence[dict[str, Any]],  # one a logged step: "step", "loss", in stage 2 "text_active" and "image_active"
    baseline: Sequence[dict[str, Any]] = (),
) -> str:
    """Two panels over the steps: the loss (and the baseline's), and the active terms of pictures and texts."""
    from matplotlib.backends.backend_svg import FigureCanvasSVG
    from matplotlib.figure import Figure
    from matplotlib.ticker import FormatStrFormatter, LogLocator, MaxNLocator, NullFormatter, NullLocator

    figure = Figure(figsize=(6.4, 5.2), facecolor="none", layout="constrained")
    FigureCanvasSVG(figure)
    upper, lower = figure.subplots(2, 1, sharex=True)
    _line(upper, curve, "loss", ROSE, "STAIR")
    _line(upper, baseline, "loss", SAND, "dense CLIP")
    upper.set_title("loss", loc="left", color=INK, fontsize=11)
    _line(lower, curve, "image_active", ROSE, "a picture")
    _line(lower, curve, "text_active", BLUE, "a text")
    lower.set_title("active terms", loc="left", color=INK, fontsize=11)
    lower.set_xlabel("step")
    lower.xaxis.set_major_locator(MaxNLocator(integer=True))
    joint = next((point["step"] for point in curve if point.get("stage") == Stage.JOINT), None)
    for axes in (upper, lower):
        axes.set_yscale("log")
        axes.yaxis.set_major_locator(LogLocator(subs=(1, 2, 5)))
        axes.yaxis.set_major_formatter(FormatStrFormatter("%g"))
        axes.yaxis.set_minor_formatter(NullFormatter())
        axes.yaxis.set_minor_locator(NullLocator())
        _style(axes)
        if joint:
            axes.axvline(joint, color=INK, linewidth=0.8, linestyle=(0, (2, 3)), alpha=0.6)
    if joint:
        upper.annotate(
            "contrastive from here", (joint, 1), xycoords=("data", "axes fraction"), xytext=(5, -9),
            textcoords="offset points", fontsize=9, color=INK,
        )  # fmt: skip
    return _inline(figure)


def _line(axes: Any, curve: Sequence[dict[str, Any]], key: str, color: str, label: str) -> None:
    points = [(point["step"], point[key]) for point in curve if point.get(key) is not None]
    if points:
        axes.plot(*zip(*points), color=color, linewidth=1.8, label=label)


def _style(axes: Any) -> None:
    for side in ("top", "right"):
        axes.spines[side].set_visible(False)
    for side in ("left", "bottom"):
        axes.spines[side].set_color(INK)
        axes.spines[side].set_linewidth(0.6)
    axes.set_facecolor("none")
    axes.tick_params(colors=INK, which="both", width=0.6, labelsize=10)
    axes.grid(axis="y", color=INK, alpha=0.16, linewidth=0.6)
    axes.xaxis.label.set_color(INK)
    axes.xaxis.label.set_fontsize(10)
    if axes.lines:
        axes.legend(frameon=False, labelcolor=INK, fontsize=10, loc="best")


def _inline(figure: Any) -> str:
    """The figure as an <svg> element: text stays text, fixed sizes and metadata go, colours become the page's."""
    import matplotlib

    stream = io.StringIO()
    with matplotlib.rc_context({"svg.fonttype": "none", "svg.hashsalt": "stair", "font.family": "sans-serif"}):
        figure.savefig(stream, format="svg", transparent=True, metadata={"Date": None})
    svg = stream.getvalue()
    svg = svg[svg.index("<svg") :]
    svg = re.sub(r"<(metadata|style).*?</\1>", "", svg, flags=re.DOTALL)
    svg = re.sub(r'(<svg[^>]*?) width="[^"]*"', r"\1", svg, count=1)
    svg = re.sub(r'(<svg[^>]*?) height="[^"]*"', r"\1", svg, count=1)
    svg = re.sub(r"font-family: [^;\"]*", "font-family: system-ui, sans-serif", svg)
    for color, name in SERIES.items():
        svg = svg.replace(color, f"var(--{name})")
    return svg.replace(INK, "currentColor")
