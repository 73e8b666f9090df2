"""Why a text and a picture fit: the terms they share, and where in the picture each was seen."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import asdict, dataclass
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from PIL.Image import Image

    from stair import STAIRConfig, STAIRModel, STAIRProcessor
    from stair_kernels import SparseRows, VocabHead

WHOLE = "whole picture"


@dataclass
class Term:
    """An active vocabulary entry of one side; `where` is the word-piece or the part of the picture that won it."""

    term: str
    weight: float
    position: int
    where: str
    map: list[float]  # the weight that each position alone would give it, 0 to `weight`


@dataclass
class SharedTerm:
    """An entry that both sides have: unit-length weights and its share of the score."""

    term: str
    text_weight: float
    image_weight: float
    share: float
    text_where: str
    image_where: str
    text_position: int
    image_position: int
    text_map: list[float]  # as Term.map
    image_map: list[float]


@dataclass
class Explanation:
    """score = cosine of the two rows = sum of text_weight * image_weight over `shared`."""

    text: str | None
    image: str | None
    score: float | None
    text_terms: list[Term]
    image_terms: list[Term]
    shared: list[SharedTerm]
    grid: int  # the picture's positions are grid x grid, row by row; those of the whole picture (CLS) may follow
    spans: list[int]  # the size of each row and column of them, in units of the picture's sum(spans)th part
    pieces: list[str]  # the text's word-pieces, which its positions number

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

    if text is None and image is None:
        raise ValueError("--text, --image: expected at least one of the two")
    text_terms: list[Term] = []
    image_terms: list[Term] = []
    pieces: list[str] = []
    grid = model.config.grid
    with torch.inference_mode():
        if text is not None:
            tensors = processor(text=[text])
            pieces = [processor.term(int(piece)) for piece in tensors["input_ids"][0]]
            rows, head = model.encode_text(**tensors, k=k), model.text_head_inputs(**tensors)
            text_terms = _terms(rows, head, processor, lambda position: pieces[position])
        if image is not None:
            tensors = processor(images=[image])
            rows, head = model.encode_image(**tensors, k=k), model.image_head_inputs(**tensors)
            image_terms = _terms(rows, head, processor, lambda position: place(position, grid))
    both = text is not None and image is not None
    shared = share(text_terms, image_terms) if both else []
    score = sum(term.text_weight * term.image_weight for term in shared) if both else None
    name = image_name if image is not None else None
    return Explanation(text, name, score, text_terms, image_terms, shared, grid, spans_of(model.config), pieces)


def spans_of(config: STAIRConfig) -> list[int]:
    """The size of each row and column of a picture's positions, which pooling leaves uneven."""
    vision = config.vision_config
    pool, side = getattr(vision, "pool", 1), getattr(vision, "side", config.grid)
    return [min(pool, side - start) for start in range(0, side, pool)]


def _terms(rows: SparseRows, head: VocabHead, processor: STAIRProcessor, where: Callable[[int], str]) -> list[Term]:
    """The entries of the only row, of unit length, heaviest first, and what each position says of them.

    A position on its own, without the others, is a row of the head without pooling: sk.vocab_pool of [L, D]. The
    position that won is the kernel's; the reference head's rows have none, and the first largest is taken.
    """
    import stair_kernels as sk
    from stair.evaluate import unit

    alone = sk.vocab_pool(head.hidden[0], head.weight, head.bias)  # [L, V]
    if head.mask is not None:
        alone[~head.mask[0]] = 0
    filled = rows.indices[0] >= 0
    indices, values = rows.indices[0][filled].long(), unit(rows).values[0][filled]
    length = rows.values[0].norm().clamp(min=1e-12)
    maps = alone[:, indices].T / length  # [K, L]
    won = maps.argmax(dim=1) if rows.positions is None else rows.positions[0][filled]
    entries = zip(indices.tolist(), values.tolist(), won.tolist(), maps.tolist())
    return [Term(processor.term(v), weight, at, where(at), over) for v, weight, at, over in entries]


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
            text_position=left.position,
            image_position=right.position,
            text_map=left.map,
            image_map=right.map,
        )
        for left, right in pairs
    ]
    return sorted(shared, key=lambda term: -term.share)


def place(position: int, grid: int) -> str:
    """A position of a grid x grid map in words: "top left", "centre", with its row and column from 1."""
    if position >= grid * grid:
        return WHOLE  # a CLS or register token
    row, column = divmod(position, grid)
    third_down, third_across = (3 * (2 * cell + 1) // (2 * grid) for cell in (row, column))  # of the cell's middle
    vertical, horizontal = ("top", "", "bottom")[third_down], ("left", "", "right")[third_across]
    words = " ".join(part for part in (vertical, horizontal) if part) or "centre"
    return f"{words} ({row + 1}, {column + 1})"


def heat(shared: list[SharedTerm], grid: int) -> list[list[float]]:
    """grid x grid: the share of the score that was seen at each place of the picture."""
    cells = [[0.0] * grid for _ in range(grid)]
    for term in shared:
        if term.image_position < grid * grid:
            cells[term.image_position // grid][term.image_position % grid] += term.share
    return cells


def heard(shared: list[SharedTerm], pieces: list[str]) -> list[float]:
    """The share of the score that each word-piece of the text won."""
    return [sum(term.share for term in shared if term.text_position == at) for at in range(len(pieces))]
