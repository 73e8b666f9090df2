"""The training stages, the loop by steps and by the clock, and what a stopped training leaves."""

from __future__ import annotations

import json
import os
import signal
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from stair import STAIRModel, STAIRProcessor
from stair.baseline import DenseCLIP, DenseObjective
from stair.data import TrainingSet
from stair.datasets import Pairs
from stair.evaluate import unit
from stair.loop import Loop, TrainConfig
from stair.losses import Schedule, Stage, StairObjective, calibrate, grounding_loss, own_rows, own_words, raw_logits
from stair.train import LOG, RECORD, STATE, train, train_pairs
from tiny_stair import COLORS, WORDS, save_checkpoint, save_pictures

import stair_kernels as sk

ITEMS = ("red", "green", "blue", "fruit", "apple", "dog", "cat", "round")
FAST = {
    "warm": 0.2,
    "start_active": 20.0,
    "batch": 8,
    "text_k": 24,
    "image_k": 24,
    "warmup": 2,
    "precision": "float32",
}


@pytest.fixture
def place(tmp_path: Path) -> Path:
    save_checkpoint(tmp_path / "start")
    save_pictures(tmp_path / "pictures")
    return tmp_path


@pytest.fixture
def model(place: Path) -> STAIRModel:
    return STAIRModel.from_pretrained(place / "start")


@pytest.fixture
def processor(place: Path) -> STAIRProcessor:
    return STAIRProcessor.from_pretrained(place / "start")


def words(copies: int = 2) -> TrainingSet:
    """Eight words, each with noisy copies of a feature map of its own."""
    generator = np.random.default_rng(0)
    centre = generator.normal(size=(len(ITEMS), 1, 4, 432))
    noisy = centre + 0.3 * generator.normal(size=(len(ITEMS), copies, 4, 432))
    return TrainingSet([noisy.astype(np.float16)], np.arange(len(ITEMS)), lambda item, _: f"a {ITEMS[item]}")


def weights(folder: Path) -> dict[str, torch.Tensor]:
    return STAIRModel.from_pretrained(folder).state_dict()


def test_raw_logits_are_the_pooled_logits_without_activation(model: STAIRModel) -> None:
    features = torch.randn(3, 4, 432)
    with torch.no_grad():
        head = model.image_head_inputs(image_features=features)
        raw = raw_logits(head)
    assert (raw < 0).any()
    expected = (head.hidden @ head.weight.T).amax(dim=1) + head.bias
    torch.testing.assert_close(raw, expected, atol=1e-4, rtol=1e-4)


def test_masked_rows_keep_only_what_the_text_says(model: STAIRModel, processor: STAIRProcessor) -> None:
    with torch.no_grad():
        model.text_head.bias.fill_(5.0)  # everything is active
    tensors = processor(text=["a red apple a red", "dog"])  # a word twice is one entry
    text = model.text_head_inputs(**tensors)
    rows, target = own_rows(text, tensors["input_ids"]), own_words(text, tensors["input_ids"])
    whole = sk.vocab_pool(*text)
    for number, said in enumerate((["[CLS]", "a", "red", "apple", "[SEP]"], ["[CLS]", "dog", "[SEP]"])):
        own = sorted(WORDS.index(word) for word in said)
        for row in (rows.to_dense()[number], target[number]):
            assert row.nonzero().flatten().tolist() == own
        torch.testing.assert_close(rows.to_dense()[number, own], whole[number, own])
    assert (rows.values.diff(dim=1) <= 0).all()
    assert not target.requires_grad
    torch.testing.assert_close(target.sum(1), torch.ones(2))
    # the gradient is that of the same entries of the whole row
    inputs = [text.hidden, text.weight, text.bias]
    got = torch.autograd.grad(rows.to_dense().square().sum(), inputs)
    kept = whole * (rows.to_dense() > 0)
    for a, b in zip(got, torch.autograd.grad(kept.square().sum(), inputs)):
        torch.testing.assert_close(a, b, rtol=1e-4, atol=1e-4)


def test_masked_rows_without_an_active_word_are_empty(model: STAIRModel, processor: STAIRProcessor) -> None:
    with torch.no_grad():
        model.text_head.bias.fill_(-1e4)
        tensors = processor(text=["a red apple", "dog"])
        rows = own_rows(model.text_head_inputs(**tensors), tensors["input_ids"])
    assert rows.nnz().tolist() == [0, 0]
    assert (rows.indices == -1).all()


def test_grounding_raises_the_named_words(model: STAIRModel) -> None:
    features, target = torch.randn(2, 4, 432), torch.zeros(2, 80)
    target[0, 5] = target[1, 9] = 1.0
    optimizer = torch.optim.Adam(model.image_head.parameters(), 1e-2)
    for _ in range(60):
        optimizer.zero_grad()
        loss = grounding_loss(model.image_head_inputs(image_features=features), target)
        loss.backward()
        optimizer.step()
    assert float(loss.detach()) < 0.5
    assert raw_logits(model.image_head_inputs(image_features=features)).argmax(1).tolist() == [5, 9]


@pytest.mark.parametrize("active", [3.0, 20.0])
def test_calibration_leaves_the_wanted_number_of_terms(model: STAIRModel, active: float) -> None:
    features = torch.randn(10, 4, 432)
    model.eval()
    calibrate(model, features, active)
    with torch.no_grad():
        rows = model.encode_image(image_features=features, k=80)
    assert abs(float(rows.nnz().float().mean()) - active) <= 0.2


TEXT, IMAGE = ("text_tower", "text_head"), ("image_tower", "image_head")


@pytest.mark.parametrize(
    ("stage", "moves"),
    [
        (Stage.WARM, IMAGE),
        (Stage.MASKED, (*TEXT, *IMAGE, "log_scale")),
        (Stage.EXPAND, (*TEXT, "log_scale")),
        (Stage.JOINT, (*TEXT, *IMAGE, "log_scale")),
    ],
)
def test_a_stage_moves_its_own_towers(
    model: STAIRModel, processor: STAIRProcessor, stage: Stage, moves: tuple[str, ...]
) -> None:
    shares = {share: 1.0 if stage.name == share.upper() else 0.0 for share in ("warm", "masked", "expand")}
    objective = StairObjective(model, Schedule("three", **shares), calibrated=True)
    loop = Loop(TrainConfig(steps=10, **FAST), objective, words(), processor)
    loop.advance()  # the optimizer now has moments, with which a zero gradient would move a weight
    before = {name: value.clone() for name, value in model.state_dict().items()}
    loop.advance()
    changed = {name for name, value in model.state_dict().items() if not torch.equal(value, before[name])}
    assert {name.split(".")[0] for name in changed} == set(moves)
    assert [line["stage"] for line in loop.log] == [stage, stage]


def test_no_moment_of_an_earlier_stage_moves_the_frozen_images(model: STAIRModel, processor: STAIRProcessor) -> None:
    config = TrainConfig(steps=10, **{**FAST, "stages": "three", "warm": 0.2, "masked": 0.2, "expand": 0.2})
    loop = Loop(config, StairObjective(model, config.schedule()), words(), processor)
    images: list[dict[str, torch.Tensor]] = []
    for _ in range(7):
        loop.advance()
        images.append({name: value.clone() for name, value in model.state_dict().items() if name.startswith(IMAGE)})
    assert [line["stage"] for line in loop.log] == [0, 0, 1, 1, 2, 2, 3]
    moved = [any(not torch.equal(a[name], b[name]) for name in a) for a, b in zip(images, images[1:])]
    assert moved == [True, True, True, False, False, True]


def test_a_schedule_names_the_stage_of_every_share() -> None:
    three, single = Schedule("three", 0.1, 0.2, 0.3), Schedule("single", 0.1, 0.2, 0.3)
    shares = (0.0, 0.09, 0.1, 0.29, 0.3, 0.59, 0.6, 1.0)
    assert [three.at(share).value for share in shares] == [0, 0, 1, 1, 2, 2, 3, 3]
    assert [single.at(share).value for share in shares] == [0, 0, 3, 3, 3, 3, 3, 3]


def test_training_learns_and_leaves_a_checkpoint(place: Path, model: STAIRModel, processor: STAIRProcessor) -> None:
    seen: list[tuple[str, int, int]] = []

    def progress(stage: str, done: int, total: int, info: dict[str, Any]) -> None:
        seen.append((stage, done, total))
        assert info["loss"] > 0

    config = TrainConfig(steps=60, eager_steps=2, learning_rate=1e-2, text_learning_rate=4e-3, **FAST)
    result = train(config, words(), place / "out", model=model, processor=processor, progress=progress)
    assert [done for stage, done, _ in seen if stage == "train"] == list(range(1, 61))
    assert {total for stage, _, total in seen if stage == "train"} == {60}
    assert [done for stage, done, _ in seen if stage == "eager"] == [1, 2, 3]
    stages = [line["stage"] for line in result.log]
    assert stages == [Stage.WARM] * 12 + [Stage.JOINT] * 48
    assert result.log[-1]["accuracy"] == 1.0
    assert result.log[-1]["contrastive"] < 0.5 * result.log[12]["contrastive"]
    assert result.steps == 60
    assert result.step_ms > 0
    assert result.eager_step_ms is not None
    assert result.eager_step_ms > 0
    assert result.peak_rss_mb > 10
    names = {file.name for file in (place / "out").iterdir()}
    assert {"config.json", "model.safetensors", "tokenizer.json", RECORD, LOG} <= names
    assert STATE not in names
    lines = [json.loads(line) for line in (place / "out" / LOG).read_text().splitlines()]
    assert lines == result.log
    record = json.loads((place / "out" / RECORD).read_text())
    assert record["finished"]
    assert record["config"]["steps"] == 60
    saved = STAIRModel.from_pretrained(place / "out").eval()
    assert (saved.config.text_k, saved.config.image_k) == (24, 24)
    with torch.no_grad():
        texts = saved.encode_text(**processor(text=[f"a {word}" for word in ITEMS]))
        images = saved.encode_image(image_features=torch.from_numpy(words().features[0][:, 0].astype(np.float32)))
    assert torch.equal(sk.sparse_dot(unit(texts), unit(images)).argmax(1), torch.arange(len(ITEMS)))


def test_the_same_seed_trains_the_same_weights(place: Path) -> None:
    found = []
    for name in ("one", "two"):
        model = STAIRModel.from_pretrained(place / "start")
        processor = STAIRProcessor.from_pretrained(place / "start")
        train(TrainConfig(steps=8, **FAST), words(), place / name, model=model, processor=processor)
        found.append(weights(place / name))
    assert all(torch.equal(found[0][name], found[1][name]) for name in found[0])


@pytest.mark.parametrize("stop_at", [1, 4, 7, 10])  # in each of the stages
def test_a_stopped_training_resumes_to_the_same_weights(place: Path, stop_at: int) -> None:
    config = TrainConfig(steps=12, **{**FAST, "stages": "three", "warm": 0.25, "masked": 0.25, "expand": 0.25})

    def start() -> dict[str, Any]:
        model = STAIRModel.from_pretrained(place / "start")
        return {"model": model, "processor": STAIRProcessor.from_pretrained(place / "start")}

    whole = train(config, words(), place / "whole", **start())
    before = signal.getsignal(signal.SIGINT)  # ignored, when the tests run as a shell's job in the background

    def ctrl_c(stage: str, done: int, total: int, info: dict[str, Any]) -> None:
        if done == stop_at:
            os.kill(os.getpid(), signal.SIGINT)

    with pytest.raises(KeyboardInterrupt, match=f"stopped at step {stop_at}; the checkpoint is kept"):
        train(config, words(), place / "parts", progress=ctrl_c, **start())
    assert (place / "parts" / STATE).is_file()
    assert not json.loads((place / "parts" / RECORD).read_text())["finished"]
    assert signal.getsignal(signal.SIGINT) is before
    result = train(config, words(), place / "parts", resume=True, **start())
    assert result.resumed_from == stop_at
    assert [line["step"] for line in result.log] == list(range(1, 13))
    assert [line["stage"] for line in result.log] == [0, 0, 0, 1, 1, 1, 2, 2, 2, 3, 3, 3]
    assert [line["loss"] for line in result.log] == [line["loss"] for line in whole.log]
    assert not (place / "parts" / STATE).exists()
    one, other = weights(place / "whole"), weights(place / "parts")
    for name in one:
        assert torch.equal(one[name], other[name]), name


def test_an_interrupt_before_the_first_step_leaves_nothing(
    place: Path, model: STAIRModel, processor: STAIRProcessor, monkeypatch: pytest.MonkeyPatch
) -> None:
    def interrupted(self: Loop) -> dict[str, float]:
        raise KeyboardInterrupt

    monkeypatch.setattr(Loop, "advance", interrupted)
    with pytest.raises(KeyboardInterrupt):
        train(TrainConfig(steps=3, **FAST), words(), place / "out", model=model, processor=processor)
    assert not (place / "out").exists()


def test_resuming_needs_the_same_recipe_and_something_to_resume(
    place: Path, model: STAIRModel, processor: STAIRProcessor
) -> None:
    arguments = {"model": model, "processor": processor, "resume": True}
    with pytest.raises(ValueError, match="nothing to resume"):
        train(TrainConfig(steps=3, **FAST), words(), place / "out", **arguments)

    def stop(*_: Any) -> None:
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        train(TrainConfig(steps=3, **FAST), words(), place / "out", model=model, processor=processor, progress=stop)
    with pytest.raises(ValueError, match="interrupted training had seed 0"):
        train(TrainConfig(steps=3, seed=1, **FAST), words(), place / "out", **arguments)


def test_a_foreign_folder_is_not_replaced(place: Path, model: STAIRModel, processor: STAIRProcessor) -> None:
    kept = place / "photos" / "holiday.jpg"
    kept.parent.mkdir()
    kept.write_bytes(b"precious")
    with pytest.raises(ValueError, match="photos exists and holds something other than a STAIR model"):
        train(TrainConfig(steps=2, **FAST), words(), kept.parent, model=model, processor=processor)
    with pytest.raises(ValueError, match="expected a folder for the model, got a file"):
        train(TrainConfig(steps=2, **FAST), words(), kept, model=model, processor=processor)
    assert kept.read_bytes() == b"precious"


def test_the_clock_ends_training(
    place: Path, model: STAIRModel, processor: STAIRProcessor, monkeypatch: pytest.MonkeyPatch
) -> None:
    clock = iter(range(10**6))
    monkeypatch.setattr("stair.loop.time.perf_counter", lambda: next(clock))  # every step takes one second
    config = TrainConfig(steps=1000, minutes=0.25, **FAST)
    result = train(config, words(), place / "out", model=model, processor=processor)
    assert result.steps == 15
    assert [line["stage"] for line in result.log] == [Stage.WARM] * 3 + [Stage.JOINT] * 12


def test_a_loss_that_is_no_number_stops_training(model: STAIRModel, processor: STAIRProcessor) -> None:
    data = words()
    data.features[0][:] = np.nan
    loop = Loop(TrainConfig(steps=2, **FAST), StairObjective(model), data, processor)
    with pytest.raises(FloatingPointError, match="the loss became nan at step 1"):
        loop.advance()


def test_the_dense_baseline_learns_in_the_same_loop(model: STAIRModel, processor: STAIRProcessor) -> None:
    dense = DenseCLIP(model, width=16)
    loop = Loop(TrainConfig(steps=60, **FAST), DenseObjective(dense), words(), processor)
    loop.run("baseline", None)
    assert loop.log[-1]["accuracy"] == 1.0
    assert not any("head" in name for name, _ in dense.named_parameters())
    assert sum(p.numel() for p in dense.text_tower.parameters()) == sum(
        p.numel() for p in model.text_tower.parameters()
    )


def test_pairs_of_the_user_train_from_a_checkpoint(place: Path) -> None:
    paths = sorted((place / "pictures").glob("*.png"))
    pairs = Pairs(paths, [[path.stem, f"a {path.stem} disc"] for path in paths])
    stages: list[str] = []
    result = train_pairs(
        TrainConfig(steps=3, **FAST),
        pairs,
        place / "mine",
        init=place / "start",
        cache=place / "cache",
        progress=lambda stage, *_: stages.append(stage),
    )
    assert result.steps == 3
    assert stages[0] == "features"
    assert stages[-3:] == ["train"] * 3
    assert len(list((place / "cache").iterdir())) == 1
    assert len(paths) == len(COLORS)


def test_reference_head_trains_too(place: Path, model: STAIRModel, processor: STAIRProcessor) -> None:
    config = TrainConfig(steps=4, head="reference", **{**FAST, "stages": "three", "masked": 0.3, "expand": 0.3})
    result = train(config, words(), place / "out", model=model, processor=processor)
    assert result.steps == 4
    assert STAIRModel.from_pretrained(place / "out").config.head == "reference"


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"steps": 0}, "steps: expected at least 1, got 0"),
        ({"batch": 1}, "batch: expected at least 2, got 1"),
        ({"minutes": 0}, "minutes: expected more than 0, got 0"),
        ({"precision": "half"}, "precision: expected one of auto, float32, bfloat16, got 'half'"),
        ({"text_encoder": "bert"}, "text_encoder, image_encoder: expected both or neither, got 'bert' and None"),
        ({"tie_vocabulary": "all"}, "tie_vocabulary: expected one of none, text, both, got 'all'"),
        ({"freeze_image": True}, "freeze_image, tie_vocabulary: expected text_encoder and image_encoder with them"),
        ({"head": "fast"}, "head: expected one of fused, reference, got 'fast'"),
        ({"stages": "four"}, "stages: expected one of single, three, got 'four'"),
        ({"expand": 1.5}, "expand: expected a share between 0 and 1, got 1.5"),
        (
            {"stages": "three", "masked": 0.6, "expand": 0.5},
            "warm, masked, expand: expected shares of 1 at most together, got 1.25",
        ),
    ],
)
def test_recipes_are_checked(arguments: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        TrainConfig(**arguments)


def test_one_item_is_not_enough(model: STAIRModel, processor: STAIRProcessor) -> None:
    data = words()
    data.items = data.items[:1]
    with pytest.raises(ValueError, match="expected at least two items to train on for each process, got 1"):
        Loop(TrainConfig(steps=2, **FAST), StairObjective(model), data, processor)
