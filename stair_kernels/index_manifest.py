"""The manifest of an index directory: what it consists of, every field checked."""

from __future__ import annotations

import hashlib
import json
import os
import re
from collections.abc import Mapping
from pathlib import Path
from typing import Any, NamedTuple

from stair_kernels.index_layout import Counts

FORMAT = "stair_kernels.SparseIndex"
VERSION = 4
MANIFEST = "manifest.json"
SEGMENT_FILE = re.compile(r"segment-[0-9a-f]{16}\.bin")
ALIVE_FILE = re.compile(r"alive-[0-9a-f]{16}\.bin")
LARGEST = 2**48  # count


class Alive(NamedTuple):
    """Which documents of a segment were not deleted: a file with a bit for each."""

    file: str
    sha256: str
    deleted: int


class Entry(NamedTuple):
    """One segment."""

    counts: Counts
    file: str
    sha256: str
    alive: Alive | None  # None: all


class Manifest(NamedTuple):
    entries: tuple[Entry, ...]
    metadata: dict[str, Any]

    def files(self) -> set[str]:
        """Every file that it names."""
        return {entry.file for entry in self.entries} | {entry.alive.file for entry in self.entries if entry.alive}


def damaged(directory: Path, reason: str) -> ValueError:
    return ValueError(f"path: expected a sound index, but {directory} is damaged ({reason}): rebuild it or use a copy")


def no_index(directory: Path, reason: str) -> ValueError:
    return ValueError(f"path: expected a directory written by SparseIndex.save, but {directory} {reason}")


def read_text(directory: Path) -> bytes:
    """The manifest's bytes; ValueError when there is none."""
    try:
        return (directory / MANIFEST).read_bytes()
    except (FileNotFoundError, IsADirectoryError) as error:
        reason = f"holds no {MANIFEST}" if directory.exists() else "does not exist"
        raise no_index(directory, reason) from error
    except NotADirectoryError as error:
        raise no_index(directory, "is not a directory") from error


def render(manifest: Manifest) -> bytes:
    fields: dict[str, Any] = {
        "format": FORMAT,
        "version": VERSION,
        "metadata": manifest.metadata,
        "segments": [_fields_of(entry) for entry in manifest.entries],
    }
    fields["checksum"] = _checksum(fields)
    return (json.dumps(fields, indent=1) + "\n").encode()


def parse(directory: Path, text: bytes) -> Manifest:
    """Raises ValueError, naming the directory, for anything but what `render` writes."""
    try:
        fields = json.loads(text)
    except (ValueError, RecursionError) as error:
        raise damaged(directory, f"{MANIFEST} is no JSON") from error
    if not isinstance(fields, dict) or fields.get("format") != FORMAT:
        raise no_index(directory, f'has a {MANIFEST} whose "format" is not "{FORMAT}"')
    version = fields.get("version")
    if type(version) is not int or version != VERSION:
        raise ValueError(
            f"path: expected an index of version {VERSION}, but {directory} has version {version!r:.80}: "
            "rebuild it, or use the stair_kernels that wrote it"
        )
    if fields.get("checksum") != _checksum(fields):
        raise damaged(directory, f"{MANIFEST} does not match its checksum")
    metadata, segments = fields.get("metadata"), fields.get("segments")
    if not isinstance(metadata, dict) or not isinstance(segments, list) or not segments:
        raise damaged(directory, f"{MANIFEST} lists no segments or no metadata")
    entries = tuple(_entry(directory, segment) for segment in segments)
    kinds = {(c.vocab_size, c.compact, c.name_bytes is None, c.payload_bytes is None) for c, *_ in entries}
    if len(kinds) > 1:
        raise damaged(directory, f"{MANIFEST} lists segments that do not fit together")
    return Manifest(entries, metadata)


def refuse_foreign(target: Path) -> None:
    """Raise ValueError unless nothing, an empty directory or an index (of any version) is at `target`."""
    if not target.exists() or (target.is_dir() and not any(os.scandir(target))):
        return
    try:
        fields = json.loads(read_text(target))
    except (ValueError, RecursionError):
        fields = None
    if not isinstance(fields, dict) or fields.get("format") != FORMAT:
        kind = "directory" if target.is_dir() else "file"
        raise ValueError(
            f"path: expected a new path or an existing index, but {target} is another {kind}: "
            "remove it or choose another path"
        )


def checked_metadata(metadata: Mapping[str, Any] | None) -> dict[str, Any]:
    """A copy as JSON keeps it."""
    try:
        kept = json.loads(json.dumps({} if metadata is None else metadata, allow_nan=False))
    except (TypeError, ValueError, RecursionError) as error:
        raise ValueError(f"metadata: expected what JSON can hold, got {error}") from None
    if not isinstance(kept, dict):
        raise ValueError(f"metadata: expected a dict, got {type(metadata).__name__}")
    return kept


def _checksum(fields: Mapping[str, Any]) -> str:
    content = {key: value for key, value in fields.items() if key != "checksum"}
    return hashlib.sha256(json.dumps(content, sort_keys=True).encode()).hexdigest()


def _fields_of(entry: Entry) -> dict[str, Any]:
    alive = None if entry.alive is None else entry.alive._asdict()
    arrays = _described(entry.counts)
    return {**entry.counts._asdict(), "file": entry.file, "sha256": entry.sha256, "alive": alive, "arrays": arrays}


def _described(counts: Counts) -> dict[str, dict[str, Any]]:
    """What anyone who reads the file without this package needs to know of the arrays."""
    offsets, _ = counts.offsets()
    return {
        name: {"dtype": dtype, "shape": list(shape), "offset": offsets[name]}
        for name, (dtype, shape) in counts.arrays().items()
    }


def _entry(directory: Path, fields: Any) -> Entry:
    if not isinstance(fields, dict):
        raise damaged(directory, f"{MANIFEST} lists a segment {fields!r:.80}")
    values: list[Any] = [fields.get(name) for name in Counts._fields]
    sound = all(type(value) is int and 0 <= value < LARGEST for value in values[:-2])
    sound = sound and all(value is None or (type(value) is int and 0 <= value < LARGEST) for value in values[-2:])
    counts = Counts(*values)
    if not sound or max(counts.compact, counts.numbered) > 1:
        raise damaged(directory, f"{MANIFEST} has the counts {values!r:.200}")
    for name, expected in _described(counts).items():
        got = fields["arrays"].get(name) if isinstance(fields.get("arrays"), dict) else None
        if got != expected:
            raise damaged(directory, f"array {name}: expected {expected}, got {got!r:.200}")
    _require_file(directory, fields, SEGMENT_FILE)
    alive = fields.get("alive")
    if alive is None:
        return Entry(counts, fields["file"], fields["sha256"], None)
    if not isinstance(alive, dict):
        raise damaged(directory, f"{MANIFEST} has the deleted documents {alive!r:.80}")
    _require_file(directory, alive, ALIVE_FILE)
    deleted = alive.get("deleted")
    if type(deleted) is not int or not 0 < deleted <= counts.documents:
        raise damaged(directory, f"{MANIFEST} has {deleted!r:.80} deleted documents of {counts.documents}")
    return Entry(counts, fields["file"], fields["sha256"], Alive(alive["file"], alive["sha256"], deleted))


def _require_file(directory: Path, fields: Mapping[str, Any], pattern: re.Pattern[str]) -> None:
    """The file's name is one of ours, in this directory, and its checksum a string; the file may be another one's."""
    file, sha256 = fields.get("file"), fields.get("sha256")
    if not isinstance(file, str) or not pattern.fullmatch(file) or not isinstance(sha256, str):
        raise damaged(directory, f"{MANIFEST} has a file or sha256 that is not a name or a digest: {file!r:.80}")
