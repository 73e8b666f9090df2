"""Recall both ways over pictures and texts that were not trained on."""

from __future__ import annotations

from collections.abc import Sequence
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
from stair.monitor import Progress
from stair.processing import STAIRProcessor

DIRECTIONS = ("text to image", "image to text")
BATCH = 128
DEPTH = 10  # the largest k of a recall
NEVER = np.iinfo(np.int64).max


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
    of_text = np.where(text_there.numpy() & image_there.numpy()[target], of_text, NEVER)
    found = [
        image_there[image] and bool(text_there[torch.from_numpy(target == image)].any()) for image in np.unique(target)
    ]
    of_image = np.where(np.array(found, dtype=bool), of_image, NEVER)
    return _recalls(name, of_text, of_image, scores.shape[::-1])


def index_ranks(
    queries: sk.SparseRows,  # [Q, K]
    documents: sk.SparseRows,  # [N, K]
    query_owner: np.ndarray,  # [Q] int
    document_owner: np.ndarray,  # [N] int
) -> np.ndarray:  # [Q] int
    """How many documents of others score at least what the query's own best one does, by cosine; NEVER from DEPTH on.

    A document is a query's own when their owners are equal. Exact below DEPTH: the index returns the best DEPTH plus as
    many as a query has of its own, so that with fewer than DEPTH others in front every one of them is in the list. An
    own document that shares no term with the query is not found.
    """
    if len(queries) == 0 or len(documents) == 0:
        return np.full(len(queries), NEVER)
    most = int(np.unique(document_owner, return_counts=True)[1].max())
    found = sk.SparseIndex.build(unit(documents)).search(unit(queries), DEPTH + most)
    scores, ids = (np.asarray(array) for array in found)
    there = ids >= 0
    mine = there & (document_owner[ids] == query_owner[:, None])
    best = np.where(mine, scores, -np.inf).max(axis=1)
    others = (there & ~mine & (scores >= best[:, None])).sum(axis=1)
    return np.where(np.isfinite(best) & (others < DEPTH), others, NEVER)


def recalls_of_rows(name: str, texts: sk.SparseRows, images: sk.SparseRows, target: np.ndarray) -> list[Recall]:
    """Recall both ways by the sparse index: text t belongs to image target[t]."""
    every = np.arange(len(images))
    of_text = index_ranks(texts, images, target, every)
    with_texts = np.unique(target)
    of_image = index_ranks(images, texts, every, target)[with_texts]
    return _recalls(name, of_text, of_image, (len(images), len(texts)))


def _recalls(name: str, of_text: np.ndarray, of_image: np.ndarray, candidates: Sequence[int]) -> list[Recall]:
    rows = []
    for direction, rank, count in zip(DIRECTIONS, (of_text, of_image), candidates):
        at = [round(100 * float((rank < k).mean()), 1) if len(rank) else 0.0 for k in (1, 5, 10)]
        rows.append(Recall(name, direction, len(rank), count, *at))
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
    """STAIR's recall by the cosine of the pruned rows, as the sparse index ranks them."""
    model.eval()
    recalls, active = [], np.zeros((2, 2))
    for number, given in enumerate(sets):
        texts = encode_texts(model, processor, given.texts)
        images = encode_features(model, given.features)
        recalls += recalls_of_rows(given.name, texts, images, given.target)
        active += [[int(rows.nnz().sum()), len(rows)] for rows in (texts, images)]
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
    images = encode_pictures(model, processor, pairs, cache=cache, progress=progress)
    texts = encode_texts(model, processor, [text for listed in pairs.texts for text in listed])
    target = np.repeat(np.arange(len(pairs)), [len(listed) for listed in pairs.texts])
    recalls = recalls_of_rows(name, texts, images, target)
    if progress is not None:
        progress("evaluate", 1, 1, {})
    return Evaluation(recalls, *(float(rows.nnz().float().mean()) for rows in (texts, images)))


@torch.no_grad()
def encode_pictures(
    model: STAIRModel,
    processor: STAIRProcessor,
    pairs: Pairs,
    *,
    cache: Path | None = None,
    progress: Progress | None = None,
) -> sk.SparseRows:
    """Rows of the user's pictures; what a frozen part of the image tower makes of them is kept in `cache`."""
    model.eval()
    pictures = FilePictures(pairs.pictures, processor.images)

    def report(done: int) -> None:
        if progress is not None:
            progress("features", done, len(pairs), {})

    if model.backbone is not None:
        return encode_features(model, features_of(model.backbone, pictures, cache=cache, done=report)[:, 0])
    parts = []
    for start in range(0, len(pairs), BATCH):
        pixels = pictures.pixels(start, min(start + BATCH, len(pairs)))
        parts.append(model.encode_image(processor.normalize(pixels)))
        report(min(start + BATCH, len(pairs)))
    return sk.SparseRows.cat(parts)
