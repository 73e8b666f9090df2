"""Pictures from outside, and thumbnails of the collection's own."""

from __future__ import annotations

import io
import os
from functools import lru_cache
from pathlib import Path
from typing import TYPE_CHECKING

from stair.serve.errors import RefusedError

if TYPE_CHECKING:
    from PIL.Image import Image

FORMATS = ("PNG", "JPEG", "WEBP", "GIF", "BMP", "TIFF")  # Pillow knows more, some of which start other programs
KEPT = 1_000  # thumbnails in memory, of about 10 kB each


def decoded(data: bytes, max_pixels: int, field: str = "image") -> Image:
    """The picture, RGBA, as `read_picture` reads those of the collection.

    Raises:
        RefusedError: 422 for what is no picture, damaged, of another format, or larger than `max_pixels`, which its
            header says before anything is decoded.
    """
    from PIL import Image, UnidentifiedImageError

    known = ", ".join(FORMATS)
    try:
        with Image.open(io.BytesIO(data), formats=FORMATS) as image:
            width, height = image.size
            if width * height > max_pixels:
                got = f"{width} x {height}"
                raise RefusedError(422, f"{field}: expected at most {max_pixels} pixels, got {got}", field)
            return image.convert("RGBA")
    except UnidentifiedImageError:
        raise RefusedError(
            422, f"{field}: expected a picture ({known}), got {len(data)} bytes of none", field
        ) from None
    except Image.DecompressionBombError as error:
        raise RefusedError(422, f"{field}: expected at most {max_pixels} pixels ({error})", field) from None
    except (SyntaxError, ValueError, EOFError, OSError) as error:
        raise RefusedError(422, f"{field}: expected a whole picture ({error})", field) from None


def thumbnail(path: Path, side: int, max_pixels: int) -> bytes:
    """A picture of the collection as WebP, at most side x side. RefusedError 404 when it is not there any more."""
    try:
        return _thumbnail(path, os.stat(path).st_mtime_ns, side, max_pixels)
    except (OSError, RefusedError):
        raise RefusedError(404, "id: the picture of this item is gone, or is none any more", "id") from None


@lru_cache(KEPT)
def _thumbnail(path: Path, changed: int, side: int, max_pixels: int) -> bytes:
    image = decoded(path.read_bytes(), max_pixels, str(path))
    image.thumbnail((side, side))
    stream = io.BytesIO()
    image.save(stream, "WEBP", quality=85, method=2)
    return stream.getvalue()
