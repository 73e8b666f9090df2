"""What `stair explain --out` writes: a page that is whole by itself, and a picture of it."""

from __future__ import annotations

import dataclasses
import io
import re
import shutil
import subprocess
from pathlib import Path

import numpy as np
import pytest
from html_page import Page, assert_loads_nothing, assert_well_formed
from PIL import Image
from stair import STAIRModel, STAIRProcessor
from stair.explain import Explanation, explain, heard, place
from stair.explain_page import CARDS, SIDE, fitted, write_explanation
from stair.explain_plot import draw
from stair.pictures import ImageSettings

CHROMIUM = next(filter(None, map(shutil.which, ("chromium", "chromium-browser", "google-chrome"))), None)
TEXT = "a red <b>fruit</b>"


@pytest.fixture(scope="module")
def shown(loaded: tuple[STAIRModel, STAIRProcessor], picture: Image.Image) -> Image.Image:
    return fitted(loaded[1].images, picture)


@pytest.fixture(scope="module")
def result(loaded: tuple[STAIRModel, STAIRProcessor], picture: Image.Image) -> Explanation:
    return explain(*loaded, text=TEXT, image=picture, image_name="pictures/red.png")


@pytest.fixture(scope="module")
def written(result: Explanation, shown: Image.Image, tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Path]:
    return write_explanation(result, shown, tmp_path_factory.mktemp("why") / "new")


def test_the_page_is_whole_by_itself(written: tuple[Path, Path]) -> None:
    html = written[0].read_text(encoding="utf-8")
    assert_well_formed(html)
    assert_loads_nothing(html)
    assert "<b>fruit</b>" not in html
    assert f"“{TEXT}” and red.png" in Page(html).text


def test_the_page_shows_the_score_and_every_term_s_share(written: tuple[Path, Path], result: Explanation) -> None:
    text = Page(written[0].read_text(encoding="utf-8")).text
    assert result.shared
    assert f"Score {result.score:.3f}" in text
    for term in result.shared[:12]:
        assert f"{term.share:.1%}" in text
        assert term.term in text
    shares = heard(result.shared, result.pieces)
    assert sum(shares) == pytest.approx(1)
    for piece, share in zip(result.pieces, shares):
        assert f"{piece}{share:.0%}" in text or share == 0


def test_each_card_frames_the_place_and_the_word_that_won(written: tuple[Path, Path], result: Explanation) -> None:
    html = written[0].read_text(encoding="utf-8")
    cards = re.findall(r"<article.*?</article>", html, re.DOTALL)
    assert len(cards) == min(CARDS, len(result.shared))
    for card, term in zip(cards, result.shared):
        cells = re.findall(r"<i style=\"--a:([\d.]+)\"( class=\"won\")?", card)
        assert [at for at, (_, won) in enumerate(cells) if won] == [term.image_position]
        assert [float(level) for level, _ in cells] == pytest.approx(
            [weight / max(term.image_map) for weight in term.image_map], abs=1e-3
        )
        words = re.findall(r"<li style=\"--a:[\d.]+\" class=\"([^\"]*)\"", card)
        assert [at for at, classes in enumerate(words) if "won" in classes] == [term.text_position]


def test_the_picture_is_a_png_that_shows_where(
    result: Explanation, shown: Image.Image, written: tuple[Path, Path]
) -> None:
    plot = Image.open(written[1])
    assert plot.format == "PNG"
    assert min(plot.size) > 300
    darker = dataclasses.replace(result, shared=[dataclasses.replace(term, image_position=0) for term in result.shared])
    pixels = [np.asarray(Image.open(io.BytesIO(draw(one, shown)))) for one in (result, darker)]
    assert (pixels[0] != pixels[1]).any()


@pytest.mark.parametrize("given", ["text", "image", "nothing shared"])
def test_one_side_or_nothing_in_common(
    loaded: tuple[STAIRModel, STAIRProcessor], picture: Image.Image, shown: Image.Image, tmp_path: Path, given: str
) -> None:
    text, image = (None if given == "image" else "dog $x$"), (None if given == "text" else picture)
    result = explain(*loaded, text=text, image=image, image_name="red.png")
    if given == "nothing shared":
        result = dataclasses.replace(result, shared=[], score=0.0)
    page, plot = write_explanation(result, image and shown, tmp_path)
    html = page.read_text(encoding="utf-8")
    assert_well_formed(html)
    assert ("share no term" in html) == (given == "nothing shared")
    assert ("<img" in html) == (image is not None)
    terms = result.image_terms or result.text_terms
    assert all(term.term in html for term in terms[:CARDS])
    assert Image.open(plot).format == "PNG"


def test_a_position_of_the_whole_picture_has_no_place_in_the_map(
    result: Explanation, shown: Image.Image, tmp_path: Path
) -> None:
    """As the CLS token of a vision encoder, which follows the parts."""
    shared = [
        dataclasses.replace(term, image_map=[*term.image_map, 1.0], image_position=4, image_where=place(4, 2))
        for term in result.shared
    ]
    page, _ = write_explanation(dataclasses.replace(result, shared=shared), shown, tmp_path)
    html = page.read_text(encoding="utf-8")
    cards = re.findall(r"<article.*?</article>", html, re.DOTALL)
    assert all(card.count("<i ") == 4 and 'class="won" title' not in card for card in cards)
    assert "seen in the whole picture" in html
    assert "Where the score was seen" not in html


FITS = {
    "pad": (ImageSettings(112), (40, 30)),
    "crop": (ImageSettings(24, "crop", 32), (64, 32)),
    "stretch": (ImageSettings(24, "stretch"), (9, 5)),
}


@pytest.mark.parametrize(("fit", "size"), FITS.values(), ids=FITS)
def test_the_shown_picture_is_the_square_that_the_model_sees(fit: ImageSettings, size: tuple[int, int]) -> None:
    image = Image.fromarray(np.random.default_rng(0).integers(0, 255, (size[1], size[0], 3), dtype=np.uint8))
    small = Image.fromarray(fit.fitted(image)).resize((8, 8), Image.Resampling.BOX)
    large = fitted(fit, image)
    assert large.size == (SIDE, SIDE)
    difference = np.abs(np.asarray(small, float) - np.asarray(large.resize((8, 8), Image.Resampling.BOX), float))
    assert difference.mean() < 12


def test_a_row_without_terms_still_has_a_page(tmp_path: Path, picture: Image.Image) -> None:
    nothing = Explanation("x", "red.png", 0.0, [], [], [], 2, [1, 1], ["x"])
    page, _ = write_explanation(nothing, picture, tmp_path)
    assert_well_formed(page.read_text(encoding="utf-8"))
    assert "no active term" in page.read_text(encoding="utf-8")


@pytest.mark.skipif(CHROMIUM is None, reason="no Chromium here: apt install chromium")
@pytest.mark.parametrize("width", [1200, 420])
def test_a_browser_renders_it_without_scrolling_sideways(
    written: tuple[Path, Path], result: Explanation, tmp_path: Path, width: int
) -> None:
    """A copy of the page measures itself and writes down how wide it is and whether its pictures were decoded."""
    measure = (
        "<script>onload = () => document.title = [document.documentElement.scrollWidth <= innerWidth, "
        "[...document.images].every(image => image.naturalWidth > 0), document.images.length].join()</script></body>"
    )
    copy = tmp_path / "page.html"
    copy.write_text(written[0].read_text(encoding="utf-8").replace("</body>", measure), encoding="utf-8")
    options = "--headless --no-sandbox --disable-gpu --disable-quic --no-first-run --disable-background-networking"
    options += " --disable-component-update --disable-sync --hide-scrollbars --disable-dev-shm-usage"
    frame = tmp_path / "frame.html"  # a window of Chromium's is never narrower than 500 pixels
    frame.write_text(
        f'<iframe src="page.html" width="{width}" height="900"></iframe><script>onload = () => '
        "document.title = frames[0].document.title</script>"
    )
    command = [
        str(CHROMIUM),
        *options.split(),
        "--allow-file-access-from-files",
        f"--user-data-dir={tmp_path / 'profile'}",
    ]
    done = subprocess.run(
        [*command, "--virtual-time-budget=5000", "--dump-dom", frame.as_uri()],
        capture_output=True,
        text=True,
        timeout=120,
    )
    assert done.returncode == 0, done.stderr
    (title,) = re.findall(r"<title>(.*?)</title>", done.stdout)
    fits, decoded, count = title.split(",")
    assert (fits, decoded) == ("true", "true")
    assert int(count) == 2 + min(CARDS, len(result.shared))
