"""Classification with a STAIR model: zero-shot by prompt templates, and a linear probe on the pictures' sparse rows."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import asdict, dataclass
from typing import Any

import numpy as np
import scipy.optimize
import scipy.sparse
from scipy.special import logsumexp

import stair_kernels as sk
from stair.datasets import Pairs
from stair.evaluate import encode_texts, index_ranks, unit
from stair.formats.documents import as_csr
from stair.model import STAIRModel
from stair.processing import STAIRProcessor

TEMPLATES = ("a photo of a {}.",)
SLOT = "{}"


@dataclass
class Classification:
    """Share of the pictures, in per cent, whose class is the first, or among the first five."""

    set: str
    method: str  # "zero-shot" or "linear probe"
    count: int  # pictures
    classes: int
    top1: float
    top5: float
    image_active: float  # entries of a picture's row
    text_active: float = 0.0  # of a class's, zero-shot

    def as_dict(self) -> dict[str, Any]:
        return asdict(self)


def zero_shot(
    model: STAIRModel,
    processor: STAIRProcessor,
    images: sk.SparseRows,
    pairs: Pairs,
    templates: Sequence[str] = TEMPLATES,
    *,
    name: str = "pictures",
) -> Classification:
    """The class of a picture is the one whose row it is most like, by the sparse index; ties count against.

        class row = unit(sum over templates of unit(row of the template with the class's name in it))

    Args:
        images: [N, K], the pictures' rows.
        pairs: their labels and classes.
        templates: texts with {} in the place of the name.

    Raises:
        ValueError: pictures without labels, or a template without {}.
    """
    labels = _labels(pairs, name)
    classes = class_rows(model, processor, pairs.classes, templates)
    ranks = index_ranks(images, classes, labels, np.arange(len(classes)))
    active = float(images.nnz().float().mean()), float(classes.nnz().float().mean())
    return Classification(name, "zero-shot", len(labels), len(classes), *_tops(ranks), *active)


def class_rows(
    model: STAIRModel, processor: STAIRProcessor, classes: Sequence[str], templates: Sequence[str]
) -> sk.SparseRows:  # [C, K], every term that one of a class's texts has
    """The rows of classes by their names in every template."""
    if not templates:
        raise ValueError("templates: expected at least one, got none")
    for template in templates:
        if SLOT not in template:
            raise ValueError(f"templates: expected {SLOT} in the place of the class's name, got {template!r}")
    texts = [template.replace(SLOT, name) for name in classes for template in templates]
    rows = as_csr(unit(encode_texts(model, processor, texts)))
    whose = np.repeat(np.arange(len(classes)), len(templates))
    groups = scipy.sparse.csr_array((np.ones(len(texts), np.float32), (whose, np.arange(len(texts)))))
    return unit(sk.SparseRows.from_csr(scipy.sparse.csr_matrix(groups @ rows)))


def linear_probe(
    train: tuple[sk.SparseRows, Pairs],
    test: tuple[sk.SparseRows, Pairs],
    *,
    strength: float = 1.0,
    name: str = "pictures",
) -> Classification:
    """Multinomial logistic regression on unit rows, fitted on `train`, measured on `test`; ties count against.

        minimise  sum_n -log softmax(W x_n + b)[label_n] + |W|^2 / (2 strength)

    Args:
        train, test: pictures' rows with their labels, of the same classes.

    Raises:
        ValueError: no labels, or other classes.
    """
    (rows, pairs), (other_rows, other) = train, test
    if pairs.classes != other.classes:
        raise ValueError(
            f"classes: expected those of the training pictures, {pairs.classes[:5]}, got {other.classes[:5]}"
        )
    labels, wanted = _labels(pairs, "training pictures"), _labels(other, name)
    x, z = as_csr(unit(rows)).astype(np.float64), as_csr(unit(other_rows)).astype(np.float64)
    used = np.unique(x.indices)  # a term that no training picture has gets no weight
    weight, bias = fit_logistic(x[:, used], labels, len(pairs.classes), strength)
    score = z[:, used] @ weight + bias
    own = score[np.arange(len(wanted)), wanted]
    ranks = (score >= own[:, None]).sum(axis=1) - 1
    active = float(other_rows.nnz().float().mean())
    return Classification(name, "linear probe", len(wanted), len(pairs.classes), *_tops(ranks), active)


def fit_logistic(
    x: scipy.sparse.csr_matrix,  # [N, F] float64
    labels: np.ndarray,  # [N] int
    classes: int,
    strength: float,
) -> tuple[np.ndarray, np.ndarray]:  # [F, C], [C]
    """(W, b) of the minimum in linear_probe, by L-BFGS from zero."""
    N, F = x.shape
    target = np.zeros((N, classes))
    target[np.arange(N), labels] = 1.0

    def loss(flat: np.ndarray) -> tuple[float, np.ndarray]:
        weight, bias = flat[: F * classes].reshape(F, classes), flat[F * classes :]
        logit = x @ weight + bias
        log_p = logit - logsumexp(logit, axis=1, keepdims=True)
        off = np.exp(log_p) - target
        grad = np.concatenate([(x.T @ off + weight / strength).ravel(), off.sum(axis=0)])
        return float(-(log_p * target).sum() + 0.5 * (weight**2).sum() / strength), grad

    start = np.zeros(F * classes + classes)
    found = scipy.optimize.minimize(loss, start, jac=True, method="L-BFGS-B", options={"maxiter": 1000})
    return found.x[: F * classes].reshape(F, classes), found.x[F * classes :]


def _labels(pairs: Pairs, name: str) -> np.ndarray:
    if pairs.labels is None:
        raise ValueError(f"{name}: expected pictures with classes: a folder of class folders, or tars with .cls")
    return np.asarray(pairs.labels)


def _tops(ranks: np.ndarray) -> tuple[float, float]:
    first, fifth = (round(100 * float((ranks < k).mean()), 1) if len(ranks) else 0.0 for k in (1, 5))
    return first, fifth
