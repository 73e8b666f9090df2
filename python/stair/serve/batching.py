"""Concurrent queries gathered into batches: a bounded queue and the threads that empty it."""

from __future__ import annotations

import logging
import threading
import time
from collections import deque
from collections.abc import Callable
from concurrent.futures import Future
from typing import Generic, TypeVar

Q = TypeVar("Q")
A = TypeVar("A")
log = logging.getLogger("stair.serve")


class FullError(Exception):
    """The queue holds as many queries as it may."""


class Batcher(Generic[Q, A]):
    """Answers queries in batches: those that came while the threads were at work are taken together.

    With `wait_s` 0 a free thread takes what is there at once, so that a single query waits for nobody; batches form by
    themselves as soon as queries come faster than they are answered.

    Args:
        answer: the answers of a batch, in its order; called by the batcher's own threads.
        size: of a batch, at most.
        wait_s: how long the first of a batch waits for it to fill.
        queue: queries that may wait.
        threads: batches at a time.
        taken: told the size of each batch.
        shared: errors that no query of a batch is at fault for: all of them get it, and none is tried alone.
    """

    def __init__(
        self,
        answer: Callable[[list[Q]], list[A]],
        *,
        size: int,
        wait_s: float,
        queue: int,
        threads: int = 1,
        taken: Callable[[int], None] = lambda size: None,
        shared: type[Exception] | tuple[type[Exception], ...] = (),
    ) -> None:
        self._shared = shared
        self._answer, self._size, self._wait_s, self._queue, self._taken = answer, size, wait_s, queue, taken
        self._waiting: deque[tuple[float, Q, Future[A]]] = deque()  # with the time at which each came
        self._changed = threading.Condition()
        self._closed = False
        names = [f"stair-batch-{number}" for number in range(threads)]
        self._threads = [threading.Thread(target=self._work, name=name, daemon=True) for name in names]
        for thread in self._threads:
            thread.start()

    def __len__(self) -> int:
        """Queries that wait."""
        return len(self._waiting)

    def submit(self, query: Q) -> Future[A]:
        """The answer to come. Cancelling it takes a query that still waits out of its batch; nor is it tried again.

        Raises:
            FullError: when the queue is full, or closed.
        """
        future: Future[A] = Future()
        with self._changed:
            if self._closed or len(self._waiting) >= self._queue:
                raise FullError
            self._waiting.append((time.monotonic(), query, future))
            self._changed.notify()
        return future

    def close(self) -> None:
        """Takes no more queries, answers those that wait, and returns when all are answered."""
        with self._changed:
            self._closed = True
            self._changed.notify_all()
        for thread in self._threads:
            thread.join()

    def _work(self) -> None:
        while (batch := self._next()) is not None:
            if batch:
                self._taken(len(batch))
                self._deliver(batch)
                del batch  # or the thread would hold the last batch, and the index that it was for, while it waits

    def _next(self) -> list[tuple[Q, Future[A]]] | None:
        """The next batch, which may be empty; None when there will be no more."""
        with self._changed:
            while not self._waiting:
                if self._closed:
                    return None
                self._changed.wait()
            until = self._waiting[0][0] + self._wait_s
            while 0 < len(self._waiting) < self._size and not self._closed and time.monotonic() < until:
                self._changed.wait(until - time.monotonic())
            taken = [self._waiting.popleft() for _ in range(min(self._size, len(self._waiting)))]
        return [(query, future) for _, query, future in taken if not future.cancelled()]

    def _deliver(self, batch: list[tuple[Q, Future[A]]]) -> None:
        try:
            answers = self._answer([query for query, _ in batch])
        except self._shared as error:
            log.error("a batch of %d failed: %s", len(batch), error)
            for _, future in batch:
                _settle(future, error)
        except Exception as error:
            if len(batch) == 1:
                _settle(batch[0][1], error)
                return
            # one of them is at fault: the others still get their answers
            log.exception("a batch of %d failed; its queries are answered one at a time", len(batch))
            for query, future in batch:
                if not future.cancelled():
                    self._deliver([(query, future)])
        else:
            for (_, future), found in zip(batch, answers):
                _settle(future, found)


def _settle(future: Future[A], found: A | Exception) -> None:
    """Gives the answer, or the error, to whoever still waits for it."""
    if not future.set_running_or_notify_cancel():
        return
    if isinstance(found, Exception):
        future.set_exception(found)
    else:
        future.set_result(found)
