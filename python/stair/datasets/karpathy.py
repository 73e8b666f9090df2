"""COCO and Flickr30k captions: Karpathy's dataset_*.json with its split, and Flickr30k's results_20130124.token."""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from stair.datasets.pairs import Pairs, Picture

SPLITS = {"train": ("train", "restval"), "val": ("val",), "test": ("test",)}  # restval is trained on, as is usual
FOLDERS = ("", "images", "flickr30k-images", "flickr30k_images")  # where people keep the pictures, beside the file


def from_karpathy(file: Path, split: str | None = None, images: Path | None = None) -> Pairs:
    """Pictures and captions of a split of `{"images": [{"filepath", "filename", "split", "sentences": [{"raw"}]}]}`.

    Args:
        split: train (with restval), val or test; None for all pictures.
        images: the folder that holds the pictures, as filepath/filename or filename; None: the file's own folder, or
            images, flickr30k-images or flickr30k_images in it.

    Raises:
        ValueError: naming the file and the entry.
    """
    wanted = _wanted(file, split)
    folders = _folders(file, images)
    pictures: list[Picture] = []
    texts: list[list[str]] = []
    for number, entry in enumerate(_entries(file)):
        where = f"{file}, images[{number}]"
        if not isinstance(entry, dict):
            raise ValueError(f"{where}: expected an object, got {type(entry).__name__}")
        name, part = _text(entry, "filename", where), _text(entry, "split", where)
        if part not in {value for values in SPLITS.values() for value in values}:
            raise ValueError(f"{where}: expected a split of train, restval, val, test, got {part!r}")
        if wanted is not None and part not in wanted:
            continue
        texts.append(_captions(entry, where))
        pictures.append(_find(folders, str(entry.get("filepath") or ""), name, where))
    return Pairs(pictures, texts)


def from_token(file: Path, images: Path | None = None) -> Pairs:
    """Flickr30k's own list: `1000092795.jpg#0<TAB>Two young guys ...` a line, five captions a picture, no split."""
    folders = _folders(file, images)
    captions: dict[Picture, list[str]] = {}
    found: dict[str, Picture] = {}
    for number, line in enumerate(file.read_text(encoding="utf-8").splitlines(), 1):
        if not line.strip():
            continue
        where = f"{file}, line {number}"
        key, tab, caption = line.partition("\t")
        name, mark, count = key.rpartition("#")
        if not tab or not mark or not count.strip().isdigit() or not name.strip() or not caption.strip():
            raise ValueError(f"{where}: expected NAME#NUMBER, a tab and a caption, got {line[:60]!r}")
        if name not in found:
            found[name] = _find(folders, "", name.strip(), where)
        captions.setdefault(found[name], []).append(caption.strip())
    return Pairs(list(captions), list(captions.values()))


def is_karpathy(file: Path) -> bool:
    """By its first bytes: a JSON object that names "images" or "dataset"."""
    with open(file, "rb") as stream:
        start = stream.read(4096).lstrip()
    return start.startswith(b"{") and (b'"images"' in start or b'"dataset"' in start)


def _wanted(file: Path, split: str | None) -> tuple[str, ...] | None:
    if split is not None and split not in SPLITS:
        raise ValueError(f"split: expected one of {', '.join(SPLITS)} for {file}, got {split!r}")
    return None if split is None else SPLITS[split]


def _entries(file: Path) -> Iterator[Any]:
    try:
        loaded = json.loads(file.read_text(encoding="utf-8"))
    except json.JSONDecodeError as error:
        raise ValueError(f"{file}: not JSON ({error})") from None
    if not isinstance(loaded, dict) or not isinstance(loaded.get("images"), list):
        raise ValueError(f'{file}: expected Karpathy\'s {{"images": [...]}}, got no such list')
    yield from loaded["images"]


def _text(entry: dict[str, Any], key: str, where: str) -> str:
    value = entry.get(key)
    if not isinstance(value, str) or not value.strip():
        raise ValueError(f"{where}: expected a {key}, got {value!r}")
    return value.strip()


def _captions(entry: dict[str, Any], where: str) -> list[str]:
    sentences = entry.get("sentences")
    if not isinstance(sentences, list) or not sentences:
        raise ValueError(f"{where}: expected sentences, got {sentences!r}")
    captions = []
    for number, sentence in enumerate(sentences):
        raw = sentence.get("raw") if isinstance(sentence, dict) else None
        if not isinstance(raw, str) or not raw.strip():
            raise ValueError(f"{where}, sentences[{number}]: expected a raw text, got {raw!r}")
        captions.append(" ".join(raw.split()))
    return captions


def _folders(file: Path, images: Path | None) -> list[Path]:
    if images is None:
        return [file.parent / name for name in FOLDERS]
    if not images.is_dir():
        raise ValueError(f"images: expected a folder of pictures, got {images}")
    return [images]


def _find(folders: list[Path], filepath: str, name: str, where: str) -> Path:
    for folder in folders:
        for path in (folder / filepath / name, folder / name):
            if path.is_file():
                folders.sort(key=lambda other: other != folder)  # look there first from now on
                return path
    looked = ", ".join(str(folder / filepath / name) for folder in folders)
    raise ValueError(f"{where}: no such picture: looked for {looked}; --images names their folder")
