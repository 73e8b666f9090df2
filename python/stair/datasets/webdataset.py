"""WebDataset tars: members that share a key are one sample, `000017.jpg` with `000017.txt`, `.json` or `.cls`.

Each shard is read once from start to end, for its texts and for where its pictures lie; a picture is later read at its
place in the shard. Nothing is unpacked to disk.
"""

from __future__ import annotations

import json
import re
import tarfile
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path

from stair.datasets.pairs import SUFFIXES, Pairs, Picture, TarPicture
from stair.datasets.plain import read_lines

RANGE = re.compile(r"\{(\d+)\.\.(\d+)\}")
TEXTS = ("txt", "json", "cls")
CLASSES = "classes.txt"


@dataclass
class Sample:
    """The members of one key: its pictures' places and the bytes of its texts, by extension."""

    shard: Path
    key: str
    pictures: dict[str, TarPicture] = field(default_factory=dict)
    texts: dict[str, bytes] = field(default_factory=dict)

    def __str__(self) -> str:
        return f"{self.shard}, {self.key}"


def shards_of(source: str) -> list[Path]:
    """The files that `data/{000..003}.tar` means, or the tar files of a folder, or the one file named."""
    if Path(source).is_dir():
        found = sorted(Path(source).glob("*.tar"))
        if not found:
            raise ValueError(f"{source}: expected .tar files in the folder, got none")
        return found
    paths = [Path(name) for name in _expand(source)]
    for path in paths:
        if not path.is_file():
            raise ValueError(f"{path}: no such shard" + (f" (of {source})" if len(paths) > 1 else ""))
    return paths


def from_webdataset(source: str, names: Path | None = None) -> Pairs:
    """Pictures and captions of all shards, in their order.

    A caption is the .txt, else "caption", "captions" or "text" of the .json, else the name of the class number in .cls,
    which stands in the line of that number, from 0, of `names`, or of `classes.txt` beside the shards.

    Raises:
        ValueError: naming the shard and the key.
    """
    shards = shards_of(source)
    file = shards[0].parent / CLASSES if names is None else names
    classes = read_lines(file, "a class") if names is not None or file.is_file() else []
    pictures: list[Picture] = []
    texts: list[list[str]] = []
    labels: list[int] = []
    for shard in shards:
        for sample in samples(shard):
            if len(sample.pictures) != 1:
                raise ValueError(f"{sample}: expected one picture, got {', '.join(sample.pictures) or 'none'}")
            pictures += sample.pictures.values()
            if "cls" in sample.texts:
                labels.append(_label(sample, classes))
            texts.append(_captions(sample, classes))
    if labels and len(labels) != len(pictures):
        raise ValueError(f"{source}: expected a .cls in every sample or in none, got {len(labels)} of {len(pictures)}")
    return Pairs(pictures, texts, labels or None, classes if labels else [])


def samples(shard: Path) -> Iterator[Sample]:
    """The samples of an uncompressed tar, as they come; one is held at a time."""
    sample: Sample | None = None
    try:
        with open(shard, "rb") as stream, tarfile.open(fileobj=stream, mode="r|") as tar:
            for member in tar:
                key, dot, extension = _parts(member.name)
                if not member.isreg() or not dot:
                    continue
                if sample is None or sample.key != key:
                    if sample is not None:
                        yield sample
                    sample = Sample(shard, key)
                _take(sample, tar, member, extension)
    except tarfile.TarError as error:
        after = f" after {sample.key}" if sample is not None else ""
        raise ValueError(f"{shard}: not a readable, uncompressed tar{after} ({error})") from None
    if sample is not None:
        yield sample


def _take(sample: Sample, tar: tarfile.TarFile, member: tarfile.TarInfo, extension: str) -> None:
    if extension in sample.pictures or extension in sample.texts:
        raise ValueError(f"{sample}: expected one .{extension}, got two")
    if f".{extension}" in SUFFIXES:
        sample.pictures[extension] = TarPicture(sample.shard, member.name, member.offset_data, member.size)
    elif extension in TEXTS:
        stream = tar.extractfile(member)
        assert stream is not None  # a regular file
        sample.texts[extension] = stream.read()


def _parts(name: str) -> tuple[str, str, str]:
    """(key, dot, extension): the key ends at the first dot of the last part of the name; hidden files have none."""
    folder, slash, base = name.removeprefix("./").rpartition("/")
    stem, dot, extension = base.partition(".")
    return folder + slash + stem, dot if stem else "", extension.lower()


def _expand(pattern: str) -> Iterator[str]:
    found = RANGE.search(pattern)
    if found is None:
        yield pattern
        return
    first, last = found.groups()
    if int(last) < int(first):
        raise ValueError(f"{pattern}: expected a range that rises, got {found.group()}")
    for number in range(int(first), int(last) + 1):
        yield from _expand(f"{pattern[: found.start()]}{number:0{len(first)}d}{pattern[found.end() :]}")


def _captions(sample: Sample, classes: list[str]) -> list[str]:
    captions: list[str] = []
    if "txt" in sample.texts:
        captions = [_decoded(sample, "txt")]
    elif "json" in sample.texts:
        captions = _json_captions(sample)
    if not captions and "cls" in sample.texts:
        captions = [classes[_label(sample, classes)]]
    if not captions:
        has = ", ".join(f".{extension}" for extension in sample.texts) or "neither"
        raise ValueError(f'{sample}: expected a caption in .txt, "caption" of .json or .cls, got {has}')
    captions = [" ".join(caption.split()) for caption in captions]
    if not all(captions):
        raise ValueError(f"{sample}: expected words, got an empty caption")
    return captions


def _json_captions(sample: Sample) -> list[str]:
    try:
        loaded = json.loads(_decoded(sample, "json"))
    except json.JSONDecodeError as error:
        raise ValueError(f"{sample}.json: not JSON ({error})") from None
    for name in ("caption", "captions", "text"):
        value = loaded.get(name) if isinstance(loaded, dict) else None
        if isinstance(value, str):
            return [value]
        if isinstance(value, list) and value and all(isinstance(text, str) for text in value):
            return value
    return []


def _label(sample: Sample, classes: list[str]) -> int:
    text = _decoded(sample, "cls").strip()
    if not text.isdigit():
        raise ValueError(f"{sample}.cls: expected a class number, got {text[:40]!r}")
    if int(text) >= len(classes):
        have = f"{len(classes)} lines" if classes else "no such file"
        raise ValueError(f"{sample}.cls: expected its class {int(text)} in {CLASSES} beside the shards, got {have}")
    return int(text)


def _decoded(sample: Sample, extension: str) -> str:
    try:
        return sample.texts[extension].decode()
    except UnicodeDecodeError:
        raise ValueError(f"{sample}.{extension}: expected UTF-8") from None
