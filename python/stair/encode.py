"""Words and files of a command line to sparse rows, and sparse rows to files."""

from __future__ import annotations

import os
import sys
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import IO, TYPE_CHECKING, Any

from stair.datasets import SUFFIXES, read_picture
from stair.datasets.plain import pictures_below
from stair.formats import Documents
from stair.formats.documents import as_csr
from stair.monitor import Progress

if TYPE_CHECKING:
    from PIL.Image import Image
    from torch import Tensor

    from stair import STAIRModel, STAIRProcessor
    from stair_kernels import SparseRows

TEXT_SUFFIXES = (".txt",)


@dataclass(frozen=True)
class Input:
    """One text or one picture file."""

    name: str
    text: str | None = None
    picture: Path | None = None


def read_inputs(words: Sequence[str]) -> list[Input]:
    """The texts and pictures that arguments mean.

    A folder means its pictures, a path that ends like a picture means that picture, a .txt file means its lines, "-"
    means the lines of stdin, and everything else is a text itself.

    Raises:
        ValueError: an empty text, a file that is not there or neither, a folder without pictures, or nothing at all.
    """
    inputs: list[Input] = []
    for word in words:
        require_utf8(word, "text")
        path = Path(word)
        if not word.strip():
            raise ValueError("text: expected words, got an empty text")
        if word == "-":
            inputs += _lines(sys.stdin, "stdin")
        elif os.path.isdir(word):  # unlike Path.is_dir, False for a text too long to be a path
            inputs += [Input(found.stem, picture=found) for found in _require_pictures(path)]
        elif path.suffix.lower() in SUFFIXES:
            _require_file(path, "picture")
            inputs.append(Input(path.stem, picture=path))
        elif path.suffix.lower() in TEXT_SUFFIXES:
            _require_file(path, "text file")
            with open(path, encoding="utf-8") as stream:
                inputs += _lines(stream, word)
        elif os.path.isfile(word):
            known = ", ".join(SUFFIXES + TEXT_SUFFIXES)
            raise ValueError(f"{word} is neither a picture nor a text file by its name; expected one of {known}")
        else:
            inputs.append(Input(word, text=word))
    if not inputs:
        raise ValueError("input: expected texts, pictures or folders, got nothing")
    return inputs


def _require_pictures(folder: Path) -> list[Path]:
    """Every picture in a folder and its subfolders, by name; ValueError when there is none."""
    found = pictures_below(folder)
    if not found:
        raise ValueError(f"{folder} holds no picture; expected files ending in {', '.join(SUFFIXES)}")
    return found


def require_utf8(text: str, name: str) -> None:
    """Raises ValueError for bytes that were no UTF-8: Python carries them in arguments and stdin as lone surrogates."""
    try:
        text.encode()
    except UnicodeEncodeError:
        raise ValueError(f"{name}: expected UTF-8, got {text!r}") from None


def _require_file(path: Path, kind: str) -> None:
    if not path.is_file():
        raise ValueError(f"{path}: no such {kind}; check the path")


def _lines(stream: IO[str], name: str) -> list[Input]:
    found = [Input(line.strip(), text=line.strip()) for line in stream if line.strip()]
    for line in found:
        require_utf8(line.name, name)
    if not found:
        raise ValueError(f"{name}: expected one text a line, got no line with words")
    return found


@dataclass(frozen=True)
class Encoded:
    """The rows of those inputs that could be read."""

    rows: SparseRows | None  # [N, K]; None: there is no row
    kept: list[int]  # N, which of the inputs each row is of
    left_out: list[str]  # what was wrong with each of the others


def encode(
    model: STAIRModel,
    processor: STAIRProcessor,
    inputs: Sequence[Input],
    *,
    k: int | None = None,
    batch: int = 32,
    progress: Progress = lambda stage, done, total, numbers: None,
) -> SparseRows:  # [N, K]
    """The rows of texts and pictures in the order given; K is `k`, or what the model's configuration says.

    Raises ValueError for no inputs, or naming a picture that cannot be read.
    """
    return require_rows(encode_readable(model, processor, inputs, k=k, batch=batch, progress=progress).rows)


def encode_readable(
    model: STAIRModel,
    processor: STAIRProcessor,
    inputs: Sequence[Input],
    *,
    k: int | None = None,
    batch: int = 32,
    skip_unreadable: bool = False,
    progress: Progress = lambda stage, done, total, numbers: None,
) -> Encoded:
    """The rows as `encode` gives them; with `skip_unreadable` without pictures that are there and cannot be read."""
    import torch

    from stair_kernels import SparseRows

    parts, kept, left_out = list[SparseRows](), list[int](), list[str]()
    done = 0
    with torch.inference_mode():
        for group in batches(inputs, batch):
            if group[0].picture is None:
                texts = processor(text=[str(entry.text) for entry in group])
                parts.append(model.encode_text(**_moved(texts, model), k=k).to("cpu"))
                kept += range(done, done + len(group))
            else:
                pictures, places, unreadable = _readable(group, skip_unreadable)
                if pictures:
                    parts.append(model.encode_image(**_moved(processor(images=pictures), model), k=k).to("cpu"))
                kept += [done + place for place in places]
                left_out += unreadable
            done += len(group)
            progress("encode", done, len(inputs), {})
    return Encoded(SparseRows.cat(parts) if parts else None, kept, left_out)


def _moved(tensors: dict[str, Tensor], model: STAIRModel) -> dict[str, Tensor]:
    """To where the model is."""
    device = next(model.parameters()).device
    return {name: tensor.to(device) for name, tensor in tensors.items()}


def _readable(group: Sequence[Input], skip_unreadable: bool) -> tuple[list[Image], list[int], list[str]]:
    """The pictures, their places in the group, and what is wrong with the others."""
    pictures, places, unreadable = list[Any](), list[int](), list[str]()
    for place, entry in enumerate(group):
        assert entry.picture is not None
        try:
            pictures.append(read_picture(entry.picture))
            places.append(place)
        except ValueError as error:
            if not skip_unreadable or not entry.picture.is_file():  # a machine may not see what others see
                raise
            unreadable.append(str(error))
    return pictures, places, unreadable


def require_rows(rows: SparseRows | None) -> SparseRows:
    """Raises ValueError when no input had a row."""
    if rows is None:
        raise ValueError("inputs: expected at least one that can be read, got none")
    return rows


def batches(inputs: Sequence[Input], batch: int) -> Iterator[Sequence[Input]]:
    """Neighbours of one kind, at most `batch` of them."""
    start = 0
    for end in range(1, len(inputs) + 1):
        full = end - start == batch
        if end == len(inputs) or full or (inputs[end].picture is None) != (inputs[start].picture is None):
            yield inputs[start:end]
            start = end


def terms(rows: SparseRows, row: int, vocabulary: Sequence[str]) -> dict[str, float]:
    """term -> weight of one row, heaviest first."""
    pairs = zip(rows.indices[row].tolist(), rows.values[row].tolist())
    return {vocabulary[v]: round(weight, 4) for v, weight in pairs if v >= 0}


def documents(rows: SparseRows, inputs: Sequence[Input], vocabulary: Sequence[str]) -> Documents:
    """The rows as `stair.formats` writes them; an id is a picture's path or the text."""
    return Documents(as_csr(rows), [str(entry.picture or entry.name) for entry in inputs], vocabulary)
