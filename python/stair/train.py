"""Training a STAIRModel: the checkpoint it leaves, the one it resumes from, and what an eager head would have taken."""

from __future__ import annotations

import copy
import json
import statistics
from dataclasses import asdict, fields
from pathlib import Path
from typing import Any

import numpy as np
import torch
from transformers.utils import logging as transformers_logging

import stair_kernels as sk
from stair.checkpoint import load
from stair.data import TrainingSet
from stair.datasets import Pairs
from stair.encoders import load_encoders
from stair.features import FilePictures, PixelValues, features_of
from stair.files import replacing_folder, require_writable, settle
from stair.loop import ALONE, Loop, TrainConfig, TrainResult, peak_rss_mb
from stair.losses import Schedule, StairObjective
from stair.model import STAIRModel
from stair.monitor import Monitor, Progress
from stair.parallel import Ranks
from stair.pretrained import initial_model
from stair.processing import STAIRProcessor

RECORD, LOG, STATE = "training.json", "log.jsonl", "training_state.pt"


def train(
    config: TrainConfig,
    data: TrainingSet,
    out_dir: Path | str,
    *,
    model: STAIRModel,
    processor: STAIRProcessor,
    resume: bool = False,
    progress: Progress | None = None,
    tensorboard: Path | None = None,
    ranks: Ranks = ALONE,
) -> TrainResult:
    """Trains `model` in place and leaves a checkpoint in `out_dir`, whole or not at all.

    In several processes each calls this with its own `ranks` and the same of everything else; the first one writes.

    Args:
        out_dir: a new folder, an empty one, or one that an earlier training wrote (it is replaced).
        resume: go on from the state that an interrupted training left in `out_dir`.
        tensorboard: a folder for TensorBoard's event files.
        ranks: this process among others, and the device that the model is moved to.

    Raises:
        ValueError: when `out_dir` holds something else, or there is nothing to resume.
        KeyboardInterrupt: on Ctrl-C, once the state is saved; its message says how to go on.
    """
    out_dir = Path(out_dir)
    if ranks.first:
        settle(out_dir)
    ranks.wait()
    require_ours(out_dir)
    torch.manual_seed(config.seed + ranks.rank)
    model.to(ranks.device)  # type: ignore[arg-type]  # a decorator of transformers hides the signature
    ranks.same(model)
    objective = StairObjective(
        model,
        config.schedule(),
        start_active=config.start_active,
        text_flops=config.text_flops,
        image_flops=config.image_flops,
        learning_rate=config.learning_rate,
        text_learning_rate=config.text_learning_rate,
        matrix_rate=config.matrix_rate,
        head=config.head,
        group=ranks.group,
    )
    model.config.text_k, model.config.image_k, model.config.head = config.text_k, config.image_k, config.head
    loop = Loop(config, objective, data, processor, ranks)
    resumed = _resume(loop, model, out_dir) if resume else None
    monitor = Monitor(progress, tensorboard, loop.step) if ranks.first else None

    def save() -> None:
        _save(out_dir, loop, model, finished=None)
        if monitor is not None:
            monitor.lines = out_dir / LOG

    try:
        loop.run("train", monitor, save)
    finally:
        if monitor is not None:
            monitor.close()
    result = TrainResult(
        str(out_dir), loop.step, loop.elapsed, loop.step_ms(), peak_rss_mb(), loop.log, resumed_from=resumed
    )
    _save(out_dir, loop, model, finished=result)
    if config.eager_steps and ranks.size == 1:
        result.eager_step_ms, result.eager_peak_rss_mb = measure_eager(loop, objective, progress)
        _save(out_dir, loop, model, finished=result)
    return result


def measure_eager(loop: Loop, objective: StairObjective, progress: Progress | None = None) -> tuple[float, float]:
    """(median ms of a joint step with the eager head on the same batches, peak RSS in MB); on a copy of the model."""
    steps = loop.config.eager_steps
    rival = StairObjective(copy.deepcopy(objective.model), Schedule(warm=0.0), head="reference", calibrated=True)
    eager = Loop(loop.config, rival, loop.data, loop.processor, Ranks(device=loop.ranks.device))
    rival.model.train()
    for step in range(steps + 1):
        eager.advance()
        if progress is not None:
            progress("eager", step + 1, steps + 1, eager.log[-1])
    return statistics.median(line["step_ms"] for line in eager.log[1:]), peak_rss_mb()


def train_pairs(
    config: TrainConfig,
    pairs: Pairs,
    out_dir: Path | str,
    *,
    init: Path | str | None = None,
    resume: bool = False,
    augmented: int = 2,
    cache: Path | None = None,
    progress: Progress | None = None,
    tensorboard: Path | None = None,
    ranks: Ranks = ALONE,
) -> TrainResult:
    """Trains on the user's pictures and captions.

    Args:
        init: a checkpoint to start from; None for config.text_encoder and config.image_encoder, or without them for
            the published weights of SPLADE-tiny and EfficientNet-lite0.
        augmented: altered copies of each picture. What a frozen part of the image tower makes of them is kept in
            `cache`; where there is none, pictures are read again whenever they are drawn.
    """
    require_writable(Path(out_dir).resolve().parent)
    require_ours(Path(out_dir))
    torch.manual_seed(config.seed)  # of the weights that start at random
    model, processor = _start(config, init)
    pictures = FilePictures(pairs.pictures, processor.images)
    total = len(pairs) * (1 + augmented)
    report = None if progress is None else lambda done: progress("features", done, total, {})
    features: np.ndarray | PixelValues = PixelValues(pictures, augmented)
    if model.backbone is not None:
        for turn in (True, False):  # the first process computes them, the others find them in the cache
            if ranks.first == turn:
                features = features_of(model.backbone, pictures, augmented, cache=cache, done=report)
            ranks.wait()

    def text(item: int, generator: np.random.Generator) -> str:
        return pairs.texts[item][generator.integers(len(pairs.texts[item]))]

    data = TrainingSet([features], np.arange(len(pairs)), text)
    return train(
        config,
        data,
        out_dir,
        model=model,
        processor=processor,
        resume=resume,
        progress=progress,
        tensorboard=tensorboard,
        ranks=ranks,
    )


def _start(config: TrainConfig, init: Path | str | None) -> tuple[STAIRModel, STAIRProcessor]:
    """The model to train and its processor: a checkpoint, two encoders, or the demo's published weights."""
    if init is not None and config.text_encoder is not None:
        raise ValueError(f"text_encoder: expected none when training starts from {init}, got {config.text_encoder!r}")
    if init is not None:
        return load(init)
    if config.text_encoder is None or config.image_encoder is None:
        return initial_model()
    return load_encoders(
        config.text_encoder,
        config.image_encoder,
        freeze_image=config.freeze_image,
        tie_vocabulary=config.tie_vocabulary,
        head=config.head,
    )


def require_ours(out_dir: Path) -> None:
    """Raises ValueError unless `out_dir` is new, empty, or an earlier training's, which may be replaced."""
    if out_dir.is_file():
        raise ValueError(f"{out_dir}: expected a folder for the model, got a file")
    if out_dir.is_dir() and any(out_dir.iterdir()) and not (out_dir / RECORD).is_file():
        raise ValueError(f"{out_dir} exists and holds something other than a STAIR model: choose another folder")


def _save(out_dir: Path, loop: Loop, model: STAIRModel, finished: TrainResult | None) -> None:
    """The checkpoint: model, processor, recipe and log; the state to resume from only while training is unfinished."""
    state = loop.state() if finished is None else None  # of all processes
    if loop.ranks.first:
        _write(out_dir, loop, model, state, finished)
    loop.ranks.wait()


def _write(
    out_dir: Path, loop: Loop, model: STAIRModel, state: dict[str, Any] | None, finished: TrainResult | None
) -> None:
    record: dict[str, Any] = {
        "config": asdict(loop.config),
        "step": loop.step,
        "finished": finished is not None,
        "versions": {"torch": torch.__version__, "stair_kernels": sk.__version__},
    }
    if finished is not None:
        record["result"] = {key: value for key, value in finished.as_dict().items() if key not in ("log", "model_dir")}
    with replacing_folder(out_dir) as folder:
        _save_model(model, folder)
        loop.processor.save_pretrained(folder)
        (folder / RECORD).write_text(json.dumps(record, indent=1), encoding="utf-8")
        (folder / LOG).write_text("".join(json.dumps(line) + "\n" for line in loop.log), encoding="utf-8")
        if state is not None:
            torch.save(state, folder / STATE)


def _save_model(model: STAIRModel, folder: Path) -> None:
    """save_pretrained without its own progress bar."""
    bars = transformers_logging.is_progress_bar_enabled()
    transformers_logging.disable_progress_bar()
    try:
        model.save_pretrained(folder)
    finally:
        if bars:
            transformers_logging.enable_progress_bar()


def _resume(loop: Loop, model: STAIRModel, out_dir: Path) -> int:
    if not (out_dir / STATE).is_file():
        raise ValueError(f"{out_dir}: nothing to resume (no {STATE}); start without --resume")
    record = json.loads((out_dir / RECORD).read_text(encoding="utf-8"))
    kept, given = record["config"], asdict(loop.config)
    free = ("steps", "minutes", "eager_steps", "checkpoint_minutes")
    changed = [f.name for f in fields(TrainConfig) if f.name not in free and kept.get(f.name) != given[f.name]]
    if changed:
        was = ", ".join(f"{name} {kept.get(name)!r}" for name in changed)
        raise ValueError(f"resume: the interrupted training had {was}; give the same, or start without --resume")
    model.load_state_dict(load(out_dir)[0].state_dict())
    loop.restore(torch.load(out_dir / STATE, weights_only=True, map_location="cpu"))
    return loop.step
