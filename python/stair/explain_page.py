"""What `stair explain --out` writes: a page that needs nothing else, and a picture of the same to paste elsewhere."""

from __future__ import annotations

import base64
import io
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

from stair.explain import WHOLE, Explanation, SharedTerm, Term, heard, heat
from stair.files import replacing
from stair.templates import write_template

if TYPE_CHECKING:
    from PIL.Image import Image

    from stair.pictures import ImageSettings

PAGE, PLOT = "index.html", "explanation.png"
CARDS = 8  # terms with a map of their own
SIDE = 448  # of the inlined picture in pixels


def write_explanation(result: Explanation, image: Image | None, folder: Path | str, top: int = 12) -> tuple[Path, Path]:
    """Writes index.html and explanation.png into `folder`, each whole or not at all; gives their paths.

    Args:
        image: the picture that was explained, `fitted`; None when there was none.
        top: terms in each list.
    """
    from stair.explain_plot import draw

    folder = Path(folder)
    write_template("explain.html", page_content(result, image, top), folder / PAGE)
    with replacing(folder / PLOT, "wb") as stream:
        stream.write(draw(result, image))
    return folder / PAGE, folder / PLOT


def fitted(settings: ImageSettings, image: Image) -> Image:
    """The picture as the model sees it, the same square of it, but larger."""
    from PIL import Image as Pillow

    edge = None if settings.edge is None else round(settings.edge * SIDE / settings.size)
    return Pillow.fromarray(replace(settings, size=SIDE, edge=edge).fitted(image))


def strongest(result: Explanation, count: int) -> Sequence[SharedTerm | Term]:
    """The terms that get a map: those of the score; where there is one side only, or none is shared, the heaviest."""
    if result.shared:
        return result.shared[:count]
    return (result.image_terms or result.text_terms)[:count]


def page_content(result: Explanation, image: Image | None, top: int = 12) -> dict[str, Any]:
    """Everything the template shows, formatted."""
    from stair_kernels import __version__

    named = [f"“{result.text}”" if result.text is not None else "", Path(result.image or "").name]
    heading = " and ".join(name for name in named if name)
    # nothing to compare: what each position says of the terms of its own side
    shares = heat(result.shared, result.grid)
    highest = max(map(max, shares))
    cells = [cell for row in shares for cell in row]
    return {
        "title": f"STAIR: {heading}",
        "heading": heading,
        "lead": _lead(result),
        "tracks": " ".join(f"{span}fr" for span in result.spans),
        "picture": "" if image is None else _inlined(image),
        "image_name": result.image or "",
        "whole": [
            {"level": round(cell / highest, 3), "won": cell == highest, "title": f"{cell:.0%} of the score"}
            for cell in cells
        ]
        if highest > 0 and image is not None
        else [],
        "whole_note": "Light where the terms of the score were seen, dark where none was. "
        f"A term counts at the one of {len(cells)} places that won it.",
        "text_pieces": _pieces(result),
        "text_note": "Each term is won by one word-piece of the text; [CLS] and [SEP] stand for the whole of it.",
        **_cards(result, image is not None),
        "shared": [_row(term, result.shared[0].share) for term in result.shared[:top]],
        "sides_title": "The heaviest terms of each side" if result.shared else "All terms, heaviest first",
        "sides": [
            {"title": f"{title}: {len(terms)} active terms", "terms": _bars(terms[:top])}
            for title, given, terms in (
                ("Text", result.text, result.text_terms),
                ("Picture", result.image, result.image_terms),
            )
            if given is not None
        ],
        "footer": f"stair_kernels {__version__}",
    }


def _lead(result: Explanation) -> str:
    if result.score is None:
        return f"{len(result.text_terms or result.image_terms)} active terms of the vocabulary."
    if not result.shared:
        return "Score 0: the text and the picture share no term."
    terms = ", ".join(f"{term.term} {term.share:.0%}" for term in result.shared[:3])
    count = f"{len(result.shared)} shared term{'s' if len(result.shared) > 1 else ''}"
    return f"Score {result.score:.3f}, the cosine of two sparse rows, from {count}: {terms}."


def _pieces(result: Explanation) -> list[dict[str, Any]]:
    """The text's word-pieces with their shares of the score; without a score, none is shaded."""
    shares = heard(result.shared, result.pieces)
    highest = max(shares, default=0.0)
    return [
        {
            "word": piece,
            "special": _special(piece),
            "level": round(share / highest, 3) if highest else 0,
            "won": False,
            "share": f"{share:.0%}" if share else "",
        }
        for piece, share in zip(result.pieces, shares)
    ]


def _special(piece: str) -> bool:
    return piece[:1] + piece[-1:] in ("[]", "<>")


def _cards(result: Explanation, with_image: bool) -> dict[str, Any]:
    """A card for each of the strongest terms: the weight that each place and each word alone would give it."""
    if result.shared:
        title, note = "The terms of the score", "Each with its share of the score. "
    else:
        title, note = "The heaviest terms", "Each with its weight in the row of unit length. "
    if with_image:
        note += (
            "Light: the places that would give the term a weight by themselves; framed: the one that won the maximum. "
        )
    if result.pieces and (result.shared or not with_image):
        note += "Blue: the words that would; framed: the one that won."
    return {"cards_title": title, "cards_note": note, "cards": [_card(t, result) for t in strongest(result, CARDS)]}


def _card(term: SharedTerm | Term, result: Explanation) -> dict[str, Any]:
    seen, read, said = sides_of(term, result)
    cells = [{"level": level, "won": won, "title": f"{weight:.3f}"} for weight, level, won in _levels(*seen)]
    pieces = [
        {"word": piece, "special": _special(piece), "level": level, "won": won, "share": ""}
        for piece, (_, level, won) in zip(result.pieces, _levels(*read))
    ]
    amount = f"{term.share:.0%}" if isinstance(term, SharedTerm) else f"{term.weight:.2f}"
    return {"term": term.term, "amount": amount, "cells": cells, "pieces": pieces, "said": said}


def sides_of(
    term: SharedTerm | Term, result: Explanation
) -> tuple[tuple[Sequence[float], int], tuple[Sequence[float], int], str]:
    """(map, winning position) in the picture and in the text, empty where there is no such side, and both in words."""
    parts = result.grid**2
    if isinstance(term, SharedTerm):
        said = f"read in “{term.text_where}”, {_seen(term.image_where)}"
        return (term.image_map[:parts], term.image_position), (term.text_map, term.text_position), said
    if result.image is not None:
        return (term.map[:parts], term.position), ((), -1), _seen(term.where)
    return ((), -1), (term.map, term.position), f"read in “{term.where}”"


def _seen(place: str) -> str:
    """Row and column stay on one line."""
    return f"seen in the {place}" if place == WHOLE else f"seen {place}".replace(", ", ",\u00a0")


def _levels(weights: Sequence[float], winner: int) -> list[tuple[float, float, bool]]:
    """(weight, weight over the largest, whether it won) of each position."""
    largest = max(weights, default=0.0)
    return [
        (weight, round(weight / largest, 3) if largest > 0 else 0.0, at == winner) for at, weight in enumerate(weights)
    ]


def _row(term: SharedTerm, largest: float) -> dict[str, Any]:
    return {
        "term": term.term,
        "share": f"{term.share:.1%}",
        "width": round(100 * term.share / largest, 1),
        "text": f"{term.text_weight:.3f}",
        "picture": f"{term.image_weight:.3f}",
        "word": term.text_where,
        "place": term.image_where,
    }


def _bars(terms: Sequence[Term]) -> list[dict[str, Any]]:
    heaviest = terms[0].weight if terms else 1.0
    return [
        {
            "term": term.term,
            "weight": f"{term.weight:.3f}",
            "width": round(100 * term.weight / heaviest, 1),
            "where": term.where,
        }
        for term in terms
    ]


def _inlined(image: Image) -> str:
    """A picture as a data: address."""
    stream = io.BytesIO()
    image.save(stream, "WEBP", quality=90, method=6)
    return "data:image/webp;base64," + base64.b64encode(stream.getvalue()).decode()
