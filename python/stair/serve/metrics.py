"""What the service tells Prometheus."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager

from prometheus_client import CollectorRegistry, Counter, Gauge, Histogram, PlatformCollector, ProcessCollector
from prometheus_client.exposition import CONTENT_TYPE_LATEST, generate_latest

SECONDS = (0.001, 0.002, 0.005, 0.01, 0.02, 0.05, 0.1, 0.2, 0.5, 1, 2, 5, 10)
SIZES = (1, 2, 4, 8, 16, 32, 64, 128)


class Metrics:
    """Counters and histograms in a registry of their own, so that two services fit into one process."""

    content_type = CONTENT_TYPE_LATEST

    def __init__(self) -> None:
        own = self.registry = CollectorRegistry()
        ProcessCollector(registry=own)
        PlatformCollector(registry=own)
        self.requests = Counter("stair_requests", "HTTP requests", ["route", "method", "status"], registry=own)
        self.seconds = Histogram(
            "stair_request_seconds", "From headers to answer", ["route"], buckets=SECONDS, registry=own
        )
        self.in_flight = Gauge("stair_requests_in_flight", "HTTP requests being answered", registry=own)
        self.batch = Histogram("stair_batch_queries", "Queries of a batch", buckets=SIZES, registry=own)
        self.stages = Histogram(
            "stair_stage_seconds", "Work on a batch: encode, search, explain", ["stage"], buckets=SECONDS, registry=own
        )
        self.reloads = Counter("stair_reloads", "Reloads of the index: ok, failed", ["result"], registry=own)
        for result in ("ok", "failed"):
            self.reloads.labels(result)

    def watch(self, name: str, what: str, read: Callable[[], float]) -> None:
        """A gauge that is read when it is asked for."""
        Gauge(name, what, registry=self.registry).set_function(read)

    @contextmanager
    def stage(self, name: str) -> Iterator[None]:
        start = time.perf_counter()
        yield
        self.stages.labels(name).observe(time.perf_counter() - start)

    def text(self) -> bytes:
        return generate_latest(self.registry)
