"""Pairs of a CSV file, of a folder of captioned pictures, and of a folder of class folders."""

from __future__ import annotations

import csv
from pathlib import Path

from stair.datasets.pairs import SUFFIXES, Pairs, Picture


def from_folder(folder: Path) -> Pairs:
    """The caption of `red apple.png` is the text of `red apple.txt` beside it (one caption a line), else its name."""
    paths = pictures_below(folder)
    texts = []
    for path in paths:
        beside = path.with_suffix(".txt")
        lines = beside.read_text(encoding="utf-8").splitlines() if beside.is_file() else []
        captions = [line.strip() for line in lines if line.strip()]
        texts.append(captions or [words_of(path.stem)])
    return Pairs([*paths], texts)


def from_csv(file: Path) -> Pairs:
    """Columns path and caption; paths are relative to the file, a picture in several lines has several captions."""
    captions: dict[Picture, list[str]] = {}
    with open(file, newline="", encoding="utf-8-sig") as stream:
        reader = csv.DictReader(stream)
        missing = {"path", "caption"} - set(reader.fieldnames or [])
        if missing:
            raise ValueError(f"{file}: expected the columns path,caption in its first line, got {reader.fieldnames}")
        for row in reader:
            name, caption = (row["path"] or "").strip(), (row["caption"] or "").strip()
            if not name or not caption:
                raise ValueError(
                    f"{file}, line {reader.line_num}: expected a path and a caption, got {name!r}, {caption!r}"
                )
            path = file.parent / name
            if not path.is_file():
                raise ValueError(f"{file}, line {reader.line_num}: no such picture: {path}")
            captions.setdefault(path, []).append(caption)
    return Pairs(list(captions), list(captions.values()))


def from_class_folders(folder: Path, names: Path | None = None) -> Pairs:
    """Pictures of `folder/CLASS/`, labelled by it; the caption is the class's name.

    Args:
        names: a text file with a class a line: the folder's name, or the folder's name, a tab and the words to use for
            it. Classes are in its order. Without it: the folders by name, "_" and "-" read as spaces.

    Raises:
        ValueError: no class folders, a line or a folder without the other.
    """
    found = sorted(path.name for path in folder.iterdir() if path.is_dir() and not path.name.startswith("."))
    if not found:
        raise ValueError(f"{folder}: expected a folder for each class, got none")
    words = {name: words_of(name) for name in found} if names is None else _class_names(names)
    for name in found:
        if name not in words:
            raise ValueError(f"{names}: expected a line for every class folder, got none for {name!r}")
    for name in words:
        if name not in found:
            raise ValueError(f"{names}: expected folders of {folder}, got {name!r}, which it does not have")
    pictures: list[Picture] = []
    labels: list[int] = []
    for label, name in enumerate(words):
        inside = pictures_below(folder / name)
        pictures += inside
        labels += [label] * len(inside)
    classes = list(words.values())
    return Pairs(pictures, [[classes[label]] for label in labels], labels, classes)


def read_lines(file: Path, what: str) -> list[str]:
    """The lines of a text file that hold something; ValueError when there are none."""
    if not file.is_file():
        raise ValueError(f"{file}: no such file; expected {what} a line")
    lines = [line.strip() for line in file.read_text(encoding="utf-8").splitlines() if line.strip()]
    if not lines:
        raise ValueError(f"{file}: expected {what} a line, got no line with words")
    return lines


def pictures_below(folder: Path) -> list[Path]:
    """Every picture in a folder and its subfolders, by name."""
    return sorted(path for path in folder.rglob("*") if path.suffix.lower() in SUFFIXES and path.is_file())


def words_of(name: str) -> str:
    """A file's or folder's name as words."""
    return " ".join(name.replace("_", " ").replace("-", " ").split()) or name


def _class_names(file: Path) -> dict[str, str]:
    words: dict[str, str] = {}
    for line in read_lines(file, "a class"):
        name, _, text = (part.strip() for part in line.partition("\t"))
        if name in words:
            raise ValueError(f"{file}: expected every class once, got {name!r} twice")
        words[name] = text or words_of(name)
    return words
