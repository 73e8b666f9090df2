"""The pages, as Jinja2 templates, and what fills them."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from stair.files import replacing


def rendered(name: str, content: dict[str, Any]) -> str:
    """The page `name` filled with `content`."""
    import jinja2

    environment = jinja2.Environment(
        loader=jinja2.PackageLoader("stair"), autoescape=True, undefined=jinja2.StrictUndefined, trim_blocks=True
    )
    return environment.get_template(name).render(content)


def write_template(name: str, content: dict[str, Any], path: Path | str) -> None:
    """Writes the page `name` filled with `content` to `path`, whole or not at all."""
    html = rendered(name, content)
    with replacing(path) as stream:
        stream.write(html)
