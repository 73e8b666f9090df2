"""The parts of a running service, and what a request to it does."""

from __future__ import annotations

import asyncio
from contextlib import suppress
from functools import partial
from pathlib import Path
from typing import Any

import anyio
import anyio.to_thread
import numpy as np

from stair.cluster.work import ClusterError
from stair.serve.answers import Query, Row, answer
from stair.serve.batching import Batcher, FullError
from stair.serve.errors import RefusedError
from stair.serve.metrics import Metrics
from stair.serve.pictures import decoded, thumbnail
from stair.serve.settings import Settings
from stair.serve.source import Encoder, Holder, Served, Source


class Service:
    """Holder of the index, batcher and metrics, wired."""

    def __init__(self, source: Source, settings: Settings) -> None:
        self.settings = settings
        self.metrics = Metrics()
        self.holder = Holder(source, lambda well: self.metrics.reloads.labels("ok" if well else "failed").inc())
        self.draining = False
        self.batcher: Batcher[Query, dict[str, Any]] | None = None
        self._decoding = anyio.CapacityLimiter(settings.threads)  # a decoded picture may take 4 * max_pixels bytes
        watch = self.metrics.watch
        watch("stair_queue_queries", "Queries that wait", lambda: len(self.batcher or ()))
        watch("stair_index_documents", "Documents served", lambda: len(self.holder.current.index))
        watch("stair_index_generation", "1, and 1 more for each reload", lambda: self.holder.generation)
        watch("stair_index_loaded_seconds", "When it was opened, since 1970", lambda: self.holder.loaded_at)

    def start(self) -> None:
        settings = self.settings
        self.batcher = Batcher(
            partial(answer, stage=self.metrics.stage),
            size=settings.batch,
            wait_s=settings.wait_ms / 1e3,
            queue=settings.queue,
            threads=settings.threads,
            taken=self.metrics.batch.observe,
            shared=ClusterError,
        )

    async def stop(self) -> None:
        """After the last request."""
        self.draining = True
        if self.batcher is not None:
            await asyncio.to_thread(self.batcher.close)

    async def reload(self) -> int:
        """The generation; as Holder.reload raises."""
        return await asyncio.to_thread(self.holder.reload)

    async def reload_quietly(self) -> None:
        """As reload, for nobody who could be told: the holder has logged what went wrong."""
        with suppress(Exception):
            await self.reload()

    async def watch(self) -> None:
        """Reloads whenever there is another index, until cancelled."""
        while True:
            await asyncio.sleep(self.settings.watch_s)
            if await asyncio.to_thread(self.holder.stale):
                await self.reload_quietly()

    async def ask(self, query: Query) -> dict[str, Any]:
        """The query's answer. RefusedError 503 while too many wait; ClusterError when workers cannot answer."""
        try:
            if self.batcher is None:
                raise FullError
            waiting = self.batcher.submit(query)
        except FullError:
            message = f"{self.settings.queue} queries wait already; try again"
            raise RefusedError(503, message, headers={"Retry-After": "1"}) from None
        return await asyncio.wrap_future(waiting)

    async def fitted(self, encoder: Encoder, data: bytes) -> np.ndarray:
        """An uploaded picture as the square that the model sees."""

        def work() -> np.ndarray:
            return encoder.fitted(decoded(data, self.settings.max_pixels))

        return await anyio.to_thread.run_sync(work, limiter=self._decoding)

    async def thumbnail(self, path: Path, side: int) -> bytes:
        """Of a picture of the collection, as `pictures.thumbnail`."""
        return await anyio.to_thread.run_sync(thumbnail, path, side, self.settings.max_pixels, limiter=self._decoding)


def require_encoder(served: Served, field: str) -> Encoder:
    if served.encoder is None:
        raise RefusedError(422, f"{field}: this index has no model; ask it with indices and values", field)
    return served.encoder


def row_of_terms(encoder: Encoder, terms: dict[str, float]) -> Row:
    unknown = next((term for term in terms if term not in encoder.entries), None)
    if unknown is not None:
        raise RefusedError(422, f"terms: expected terms of the vocabulary, got {unknown!r}", "terms")
    entries = np.array([encoder.entries[term] for term in terms], np.int32)
    return np.array(list(terms.values()), np.float32), entries


def row_of_vector(served: Served, indices: list[int], values: list[float]) -> Row:
    if len(indices) != len(values):
        raise RefusedError(422, f"values: expected {len(indices)}, one an index, got {len(values)}", "values")
    V = served.index.vocab_size
    outside = next((entry for entry in indices if entry >= V), None)
    if outside is not None:
        raise RefusedError(422, f"indices: expected integers in [0, {V}), got {outside}", "indices")
    if len(set(indices)) < len(indices):
        twice = next(entry for number, entry in enumerate(indices) if entry in indices[:number])
        raise RefusedError(422, f"indices: expected each entry once, got {twice} twice", "indices")
    return np.array(values, np.float32), np.array(indices, np.int32)
