"""The demo's page: one file that loads nothing, with the run's pictures, searches and numbers in it."""

from __future__ import annotations

import dataclasses
import re
from pathlib import Path

import pytest
from html_page import Page, assert_loads_nothing, assert_well_formed
from stair.checkpoint import load
from stair.console import duration, megabytes
from stair.demo import DemoResult
from stair.emoji import ATTRIBUTIONS
from stair.encode import encode, read_inputs
from stair.evaluate import Evaluation, Recall
from stair.page import QUERIES, write_page
from stair.search import save_collection
from stair.train import TrainResult
from tiny_stair import COLORS, save_checkpoint, save_pictures


def recalls(start: float) -> list[Recall]:
    names = [("seen concepts, blobs pictures", 1334), ("held-out concepts, blobs pictures", 148)]
    directions = ("text to image", "image to text")
    return [
        Recall(name, direction, count, count, start + place, start + place + 20, start + place + 30)
        for place, (name, count, direction) in enumerate((*entry, d) for entry in names for d in directions)
    ]


@pytest.fixture(scope="module")
def result(tmp_path_factory: pytest.TempPathFactory) -> DemoResult:
    """A finished demo over four pictures, with a name that would break a page that does not escape."""
    folder = tmp_path_factory.mktemp("page")
    save_checkpoint(folder / "model")
    styles = [save_pictures(folder / "pictures" / style) for style in ("discs", "blobs")]
    inputs = read_inputs(list(map(str, styles)))
    items = [
        {
            "name": f"{entry.name} <b>disc</b>",
            "style": entry.picture.parent.name,
            "held_out": number % 2 == 1,
            "picture": f"../pictures/{entry.picture.parent.name}/{entry.picture.name}",
        }
        for number, entry in enumerate(inputs)
        if entry.picture is not None
    ]
    save_collection(folder / "index", encode(*load(folder / "model"), inputs), items, folder / "model")
    log = [{"step": step, "stage": 0, "loss": 9.0 - step} for step in range(1, 4)]
    log += [{"step": step, "stage": 3, "loss": 5.0, "text_active": 9, "image_active": 60} for step in range(4, 9)]
    trained = TrainResult("model", 321, 245.0, 456.0, 1234.0, log, eager_step_ms=2345.0, eager_peak_rss_mb=3456.0)
    return DemoResult(
        out_dir=str(folder),
        concepts=1482,
        held_out=148,
        styles=["discs", "blobs"],
        vocab_size=80,
        train=trained,
        evaluation=Evaluation(recalls(11.3), 17.0, 53.0),
        baseline=TrainResult(None, 321, 99.0, 88.0, 999.0, [{"step": 1, "stage": 3, "loss": 4.0}]),
        baseline_evaluation=Evaluation(recalls(10.4)),
        seconds={"all": 425.0},
        attributions=list(ATTRIBUTIONS.values()),
    )


@pytest.fixture(scope="module")
def html(result: DemoResult) -> str:
    return write_page(result, Path(result.out_dir) / "index.html").read_text(encoding="utf-8")


def test_the_page_is_well_formed(html: str) -> None:
    assert_well_formed(html)


def test_the_page_loads_nothing(html: str) -> None:
    assert_loads_nothing(html)


def test_pictures_are_inside_and_searches_show_them(html: str, result: DemoResult) -> None:
    page = Page(html)
    pictures = [attrs for tag, attrs in page.elements if tag == "img"]
    assert len(pictures) >= len(COLORS) + len(QUERIES)
    assert all(attrs["src"].startswith("data:image/webp;base64,") and attrs["alt"] for attrs in pictures)
    for query in QUERIES:
        assert query in page.text
    assert "new concept and style" in page.text


def test_the_numbers_are_the_result_s(html: str, result: DemoResult) -> None:
    text = Page(html).text
    assert result.baseline_evaluation is not None
    for evaluation in (result.evaluation, result.baseline_evaluation):
        for recall in evaluation.recalls:
            for value in (recall.r1, recall.r5, recall.r10):
                assert f"{value:.1f}" in text
    for shown in (
        "1,334",
        "148",
        "1,482",
        "321",
        "456 ms",
        "2.3 s",
        "1.2 GB",
        "3.5 GB",
        "4 min 05 s",
        "7 min 05 s",
        "53",
    ):
        assert shown in text, shown


def test_the_better_model_is_marked(html: str) -> None:
    rows = re.findall(r'<td class="([^"]*)">([\d.]+)</td>', html)
    assert rows[:3] == [("stair best", "11.3"), ("stair best", "31.3"), ("stair best", "41.3")]
    assert rows[3:6] == [("", "10.4"), ("", "30.4"), ("", "40.4")]


def test_every_source_is_attributed(html: str) -> None:
    page = Page(html)
    links = {attrs["href"] for tag, attrs in page.elements if tag == "a"}
    for source in ATTRIBUTIONS.values():
        assert source["url"] in links
        for part in ("name", "what", "licence"):
            assert source[part] in page.text
    for licence in ("CC BY-SA 4.0", "CC-BY 4.0", "MIT", "Apache-2.0"):
        assert licence in page.text


def test_names_are_escaped(html: str) -> None:
    assert "<b>disc</b>" not in html
    assert "red <b>disc</b>" in Page(html).text


def test_a_plot_is_inline_and_takes_the_page_s_colours(html: str) -> None:
    svg = html[html.index("<svg") : html.index("</svg>")]
    assert "var(--c1)" in svg
    assert "currentColor" in svg
    assert not re.search(r"#[0-9a-f]{6}\b", re.sub(r'"#[^"]*"|url\(#[^)]*\)|id="[^"]*"', "", svg))


def test_without_a_baseline_and_without_eager_steps_the_page_claims_neither(result: DemoResult, tmp_path: Path) -> None:
    train = dataclasses.replace(result.train, eager_step_ms=None, eager_peak_rss_mb=None)
    alone = dataclasses.replace(result, train=train, baseline=None, baseline_evaluation=None)
    text = Page(write_page(alone, tmp_path / "index.html").read_text(encoding="utf-8")).text
    assert "CLIP" not in text.replace("trained like CLIP", "")
    assert "in eager PyTorch" not in text
    assert "11.3" in text


@pytest.mark.parametrize(
    ("seconds", "words"),
    [
        (0.34, "340 ms"),
        (4.2, "4.2 s"),
        (59.94, "59.9 s"),
        (59.97, "1 min 00 s"),
        (425, "7 min 05 s"),
        (0.9996, "1.0 s"),
    ],
)
def test_durations(seconds: float, words: str) -> None:
    assert duration(seconds) == words


def test_megabytes() -> None:
    assert (megabytes(853.2), megabytes(1234)) == ("853 MB", "1.2 GB")
