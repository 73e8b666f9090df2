"""What is served: an index, the model that made its rows, and how a new one takes the place of the old."""

from __future__ import annotations

import json
import logging
import os
import threading
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any, Protocol

import numpy as np

from stair.cluster import layout
from stair.cluster.work import ClusterError
from stair.search import Collection, open_index

if TYPE_CHECKING:
    import scipy.sparse
    from PIL.Image import Image

    from stair_kernels import SparseRows

log = logging.getLogger("stair.serve")


class Index(Protocol):
    """What the service needs of an index: SparseIndex has it, and so may what searches several or far away.

    All of it is called by the threads that answer batches, several at a time when there are several.
    """

    @property
    def vocab_size(self) -> int: ...

    def __len__(self) -> int: ...

    def search(self, queries: scipy.sparse.csr_matrix, k: int) -> tuple[Any, Any]:
        """(scores [Q, k] float32, ids [Q, k]), as SparseIndex.search; padded with id -1 or None."""

    def payloads(self, ids: Sequence[Any]) -> list[bytes]:
        """What is kept with each; ValueError for an id that is not there."""

    def rows(self, ids: Sequence[Any]) -> scipy.sparse.csr_matrix:
        """The documents themselves, [n, V]."""


class Encoder:
    """A checkpoint: texts and pictures to rows, and the words of the vocabulary."""

    def __init__(self, folder: Path, sha256: str) -> None:
        from stair.checkpoint import load

        self.folder, self.sha256 = folder, sha256
        loaded: tuple[Any, Any] = load(folder)
        self.model, self.processor = loaded
        self.vocabulary = self.processor.vocabulary()
        self.entries = {term: v for v, term in enumerate(self.vocabulary)}
        self.texts([self.vocabulary[-1]])  # the first takes longer, as threads and buffers are made

    def texts(self, texts: list[str]) -> SparseRows:
        import torch

        with torch.inference_mode():
            return self.model.encode_text(**self.processor(text=texts))

    def pictures(self, fitted: Sequence[Any]) -> SparseRows:
        import torch

        with torch.inference_mode():
            return self.model.encode_image(pixel_values=self.processor.normalize(fitted))

    def fitted(self, image: Image) -> np.ndarray:
        """The square that the model sees, uint8 [S, S, 3]: small, while the picture may be large."""
        return self.processor.images.fitted(image)


@dataclass(frozen=True)
class Served:
    """One state of what is served. It is never changed: a request keeps the one it began with to its end."""

    index: Index
    encoder: Encoder | None = None  # None: queries are given by their entries
    folder: Path | None = None  # of a collection, whose payloads are items; None: payloads are not read

    @property
    def queries(self) -> list[str]:
        """The kinds of queries that can be asked."""
        return ["vector"] if self.encoder is None else ["text", "image", "terms", "vector"]

    def picture(self, id: str) -> Path | None:
        """Where the picture of an item lies; None for an id that is none, and for an item without."""
        if self.folder is None:
            return None
        try:
            (payload,) = self.index.payloads([id])
        except ValueError:
            return None
        name = json.loads(payload).get("picture")
        return Path(os.path.normpath(self.folder / name)) if name else None


class Source(Protocol):
    """Where a new state comes from."""

    def open(self) -> Served:
        """What is there now; ValueError or OSError when that cannot be served, ClusterError when it cannot be now."""

    def stamp(self) -> object:
        """Equal as long as `open` would give the same."""


class Folder:
    """An index directory, sharded or not: a collection with its model, or any other index, with a model or without.

    Every `open` opens the directory anew (half a millisecond, the files are mapped) rather than calling `reload` on the
    index that is served: that would change what requests in flight look up. The model stays, unless another built it.
    """

    def __init__(self, folder: Path, model: Path | None = None, opened: Callable[[Path], Any] = open_index) -> None:
        self.folder, self.model, self._opened = folder, model, opened
        self._encoder: Encoder | None = None

    def open(self) -> Served:
        index = self._opened(self.folder)
        collection = Collection.of(self.folder, index)
        encoder: Encoder | None = None
        if collection is not None:
            encoder = self._loaded(self.model or collection.model_dir, collection.model_sha256)
        elif self.model is not None:
            encoder = self._loaded(self.model, None)
        if encoder is not None and len(encoder.vocabulary) != index.vocab_size:
            sizes = f"{len(encoder.vocabulary)} entries, the index {index.vocab_size}"
            raise ValueError(f"{encoder.folder} is no model for {self.folder}: its vocabulary has {sizes}")
        return Served(index, encoder, None if collection is None else self.folder)

    def stamp(self) -> object:
        try:
            found = os.stat(layout.manifest_of(self.folder))
        except OSError:
            return None
        return found.st_mtime_ns, found.st_ino, found.st_size

    def _loaded(self, folder: Path, sha256: str | None) -> Encoder:
        """The checkpoint, which has to be the one of that fingerprint where there is one."""
        from stair.checkpoint import fingerprint

        found = fingerprint(folder)
        if sha256 is not None and found != sha256:
            raise ValueError(
                f"{folder} is not the checkpoint that built {self.folder}: give the right one with --model, or build"
                f" the index again with `stair index build --model {folder}`"
            )
        if self._encoder is None or self._encoder.sha256 != found:
            self._encoder = Encoder(folder, found)
        return self._encoder


@dataclass
class Holder:
    """The state that new requests get. A reload that fails leaves it as it is."""

    source: Source
    reloaded: Callable[[bool], None] = lambda well: None
    loaded_at: float = field(default_factory=time.time)  # seconds since 1970

    def __post_init__(self) -> None:
        self._lock = threading.Lock()
        self._stamp = self.source.stamp()
        self._state = self.source.open(), 1  # replaced in one step

    @property
    def current(self) -> Served:
        return self._state[0]

    @property
    def generation(self) -> int:
        """1, and 1 more for each reload."""
        return self._state[1]

    def reload(self) -> int:
        """Opens what is there now for the requests from now on; its generation.

        Raises:
            ValueError, OSError: when that cannot be served; the old one is still there.
            ClusterError: when workers cannot open it now; it is still `stale`.
        """
        with self._lock:
            stamp = self.source.stamp()
            try:
                self._state = self.source.open(), self.generation + 1
            except Exception as error:
                if not isinstance(error, ClusterError):
                    self._stamp = stamp  # one that cannot be served is tried once
                self.reloaded(False)
                log.error("reload failed, generation %d is still served: %s", self.generation, error)
                raise
            self._stamp = stamp
            self.loaded_at = time.time()
            self.reloaded(True)
            log.info("generation %d: %d documents", self.generation, len(self.current.index))
            return self.generation

    def state(self) -> tuple[Served, int]:
        """What is served, and its generation."""
        return self._state

    def stale(self) -> bool:
        """Whether there is something else than what was opened last."""
        return self.source.stamp() != self._stamp
