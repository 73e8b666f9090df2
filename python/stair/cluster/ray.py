"""The jobs of `stair.cluster.work`, and search, on a Ray cluster that may lose workers.

    with RayPool(None, workers=4) as pool:                  # Ray on this machine; or an address
        rows = encode_parts(inputs, model, "rows", pool=pool)
        build_shards(rows, "index", model, shards=4, pool=pool)
        index = open_on(pool, "index")                      # asked as a SparseIndex is
        index.search(queries, 10)

A worker is an actor, which makes what a job needs (a loaded model, an opened shard) once. When one is lost, with its
machine or alone, another is started in its place and its jobs are done again: all of them, or ClusterError.
"""

from __future__ import annotations

import contextlib
import itertools
import pickle
import weakref
from pathlib import Path
from typing import Any

from stair.cluster import layout
from stair.cluster.layout import Shard
from stair.cluster.pool import RayPool, ray
from stair.cluster.shards import ShardedIndex
from stair.cluster.work import SEARCH_TIMEOUT_S, ClusterError, Job, ShardError, open_shards
from stair.search import Collection

__all__ = ["ClusterError", "RayPool", "open_collection", "open_on"]


SPARE = 1  # worker beyond those that have shards, which answers in the place of one that is lost
LARGE = 100 << 10  # bytes; smaller ones travel with the job, which is faster
OWNERS = itertools.count(1)


class RayShards:
    """The shards of an index, open in the workers of a pool until this is closed, or nobody has it any more.

    A worker has one or, where there are fewer workers, some that follow each other, which it asks side by side.
    """

    def __init__(self, pool: RayPool, folder: Path, shards: tuple[Shard, ...], timeout_s: float) -> None:
        self._pool, self._folder, self._timeout_s = pool, str(folder), timeout_s
        dealt = layout.ranges(len(shards), min(len(shards), pool.workers))
        self._groups = [(first, shards[first:end]) for first, end in dealt]
        self._opened = False
        self._owner = next(OWNERS)
        self.close = weakref.finalize(self, pool.slots.end, self._owner)

    def ask(self, method: str, *arguments: Any) -> list[Any]:
        sent = _put((method, *arguments))
        jobs = (
            Job(self._name(first, shards), open_shards, (self._folder, shards), "ask", sent, number, self._owner)
            for number, (first, shards) in enumerate(self._groups)
        )
        # before the first answer the workers may have to be started
        start_timeout_s = self._timeout_s if self._opened else None
        stream = self._pool.stream(jobs, self._timeout_s, start_timeout_s, len(self._groups) + SPARE)
        with contextlib.closing(stream) as answers:
            try:
                found = [answer for of_group in answers for answer in of_group]
            except ShardError as error:
                if not self._opened:
                    raise
                raise ClusterError(f"a worker was lost, and another one found: {error}; reload the index") from error
        self._opened = True
        return found

    def _name(self, first: int, shards: tuple[Shard, ...]) -> str:
        if len(shards) == 1:
            return f"shard {first} ({self._folder}/{shards[0].folder})"
        return f"shards {first} to {first + len(shards) - 1} ({self._folder})"


def _put(arguments: tuple[Any, ...]) -> Any:
    """The arguments; large ones in Ray's store, where Ray itself would put them once for each job."""
    buffers: list[pickle.PickleBuffer] = []
    rest = pickle.dumps(arguments, 5, buffer_callback=buffers.append)
    size = len(rest) + sum(buffer.raw().nbytes for buffer in buffers)
    return ray.put(arguments) if size > LARGE else arguments


def open_on(pool: RayPool, folder: Path | str, timeout_s: float = SEARCH_TIMEOUT_S) -> ShardedIndex:
    """A sharded index, each of its shards open in a worker, which is asked as a SparseIndex is.

    A shard whose worker is lost is opened by another one, which answers in its place. One without an answer for
    `timeout_s` is an error, and its worker replaced.

    Raises:
        ValueError: when `folder` holds no sharded index, or a damaged one.
        ClusterError: as `RayPool.stream` does; so do the index's methods, also when a shard that is to be opened again
            was replaced meanwhile.
    """
    if not layout.is_sharded(folder):
        raise ValueError(f"{folder} is no sharded index: build one with `stair index build --shards`")
    return ShardedIndex.open_with(folder, lambda place, shards: RayShards(pool, place, shards, timeout_s))


def open_collection(pool: RayPool, folder: Path | str, timeout_s: float = SEARCH_TIMEOUT_S) -> Collection:
    """As `Collection.open`, its shards open in the workers of a pool."""
    index: Any = open_on(pool, folder, timeout_s)
    return Collection.require(Path(folder), index)
