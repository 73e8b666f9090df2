"""Encoded inputs on disk, in parts: what many workers write side by side, and what no process has to hold at once.

parts.json           format, version, model_sha256; of each part its file, rows, k, vocab_size; what was left out
part-00000.npz ...   values [n, K] float32, indices [n, K] int32, and the ids and items as JSON in UTF-8
"""

from __future__ import annotations

import json
import os
import uuid
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from stair.files import replacing, replacing_folder, require_shared

if TYPE_CHECKING:
    from stair_kernels import SparseRows

MANIFEST = "parts.json"
FORMAT = "stair parts"
VERSION = 2


@dataclass(frozen=True)
class Part:
    """One file of rows."""

    file: str
    rows: int
    k: int
    vocab_size: int


@dataclass(frozen=True)
class Parts:
    """A folder of parts, in the order of the inputs."""

    folder: Path
    parts: tuple[Part, ...]
    model_sha256: str  # of the checkpoint that made the rows
    left_out: tuple[str, ...]  # what was wrong with each input that has no row

    @staticmethod
    def open(folder: Path | str) -> Parts:
        """Raises ValueError when `folder` holds no parts."""
        path = Path(folder) / MANIFEST
        try:
            fields = json.loads(path.read_bytes())
            if (fields["format"], fields["version"]) != (FORMAT, VERSION):
                raise ValueError(f"format {fields['format']!r:.80}, version {fields['version']!r:.80}")
            every = tuple(Part(**part) for part in fields["parts"])
            return Parts(Path(folder), every, fields["model_sha256"], tuple(fields["left_out"]))
        except (OSError, ValueError, KeyError, TypeError) as error:
            raise ValueError(f"{folder} holds no rows that `stair encode --out FOLDER` wrote ({error})") from error

    def __len__(self) -> int:
        """N, the number of rows."""
        return sum(part.rows for part in self.parts)

    @property
    def k(self) -> int:
        """K of the widest part."""
        return max(part.k for part in self.parts)

    def slice(self, first: int, end: int) -> tuple[SparseRows, list[str], list[dict[str, Any]]]:
        """Rows first to end - 1, as wide as the widest part, their ids and items; reads only the parts in it."""
        from stair_kernels import SparseRows

        empty = _rows(np.zeros((0, self.k), np.float32), np.zeros((0, self.k), np.int32), self.parts[0].vocab_size)
        found, ids, items, start = [empty], list[str](), list[dict[str, Any]](), 0
        for part in self.parts:
            inside = slice(max(first - start, 0), min(end - start, part.rows))
            start += part.rows
            if inside.start < inside.stop:
                rows, own_ids, own_items = read_part(self.folder, part)
                found.append(rows[inside])
                ids += own_ids[inside]
                items += own_items[inside]
        return SparseRows.cat(found), ids, items

    def each(self) -> Iterator[tuple[SparseRows, list[str], list[dict[str, Any]]]]:
        """The parts one after the other."""
        for part in self.parts:
            yield read_part(self.folder, part)


@contextmanager
def writing(folder: Path | str) -> Iterator[Path]:
    """An empty folder for parts, which takes the place of those at `folder` when the block ends well.

    Raises ValueError when something else is there.
    """
    folder = Path(folder)
    if folder.exists() and not (folder / MANIFEST).is_file() and not (folder.is_dir() and not any(folder.iterdir())):
        raise ValueError(f"{folder} exists and holds something other than encoded rows: choose another one with --out")
    with replacing_folder(folder) as staging:
        yield staging


def write_part(
    folder: Path | str, number: int, rows: SparseRows, ids: Sequence[str], items: Sequence[dict[str, Any]]
) -> Part:
    """Writes one part whole or not at all; a second attempt at the same part replaces the first one.

    Raises FileNotFoundError when the folder is not to be seen from here.
    """
    require_shared(folder)
    file = Path(folder) / f"part-{number:05d}.npz"
    temporary = file.with_name(f".{file.name}.{uuid.uuid4().hex}.tmp")
    try:
        with open(temporary, "xb") as stream:
            np.savez(
                stream,
                values=rows.values.numpy(),
                indices=rows.indices.numpy(),
                ids=_encoded(list(ids)),
                items=_encoded(list(items)),
            )
        os.replace(temporary, file)
    finally:
        temporary.unlink(missing_ok=True)
    return Part(file.name, len(rows), rows.k, rows.vocab_size)


def read_part(folder: Path, part: Part) -> tuple[SparseRows, list[str], list[dict[str, Any]]]:
    """Raises ValueError when the file is damaged."""
    try:
        with np.load(folder / part.file, allow_pickle=False) as arrays:
            rows = _rows(arrays["values"], arrays["indices"], part.vocab_size)
            ids, items = (json.loads(arrays[name].tobytes()) for name in ("ids", "items"))
    except Exception as error:  # zipfile, zlib and NumPy each raise their own
        raise ValueError(f"{folder / part.file} cannot be read ({error}): encode again") from error
    if not len(rows) == len(ids) == len(items) == part.rows:
        raise ValueError(f"{folder / part.file}: expected {part.rows} rows, got {len(rows)}: encode again")
    return rows, ids, items


def finish(staging: Path, parts: Sequence[Part], model_sha256: str, left_out: Sequence[str]) -> None:
    """Writes the manifest, as the last thing."""
    for left in staging.glob(".part-*.tmp"):  # of workers that were killed
        left.unlink(missing_ok=True)
    fields = {"format": FORMAT, "version": VERSION, "model_sha256": model_sha256, "left_out": list(left_out)}
    with replacing(staging / MANIFEST) as stream:
        json.dump({**fields, "parts": [asdict(part) for part in parts]}, stream, indent=1)


def _rows(values: np.ndarray, indices: np.ndarray, vocab_size: int) -> SparseRows:
    import torch

    from stair_kernels import SparseRows

    return SparseRows(torch.from_numpy(values), torch.from_numpy(indices), None, vocab_size)


def _encoded(value: Any) -> np.ndarray:
    return np.frombuffer(json.dumps(value, ensure_ascii=False).encode(), np.uint8)
