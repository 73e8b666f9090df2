"""Files that are whole or not there: written beside their place and moved into it."""

from __future__ import annotations

import ctypes
import errno
import hashlib
import os
import shutil
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import IO, Any

AT_FDCWD, RENAME_EXCHANGE = -100, 2  # of Linux' renameat2


def _place(path: Path | str) -> tuple[Path, Path]:
    """(where `path` really is, behind links and "."; a temporary name beside it), the folder above it made."""
    place = Path(os.path.realpath(path))
    place.parent.mkdir(parents=True, exist_ok=True)
    return place, place.with_name(f".{place.name}.{os.getpid()}.tmp")


@contextmanager
def replacing(path: Path | str, mode: str = "w") -> Iterator[IO[Any]]:
    """An open temporary file that takes `path`'s place when the block ends well and vanishes when it does not.

    Args:
        path: the file to write; its folder is made when missing.
        mode: "w" for text in UTF-8, "wb" for bytes.
    """
    place, temporary = _place(path)
    try:
        with open(temporary, mode, encoding=None if "b" in mode else "utf-8") as stream:
            yield stream
            stream.flush()
            os.fsync(stream.fileno())
        os.replace(temporary, place)
    finally:
        temporary.unlink(missing_ok=True)


@contextmanager
def replacing_folder(path: Path | str) -> Iterator[Path]:
    """An empty temporary folder that takes `path`'s place, contents and all, when the block ends well."""
    settle(path)
    place, temporary = _place(path)
    old = temporary.with_suffix(".old")
    temporary.mkdir()
    try:
        yield temporary
        if not place.exists():
            os.replace(temporary, place)
        elif not _exchange(temporary, place):
            os.replace(place, old)
            os.replace(temporary, place)
    finally:
        if old.exists() and not place.exists():
            os.replace(old, place)
        shutil.rmtree(temporary, ignore_errors=True)
        shutil.rmtree(old, ignore_errors=True)


def settle(path: Path | str) -> None:
    """Clears away what a killed process left beside `path` when it was writing it, file or folder.

    Where the system cannot swap two folders in one step, a kill between the two renames leaves the old folder under its
    temporary name: it is put back.
    """
    place, own = _place(path)
    for left in sorted(place.parent.glob(f".{place.name}.*.*")):
        number, _, kind = left.name.removeprefix(f".{place.name}.").partition(".")
        if kind not in ("old", "tmp") or not number.isdigit() or (_runs(int(number)) and left.stem != own.stem):
            continue
        if kind == "old" and not place.exists():
            os.replace(left, place)
        elif left.is_dir():
            shutil.rmtree(left, ignore_errors=True)
        else:
            left.unlink(missing_ok=True)


def _runs(number: int) -> bool:
    """Whether there is a process of this number."""
    try:
        os.kill(number, 0)
    except ProcessLookupError:
        return False
    except PermissionError:
        return True
    return True


def _exchange(one: Path, other: Path) -> bool:
    """Swaps two folders in one step; False where the system or the file system cannot."""
    swap = getattr(ctypes.CDLL(None, use_errno=True), "renameat2", None) if sys.platform == "linux" else None
    if swap is None:
        return False
    if swap(AT_FDCWD, os.fsencode(one), AT_FDCWD, os.fsencode(other), RENAME_EXCHANGE) == 0:
        return True
    number = ctypes.get_errno()
    if number in (errno.EINVAL, errno.ENOSYS, errno.ENOTSUP):
        return False
    raise OSError(number, os.strerror(number), str(other))


def require_writable(folder: Path | str) -> None:
    """Raises the OSError that a later write below `folder` would, so that long work does not end in it."""
    folder = Path(folder)
    folder.mkdir(parents=True, exist_ok=True)
    probe = folder / f".probe.{os.getpid()}"
    try:
        probe.write_bytes(b"stair")
    finally:
        probe.unlink(missing_ok=True)


def require_shared(folder: Path | str) -> None:
    """Raises FileNotFoundError where a worker does not see the folder that it is to write into."""
    if not Path(folder).is_dir():  # it is another machine's, or the run that made it has ended
        hint = "no such folder; is it on a file system that every worker shares? --out says where it is"
        raise FileNotFoundError(errno.ENOENT, hint, str(folder))


def sha256(path: Path | str) -> str:
    """Hex digest of a file's content."""
    with open(path, "rb") as stream:
        digest = hashlib.sha256()
        while block := stream.read(1 << 20):
            digest.update(block)
    return digest.hexdigest()
