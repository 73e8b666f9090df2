"""Exact search over the shards of an index: the scores and ids, ties included, of one index of all documents."""

from __future__ import annotations

import os
import time
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from types import TracebackType
from typing import TYPE_CHECKING, Any, Protocol

import numpy as np
import scipy.sparse
import torch
from torch import Tensor

from stair.cluster import layout
from stair.cluster.layout import Manifest, Shard
from stair_kernels.index_inputs import as_ids, checked_allowed
from stair_kernels.index_names import Strings

if TYPE_CHECKING:
    from stair_kernels import SparseIndex

OPEN_ATTEMPTS = 5  # while somebody replaces the index


class Holder:
    """One opened shard, and what it is asked: by this process, or by a worker that holds it for others."""

    def __init__(self, index: SparseIndex) -> None:
        self.index = index

    def search(self, queries: Any, k: int, n_threads: int | None, allowed: Any) -> tuple[np.ndarray, np.ndarray]:
        scores, ids = self.index.search(queries, k, n_threads, allowed=allowed)
        return scores.numpy(), np.asarray(ids)

    def matches(self, queries: Any, ids: Any) -> list[list[dict[int, float]]]:
        return self.index.matches(queries, ids)

    def rows(self, ids: Any) -> tuple[np.ndarray, scipy.sparse.csr_matrix]:
        held = self._held(ids)
        return held, self.index.rows(np.asarray(ids)[held])

    def payloads(self, ids: Any) -> tuple[np.ndarray, list[bytes]]:
        held = self._held(ids)
        return held, self.index.payloads(np.asarray(ids)[held])

    def ids(self) -> np.ndarray:
        return np.asarray(self.index.ids)

    def stats(self) -> dict[str, int]:
        return self.index.stats()

    def _held(self, ids: np.ndarray) -> np.ndarray:
        """int64: which of the ids the shard holds."""
        given, _ = as_ids(ids)
        segments = self.index._segments
        return np.flatnonzero(np.max(self.index._places(given, segments), axis=0) >= 0)


class Backend(Protocol):
    """Where the shards are open."""

    def ask(self, method: str, *arguments: Any) -> list[Any]:
        """What each shard's Holder answers, in the order of the shards: all of them, or an exception."""

    def close(self) -> None:
        """Give back what it holds."""


class LocalShards:
    """All shards memory-mapped in this process, asked side by side."""

    def __init__(self, folder: Path, shards: Sequence[Shard], verify: bool = False) -> None:
        self.holders = [Holder(layout.open_shard(folder, shard, verify)) for shard in shards]
        self._threads = ThreadPoolExecutor(max(1, min(len(shards), torch.get_num_threads())))

    def ask(self, method: str, *arguments: Any) -> list[Any]:
        if method == "search":  # the threads that there are, dealt to the shards that are searched at a time
            queries, k, n_threads, allowed = arguments
            if n_threads is None:
                n_threads = max(1, torch.get_num_threads() // len(self.holders))
            arguments = queries, k, n_threads, allowed
        if len(self.holders) == 1:
            return [getattr(self.holders[0], method)(*arguments)]
        return list(self._threads.map(lambda holder: getattr(holder, method)(*arguments), self.holders))

    def close(self) -> None:
        self._threads.shutdown()


def merged(
    found: Sequence[tuple[np.ndarray, np.ndarray]], k: int, order: str = "added"
) -> tuple[np.ndarray, np.ndarray]:
    """The k best of what each shard found: scores [Q, k] float32 and ids [Q, k].

    Equal scores go by the lower id; those of strings in the order of the shards, or by the ids with order "ids".
    A score is above 0, or -inf where a shard found no more: those come last.
    """
    scores, ids = (np.hstack(parts) for parts in zip(*found))
    if ids.dtype != object:
        best = np.lexsort((ids, -scores))[:, :k]
    elif order == "added":
        best = np.argsort(-scores, axis=1, kind="stable")[:, :k]
    else:
        names = np.array([name or "" for name in ids.ravel().tolist()], str)
        ranks = np.unique(names, return_inverse=True)[1].reshape(ids.shape)
        best = np.lexsort((ranks, -scores))[:, :k]
    return np.take_along_axis(scores, best, 1), np.take_along_axis(ids, best, 1)


class ShardedIndex:
    """A sharded index, asked as a SparseIndex is: `search`, `matches`, `rows`, `payloads`, `ids`, `stats`.

    Every answer is that of all shards or an exception. Safe to use from several threads. It does not change: build it
    again, and `reload`.
    """

    def __init__(self, folder: Path | str, manifest: Manifest, backend: Backend) -> None:
        self.folder, self.manifest = Path(folder), manifest
        self._backend = backend
        self._shape = backend.ask("stats")

    @staticmethod
    def open(folder: Path | str, verify: bool = False) -> ShardedIndex:
        """All shards in this process, memory-mapped; `verify` reads every file and compares its SHA-256.

        Raises:
            ValueError: when `folder` holds no sharded index, or a damaged one.
        """
        return ShardedIndex.open_with(folder, lambda place, shards: LocalShards(place, shards, verify))

    @staticmethod
    def open_with(folder: Path | str, backend: Callable[[Path, tuple[Shard, ...]], Backend]) -> ShardedIndex:
        """As `open`, with the shards open wherever `backend` opens them."""
        folder = Path(os.path.abspath(folder))
        for attempt in range(OPEN_ATTEMPTS):
            manifest = layout.read(folder)
            try:
                return ShardedIndex(folder, manifest, backend(folder, manifest.shards))
            except ValueError:
                if attempt == OPEN_ATTEMPTS - 1 or layout.read(folder) == manifest:
                    raise  # else it was replaced between its manifest and its shards
                time.sleep(0.01)
        raise AssertionError

    def reload(self) -> bool:
        """Open what is at the same place now; whether it is another index."""
        manifest = layout.read(self.folder)
        if manifest == self.manifest:
            return False
        if not isinstance(self._backend, LocalShards):
            raise ValueError(f"{self.folder}: expected an index opened in this process; open it again on the cluster")
        fresh = ShardedIndex.open(self.folder)
        self.manifest, self._backend, self._shape = fresh.manifest, fresh._backend, fresh._shape
        return True

    def __enter__(self) -> ShardedIndex:
        return self

    def __exit__(self, kind: type[BaseException] | None, value: object, trace: TracebackType | None) -> None:
        self.close()

    def close(self) -> None:
        """Give back what holds the shards."""
        self._backend.close()

    def search(self, queries: Any, k: int, n_threads: int | None = None, *, allowed: Any = None) -> tuple[Tensor, Any]:
        """As `SparseIndex.search`: (scores [Q, k] float32, ids [Q, k]), the bits of one index of all documents."""
        chosen = None if allowed is None else self._allowed(allowed)
        scores, ids = merged(self._backend.ask("search", queries, k, n_threads, chosen), k, self.manifest.order)
        return torch.from_numpy(scores), ids if self.strings else torch.from_numpy(ids)

    def matches(self, queries: Any, ids: Any) -> list[list[dict[int, float]]]:
        """As `SparseIndex.matches`: the terms of each of the ids [Q, k], from the shard that holds it."""
        ids = np.asarray(ids.cpu() if isinstance(ids, Tensor) else ids, object if self.strings else None)
        every = self._backend.ask("matches", queries, ids)
        return [
            [next((terms for terms in of_shards if terms), {}) for of_shards in zip(*of_query)]
            for of_query in zip(*every)
        ]

    def rows(self, ids: Any) -> scipy.sparse.csr_matrix:
        """As `SparseIndex.rows`: [n, V] float32; ValueError on an id that no shard holds."""
        wanted = self._flat(ids)
        places, parts = self._gathered("rows", wanted)
        if not len(wanted):
            return scipy.sparse.csr_matrix((0, self.vocab_size), dtype=np.float32)
        return scipy.sparse.csr_matrix(scipy.sparse.vstack(parts, "csr")[np.argsort(places)])

    def payloads(self, ids: Any) -> list[bytes]:
        """As `SparseIndex.payloads`; ValueError on an id that no shard holds."""
        wanted = self._flat(ids)
        places, parts = self._gathered("payloads", wanted)
        by_place = dict(zip(places.tolist(), (payload for part in parts for payload in part)))
        return [by_place[place] for place in range(len(wanted))]

    @property
    def ids(self) -> Any:
        """int64 [N], ascending, or a NumPy array of str in the order that equal scores go by."""
        every = np.concatenate(self._backend.ask("ids"))
        if self.strings:
            return np.sort(every) if self.manifest.order == "ids" else every
        return torch.from_numpy(np.sort(every))

    @property
    def metadata(self) -> dict[str, Any]:
        """A copy of what it was built with."""
        return dict(self.manifest.metadata)

    @property
    def vocab_size(self) -> int:
        """V, the number of columns."""
        return int(self._shape[0]["vocab_size"])

    @property
    def strings(self) -> bool:
        """Whether ids are strings."""
        return bool(self._shape[0]["strings"])

    def __len__(self) -> int:
        """N, the number of documents."""
        return sum(shard.documents for shard in self.manifest.shards)

    def stats(self) -> dict[str, int]:
        """As `SparseIndex.stats`, and `shards`; terms and frequent ones are those of the largest shard."""
        found: dict[str, int] = {"shards": len(self._shape)}
        for name in self._shape[0]:
            values = [shape[name] for shape in self._shape]
            summed = name in ("documents", "deleted", "segments", "postings", "bytes")
            found[name] = sum(values) if summed else max(values)
        return found

    def __repr__(self) -> str:
        return f"ShardedIndex(N={len(self)}, V={self.vocab_size}, shards={len(self._shape)})"

    def _flat(self, ids: Any) -> np.ndarray:
        """Ids [n]; ValueError on another shape or kind."""
        given, shape = as_ids(ids)
        if len(shape) != 1:
            raise ValueError(f"ids: expected ids [n], got {list(shape)}")
        strings = isinstance(given, Strings)
        if shape[0] and strings != self.strings:
            kinds = ("strings", "integers") if self.strings else ("integers", "strings")
            raise ValueError(f"ids: expected {kinds[0]} like the ids of the index, got {kinds[1]}")
        if isinstance(given, Strings):
            return np.array([name.decode() for name in given.tolist()], object)
        return given if len(given) else np.zeros(0, object if self.strings else np.int64)

    def _gathered(self, method: str, wanted: np.ndarray) -> tuple[np.ndarray, list[Any]]:
        """Which of the ids each answer is of, shard after shard, and the shards' answers."""
        answers = self._backend.ask(method, wanted)
        places = np.concatenate([held for held, _ in answers])
        if missing := sorted(set(range(len(wanted))) - set(places.tolist())):
            raise ValueError(f"ids: expected ids that the index holds, got {wanted.tolist()[missing[0]]!r}")
        return places, [answer for _, answer in answers]

    def _allowed(self, allowed: Any) -> np.ndarray:
        """Ids, which a shard passes over where it does not hold them."""
        chosen = checked_allowed(allowed, len(self))
        if isinstance(chosen, Strings):
            return np.array([name.decode() for name in chosen.tolist()], object)
        return np.asarray(self.ids)[chosen] if chosen.dtype == bool else chosen
