"""What SparseIndex does with a directory: open, save, commit, reload."""

from __future__ import annotations

import os
import threading
from collections.abc import Mapping, Sequence
from pathlib import Path
from types import TracebackType
from typing import Any, TypeVar

from stair_kernels import index_files
from stair_kernels.index_inputs import checked_timeout
from stair_kernels.index_manifest import Manifest
from stair_kernels.index_merge import compacted
from stair_kernels.index_segments import Segment

Self = TypeVar("Self", bound="IndexOnDisk")


class IndexOnDisk:
    """The segments of an index, and where they lie."""

    def __init__(self, segments: Sequence[Segment], metadata: Mapping[str, Any] | None = None) -> None:
        self._segments = tuple(segments)  # replaced, never changed: a search keeps the tuple that it began with
        self._metadata = dict(metadata or {})
        self._changes = threading.Lock()
        self._path: Path | None = None  # where it was opened
        self._text = b""  # of the manifest there
        self._writer: index_files.Writer | None = None

    @classmethod
    def open(
        cls: type[Self], path: str | os.PathLike[str], verify: bool = False, *, mode: str = "r", timeout: float = 10.0
    ) -> Self:
        """The index that `save` wrote at `path`, memory-mapped: search reads the files as it needs them.

        The manifest, the files' sizes and the structure that memory safety rests on are always checked; `verify=True`
        reads every file and compares its SHA-256 too.

        Args:
            mode: "r", or "a" for the one writer whose changes `commit` writes to `path`, until `close`.
            timeout: seconds to wait while there is another writer; float("inf") as long as it takes.

        Raises:
            ValueError: when `path` holds no index, one of another version, or a damaged one.
            TimeoutError: when there is another writer for longer.
        """
        checked_timeout(timeout)
        if mode not in ("r", "a"):
            raise ValueError(f'mode: expected "r" or "a", got {mode!r}')
        index = cls([])
        index._path = Path(os.path.abspath(path))
        index._load(path, verify)
        if mode == "a":
            with index_files.explained(index._path):
                index._writer = index_files.Writer(Path(os.path.realpath(path)), timeout)
                try:
                    index._load(path, verify)  # what may have been committed before it got the lock
                    index._writer.sweep()
                except BaseException:
                    index.close()
                    raise
        return index

    def __enter__(self: Self) -> Self:
        return self

    def __exit__(self, kind: type[BaseException] | None, value: object, trace: TracebackType | None) -> None:
        """Commit what changed, unless there was an exception, and close."""
        try:
            if kind is None and self._writer is not None:
                self.commit()
        finally:
            self.close()

    def close(self) -> None:
        """Let another writer have the directory; what was not committed is not written. Searching goes on."""
        if self._writer is not None:
            self._writer.close()
            self._writer = None

    def commit(self) -> None:
        """Write what was added, deleted or compacted since `open(mode="a")` or the last commit, all of it or nothing.

        New segments are new files: those that were there are not written again. A kill or an error at any moment leaves
        the index as it was or as it is now; readers keep what they opened until `reload`.

        Raises:
            ValueError: when the index was not opened with mode="a", or was closed.
            OSError: when it cannot be written (no permission, disk full); what it holds may be committed later.
        """
        if self._writer is None:
            raise ValueError('index: expected one that SparseIndex.open(path, mode="a") opened and nobody closed')
        with self._changes:
            home = self._writer.directory
            with index_files.explained(home):
                text = self._writer.commit([segment.part(home) for segment in self._segments], self._metadata)
            if text != self._text:
                self._load(home)

    def reload(self) -> bool:
        """Open what is on disk now where something else was committed since; changes in memory are dropped.

        Files that were open stay so: a commit of a few documents is seen within milliseconds. Returns whether the
        manifest is another one.

        Raises:
            ValueError: when the index was not opened, and as `open` does.
        """
        if self._path is None:
            raise ValueError("index: expected one that SparseIndex.open opened, got one that was built")
        with self._changes:
            before = self._text
            self._load(self._path)
            return self._text != before

    def save(self, path: str | os.PathLike[str], *, timeout: float = 10.0) -> None:
        """Write the index as a directory of one segment, as `compact` leaves it, or replace the index at `path`.

        A kill or an error at any moment leaves what was there or the new index, never a mixture; an index that was
        opened from `path` keeps its files.

        Raises:
            ValueError: when `path` is a file or a directory that is neither empty nor an index, and when a file of this
                index is damaged.
            TimeoutError: when for `timeout` seconds there is another writer at `path`; this index is one that commits.
            OSError: when it cannot be written (no permission, disk full); nothing half written is left.
        """
        segments, metadata = self._held()
        index_files.save(path, compacted(segments).part(None), metadata, checked_timeout(timeout))

    def _held(self) -> tuple[tuple[Segment, ...], dict[str, Any]]:
        """The segments and the metadata that belong to them, while another thread may reload."""
        with self._changes:
            return self._segments, self._metadata

    def _load(self, path: str | os.PathLike[str], verify: bool = False) -> None:
        known = {segment.stored.entry.file: segment for segment in self._segments if segment.stored is not None}
        home = Path(os.path.realpath(path))

        def load(directory: Path, manifest: Manifest) -> tuple[list[Segment], dict[str, Any]]:
            entries = manifest.entries
            return [Segment.open(home, entry, verify, known.get(entry.file)) for entry in entries], manifest.metadata

        (segments, metadata), self._text = index_files.read(path, load)
        self._segments, self._metadata = tuple(segments), metadata
