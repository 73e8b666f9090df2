"""What training and evaluation read: pictures' features with texts, and those of the demo's emoji."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass

import numpy as np

from stair.emoji import TRAIN_STYLES, Concept
from stair.features import PixelValues


@dataclass
class TrainingSet:
    """N items, each with features of its pictures and a way to draw a text.

    Args:
        features: one array [items, copies, L, 432] a drawing style (one for photographs), or pixel values in its place.
        items: [N] int, the rows of the arrays that may be trained on.
        text: gives a text of an item (a row number of the arrays) from a random generator.
    """

    features: Sequence[np.ndarray | PixelValues]
    items: np.ndarray
    text: Callable[[int, np.random.Generator], str]

    def __len__(self) -> int:
        return len(self.items)

    def pictures(self, items: Sequence[int], generator: np.random.Generator, part: slice = slice(None)) -> np.ndarray:
        """One picture's features an item, of a random style and copy: float32 [B, L, 432].

        With `part` the draws are those of all items, and the features those of its items alone.
        """
        drawn = []
        for item in items:
            array = self.features[int(generator.integers(len(self.features)))]
            drawn.append((array, item, int(generator.integers(array.shape[1]))))
        return np.stack([array[item, copy] for array, item, copy in drawn[part]]).astype(np.float32)


@dataclass
class EvaluationSet:
    """Texts and pictures that were not trained on: text t belongs to picture target[t]."""

    name: str
    features: np.ndarray  # [N, L, 432]
    texts: list[str]  # [T]
    target: np.ndarray  # [T] int


@dataclass
class EmojiSplit:
    """Which concepts are trained on, and which of their keywords.

    seen + held_out are all concepts; a seen concept with five keywords or more keeps two of them as unseen queries.
    """

    seen: np.ndarray  # [.] int, rows of the concepts
    held_out: np.ndarray
    keywords: list[tuple[str, ...]]  # by concept: the ones that training may use
    queries: list[tuple[str, ...]]  # by concept: the ones kept back

    @staticmethod
    def draw(concepts: Sequence[Concept], seed: int = 123) -> EmojiSplit:
        """90% seen, 10% held out whole; by the concepts' order, which is their code points'."""
        generator = np.random.default_rng(seed)
        order = generator.permutation(len(concepts))
        held = max(1, len(concepts) // 10)
        keywords, queries = [], []
        for concept in concepts:
            words = [concept.keywords[i] for i in generator.permutation(len(concept.keywords))]
            kept_back = 2 if len(words) >= 5 else 0
            queries.append(tuple(words[:kept_back]))
            keywords.append(tuple(words[kept_back:]))
        return EmojiSplit(np.sort(order[held:]), np.sort(order[:held]), keywords, queries)


def emoji_training(
    concepts: Sequence[Concept], split: EmojiSplit, features: dict[str, np.ndarray], most_keywords: int = 4
) -> TrainingSet:
    """Seen concepts in the training styles; a text is the name with up to four keywords, or some keywords alone."""

    def text(item: int, generator: np.random.Generator) -> str:
        words = split.keywords[item]
        count = min(len(words), int(generator.integers(most_keywords + 1)))
        chosen = [words[i] for i in generator.permutation(len(words))[:count]]
        alone = bool(chosen) and generator.random() < 0.4
        return ", ".join(chosen if alone else [concepts[item].name, *chosen])

    return TrainingSet([features[style] for style in TRAIN_STYLES], split.seen, text)


def emoji_evaluation(
    concepts: Sequence[Concept], split: EmojiSplit, features: np.ndarray, there: np.ndarray, style: str
) -> list[EvaluationSet]:
    """Three sets over pictures of a style that was never trained on.

    Args:
        features: [concepts, L, 432] of that style.
        there: [concepts] bool, False where the style has no picture.
    """
    seen = np.array([item for item in split.seen if there[item]], dtype=int)
    held = np.array([item for item in split.held_out if there[item]], dtype=int)
    row = {item: number for number, item in enumerate(seen.tolist())}
    asked = [item for item in seen.tolist() if split.queries[item]]
    return [
        EvaluationSet(
            f"seen concepts, {style} pictures", features[seen], [concepts[i].name for i in seen], np.arange(len(seen))
        ),
        EvaluationSet(
            f"held-out keywords, {style} pictures",
            features[seen],
            [", ".join(split.queries[item]) for item in asked],
            np.array([row[item] for item in asked], dtype=int),
        ),
        EvaluationSet(
            f"held-out concepts, {style} pictures",
            features[held],
            [", ".join([concepts[i].name, *concepts[i].keywords]) for i in held],
            np.arange(len(held)),
        ),
    ]
