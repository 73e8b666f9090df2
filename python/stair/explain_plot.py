"""explanation.png: an explanation as one picture, on white, to paste into a text."""

from __future__ import annotations

import io
import textwrap
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from stair.explain import Explanation, SharedTerm, Term, heat

if TYPE_CHECKING:
    from PIL.Image import Image

INK, SOFT, ACCENT, BLUE = "#1d1b1a", "#66605b", "#d2512a", "#2f6f8f"
MAPS, BARS = 5, 8
WIDTH, DOTS = 9.6, 110


def draw(result: Explanation, image: Image | None) -> bytes:
    """PNG: the picture with the places that the score came from, the strongest terms, and a map of each.

    `image` is square, as the model sees it; without one there are bars only.
    """
    import matplotlib

    from stair.explain_page import strongest

    with matplotlib.rc_context({"text.parse_math": False, "font.family": "sans-serif"}):  # a term may be "$"
        figure = _figure(result, image, strongest(result, BARS))
        stream = io.BytesIO()
        figure.savefig(stream, format="png", metadata={"Software": None})
    return stream.getvalue()


def _figure(result: Explanation, image: Image | None, terms: Sequence[SharedTerm | Term]) -> Any:
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure

    from stair.explain_page import sides_of

    rows = [3.2, 2.2] if image is not None and terms else [3.2]
    figure = Figure(figsize=(WIDTH, sum(rows) + 0.9), dpi=DOTS, facecolor="white", layout="constrained")
    FigureCanvasAgg(figure)
    figure.suptitle(_title(result), x=0.01, ha="left", color=INK, fontsize=13)
    grid = figure.add_gridspec(len(rows), 1, height_ratios=rows)
    upper = grid[0].subgridspec(1, 2, width_ratios=[1, 2])
    if image is not None:
        axes = figure.add_subplot(upper[0])
        shares = np.array(heat(result.shared, result.grid))
        _spotlight(axes, image, result.spans, shares if shares.max() > 0 else np.ones_like(shares), None)
        axes.set_title("where the score was seen" if result.shared else Path(result.image or "").name, **_small())
    _bars(figure.add_subplot(upper[1] if image is not None else grid[0]), terms)
    if image is not None and terms:
        lower = grid[1].subgridspec(1, MAPS)
        for at, term in enumerate(terms[:MAPS]):
            axes = figure.add_subplot(lower[at])
            (values, winner), _, _ = sides_of(term, result)
            _spotlight(axes, image, result.spans, np.array(values).reshape(result.grid, -1), winner)
            axes.set_title(term.term, **_small())
    return figure


def _title(result: Explanation) -> str:
    text = "" if result.text is None else f"“{textwrap.shorten(result.text, 60, placeholder=' …')}”"
    if result.score is None:
        return text or Path(result.image or "").name
    return f"{text} and {Path(result.image or '').name}: score {result.score:.3f}"


def _small() -> dict[str, Any]:
    return {"loc": "left", "color": SOFT, "fontsize": 10}


def _spotlight(axes: Any, image: Image, spans: list[int], values: np.ndarray, winner: int | None) -> None:
    """The picture, darker where `values` [grid, grid] are small; the winning cell is framed."""
    from matplotlib.patches import Rectangle

    edges = np.concatenate([[0], np.cumsum(spans)]) / sum(spans)
    axes.imshow(np.asarray(image), extent=(0, 1, 1, 0), interpolation="antialiased")
    largest = float(values.max())
    for row, column in np.ndindex(values.shape):
        x, y = edges[column], edges[row]
        size = edges[column + 1] - x, edges[row + 1] - y
        dark = 0.8 * (1 - float(values[row, column]) / largest) if largest > 0 else 0.8
        axes.add_patch(Rectangle((x, y), *size, facecolor="#48546c", alpha=dark, linewidth=0))
        if winner == row * values.shape[1] + column:
            axes.add_patch(Rectangle((x, y), *size, fill=False, edgecolor=ACCENT, linewidth=2.2))
    axes.set(xlim=(0, 1), ylim=(1, 0), xticks=[], yticks=[], aspect="equal")
    for spine in axes.spines.values():
        spine.set(color="#d8d3cc", linewidth=0.8)


def _bars(axes: Any, terms: Sequence[Any]) -> None:
    """A bar a term: its share of the score, or its weight; the word that won it behind its name."""
    shared = bool(terms) and isinstance(terms[0], SharedTerm)
    amounts = [term.share if shared else term.weight for term in terms]
    axes.barh(range(len(terms)), amounts, color=ACCENT if shared else BLUE, height=0.62)
    axes.set_title("share of the score" if shared else "weight" if terms else "no active term", **_small())
    axes.set(yticks=range(len(terms)), ylim=(max(len(terms), 1) - 0.4, -0.6), xticks=[])
    axes.set_xlim(0, 1.35 * max(amounts, default=1.0))
    axes.set_yticklabels([term.term for term in terms], color=INK, fontsize=11)
    axes.tick_params(length=0)
    for at, (term, amount) in enumerate(zip(terms, amounts)):
        said = f"{amount:.0%}, read in “{term.text_where}”" if shared else f"{amount:.2f}, {term.where}"
        axes.text(amount, at, f"  {said}", va="center", color=SOFT, fontsize=9.5)
    for spine in axes.spines.values():
        spine.set_visible(False)
