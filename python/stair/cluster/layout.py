"""A sharded index on disk: a directory of ordinary indexes under one manifest.

    shards.json        format, version, metadata, order; of each shard its folder, its documents and the SHA-256 of its
                       manifest.json, which names the SHA-256 of its files
    shard-00000/ ...   a SparseIndex each; no id is in two of them

All of it is written in a hidden folder beside the place, in parts that each come into being whole, and takes the place
in one step when it is complete: a kill leaves the old index or none. Workers on other machines write their shards
there too, so the place must be on a file system that all of them share.
"""

from __future__ import annotations

import hashlib
import json
import os
import shutil
import uuid
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import asdict, dataclass, field
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from stair.files import replacing, replacing_folder, require_shared

if TYPE_CHECKING:
    from stair_kernels import SparseIndex

MANIFEST = "shards.json"
FORMAT = "stair shards"
VERSION = 1
IDS_AT_A_TIME = 16_384
ORDERS = ("added", "ids")
SHARD_MANIFEST = "manifest.json"  # of every index: stair_kernels', which is not imported for its name


@dataclass(frozen=True)
class Shard:
    """One part of a sharded index."""

    folder: str
    documents: int
    sha256: str  # of its manifest.json


@dataclass(frozen=True)
class Manifest:
    """What a sharded index consists of."""

    shards: tuple[Shard, ...]
    metadata: dict[str, Any] = field(default_factory=dict)
    # What equal scores of string ids go by: the order in which they were added, shard after shard, or the ids.
    order: str = "added"


def is_sharded(folder: Path | str) -> bool:
    return (Path(folder) / MANIFEST).is_file()


def manifest_of(folder: Path) -> Path:
    """The file of an index, sharded or not, that is another one as soon as the index is."""
    return folder / (MANIFEST if is_sharded(folder) else SHARD_MANIFEST)


def ranges(N: int, shards: int) -> list[tuple[int, int]]:
    """The first and one past the last document of each shard, all of about the same number."""
    if shards < 1:
        raise ValueError(f"shards: expected an integer >= 1, got {shards}")
    bounds = [number * N // shards for number in range(shards + 1)]
    return list(zip(bounds[:-1], bounds[1:]))


def read(folder: Path | str) -> Manifest:
    """Raises ValueError, naming the folder, when it holds no sharded index or its manifest is damaged."""
    fields = _fields(folder)
    if fields.get("format") != FORMAT:
        raise ValueError(f'{folder} has a {MANIFEST} whose "format" is not "{FORMAT}"')
    if fields.get("version") != VERSION:
        raise ValueError(f"{folder}: expected version {VERSION}, got {fields.get('version')!r:.80}: build it again")
    if fields.get("checksum") != _checksum(fields):
        raise _damaged(folder, f"{MANIFEST} does not match its checksum")
    shards = tuple(Shard(**shard) for shard in fields["shards"])
    return Manifest(shards, fields["metadata"], fields["order"])


def write(folder: Path, manifest: Manifest) -> None:
    """Raises ValueError for metadata that JSON cannot hold."""
    fields: dict[str, Any] = {"format": FORMAT, "version": VERSION, **asdict(manifest)}
    fields = json.loads(json.dumps(fields, allow_nan=False))
    fields["checksum"] = _checksum(fields)
    with replacing(folder / MANIFEST) as stream:
        json.dump(fields, stream, indent=1)


def shard_folder(number: int) -> str:
    return f"shard-{number:05d}"


def write_shard(folder: Path | str, number: int, index: SparseIndex) -> Shard:
    """Writes one shard whole or not at all; of two attempts at the same shard the first one stays.

    Raises RuntimeError when the two differ: what made the rows does not give the same ones twice.
    """
    place = Path(folder) / shard_folder(number)
    require_shared(folder)
    temporary = place.with_name(f".{place.name}.{uuid.uuid4().hex}.tmp")
    try:
        index.save(temporary)
        shard = Shard(place.name, len(index), manifest_digest(temporary))
        try:
            os.rename(temporary, place)
        except OSError:
            if not place.is_dir():
                raise
            if manifest_digest(place) != shard.sha256:
                raise RuntimeError(f"{place}: two attempts gave different documents; keep the rows in a file") from None
    finally:
        shutil.rmtree(temporary, ignore_errors=True)
    return shard


@contextmanager
def building(folder: Path | str) -> Iterator[Path]:
    """An empty folder for shards, which takes the place of the index at `folder` when the block ends well.

    Raises ValueError when something other than an index is there.
    """
    require_replaceable(Path(folder))
    with replacing_folder(folder) as staging:
        yield staging


def finish(staging: Path, manifest: Manifest) -> int:
    """Checks the shards together and writes their manifest, as the last thing; returns the number of documents.

    Raises ValueError when no shard is there, their vocabularies or kinds of ids differ, or two hold the same id.
    """
    from stair_kernels import SparseIndex

    shards = [partial(SparseIndex.open, staging / shard.folder) for shard in manifest.shards]
    indexes = [opened() for opened in shards]
    require_together(indexes)
    require_distinct(shards)
    for left in staging.glob(".shard-*.tmp"):  # of workers that were killed
        shutil.rmtree(left, ignore_errors=True)
    write(staging, manifest)
    return sum(len(index) for index in indexes)


def require_together(indexes: Sequence[SparseIndex]) -> None:
    """Raises ValueError unless the shards are parts of one index."""
    kinds = [{name: index.stats()[name] for name in ("vocab_size", "strings", "compact")} for index in indexes]
    if not kinds or any(kind != kinds[0] for kind in kinds):
        raise ValueError(f"shards: expected at least one, all of one vocabulary and kind of ids, got {kinds}")


def require_distinct(shards: Sequence[Callable[[], SparseIndex]]) -> None:
    """Raises ValueError when two shards, given by what opens them, hold the same id.

    Takes 9 bytes a document, and 16 more of the shard that is open.
    """
    ends = np.cumsum([0, *(len(opened()) for opened in shards)])
    keys = np.empty(ends[-1], np.int64)
    for opened, first in zip(shards, ends):
        for ids in _ids_of(opened()):
            keys[first : first + len(ids)] = _keys(ids)
            first += len(ids)
    keys.sort()
    twice = np.unique(keys[1:][keys[1:] == keys[:-1]])
    del keys
    if not len(twice):
        return
    seen: set[Any] = set()
    for opened in shards:
        for ids in _ids_of(opened()):
            for one in ids[np.isin(_keys(ids), twice)].tolist():  # two strings may share a key
                if one in seen:
                    raise ValueError(f"ids: expected an id in one shard only, got {one!r} in two")
                seen.add(one)


def _ids_of(index: SparseIndex) -> Iterator[np.ndarray]:
    """Its ids, some at a time: while they are read, strings take 25 bytes a character."""
    from stair_kernels.index_merge import live_numbers

    numbers = live_numbers(index._segments)
    for first in range(0, len(numbers), IDS_AT_A_TIME):
        yield np.asarray(index._ids_of(index._segments, numbers[first : first + IDS_AT_A_TIME]))


def _keys(ids: np.ndarray) -> np.ndarray:
    """int64 [n]: the ids, or of strings their hashes, which are others in each process."""
    return np.fromiter(map(hash, ids), np.int64, len(ids)) if ids.dtype == object else ids


def manifest_digest(folder: Path) -> str:
    return hashlib.sha256((folder / SHARD_MANIFEST).read_bytes()).hexdigest()


def open_shard(folder: Path | str, shard: Shard, verify: bool = False) -> SparseIndex:
    """Raises ValueError when the shard is missing, damaged or no longer the one that the manifest names."""
    from stair_kernels import SparseIndex

    place = Path(folder) / shard.folder
    index = SparseIndex.open(place, verify)
    if manifest_digest(place) != shard.sha256 or len(index) != shard.documents:
        raise ValueError(f"{place} is not the shard that {MANIFEST} names: it was replaced or changed by itself")
    return index


def require_replaceable(folder: Path) -> None:
    """Raises ValueError when something other than an index, sharded or not, is at `folder`."""
    from stair_kernels.index_manifest import refuse_foreign

    if not is_sharded(folder):
        refuse_foreign(folder)
    elif _fields(folder).get("format") != FORMAT:
        raise ValueError(f'{folder} has a {MANIFEST} whose "format" is not "{FORMAT}"')


def _fields(folder: Path | str) -> dict[str, Any]:
    try:
        fields = json.loads((Path(folder) / MANIFEST).read_bytes())
    except OSError as error:
        raise ValueError(f"{folder} is no sharded index (no readable {MANIFEST})") from error
    except (ValueError, RecursionError) as error:
        raise _damaged(folder, f"{MANIFEST} is no JSON") from error
    return fields if isinstance(fields, dict) else {}


def _checksum(fields: Mapping[str, Any]) -> str:
    content = {key: value for key, value in fields.items() if key != "checksum"}
    return hashlib.sha256(json.dumps(content, sort_keys=True).encode()).hexdigest()


def _damaged(folder: Path | str, reason: str) -> ValueError:
    return ValueError(f"{folder} is a damaged sharded index ({reason}): build it again or use a copy")
