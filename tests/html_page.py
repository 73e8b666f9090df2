"""A page as its reader gets it: well formed, and whole without a network."""

from __future__ import annotations

import re
from html.parser import HTMLParser

VOID = {"meta", "link", "img", "br", "input"}
LOADS = {"src", "srcset", "poster", "data", "background"}


class Page(HTMLParser):
    """Every element's attributes, the visible text, and whether each element is closed."""

    def __init__(self, html: str) -> None:
        super().__init__()
        self.elements: list[tuple[str, dict[str, str]]] = []
        self.text = ""
        self.open: list[str] = []
        self.feed(html)
        self.close()

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.elements.append((tag, {name: value or "" for name, value in attrs}))
        if tag not in VOID:
            self.open.append(tag)

    def handle_startendtag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.elements.append((tag, {name: value or "" for name, value in attrs}))

    def handle_endtag(self, tag: str) -> None:
        assert self.open, f"</{tag}> closes nothing"
        assert self.open.pop() == tag

    def handle_data(self, data: str) -> None:
        if self.open and self.open[-1] != "style":
            self.text += data


def assert_well_formed(html: str) -> None:
    page = Page(html)
    assert page.open == []
    assert html.startswith("<!doctype html>")
    identifiers = [attrs["id"] for _, attrs in page.elements if "id" in attrs]
    assert len(identifiers) == len(set(identifiers))


def assert_loads_nothing(html: str) -> None:
    page = Page(html)
    for tag, attrs in page.elements:
        assert tag not in ("script", "iframe", "object", "embed", "base"), tag
        for name, value in attrs.items():
            if name in LOADS or (tag == "link" and name == "href"):
                assert value.startswith("data:"), (tag, name, value[:60])
            if name in ("xlink:href", "href") and tag != "a":
                assert value.startswith(("#", "data:")), (tag, value[:60])
    assert not re.search(r"@import|url\(\s*['\"]?(?!#|data:)", html)
