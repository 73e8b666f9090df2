"""The training loop, the same for STAIR and the dense baseline: by steps or by the clock, stopped and resumed."""

from __future__ import annotations

import ctypes
import json
import math
import signal
import statistics
import sys
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager, nullcontext
from dataclasses import asdict, dataclass, field
from typing import Any, Protocol

import numpy as np
import torch
from torch import Tensor, nn
from torch.nn.attention import SDPBackend, sdpa_kernel

from stair.data import TrainingSet
from stair.head import HEADS, TIES
from stair.losses import Schedule, Stage
from stair.monitor import Progress
from stair.parallel import Ranks
from stair.processing import STAIRProcessor
from stair.vision import has_bfloat16

PRECISIONS = ("auto", "float32", "bfloat16")
RELEASE_EVERY = 10  # steps
ALONE = Ranks()


@dataclass
class TrainConfig:
    """The recipe.

    Args:
        steps: optimizer steps at most.
        minutes: of training at most; the schedule ends with whichever of the two is used up first.
        batch: B of a process; never more than there are items for all of them.
        accumulate: batches whose gradients are averaged for one step. Negatives and FLOPS means stay within a batch: it
            is not the gradient of one batch of accumulate * B (more processes are).
        stages: "single" or "three", the paper's three (see stair.losses.Schedule).
        warm, masked, expand: shares of training for the warm start and, of "three", for stages 1 and 2.
        start_active: terms an image has on average when the contrastive stages begin.
        learning_rate, text_learning_rate: of the image tower and of the text tower.
        matrix_rate: times learning_rate, that of the images' vocabulary matrix.
        text_flops, image_flops: weights of the two penalties; higher is sparser.
        text_k, image_k: entries kept in a row once trained.
        precision: of the vocabulary heads in training: "bfloat16", "float32", or "auto", bfloat16 where the CPU has it.
        head: "fused", or "reference" for eager PyTorch.
        eager_steps: steps that are also measured with the eager head afterwards, on a copy of the model; 0 = none.
        checkpoint_minutes: time between checkpoints that a stopped training resumes from.
        text_encoder, image_encoder: encoders of transformers to start from, by folder or name; both or neither.
        freeze_image, tie_vocabulary: of the model made of them (see STAIRConfig).
    """

    steps: int = 600
    minutes: float | None = None
    batch: int = 128
    accumulate: int = 1
    stages: str = "single"
    warm: float = 0.15
    masked: float = 0.2
    expand: float = 0.1
    start_active: float = 100.0
    learning_rate: float = 2e-3
    text_learning_rate: float = 3e-4
    matrix_rate: float = 0.4
    text_flops: float = 1e-3
    image_flops: float = 1e-3
    text_k: int = 64
    image_k: int = 128
    warmup: int = 20
    seed: int = 0
    precision: str = "auto"
    head: str = "fused"
    eager_steps: int = 0
    checkpoint_minutes: float = 2.0
    text_encoder: str | None = None
    image_encoder: str | None = None
    freeze_image: bool = False
    tie_vocabulary: str = "none"

    def __post_init__(self) -> None:
        for name, least in (
            ("steps", 1),
            ("batch", 2),
            ("accumulate", 1),
            ("text_k", 1),
            ("image_k", 1),
            ("eager_steps", 0),
        ):
            if getattr(self, name) < least:
                raise ValueError(f"{name}: expected at least {least}, got {getattr(self, name)}")
        if self.minutes is not None and not self.minutes > 0:
            raise ValueError(f"minutes: expected more than 0, got {self.minutes}")
        if (self.text_encoder is None) != (self.image_encoder is None):
            got = f"{self.text_encoder!r} and {self.image_encoder!r}"
            raise ValueError(f"text_encoder, image_encoder: expected both or neither, got {got}")
        known_values = (("precision", PRECISIONS), ("head", HEADS), ("tie_vocabulary", TIES))
        for name, known in known_values:
            if getattr(self, name) not in known:
                raise ValueError(f"{name}: expected one of {', '.join(known)}, got {getattr(self, name)!r}")
        if self.text_encoder is None and (self.freeze_image or self.tie_vocabulary != "none"):
            raise ValueError("freeze_image, tie_vocabulary: expected text_encoder and image_encoder with them")
        self.schedule()

    def schedule(self) -> Schedule:
        """The stages and their shares; raises ValueError when they are no recipe."""
        return Schedule(self.stages, self.warm, self.masked, self.expand)

    @contextmanager
    def forward_context(self, device: str = "cpu") -> Iterator[None]:
        """What the forward pass runs in, on a type of device.

        On the CPU plain attention: over 16 positions the flash kernel's backward is slower.
        """
        fast = device != "cpu" or has_bfloat16()
        low = self.precision == "bfloat16" or (self.precision == "auto" and fast)
        attention = sdpa_kernel(SDPBackend.MATH) if device == "cpu" else nullcontext()
        with torch.autocast(device, torch.bfloat16, enabled=low), attention:
            yield


@dataclass
class TrainResult:
    """What a training run took and where it is."""

    model_dir: str | None
    steps: int
    seconds: float  # of training, without eager measurements
    step_ms: float  # median of one step of the joint stage
    peak_rss_mb: float  # of the process, when training ended
    log: list[dict[str, float]] = field(default_factory=list)
    eager_step_ms: float | None = None
    eager_peak_rss_mb: float | None = None
    resumed_from: int | None = None

    def as_dict(self) -> dict[str, Any]:
        return asdict(self)


class Objective(Protocol):
    """Something to minimise: STAIR's stages or the baseline."""

    calibrated: bool
    clip: float  # of the gradient's norm

    @property
    def module(self) -> nn.Module: ...

    def groups(self) -> list[dict[str, Any]]: ...

    def loss(self, texts: dict[str, Tensor], features: Tensor, fraction: float) -> tuple[Tensor, dict[str, float]]: ...


def peak_rss_mb() -> float:
    """The most memory this process has held, in MB; 0 where the system does not say."""
    try:
        import resource
    except ImportError:
        return 0.0
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    return peak / (1024 * 1024 if sys.platform == "darwin" else 1024)


def release_free_memory() -> None:
    """Gives freed heap back to the system. glibc keeps it in pieces that the next large tensors do not fit: over 600
    steps with the full vocabulary the process grew to 3.6 GB without this."""
    trim = getattr(ctypes.CDLL(None), "malloc_trim", None) if sys.platform == "linux" else None
    if trim is not None:
        trim(0)


class Loop:
    """State of one run: the optimizer, the random draws, the step and the clock; all of it is kept in a checkpoint."""

    def __init__(
        self,
        config: TrainConfig,
        objective: Objective,
        data: TrainingSet,
        processor: STAIRProcessor,
        ranks: Ranks = ALONE,
    ) -> None:
        if len(data) < 2 * ranks.size:
            raise ValueError(f"data: expected at least two items to train on for each process, got {len(data)}")
        self.config, self.objective, self.data, self.processor = config, objective, data, processor
        self.ranks = ranks
        self.batch = min(config.batch, len(data) // ranks.size) * ranks.size  # of all processes
        self.optimizer = torch.optim.AdamW(objective.groups(), betas=(0.9, 0.98), fused=True)
        self.rates = [group["lr"] for group in self.optimizer.param_groups]
        self.generator = np.random.default_rng(config.seed)
        self.order: list[int] = []
        self.step, self.elapsed = 0, 0.0
        self.log: list[dict[str, float]] = []

    @property
    def fraction(self) -> float:
        """How much of training is done, by steps or by the clock, in [0, 1]."""
        by_clock = self.elapsed / (60 * self.config.minutes) if self.config.minutes else 0.0
        return min(1.0, max(self.step / self.config.steps, by_clock))

    def draw(self) -> tuple[dict[str, Tensor], Tensor]:
        """This process's part of a batch of different items: tokens of a text each, features of a picture each.

        Every process makes the draws of the whole batch, and texts are as long as its longest.
        """
        if len(self.order) < self.batch:
            self.order = self.generator.permutation(self.data.items).tolist()
        items, self.order = self.order[: self.batch], self.order[self.batch :]
        texts = [self.data.text(item, self.generator) for item in items]
        part = self.ranks.part(self.batch)
        device = self.ranks.device
        tokens = {name: tensor[part].to(device) for name, tensor in self.processor.encode(texts).items()}
        return tokens, torch.from_numpy(self.data.pictures(items, self.generator, part)).to(device)

    def advance(self) -> dict[str, float]:
        """One optimizer step; gives its log line."""
        start, fraction = time.perf_counter(), self.fraction
        rate = min(1.0, (self.step + 1) / self.config.warmup) * (0.5 * (1 + math.cos(math.pi * fraction)) + 0.01)
        for group, base in zip(self.optimizer.param_groups, self.rates):
            group["lr"] = base * rate
        self.optimizer.zero_grad(set_to_none=True)
        parts = []
        for _ in range(self.config.accumulate):
            texts, features = self.draw()
            with self.config.forward_context(self.ranks.device.type):
                loss, logged = self.objective.loss(texts, features, fraction)
            (loss / self.config.accumulate).backward()
            parts.append(logged)
        self.ranks.average_gradients(self.objective.module.parameters())
        nn.utils.clip_grad_norm_(self.objective.module.parameters(), self.objective.clip)
        self.optimizer.step()
        self.step += 1
        numbers = {name: statistics.fmean(part[name] for part in parts) for name in parts[0] if name != "stage"}
        numbers = self.ranks.mean({**numbers, "seconds": time.perf_counter() - start})
        seconds = numbers.pop("seconds")  # the same for all processes, so that they agree on the fraction
        logged = {"stage": parts[0]["stage"], **numbers}
        self.elapsed += seconds
        if not math.isfinite(logged["loss"]):
            raise FloatingPointError(
                f"training: the loss became {logged['loss']} at step {self.step}; lower learning_rate"
            )
        line = {"step": self.step, "seconds": round(self.elapsed, 3), "step_ms": round(1000 * seconds, 1), **logged}
        line["samples_per_s"] = round(self.batch * self.config.accumulate / max(seconds, 1e-9), 1)
        self.log.append(line)
        return line

    def state(self) -> dict[str, Any]:
        """Everything but the model's weights, as plain values and tensors."""
        return {
            "optimizer": self.optimizer.state_dict(),
            "generator": json.dumps(self.generator.bit_generator.state),
            "torch_generators": self.ranks.gather(self._generators()),
            "order": self.order,
            "step": self.step,
            "elapsed": self.elapsed,
            "calibrated": self.objective.calibrated,
            "log": self.log,
        }

    def _generators(self) -> list[Tensor]:
        """The states of torch's random generators that this process draws from."""
        if self.ranks.device.type != "cuda":
            return [torch.get_rng_state()]
        return [torch.get_rng_state(), torch.cuda.get_rng_state(self.ranks.device)]

    def restore(self, state: dict[str, Any]) -> None:
        self.optimizer.load_state_dict(state["optimizer"])
        self.generator.bit_generator.state = json.loads(state["generator"])
        generators = state["torch_generators"]
        if len(generators) != self.ranks.size:
            raise ValueError(
                f"resume: the interrupted training had {len(generators)} processes, this one {self.ranks.size}"
            )
        on_host, *on_device = generators[self.ranks.rank]
        torch.set_rng_state(on_host)
        if on_device and self.ranks.device.type == "cuda":
            torch.cuda.set_rng_state(on_device[0], self.ranks.device)
        self.order, self.step, self.elapsed = state["order"], state["step"], state["elapsed"]
        self.objective.calibrated, self.log = state["calibrated"], state["log"]

    def run(self, stage: str, progress: Progress | None, save: Callable[[], None] | None = None) -> None:
        """Steps until all is done; `save` is called now and then, and on Ctrl-C before KeyboardInterrupt is raised."""
        self.objective.module.train()
        saved = time.monotonic()
        try:
            with _finish_step_on_interrupt() as stopped:
                while self.fraction < 1:
                    line = self.advance()
                    if progress is not None:
                        progress(stage, *self._done(), line)
                    if self.step % RELEASE_EVERY == 0:
                        release_free_memory()
                    late = time.monotonic() - saved > 60 * self.config.checkpoint_minutes
                    stop, due = self.ranks.sum([stopped.is_set(), self.ranks.first and late])
                    if stop:
                        raise KeyboardInterrupt
                    if save is not None and due:
                        save()
                        saved = time.monotonic()
        except KeyboardInterrupt:
            if save is None or self.step == 0:
                raise
            save()
            where = f"stopped at step {self.step}"
            raise KeyboardInterrupt(f"{where}; the checkpoint is kept, continue with --resume") from None
        finally:
            self.objective.module.eval()

    def _done(self) -> tuple[int, int]:
        """(steps done, steps in all), the latter estimated when the clock decides."""
        total = round(self.step / self.fraction) if self.fraction > self.step / self.config.steps else self.config.steps
        return self.step, max(self.step, total)

    def step_ms(self) -> float:
        """Median of the joint stage's steps; the first is left out, it allocates."""
        times = [line["step_ms"] for line in self.log if line["stage"] == Stage.JOINT]
        return statistics.median(times[1:] or times or [line["step_ms"] for line in self.log])


@contextmanager
def _finish_step_on_interrupt() -> Iterator[threading.Event]:
    """An event that Ctrl-C sets instead of breaking into a step; a second Ctrl-C breaks in."""
    stopped = threading.Event()
    if threading.current_thread() is not threading.main_thread():
        yield stopped
        return
    previous = signal.getsignal(signal.SIGINT)

    def handler(number: int, frame: Any) -> None:
        signal.signal(signal.SIGINT, previous)
        stopped.set()

    signal.signal(signal.SIGINT, handler)
    try:
        yield stopped
    finally:
        signal.signal(signal.SIGINT, previous)
