"""What a training says of itself while it runs: TensorBoard's event files and lines of JSON."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

from stair.files import require_writable

Progress = Callable[[str, int, int, dict[str, Any]], None]
INSTALL = "pip install 'stair-kernels[tensorboard]'"


class Monitor:
    """Every step's numbers, passed on to `progress`, to TensorBoard and to a file of lines that exists already.

    Args:
        tensorboard: the folder of the event files; None for none.
        step: the last step that was done before; what a stopped training wrote after it is hidden by TensorBoard.
    """

    def __init__(self, progress: Progress | None, tensorboard: Path | None, step: int = 0) -> None:
        self.progress = progress
        self.writer = None if tensorboard is None else summary_writer(tensorboard, step + 1)
        self.lines: Path | None = None  # where to append, once a checkpoint of this training is there

    def __call__(self, stage: str, done: int, total: int, numbers: dict[str, Any]) -> None:
        if stage == "train":
            if self.lines is not None:
                with open(self.lines, "a", encoding="utf-8") as stream:
                    stream.write(json.dumps(numbers) + "\n")
            if self.writer is not None:
                for name, value in numbers.items():
                    if name != "step":
                        self.writer.add_scalar(f"train/{name}", value, numbers["step"])
        if self.progress is not None:
            self.progress(stage, done, total, numbers)

    def close(self) -> None:
        if self.writer is not None:
            self.writer.close()


def summary_writer(folder: Path, step: int) -> Any:
    """A SummaryWriter into `folder`; ModuleNotFoundError with the install command when TensorBoard is not there."""
    try:
        from torch.utils.tensorboard import SummaryWriter
    except ImportError as error:
        raise ModuleNotFoundError(
            f"--tensorboard: tensorboard is not installed: {INSTALL}", name="tensorboard"
        ) from error
    require_writable(folder)
    return SummaryWriter(str(folder), purge_step=step, flush_secs=30)
