"""A hidden folder that a run has until it ends, on a file system that workers share; what a kill leaves is cleared."""

from __future__ import annotations

import contextlib
import fcntl
import os
import shutil
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

PREFIX = ".stair-"
WORK = "work"
LOCK = "stair-run.lock"  # held while the folder is in use; the system lets go of it when the process ends, however


@contextmanager
def beside(out: Path | None) -> Iterator[Path]:
    """An empty hidden folder in the folder of `out`, or in the current one; those that nobody holds are removed first.

    Raises OSError where nothing can be written, or the file system has no locks.
    """
    place = Path.cwd() if out is None else out.absolute().parent
    clear(place)
    folder, held = _claimed(place)
    try:
        (folder / WORK).mkdir()
        yield folder / WORK
    finally:
        _remove(folder)
        os.close(held)


def clear(place: Path) -> None:
    """Removes what runs that were killed left in `place`."""
    for folder in place.glob(f"{PREFIX}*/"):
        with contextlib.suppress(FileNotFoundError, PermissionError):  # it is just going, or another user's
            if not any(folder.iterdir()):
                folder.rmdir()  # killed, or about to take its lock: then it makes another folder
                continue
            with open(folder / LOCK, "r+") as held, contextlib.suppress(BlockingIOError):
                fcntl.flock(held, fcntl.LOCK_EX | fcntl.LOCK_NB)
                _remove(folder)


def _claimed(place: Path) -> tuple[Path, int]:
    """A new folder and the descriptor of its lock, held; not one that was cleared before the lock was taken."""
    while True:
        folder = Path(tempfile.mkdtemp(prefix=PREFIX, dir=place))
        try:
            held = os.open(folder / LOCK, os.O_RDWR | os.O_CREAT | os.O_EXCL)
        except FileNotFoundError:
            continue
        try:
            fcntl.flock(held, fcntl.LOCK_EX)
        except OSError as error:
            os.close(held)
            shutil.rmtree(folder)
            raise OSError(error.errno, f"{error.strerror}: its file system must have locks", str(place)) from error
        if (folder / LOCK).exists():
            return folder, held
        os.close(held)


def _remove(folder: Path) -> None:
    """The lock goes last: what a worker that still writes keeps from going is left to the next run."""
    shutil.rmtree(folder / WORK, ignore_errors=True)
    if not (folder / WORK).exists():
        shutil.rmtree(folder, ignore_errors=True)
