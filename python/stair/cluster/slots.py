"""The workers of a pool on Ray: actors that are started when they are wanted, and again when they are lost."""

from __future__ import annotations

import os
import threading
import time
from collections import deque
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

import ray

from stair.cluster.work import ClusterError, Desk

REST_S = 1.0  # before a worker is started again that could not be `attempts` times; twice as long after each time more
MOST_REST_S = 60.0


class Worker(Desk):
    """What runs in an actor."""

    def ready(self) -> int:
        return os.getpid()


@dataclass(eq=False)
class Slot:
    """The place of one worker; when it is lost another one gets it."""

    actor: Any
    starting: Any  # what tells that the actor is ready; None: it is, or could not be started
    failures: int = 0  # to start, one after the other
    again_at: float | None = None  # by time.monotonic, when to try again; None: it is there, or started now
    process: int = 0  # of the operating system

    @property
    def there(self) -> bool:
        return self.starting is None and self.again_at is None


class Slots:
    """The places of a pool's workers, none at first; safe to use from several threads, also under its `lock`."""

    def __init__(self, cpus: float, gpus: float, attempts: int) -> None:
        self.lock = threading.RLock()
        self._attempts = attempts
        self._make = ray.remote(Worker).options(num_cpus=cpus, num_gpus=gpus, max_restarts=0)
        self._slots: list[Slot] = []
        self._ended: deque[int] = deque()  # owners, whose holdings the workers have not yet been told to drop
        self._closed = False

    def __len__(self) -> int:
        return len(self._slots)

    def __iter__(self) -> Iterator[Slot]:
        return iter(self._slots)

    def __getitem__(self, number: int) -> Slot:
        return self._slots[number]

    def close(self) -> None:
        """End the workers."""
        with self.lock:
            for slot in self._slots:
                ray.kill(slot.actor)
            self._slots, self._closed = [], True

    def grow(self, number: int) -> None:
        """Start workers until there are as many."""
        with self.lock:
            if self._closed:
                raise ClusterError("the pool of workers is closed")
            while len(self._slots) < number:
                self._slots.append(self._start())

    def end(self, owner: int) -> None:
        """What workers made for the jobs of an owner is dropped before the next job of any.

        Only noted here: a finalizer may call it, in the middle of anything.
        """
        self._ended.append(owner)

    def tend(self) -> None:
        """Start those again that had their rest, and tell all of them which owners have ended."""
        with self.lock:
            if self._closed:
                raise ClusterError("the pool of workers is closed")
            for slot in self._slots:
                if slot.again_at is not None and slot.again_at <= time.monotonic():
                    self.replace(slot, slot.actor)
            while self._ended:
                owner = self._ended.popleft()
                for slot in self._slots:
                    slot.actor.forget.remote(owner)

    def started(self, slot: Slot, reference: Any) -> bool:
        """Whether the worker is there, now that there is an answer. One that could not be started is tried again, in
        the end after a rest; ClusterError when no other is there or on its way.
        """
        with self.lock:
            if slot.starting != reference:  # by equality: Ray Client gives another object for it
                return slot.there  # another thread has seen it
            try:
                slot.process = ray.get(reference)
            except ray.exceptions.RayError as error:
                slot.failures += 1
                if slot.failures < self._attempts:
                    self.replace(slot, slot.actor)
                    return False
                rest_s = min(REST_S * 2 ** (slot.failures - self._attempts), MOST_REST_S)
                slot.starting, slot.again_at = None, time.monotonic() + rest_s
                if all(other.again_at is not None for other in self._slots):
                    reason = str(error).strip().splitlines()[0]
                    raise ClusterError(f"a worker could not be started {slot.failures} times ({reason})") from error
                return False
            slot.starting, slot.failures = None, 0
            return True

    def replace(self, slot: Slot | None, lost: Any) -> None:
        """Another worker in the place of a lost one, unless another thread has seen to it."""
        with self.lock:
            if slot is not None and slot.actor is lost and slot in self._slots:
                ray.kill(lost)  # where it is only out of reach, or stuck
                fresh = self._start()
                slot.actor, slot.starting, slot.again_at = fresh.actor, fresh.starting, None

    def _start(self) -> Slot:
        actor: Any = self._make.remote()
        return Slot(actor, actor.ready.remote())
