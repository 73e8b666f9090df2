"""Recall both ways over pictures and texts that were not trained on."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

import stair_kernels as sk
from stair.baseline import DenseCLIP
from stair.data import EvaluationSet
from stair.datasets import Pairs
from stair.features import FilePictures, features_of
from stair.model import STAIRModel
from stair.processing import STAIRProcessor

Progress = Callable[[str, int, int, dict[str, Any]], None]
DIRECTIONS = ("text to image", "image to text")
BATCH = 128


@dataclass
class Recall:
    """Share of the queries, in per cent, whose own answer is among the first 1, 5 and 10."""

    set: str
    direction: str  # one of DIRECTIONS
    count: int  # queries
    candidates: int
    r1: float
    r5: float
    r10: float


@dataclass
class Evaluation:
    """Recall on every set, and how many vocabulary entries a text and an image have on average (0 if dense)."""

    recalls: list[Recall]
    text_active: float = 0.0
    image_active: float = 0.0

    def as_dict(self) -> dict[str, Any]:
        return asdict(self)

    @staticmethod
    def from_dict(saved: dict[str, Any]) -> Evaluation:
        recalls = [Recall(**recall) for recall in saved["recalls"]]
        return Evaluation(recalls, saved["text_active"], saved["image_active"])


def ranks(scores: Tensor, target: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Where the right answer stands, from 0, ties counting against it.

    Args:
        scores: [T, N] of texts and images.
        target: [T] int, the image of each text.

    Returns:
        ([T] rank of a text's image, [M] rank of the best text of each image that has texts).
    """
    table = scores.numpy()
    own = table[np.arange(len(target)), target]
    of_text = (table >= own[:, None]).sum(axis=1) - 1
    of_image = []
    for image in np.unique(target):
        mine = target == image
        of_image.append((table[~mine, image] >= table[mine, image].max()).sum())
    return of_text, np.array(of_image, dtype=int)


def recalls_of(name: str, scores: Tensor, target: np.ndarray, text_there: Tensor, image_there: Tensor) -> list[Recall]:
    """Recall@1, 5, 10 both ways; an empty row (`*_there` False) finds nothing and is not found."""
    blank = ~text_there[:, None] | ~image_there[None, :]
    of_text, of_image = ranks(scores.masked_fill(blank, -torch.inf), target)
    never = np.iinfo(np.int64).max
    of_text = np.where(text_there.numpy() & image_there.numpy()[target], of_text, never)
    found = [
        image_there[image] and bool(text_there[torch.from_numpy(target == image)].any()) for image in np.unique(target)
    ]
    of_image = np.where(np.array(found, dtype=bool), of_image, never)
    rows = []
    for direction, rank, candidates in zip(DIRECTIONS, (of_text, of_image), scores.shape[::-1]):
        at = [round(100 * float((rank < k).mean()), 1) if len(rank) else 0.0 for k in (1, 5, 10)]
        rows.append(Recall(name, direction, len(rank), candidates, *at))
    return rows


@torch.no_grad()
def encode_texts(model: STAIRModel, processor: STAIRProcessor, texts: Sequence[str]) -> sk.SparseRows:
    """Rows of any number of texts, batch by batch."""
    pieces = [texts[start : start + BATCH] for start in range(0, len(texts), BATCH)]
    return sk.SparseRows.cat([model.encode_text(*processor.encode(piece).values()) for piece in pieces])


@torch.no_grad()
def encode_features(model: STAIRModel, features: np.ndarray) -> sk.SparseRows:
    """Rows of any number of pictures' features [N, L, 432], batch by batch."""
    pieces = [torch.from_numpy(np.array(features[start : start + BATCH])) for start in range(0, len(features), BATCH)]
    return sk.SparseRows.cat([model.encode_image(image_features=piece) for piece in pieces])


def unit(rows: sk.SparseRows) -> sk.SparseRows:
    """rows / |rows|_2; an empty row stays empty."""
    length = rows.values.norm(dim=1, keepdim=True).clamp(min=1e-12)
    return sk.SparseRows(rows.values / length, rows.indices, rows.positions, rows.vocab_size)


def evaluate(
    model: STAIRModel, processor: STAIRProcessor, sets: Sequence[EvaluationSet], progress: Progress | None = None
) -> Evaluation:
    """STAIR's recall by the cosine of the pruned rows, exactly what the index computes."""
    model.eval()
    recalls, active = [], np.zeros((2, 2))
    for number, given in enumerate(sets):
        texts = encode_texts(model, processor, given.texts)
        images = encode_features(model, given.features)
        counts = [rows.nnz() for rows in (texts, images)]
        scores = sk.sparse_dot(unit(texts), unit(images))
        recalls += recalls_of(given.name, scores, given.target, counts[0] > 0, counts[1] > 0)
        active += [[int(count.sum()), len(count)] for count in counts]
        if progress is not None:
            progress("evaluate", number + 1, len(sets), {})
    text_active, image_active = (active[:, 0] / np.maximum(active[:, 1], 1)).tolist()
    return Evaluation(recalls, text_active, image_active)


@torch.no_grad()
def evaluate_dense(model: DenseCLIP, processor: STAIRProcessor, sets: Sequence[EvaluationSet]) -> Evaluation:
    """The same recalls of the dense baseline."""
    model.eval()
    recalls = []
    for given in sets:
        texts = [
            model.encode_text(**processor.encode(given.texts[start : start + BATCH]))
            for start in range(0, len(given.texts), BATCH)
        ]
        images = [
            model.encode_image(image_features=torch.from_numpy(np.array(given.features[start : start + BATCH])))
            for start in range(0, len(given.features), BATCH)
        ]
        scores = torch.cat(texts) @ torch.cat(images).T
        there = [torch.ones(size, dtype=torch.bool) for size in scores.shape]
        recalls += recalls_of(given.name, scores, given.target, *there)
    return Evaluation(recalls)


def evaluate_pairs(
    model: STAIRModel,
    processor: STAIRProcessor,
    pairs: Pairs,
    *,
    name: str = "pairs",
    cache: Path | None = None,
    progress: Progress | None = None,
) -> Evaluation:
    """Recall over the user's pictures and captions."""
    pictures = FilePictures(pairs.pictures, model.config.image_size)
    report = None if progress is None else lambda done: progress("features", done, len(pairs), {})
    features = features_of(model.backbone, pictures, cache=cache, done=report)[:, 0]
    texts = [text for listed in pairs.texts for text in listed]
    target = np.repeat(np.arange(len(pairs)), [len(listed) for listed in pairs.texts])
    return evaluate(model, processor, [EvaluationSet(name, features, texts, target)], progress)
