"""Small indexes, and processes that end at a chosen moment, for the tests of the index on disk."""

from __future__ import annotations

import builtins
import os
import re
import signal
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import scipy.sparse
import torch

import stair_kernels as sk
from stair_kernels import index_files

V = 50
# What Python reports of the file system and locks; fsync and writing are counted beside.
EVENTS = {"open", "os.listdir", "os.scandir", "os.rename", "os.remove", "os.rmdir", "os.mkdir", "fcntl.flock"}


def random_rows(seed: int, N: int) -> scipy.sparse.csr_matrix:
    return scipy.sparse.random(N, V, 0.2, "csr", np.float32, np.random.default_rng(seed))


QUERIES = random_rows(3, 4)


def same(a: sk.SparseIndex, b: sk.SparseIndex) -> bool:
    """Whether two indexes hold and find the same."""
    if list(a.ids) != list(b.ids):
        return False
    found, expected = (index.search(QUERIES, 20, n_threads=1) for index in (a, b))
    return torch.equal(found[0], expected[0]) and np.array_equal(found[1], expected[1])


def opened(path: Path) -> sk.SparseIndex:
    return sk.SparseIndex.open(path, verify=True)


def assert_tidy(path: Path, segments: int = 1, deleted_from: int = 0) -> None:
    """Nothing but one index: its files, and nothing beside it."""
    names = sorted(re.sub("-.*", "", name) for name in os.listdir(path))
    assert names == ["alive"] * deleted_from + ["manifest.json"] + ["segment"] * segments + ["writer.lock"]
    assert os.listdir(path.parent) == [path.name]


def start(action: Callable[[], object]) -> int:
    """The process id of a forked child that runs `action` and exits with 0, or with 1 after an exception."""
    child = os.fork()
    if child == 0:
        code = 1
        try:
            action()
            code = 0
        except Exception as error:
            os.write(2, f"{type(error).__name__}: {error}\n".encode())
        finally:
            os._exit(code)
    return child


def status(child: int) -> int:
    """The exit code of a child, or minus the signal that killed it."""
    return os.waitstatus_to_exitcode(os.waitpid(child, 0)[1])


def killed_at_operation(number: int, action: Callable[[], object]) -> Callable[[], object]:
    """`action`, killed just before the given operation on files, counted from 1: to be run in a child.

    Of every eighth array half is written before the kill.
    """

    def run() -> None:
        left = number

        def point() -> None:
            nonlocal left
            left -= 1
            if left == 0:
                os.kill(os.getpid(), signal.SIGKILL)

        class Halves:
            def __init__(self, stream: Any) -> None:
                self.stream = stream
                self.written = 0

            def __enter__(self) -> Halves:
                return self

            def __exit__(self, *_: object) -> None:
                self.stream.close()

            def __getattr__(self, name: str) -> Any:
                return getattr(self.stream, name)

            def write(self, piece: Any) -> None:
                data = bytes(piece)
                self.stream.write(data[: len(data) // 2])
                self.stream.flush()
                self.written += 1
                if self.written % 8 == 1:
                    point()
                self.stream.write(data[len(data) // 2 :])

        def open_in_halves(path: Any, mode: str) -> Any:
            stream = builtins.open(path, mode)  # noqa: SIM115
            return Halves(stream) if "w" in mode else stream

        os.fsync = lambda descriptor: point()  # a kill, unlike a power cut, loses nothing written
        index_files.open = open_in_halves  # type: ignore[attr-defined]
        sys.addaudithook(lambda event, arguments: point() if event in EVENTS else None)
        action()

    return run


def error_of(action: Callable[[], object]) -> Exception | None:
    try:
        action()
    except (OSError, ValueError) as error:
        return error
    return None
