"""A directory of segments under one manifest: the sparse index on disk.

    manifest.json                  format, version, metadata; of each segment the counts, files, SHA-256 and arrays
    segment-<16 hex digits>.bin    its arrays one after the other: little-endian, C order, aligned to 64 bytes
    alive-<16 hex digits>.bin      a bit for each of its documents, 1 until it is deleted; none while all are there
    writer.lock                    held by the writer, so that there is one at a time

The digits open the file's SHA-256. The manifest is what commits: new files are written under another name, flushed to
the disk and renamed, then the manifest likewise, then files that it does not name are removed. So a kill at any moment
leaves the old index or the new one, and a reader that opened the old one keeps it: no file is changed in place. A new
index is written to a sibling directory first, which is renamed when it is complete.
"""

from __future__ import annotations

import contextlib
import errno
import fcntl
import glob
import hashlib
import os
import re
import secrets
import shutil
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple, TypeVar

import numpy as np

from stair_kernels.index_layout import Counts
from stair_kernels.index_manifest import (
    MANIFEST,
    Alive,
    Entry,
    Manifest,
    damaged,
    parse,
    read_text,
    refuse_foreign,
    render,
)

LOCK = "writer.lock"
UNFINISHED = "unfinished.tmp"
DATA_FILE = re.compile(r"[a-z_]+-[0-9a-f]{16}\.bin|" + re.escape(UNFINISHED))  # those of older versions too
GRACE_S = 60.0  # a staging directory without data and this young may be about to be locked by its writer
POLL_S = 0.01
HINTS = {
    errno.ENOSPC: "free some space or choose another path",
    errno.EDQUOT: "free some space or choose another path",
    errno.EACCES: "choose a path that you may write to",
    errno.EPERM: "choose a path that you may write to",
    errno.EROFS: "choose a path that you may write to",
}
T = TypeVar("T")


class Part(NamedTuple):
    """A segment to be written."""

    counts: Counts
    arrays: Mapping[str, np.ndarray]
    alive: np.ndarray | None  # bits in words of 64, None: all
    deleted: int
    entry: Entry | None  # where an index directory may have its arrays already


def read(path: str | os.PathLike[str], load: Callable[[Path, Manifest], T]) -> tuple[T, bytes]:
    """What `load` makes of the manifest at `path` and its files, and the manifest's bytes.

    Raises ValueError with the reason and what to do when `path` holds no sound index.
    """
    directory = Path(path)
    text = read_text(directory)
    while True:
        try:
            return load(directory, parse(directory, text)), text
        except FileNotFoundError as error:
            before, text = text, read_text(directory)
            if text == before:
                raise damaged(directory, f"{error.filename} is missing") from error
            # A writer committed between the manifest and its files: read the new ones.


def map_file(directory: Path, file: str, n_bytes: int) -> np.ndarray:
    """The bytes of a file, memory-mapped."""
    with open(directory / file, "rb") as stream:
        size = os.fstat(stream.fileno()).st_size
        if size != n_bytes:
            raise damaged(directory, f"{file}: expected {n_bytes} bytes, got {size}")
        return np.asarray(np.memmap(stream, np.uint8, "r")) if n_bytes else np.zeros(0, np.uint8)


def arrays_in(data: np.ndarray, counts: Counts) -> dict[str, np.ndarray]:
    """The arrays of a segment's file."""
    offsets, arrays = counts.offsets()[0], {}
    for name, (dtype, shape) in counts.arrays().items():
        n_bytes = int(np.prod(shape, dtype=np.int64)) * np.dtype(dtype).itemsize
        array = data[offsets[name] : offsets[name] + n_bytes].view(dtype).reshape(shape)
        arrays[name] = array.astype(array.dtype.newbyteorder("="), copy=False)
    return arrays


def require_checksum(directory: Path, file: str, data: np.ndarray, sha256: str) -> None:
    if hashlib.sha256(data.data).hexdigest() != sha256:
        raise damaged(directory, f"{file} does not match its checksum")


class Writer:
    """The one writer of an index directory, from here to `close`."""

    def __init__(self, directory: Path, timeout: float) -> None:
        """Raises TimeoutError when another writer has it for longer than `timeout` seconds."""
        self.directory = directory
        self._process = os.getpid()
        self._lock: int | None = _lock(directory, timeout)

    def close(self) -> None:
        if self._lock is not None and self._process == os.getpid():
            fcntl.flock(self._lock, fcntl.LOCK_UN)  # closing would leave it to the copies that forked processes have
        if self._lock is not None:
            os.close(self._lock)
            self._lock = None

    def commit(self, parts: Sequence[Part], metadata: dict[str, Any]) -> bytes:
        """Make the directory hold these segments, on the disk; the manifest's bytes. On an error what was there stays,
        or they are there, but not surely on the disk until a further commit.
        """
        if self._lock is None or self._process != os.getpid():
            raise ValueError(f"index: expected an open writer of {self.directory} in the process that opened it")
        try:
            manifest = Manifest(tuple(self._entry(part) for part in parts), metadata)
            text = render(manifest)
            _sync_directory(self.directory)  # the data, or a manifest whose commit failed after it was renamed
            if self._committed() != text:
                self._write(MANIFEST, [text])
                _sync_directory(self.directory)
            return text
        finally:
            self.sweep()

    def sweep(self) -> None:
        """Remove the data files that the manifest does not name: what it replaced, and what failed or was killed."""
        text = self._committed()
        for name in os.listdir(self.directory):
            if DATA_FILE.fullmatch(name) and name.encode() not in text:
                (self.directory / name).unlink()

    def _committed(self) -> bytes:
        """The manifest's bytes, none in a new directory."""
        with contextlib.suppress(FileNotFoundError):
            return (self.directory / MANIFEST).read_bytes()
        return b""

    def _entry(self, part: Part) -> Entry:
        entry = part.entry
        if entry is None or not (self.directory / entry.file).exists():
            sha256, file = self._data(_pieces(part), "segment")
            entry = Entry(part.counts, file, sha256, None)
        alive = None
        if part.alive is not None:
            sha256, file = self._data([part.alive.astype("<u8", copy=False).view(np.uint8).data], "alive")
            alive = Alive(file, sha256, part.deleted)
        return entry._replace(alive=alive)

    def _data(self, pieces: Sequence[Any], kind: str) -> tuple[str, str]:
        """The checksum and the name of a new file, which may be there already."""
        digest = hashlib.sha256()
        for piece in pieces:
            digest.update(piece)
        sha256 = digest.hexdigest()
        file = f"{kind}-{sha256[:16]}.bin"
        self._write(file, pieces)
        return sha256, file

    def _write(self, name: str, pieces: Sequence[Any]) -> None:
        unfinished = self.directory / UNFINISHED
        with open(unfinished, "wb") as stream:
            for piece in pieces:
                stream.write(piece)
            stream.flush()
            os.fsync(stream.fileno())
        os.replace(unfinished, self.directory / name)


def save(path: str | os.PathLike[str], part: Part, metadata: dict[str, Any], timeout: float) -> None:
    """Write a new index of one segment at `path`, or replace the index that is there; on an error what was there stays.

    Raises ValueError when something else is at `path`, TimeoutError when another writer has it, OSError when it cannot
    be written.
    """
    target = Path(os.path.realpath(path))
    with explained(target):
        refuse_foreign(target)
        target.parent.mkdir(parents=True, exist_ok=True)
        _sweep_abandoned(target)
        if (target.exists() and any(os.scandir(target))) or not _save_new(target, part, metadata):
            refuse_foreign(target)
            with contextlib.closing(Writer(target, timeout)) as writer:
                writer.commit([part], metadata)


def _save_new(target: Path, part: Part, metadata: dict[str, Any]) -> bool:
    """Whether the new directory could take its place: there was nothing, or an empty directory."""
    staging = target.with_name(f".{target.name}.{secrets.token_hex(4)}.saving")
    try:
        staging.mkdir()
        # Another `save` that looks for abandoned directories may hold the lock for a moment, nobody else.
        with contextlib.closing(Writer(staging, GRACE_S)) as writer:
            writer.commit([part], metadata)
            try:
                os.rename(staging, target)
            except OSError as error:
                if error.errno not in (errno.ENOTEMPTY, errno.EEXIST):
                    raise
                return False
            _sync_directory(target.parent)
            return True
    finally:
        shutil.rmtree(staging, ignore_errors=True)  # after the rename there is nothing left at this name


@contextlib.contextmanager
def explained(path: Path) -> Iterator[None]:
    """An OSError that says what was done to which index, and what may help."""
    try:
        yield
    except OSError as error:
        if isinstance(error, TimeoutError):
            raise
        hint = HINTS.get(error.errno or 0)
        message = f"cannot write the index: {error.strerror or error}" + (f"; {hint}" if hint else "")
        raise OSError(error.errno, message, str(path)) from error


def _lock(directory: Path, timeout: float) -> int:
    """The descriptor of the directory's writer lock, held; a killed process lets go of it."""
    descriptor = os.open(directory / LOCK, os.O_RDWR | os.O_CREAT, 0o666)
    deadline = time.monotonic() + timeout
    while True:
        try:
            fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
            return descriptor
        except BlockingIOError:
            if time.monotonic() >= deadline:
                os.close(descriptor)
                message = "another writer has the index: wait until it is done, or give a larger timeout"
                raise TimeoutError(errno.ETIMEDOUT, message, str(directory)) from None
            time.sleep(POLL_S)
        except BaseException:
            os.close(descriptor)
            raise


def _pieces(part: Part) -> list[Any]:
    """The bytes of a segment's file."""
    offsets, _ = part.counts.offsets()
    pieces, end = [], 0
    for name, (dtype, _) in part.counts.arrays().items():
        data = np.ascontiguousarray(part.arrays[name], dtype).reshape(-1).view(np.uint8)
        pieces += [bytes(offsets[name] - end), data.data]
        end = offsets[name] + len(data)
    return pieces


def _sync_directory(directory: Path) -> None:
    descriptor = os.open(directory, os.O_RDONLY)
    try:
        os.fsync(descriptor)
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
