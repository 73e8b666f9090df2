"""A directory of flat arrays under one manifest: the sparse index on disk.

    manifest.json                  format, version, counts, and for each array its file, dtype, shape and SHA-256
    <array>-<16 hex digits>.bin    little-endian, C order, memory-mapped on reading; the digits open its SHA-256
    writer.lock                    held by the writer, so that there is one at a time

The manifest is what commits. A new index is written to a sibling directory, flushed to the disk and renamed into place.
To replace one, its data files are moved in beside the old ones (names differ as soon as contents do), then the manifest
is replaced, then files that it does not name are removed. So a kill at any moment leaves the old index or the new one,
and a reader that opened the old one keeps it: no file is ever changed in place.
"""

from __future__ import annotations

import contextlib
import errno
import fcntl
import glob
import hashlib
import json
import math
import os
import re
import secrets
import shutil
import time
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

try:
    from stair_kernels import _index
except ImportError as error:
    raise ImportError(
        f"stair_kernels: the search engine _index is not built for this Python ({error}); "
        "run `make setup` or `pip install -e .` in the checkout"
    ) from error

FORMAT = "stair_kernels.SparseIndex"
VERSION = 2
MANIFEST = "manifest.json"
LOCK = "writer.lock"
ARRAYS = (
    *("ids", "row_starts", "row_terms", "row_weights", "term_starts", "segments", "documents", "codes", "units"),
    *("frequent_terms", "frequent_means", "block_max", "groups"),
)
DATA_FILE = re.compile(rf"({'|'.join(ARRAYS)})-[0-9a-f]{{16}}\.bin")
GRACE_S = 60.0  # a staging directory without data and this young may be about to be locked by its writer
HINTS = {
    errno.ENOSPC: "free some space or choose another path",
    errno.EDQUOT: "free some space or choose another path",
    errno.EACCES: "choose a path that you may write to",
    errno.EPERM: "choose a path that you may write to",
    errno.EROFS: "choose a path that you may write to",
}


class Counts(NamedTuple):
    """What fixes the type and shape of every array; csrc/index/layout.h says what they hold."""

    documents: int
    vocab_size: int
    postings: int
    frequent: int  # terms with block maxima
    compact: int  # 1: row_weights are float16

    def arrays(self) -> dict[str, tuple[str, tuple[int, ...]]]:
        """The dtype and shape of each array."""
        N, V, P, F = self.documents, self.vocab_size, self.postings, self.frequent
        chunks = -(-N // _index.CHUNK)
        return {
            "ids": ("<i8", (N,)),
            "row_starts": ("<i8", (N + 1,)),
            "row_terms": ("<u2" if V <= _index.NARROW_TERMS else "<i4", (P,)),
            "row_weights": ("<f2" if self.compact else "<f4", (P,)),
            "term_starts": ("<i8", (V + 1,)),
            "segments": ("<u4", (V, -(-N // _index.RANGE) + 1)),
            "documents": ("<u2", (P,)),
            "codes": ("|u1", (P,)),
            "units": ("<f4", (V,)),
            "frequent_terms": ("<i4", (F,)),
            "frequent_means": ("<f4", (F,)),
            "block_max": ("|u1", (F, chunks * _index.CHUNK_BLOCKS)),
            "groups": ("<u8", (F, chunks * _index.CHUNK_GROUPS, 2)),
        }


def write(path: str | os.PathLike[str], counts: Counts, arrays: Mapping[str, np.ndarray]) -> None:
    """Write a new index at `path`, or replace the index that is there; on an error what was there stays.

    Raises ValueError when something else is at `path`, OSError when it cannot be written.
    """
    target = Path(os.path.realpath(path))
    try:
        _refuse_foreign(target)
        target.parent.mkdir(parents=True, exist_ok=True)
        _sweep_abandoned(target)
        staging = target.with_name(f".{target.name}.{secrets.token_hex(4)}.saving")
        try:
            staging.mkdir()
            with _locked(staging):
                _stage(staging, counts, arrays)
                _commit(staging, target)
        finally:
            shutil.rmtree(staging, ignore_errors=True)  # after the rename there is nothing left at this name
    except OSError as error:
        hint = HINTS.get(error.errno or 0)
        message = f"cannot save the index: {error.strerror or error}" + (f"; {hint}" if hint else "")
        raise OSError(error.errno, message, str(path)) from error


def read(path: str | os.PathLike[str], verify: bool) -> tuple[Counts, dict[str, np.ndarray]]:
    """The counts and the memory-mapped arrays of the index at `path`; `verify` also compares every checksum.

    Raises ValueError with the reason and what to do when `path` holds no sound index.
    """
    directory = Path(path)
    while True:
        text = _manifest_text(directory)
        counts, entries = _parse(directory, text)
        try:
            return counts, {name: _map(directory, entries[name], verify) for name in ARRAYS}
        except FileNotFoundError as error:
            if _manifest_text(directory) == text:
                raise _damaged(directory, f"{error.filename} is missing") from error
            # A writer replaced the index between its manifest and its files: read the new one.


def _damaged(directory: Path, reason: str) -> ValueError:
    return ValueError(f"path: expected a sound index, but {directory} is damaged ({reason}): rebuild it or use a copy")


def _no_index(directory: Path, reason: str) -> ValueError:
    return ValueError(f"path: expected a directory written by SparseIndex.save, but {directory} {reason}")


def _manifest_text(directory: Path) -> bytes:
    if not directory.exists():
        raise _no_index(directory, "does not exist")
    if not directory.is_dir():
        raise _no_index(directory, "is not a directory")
    try:
        return (directory / MANIFEST).read_bytes()
    except (FileNotFoundError, IsADirectoryError) as error:
        raise _no_index(directory, f"holds no {MANIFEST}") from error


def _checksum(manifest: Mapping[str, Any]) -> str:
    content = {key: value for key, value in manifest.items() if key != "checksum"}
    return hashlib.sha256(json.dumps(content, sort_keys=True).encode()).hexdigest()


def _parse(directory: Path, text: bytes) -> tuple[Counts, dict[str, dict[str, Any]]]:
    """The counts and the array entries of a manifest in which every field has been checked."""
    try:
        manifest = json.loads(text)
    except (ValueError, RecursionError) as error:
        raise _damaged(directory, f"{MANIFEST} is no JSON") from error
    if not isinstance(manifest, dict) or manifest.get("format") != FORMAT:
        raise _no_index(directory, f'has a {MANIFEST} whose "format" is not "{FORMAT}"')
    if manifest.get("version") != VERSION:
        raise ValueError(
            f"path: expected an index of version {VERSION}, but {directory} has version {manifest.get('version')!r}: "
            "rebuild it, or use the stair_kernels that wrote it"
        )
    if manifest.get("checksum") != _checksum(manifest):
        raise _damaged(directory, f"{MANIFEST} does not match its checksum")
    numbers: list[Any] = [manifest.get(name) for name in Counts._fields]
    if not all(type(number) is int and 0 <= number < 2**48 for number in numbers) or numbers[-1] > 1:
        raise _damaged(directory, f"{MANIFEST} has the counts {numbers}")
    counts = Counts(*numbers)
    entries = manifest.get("arrays")
    if not isinstance(entries, dict) or set(entries) != set(ARRAYS):
        raise _damaged(directory, f"{MANIFEST} does not list the arrays {', '.join(ARRAYS)}")
    for name, (dtype, shape) in counts.arrays().items():
        entry = entries[name]
        expected = {"dtype": dtype, "shape": list(shape)}
        if not isinstance(entry, dict) or {key: entry.get(key) for key in expected} != expected:
            raise _damaged(directory, f"array {name}: expected {expected}, got {entry}")
        file, sha256 = entry.get("file"), entry.get("sha256")
        if not isinstance(file, str) or not DATA_FILE.fullmatch(file) or not isinstance(sha256, str):
            raise _damaged(directory, f"array {name}: its file or sha256 is not a name or a digest")
    return counts, entries


def _map(directory: Path, entry: dict[str, Any], verify: bool) -> np.ndarray:
    dtype, shape = np.dtype(entry["dtype"]), entry["shape"]
    n_bytes = math.prod(shape) * dtype.itemsize
    with open(directory / entry["file"], "rb") as file:
        size = os.fstat(file.fileno()).st_size
        if size != n_bytes:
            raise _damaged(directory, f"{entry['file']}: expected {n_bytes} bytes, got {size}")
        # An empty file cannot be mapped.
        array = np.asarray(np.memmap(file, dtype, "r", shape=tuple(shape))) if n_bytes else np.zeros(shape, dtype)
    if verify and _sha256(array) != entry["sha256"]:
        raise _damaged(directory, f"{entry['file']} does not match its checksum")
    return array.astype(dtype.newbyteorder("="), copy=False)


def _refuse_foreign(target: Path) -> None:
    """Raise ValueError unless nothing, an empty directory or an index (of any version) is at `target`."""
    if not target.exists() or (target.is_dir() and not any(target.iterdir())):
        return
    try:
        manifest = json.loads(_manifest_text(target))
    except (ValueError, RecursionError):
        manifest = None
    if not isinstance(manifest, dict) or manifest.get("format") != FORMAT:
        kind = "directory" if target.is_dir() else "file"
        raise ValueError(
            f"path: expected a new path or an existing index, but {target} is another {kind}: "
            "remove it or choose another path"
        )


def _stage(staging: Path, counts: Counts, arrays: Mapping[str, np.ndarray]) -> None:
    """Write every file and the manifest, and wait until the disk has them."""
    entries = {}
    for name, (dtype, _) in counts.arrays().items():
        array = np.ascontiguousarray(arrays[name], dtype)
        sha256 = _sha256(array)
        file = f"{name}-{sha256[:16]}.bin"
        _write_file(staging / file, _bytes(array))
        entries[name] = {"file": file, "dtype": dtype, "shape": list(array.shape), "sha256": sha256}
    manifest: dict[str, Any] = {"format": FORMAT, "version": VERSION, **counts._asdict(), "arrays": entries}
    manifest["checksum"] = _checksum(manifest)
    _write_file(staging / MANIFEST, (json.dumps(manifest, indent=2) + "\n").encode())
    _sync_directory(staging)


def _bytes(array: np.ndarray) -> memoryview:
    return array.reshape(-1).view(np.uint8).data


def _sha256(array: np.ndarray) -> str:
    return hashlib.sha256(_bytes(array)).hexdigest()


def _write_file(path: Path, content: bytes | memoryview) -> None:
    with open(path, "xb") as file:
        file.write(content)
        file.flush()
        os.fsync(file.fileno())


def _sync_directory(directory: Path) -> None:
    descriptor = os.open(directory, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


def _commit(staging: Path, target: Path) -> None:
    try:
        os.rename(staging, target)  # onto nothing, or onto an empty directory
    except OSError as error:
        if error.errno not in (errno.ENOTEMPTY, errno.EEXIST):
            raise
        with _locked(target):
            _replace(staging, target)
    else:
        _sync_directory(target.parent)


def _replace(staging: Path, target: Path) -> None:
    """Move the staged files into the index at `target`, the manifest last; the caller holds the target's lock."""
    _refuse_foreign(target)
    before = set(os.listdir(target))
    names = [name for name in os.listdir(staging) if DATA_FILE.fullmatch(name)]
    try:
        for name in names:
            os.rename(staging / name, target / name)
        _sync_directory(target)
        os.replace(staging / MANIFEST, target / MANIFEST)
    except BaseException:
        for name in set(names) - before:
            (target / name).unlink(missing_ok=True)
        raise
    _sync_directory(target)
    for name in os.listdir(target):
        if DATA_FILE.fullmatch(name) and name not in names:
            (target / name).unlink()


@contextlib.contextmanager
def _locked(directory: Path) -> Iterator[None]:
    """Hold the directory's writer lock; a killed process lets go of it."""
    descriptor = os.open(directory / LOCK, os.O_RDWR | os.O_CREAT, 0o666)
    try:
        fcntl.flock(descriptor, fcntl.LOCK_EX)
        yield
    finally:
        os.close(descriptor)


def _sweep_abandoned(target: Path) -> None:
    """Remove what writers of `target` that were killed left beside it: staging directories whose lock is free."""
    for staging in target.parent.glob(f".{glob.escape(target.name)}.*.saving"):
        with contextlib.suppress(FileNotFoundError, PermissionError):  # moved into place meanwhile, or of another user
            abandoned = time.time() - staging.stat().st_mtime >= GRACE_S
            if abandoned and not any(staging.iterdir()):
                staging.rmdir()
            descriptor = os.open(staging / LOCK, os.O_RDWR)
            try:
                fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
                if abandoned or any(DATA_FILE.fullmatch(name) for name in os.listdir(staging)):
                    shutil.rmtree(staging, ignore_errors=True)
            except BlockingIOError:
                continue  # its writer is alive
            finally:
                os.close(descriptor)
