"""Training that is killed, and training in two processes: both end where an undisturbed single process does."""

from __future__ import annotations

import json
import multiprocessing
import os
import shutil
import signal
import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from stair import STAIRModel, files
from stair.checkpoint import load
from stair.cli import app
from stair.data import TrainingSet
from stair.files import replacing_folder, settle
from stair.loop import Loop, TrainConfig
from stair.losses import StairObjective
from stair.parallel import Ranks, device_of
from stair.train import LOG, RECORD, STATE, train
from tiny_stair import COLORS, save_checkpoint, save_pictures
from typer.testing import CliRunner

ROOT = Path(__file__).resolve().parents[1]
ITEMS = ("red", "green", "blue", "fruit", "apple", "dog", "cat", "round")
SHARES = {"stages": "three", "warm": 0.25, "masked": 0.25, "expand": 0.25}  # of 4 steps: each in another stage
RECIPE = {**SHARES, "start_active": 20.0, "text_k": 24, "image_k": 24, "warmup": 2, "precision": "float32"}
STEPS = 4
SECOND = 8  # the event at which the second step begins: from here on there is a checkpoint


def words() -> TrainingSet:
    """Eight words, each with a feature map of its own."""
    maps = np.random.default_rng(0).normal(size=(len(ITEMS), 2, 4, 432))
    return TrainingSet([maps.astype(np.float16)], np.arange(len(ITEMS)), lambda item, _: f"a {ITEMS[item]}")


def save_start(folder: Path) -> Path:
    """The tiny checkpoint without dropout: what is dropped depends on the number of processes."""
    save_checkpoint(folder)
    config = json.loads((folder / "config.json").read_text())
    config["vision_config"]["dropout"] = 0.0
    (folder / "config.json").write_text(json.dumps(config))
    return folder


def run(place: Path, out: Path, kill_at: int | None, resume: bool) -> None:
    """Trains with a checkpoint after every step; `kill_at`: the process dies at that event of saving or training."""
    torch.set_num_threads(1)
    if kill_at is not None:
        _die_at(kill_at)
    model, processor = load(place / "start")
    config = TrainConfig(steps=STEPS, batch=4, checkpoint_minutes=0.0, **RECIPE)
    train(config, words(), out, model=model, processor=processor, resume=resume)


def _die_at(event: int) -> None:
    """SIGKILL just before the event-th of the calls that change files or take a step."""
    left = [event]

    def deadly(owner: Any, name: str) -> None:
        real = getattr(owner, name)

        def call(*args: Any, **options: Any) -> Any:
            if left[0] == 0:
                os.kill(os.getpid(), signal.SIGKILL)
            left[0] -= 1
            return real(*args, **options)

        setattr(owner, name, call)

    for owner, name in (
        (os, "replace"),
        (shutil, "rmtree"),
        (files, "_exchange"),
        (torch, "save"),
        (Loop, "advance"),
        (STAIRModel, "save_pretrained"),
    ):
        deadly(owner, name)


def losses(out: Path) -> list[float]:
    return [json.loads(line)["loss"] for line in (out / LOG).read_text().splitlines()]


def test_training_survives_a_kill_at_any_moment(tmp_path: Path) -> None:
    """The kills come one after the other: every second run goes on from what the one before left."""
    save_start(tmp_path / "start")
    context = multiprocessing.get_context("forkserver")
    context.set_forkserver_preload(["stair.train", "test_stair_processes"])

    def attempt(out: Path, kill_at: int | None) -> int:
        resume = (out / STATE).is_file()
        process = context.Process(target=run, args=(tmp_path, out, kill_at, resume))
        process.start()
        process.join(120)
        assert process.exitcode is not None, "hangs"
        return process.exitcode

    assert attempt(tmp_path / "whole", None) == 0
    whole = load(tmp_path / "whole")[0].state_dict()
    for number, kills in enumerate(((14, 1, 6), (13, 12, 8))):
        out = tmp_path / f"killed{number}"
        for kill_at in kills:
            there = out.exists() or kill_at >= SECOND
            assert attempt(out, kill_at) == -signal.SIGKILL
            assert out.exists() or not there  # never gone once it was there, and whole at any moment
            if out.exists():
                load(out)
                assert (out / STATE).is_file()
                assert len(losses(out)) >= json.loads((out / RECORD).read_text())["step"]
        assert attempt(out, None) == 0
        assert losses(out) == losses(tmp_path / "whole")
        for name, tensor in load(out)[0].state_dict().items():
            assert torch.equal(tensor, whole[name]), name
    assert not [path.name for path in tmp_path.iterdir() if path.name.startswith(".")]  # what kills left is cleared


def test_folders_are_swapped_in_one_step_or_put_back(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    place = tmp_path / "model"
    for number in range(2):
        with replacing_folder(place) as folder:
            (folder / "file").write_text(str(number))
    assert (place / "file").read_text() == "1"
    assert [path.name for path in tmp_path.iterdir()] == ["model"]

    monkeypatch.setattr(files, "_exchange", lambda one, other: False)  # another system
    with replacing_folder(place) as folder:
        (folder / "file").write_text("2")
    assert (place / "file").read_text() == "2"
    dead = subprocess.Popen([sys.executable, "-c", ""])
    dead.wait()
    place.rename(tmp_path / f".model.{dead.pid}.old")  # killed between the two renames
    (tmp_path / f".model.{dead.pid}.tmp").mkdir()
    (tmp_path / f".model.{os.getppid()}.tmp").mkdir()  # another process is writing
    (tmp_path / ".model.notes.old").mkdir()
    (tmp_path / f".model.{2**22 + 1}.tmp").write_bytes(b"half a file")  # no process has such a number
    settle(place)
    assert (place / "file").read_text() == "2"
    assert {path.name for path in tmp_path.iterdir()} == {"model", f".model.{os.getppid()}.tmp", ".model.notes.old"}


def test_two_processes_train_as_one_with_the_double_batch(tmp_path: Path) -> None:
    """By torchrun and the command line, pictures, calibration and all; one process has the batch of both."""
    save_start(tmp_path / "start")
    save_pictures(tmp_path / "pictures")
    for name in COLORS:
        (tmp_path / "pictures" / f"{name}.txt").write_text(f"a {name} star\nthe {name} night sky and a dog\n")
    paths = [str(ROOT / "python"), str(ROOT), os.environ.get("PYTHONPATH", "")]
    environment = {
        **os.environ,
        "PYTHONPATH": os.pathsep.join(paths),
        "STAIR_CACHE": str(tmp_path / "cache"),
        "OMP_NUM_THREADS": "1",
    }
    torchrun = ["-m", "torch.distributed.run", "--standalone", "--nproc-per-node", "2"]
    for name, batch in (("one", 4), ("two", 2)):
        recipe = {**RECIPE, "batch": batch, "steps": 6, "accumulate": 2}
        (tmp_path / f"{name}.yaml").write_text("".join(f"{key}: {value}\n" for key, value in recipe.items()))
        args = [tmp_path / "pictures", "--from", tmp_path / "start", "--out", tmp_path / name, "--held-out", 0]
        command = ["train", *map(str, args), "--config", str(tmp_path / f"{name}.yaml")]
        if name == "one":
            assert CliRunner().invoke(app, command, env=environment).exit_code == 0
            continue
        command = [sys.executable, *torchrun, "-m", "stair", *command]
        done = subprocess.run(command, env=environment, capture_output=True, text=True, timeout=200)
        assert done.returncode == 0, done.stderr[-3000:]
    assert losses(tmp_path / "two") == pytest.approx(losses(tmp_path / "one"), rel=1e-4)
    one, two = (load(tmp_path / name)[0].state_dict() for name in ("one", "two"))
    for name, tensor in one.items():
        if "in_proj_bias" not in name and "key.bias" not in name:  # no output depends on them: Adam scales up rounding
            torch.testing.assert_close(two[name], tensor, atol=2e-4, rtol=1e-3, msg=name)
    record = json.loads((tmp_path / "two" / RECORD).read_text())
    assert record["result"]["steps"] == 6


def test_accumulated_gradients_are_the_mean_of_the_batches(tmp_path: Path) -> None:
    save_start(tmp_path / "start")

    def loop(accumulate: int) -> Loop:
        model, processor = load(tmp_path / "start")
        config = TrainConfig(steps=5, batch=4, accumulate=accumulate, **RECIPE)
        return Loop(config, StairObjective(model, calibrated=True), words(), processor)

    both, apart = loop(2), loop(1)
    wanted: dict[str, torch.Tensor] = {}
    for _ in range(2):
        texts, features = apart.draw()
        apart.objective.module.zero_grad()
        with apart.config.forward_context():
            apart.objective.loss(texts, features, 0.0)[0].backward()
        for name, p in apart.objective.module.named_parameters():
            if p.grad is not None:
                wanted[name] = wanted.get(name, 0) + p.grad / 2
    both.objective.clip = float("inf")
    line = both.advance()
    for name, p in both.objective.module.named_parameters():
        if p.grad is not None:
            torch.testing.assert_close(p.grad, wanted[name], msg=name)
    assert line["samples_per_s"] > 0
    with pytest.raises(ValueError, match="accumulate: expected at least 1, got 0"):
        TrainConfig(accumulate=0)


def test_one_process_is_alone(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("WORLD_SIZE", raising=False)
    ranks = Ranks.join()
    assert (ranks, ranks.group, ranks.first) == (Ranks(0, 1), None, True)
    assert ranks.part(6) == slice(0, 6)
    assert Ranks(1, 3).part(6) == slice(2, 4)
    assert ranks.mean({"a": 2.0}) == {"a": 2.0}
    assert ranks.gather("x") == ["x"]


def test_devices(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    assert device_of("cpu") == torch.device("cpu")
    for there, expected in ((True, "cuda"), (False, "cpu")):
        monkeypatch.setattr(torch.cuda, "is_available", lambda there=there: there)
        assert device_of("auto") == torch.device(expected)
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 2)
    assert device_of("cuda:1") == torch.device("cuda", 1)
    for name in ("cuda:2", "meta", "gpu", ""):
        with pytest.raises(ValueError, match=f"device: expected .*got '{name}'"):
            device_of(name)


def test_a_batch_is_drawn_on_the_device(tmp_path: Path) -> None:
    model, processor = load(save_start(tmp_path / "start"))
    ranks = Ranks(device=torch.device("meta"))
    loop = Loop(TrainConfig(steps=5, batch=4, **RECIPE), StairObjective(model), words(), processor, ranks)
    texts, pictures = loop.draw()
    assert {tensor.device.type for tensor in (*texts.values(), pictures)} == {"meta"}


def test_tensorboard_gets_every_step(tmp_path: Path) -> None:
    accumulator = pytest.importorskip("tensorboard.backend.event_processing.event_accumulator")
    model, processor = load(save_start(tmp_path / "start"))
    config = TrainConfig(steps=3, batch=4, checkpoint_minutes=0.0, **RECIPE)
    result = train(config, words(), tmp_path / "out", model=model, processor=processor, tensorboard=tmp_path / "events")
    events = accumulator.EventAccumulator(str(tmp_path / "events")).Reload()
    written = [(event.step, event.value) for event in events.Scalars("train/loss")]
    assert written == [(line["step"], pytest.approx(line["loss"], rel=1e-6)) for line in result.log]
    assert "train/samples_per_s" in events.Tags()["scalars"]


def test_lines_are_written_while_training_runs(tmp_path: Path) -> None:
    model, processor = load(save_start(tmp_path / "start"))
    seen: list[int] = []

    def progress(stage: str, done: int, *_: Any) -> None:
        file = tmp_path / "out" / LOG
        seen.append(len(file.read_text().splitlines()) if file.exists() else 0)

    config = TrainConfig(steps=4, batch=4, checkpoint_minutes=0.0, **RECIPE)
    train(config, words(), tmp_path / "out", model=model, processor=processor, progress=progress)
    assert seen == [0, 2, 3, 4]  # the first checkpoint comes after the first step
    assert len(losses(tmp_path / "out")) == 4


def test_missing_tensorboard_is_one_line(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "torch.utils.tensorboard", None)
    model, processor = load(save_start(tmp_path / "start"))
    arguments = {"model": model, "processor": processor, "tensorboard": tmp_path / "events"}
    with pytest.raises(ModuleNotFoundError, match=r"tensorboard is not installed: pip install 'stair-kernels\[tens"):
        train(TrainConfig(steps=2, **RECIPE), words(), tmp_path / "out", **arguments)
    assert not (tmp_path / "out").exists()
