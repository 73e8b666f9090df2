"""Why a text and a picture fit: the terms they share, and where in the picture each was seen."""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import asdict, dataclass
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from PIL.Image import Image

    from stair import STAIRModel, STAIRProcessor
    from stair_kernels import SparseRows


@dataclass
class Term:
    """An active vocabulary entry of one side; `where` is the word-piece or the part of the picture that won it."""

    term: str
    weight: float
    position: int
    where: str


@dataclass
class SharedTerm:
    """An entry that both sides have: unit-length weights and its share of the score."""

    term: str
    text_weight: float
    image_weight: float
    share: float
    text_where: str
    image_where: str
    image_position: int


@dataclass
class Explanation:
    """score = cosine of the two rows = sum of text_weight * image_weight over `shared`."""

    text: str | None
    image: str | None
    score: float | None
    text_terms: list[Term]
    image_terms: list[Term]
    shared: list[SharedTerm]
    grid: int  # the picture's positions are grid x grid, row by row

    def as_dict(self) -> dict[str, Any]:
        return asdict(self)


def explain(
    model: STAIRModel,
    processor: STAIRProcessor,
    *,
    text: str | None = None,
    image: Image | None = None,
    image_name: str = "picture",
    k: int | None = None,
) -> Explanation:
    """The terms of a text, of a picture, or of both and what they share.

    Args:
        k: entries kept of each side's row; the model's configuration when None.

    Raises:
        ValueError: neither a text nor a picture, or an empty text.
    """
    import torch

    from stair.evaluate import unit

    if text is None and image is None:
        raise ValueError("--text, --image: expected at least one of the two")
    text_terms: list[Term] = []
    image_terms: list[Term] = []
    grid = math.isqrt(model.config.positions)
    with torch.inference_mode():
        if text is not None:
            tensors = processor(text=[text])
            pieces = [processor.term(int(piece)) for piece in tensors["input_ids"][0]]
            rows = unit(model.encode_text(**tensors, k=k))
            text_terms = _terms(rows, processor, lambda position: pieces[position])
        if image is not None:
            rows = unit(model.encode_image(**processor(images=[image]), k=k))
            image_terms = _terms(rows, processor, lambda position: place(position, grid))
    both = text is not None and image is not None
    shared = share(text_terms, image_terms) if both else []
    score = sum(term.text_weight * term.image_weight for term in shared) if both else None
    name = image_name if image is not None else None
    return Explanation(text, name, score, text_terms, image_terms, shared, grid)


def _terms(rows: SparseRows, processor: STAIRProcessor, where: Callable[[int], str]) -> list[Term]:
    """The entries of the only row, heaviest first; without positions (the reference head) they say -1 and ""."""
    values, indices = rows.values[0].tolist(), rows.indices[0].tolist()
    positions = [-1] * rows.k if rows.positions is None else rows.positions[0].tolist()
    return [
        Term(processor.term(v), weight, position, where(position) if position >= 0 else "")
        for weight, v, position in zip(values, indices, positions)
        if v >= 0
    ]


def share(text_terms: list[Term], image_terms: list[Term]) -> list[SharedTerm]:
    """The terms of both sides, largest part of the score first."""
    seen = {term.term: term for term in image_terms}
    pairs = [(term, seen[term.term]) for term in text_terms if term.term in seen]
    score = sum(left.weight * right.weight for left, right in pairs)
    shared = [
        SharedTerm(
            term=left.term,
            text_weight=left.weight,
            image_weight=right.weight,
            share=left.weight * right.weight / score,
            text_where=left.where,
            image_where=right.where,
            image_position=right.position,
        )
        for left, right in pairs
    ]
    return sorted(shared, key=lambda term: -term.share)


def place(position: int, grid: int) -> str:
    """A position of a grid x grid map in words: "top left", "centre", with its row and column from 1."""
    if position >= grid * grid:
        return "whole picture"  # a CLS or register token
    row, column = divmod(position, grid)
    third_down, third_across = (3 * (2 * cell + 1) // (2 * grid) for cell in (row, column))  # of the cell's middle
    vertical, horizontal = ("top", "", "bottom")[third_down], ("left", "", "right")[third_across]
    words = " ".join(part for part in (vertical, horizontal) if part) or "centre"
    return f"{words} ({row + 1}, {column + 1})"


def heat(shared: list[SharedTerm], grid: int) -> list[list[float]]:
    """grid x grid: the share of the score that was seen at each place of the picture."""
    cells = [[0.0] * grid for _ in range(grid)]
    for term in shared:
        if 0 <= term.image_position < grid * grid:
            cells[term.image_position // grid][term.image_position % grid] += term.share
    return cells
