"""What `stair eval` measures: recall over captions, or classification of pictures with classes."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from stair.classify import TEMPLATES, Classification, linear_probe, zero_shot
from stair.datasets import Pairs, load_for_evaluation, load_labelled
from stair.datasets.plain import read_lines
from stair.evaluate import Evaluation, encode_pictures, evaluate_pairs
from stair.model import STAIRModel
from stair.monitor import Progress
from stair.processing import STAIRProcessor


@dataclass
class Task:
    """What is measured, read and checked before the model is loaded."""

    name: str
    pairs: Pairs
    named: bool  # zero-shot classification is asked for
    templates: Sequence[str]
    training: Pairs | None  # of the linear probe
    strength: float


@dataclass
class Measured:
    """Recall, or classifications."""

    recall: Evaluation | None = None
    classified: list[Classification] = field(default_factory=list)

    def as_dict(self) -> dict[str, Any]:
        if self.recall is not None:
            return self.recall.as_dict()
        return {one.method.replace("-", "_").replace(" ", "_"): one.as_dict() for one in self.classified}


def read_task(
    data: Path,
    format: str | None,
    split: str | None,
    images: Path | None,
    classes: Path | None,
    templates: Path | None,
    training: Path | None,
    strength: float = 1.0,
) -> Task:
    """Reads what `stair eval`'s arguments name; ValueError naming the file and entry that is wrong."""
    if classes is None and training is None:
        pairs = load_for_evaluation(data, format, split=split, images=images)
    elif split is not None or images is not None:
        raise ValueError("--split, --images: expected neither with --zero-shot or --linear-probe")
    else:
        pairs = load_labelled(data, format, classes)
    lines = TEMPLATES if templates is None else read_lines(templates, "a text with {} in it")
    fitted = None if training is None else load_labelled(training, format, classes)
    return Task(str(data), pairs, classes is not None, lines, fitted, strength)


def measure(
    model: STAIRModel,
    processor: STAIRProcessor,
    task: Task,
    progress: Progress | None = None,
    *,
    cache: Path | None = None,
) -> Measured:
    """Runs a task."""
    if not task.named and task.training is None:
        return Measured(evaluate_pairs(model, processor, task.pairs, name=task.name, cache=cache, progress=progress))
    images = encode_pictures(model, processor, task.pairs, cache=cache, progress=progress)
    found = []
    if task.named:
        found.append(zero_shot(model, processor, images, task.pairs, task.templates, name=task.name))
    if task.training is not None:
        rows = encode_pictures(model, processor, task.training, cache=cache, progress=progress)
        fitted, tested = (rows, task.training), (images, task.pairs)
        found.append(linear_probe(fitted, tested, strength=task.strength, name=task.name))
    return Measured(classified=found)
