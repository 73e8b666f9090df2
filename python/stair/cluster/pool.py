"""Workers on a Ray cluster that may lose them: jobs in order, a bounded number at a time, each done or an error."""

from __future__ import annotations

import importlib.util
import logging
import os
import socket
import time
from collections import deque
from collections.abc import Generator, Iterable, Iterator
from dataclasses import dataclass, field
from types import TracebackType
from typing import Any

from stair.cluster.work import ClusterError, Job

try:
    import ray
except ModuleNotFoundError as error:
    raise ImportError("Ray is not installed: pip install 'stair-kernels[ray]'") from error

from stair.cluster.slots import Slot, Slots

ATTEMPTS = 3  # at one job, and at starting one worker
QUEUED = 2  # jobs of one worker, so that it has the next one when it is done
WINDOW = 8  # jobs a worker that may be done before an earlier one is: what waits for its turn stays bounded
START_TIMEOUT_S = 120.0
STORE_BYTES = 256 << 20  # of Ray on this machine: jobs give back little


@dataclass(eq=False)
class Task:
    """A job of one stream."""

    number: int
    job: Job
    attempts: int = 0
    slot: Slot | None = None
    actor: Any = None


@dataclass(eq=False)
class Stream:
    """The jobs of one call of `RayPool.stream`."""

    jobs: Iterator[tuple[int, Job]]
    timeout_s: float  # without an answer
    start_timeout_s: float  # without a worker
    again: deque[Task] = field(default_factory=deque)  # to be done before the others
    pending: dict[Any, Task] = field(default_factory=dict)  # by what Ray gives for it, oldest first
    done: dict[int, Any] = field(default_factory=dict)
    yielded: int = 0
    moved: float = field(default_factory=time.monotonic)  # when something last happened

    def next_task(self, window: int) -> Task | None:
        if self.again:
            return self.again.popleft()
        if len(self.pending) + len(self.done) >= window:
            return None
        return next((Task(number, job) for number, job in self.jobs), None)


class RayPool:
    """Workers on a Ray cluster; safe to use from several threads.

    Args:
        address: of a cluster that is there ("host:port", "ray://host:port", "auto"); None or "local" starts Ray on this
            machine, until `close`. Where Ray is initialized already, that is used.
        workers: at a time, at most; as many as the cluster has CPUs for when None. They are started by the jobs.
        cpus, gpus: that each of them takes.
        attempts: how often a job may lose its worker before that is an error, at least 2.
        start_timeout_s: how long no worker at all may be there before that is an error.

    Raises:
        ClusterError: when no cluster is at the address, or it has no CPU.
    """

    def __init__(
        self,
        address: str | None = None,
        *,
        workers: int | None = None,
        cpus: float = 1,
        gpus: float = 0,
        attempts: int = ATTEMPTS,
        start_timeout_s: float = START_TIMEOUT_S,
    ) -> None:
        if attempts < 2:
            raise ValueError(f"attempts: expected at least 2, got {attempts}")
        self._began = connect(address)
        self._attempts, self._start_timeout_s = attempts, start_timeout_s
        there = ray.cluster_resources()
        fit = int(min(there.get(kind, 0) // each for kind, each in (("CPU", cpus), ("GPU", gpus)) if each))
        if (number := workers or fit) < 1:
            wanted = f"{cpus} CPUs" + (f" and {gpus} GPUs" if gpus else "")
            raise ClusterError(f"the cluster has no worker of {wanted}: {there}")
        self._workers, self.slots = number, Slots(cpus, gpus, attempts)

    @property
    def workers(self) -> int:
        """How many there may be."""
        return self._workers

    def __enter__(self) -> RayPool:
        return self

    def __exit__(self, kind: type[BaseException] | None, value: object, trace: TracebackType | None) -> None:
        self.close()

    def close(self) -> None:
        """End the workers, and Ray when it was started here."""
        self.slots.close()
        if self._began:
            ray.shutdown()

    def stream(
        self,
        jobs: Iterable[Job],
        timeout_s: float = float("inf"),
        start_timeout_s: float | None = None,
        workers: int | None = None,
    ) -> Generator[Any, None, None]:
        """What the jobs give, in their order; a bounded number of them is taken from `jobs` ahead of that.

        Args:
            timeout_s: how long workers may be waited for that give no answer; they are then replaced.
            start_timeout_s: how long no worker at all may be there; the pool's when None.
            workers: that the jobs have a use for; all that there may be when None.

        Raises:
            ClusterError: when a job has lost its worker too often, no worker can be started, the time is over, or the
                pool is closed.
            Exception: what a job itself raised, as it would have here.
        """
        start_timeout_s = self._start_timeout_s if start_timeout_s is None else start_timeout_s
        stream = Stream(enumerate(jobs), timeout_s, start_timeout_s)
        self.slots.grow(self._workers if workers is None else min(workers, self._workers))
        try:
            yield from self._results(stream)
        finally:
            for reference in stream.pending:  # after an error, or when nobody wants the rest
                ray.cancel(reference)

    def _results(self, stream: Stream) -> Iterator[Any]:
        while True:
            self._submit(stream)
            while stream.yielded in stream.done:
                yield stream.done.pop(stream.yielded)
                stream.yielded += 1
                stream.moved = time.monotonic()
                self._submit(stream)
            if not stream.pending and not stream.again:
                return
            self._wait(stream)

    def _submit(self, stream: Stream) -> None:
        """Gives workers what they can take."""
        with self.slots.lock:
            self.slots.tend()
            while task := stream.next_task(WINDOW * self.workers):
                slot = self._choose(stream, task)
                if slot is None:
                    stream.again.appendleft(task)
                    return
                job, task.slot, task.actor = task.job, slot, slot.actor
                stream.pending[slot.actor.do.remote(job.make, job.needs, job.method, job.arguments, job.owner)] = task

    def _choose(self, stream: Stream, task: Task) -> Slot | None:
        """The worker that has what the job needs, or the one with the fewest jobs; None: all have enough.

        A job that lost a worker has the next one for itself: so that it is known which job it was, if that is lost too.
        """
        counts = {slot: 0 for slot in self.slots if slot.there}
        for other in stream.pending.values():
            if other.slot in counts:
                counts[other.slot] += QUEUED if other.attempts else 1
        most = 1 if task.attempts else QUEUED
        if task.job.preferred is not None:
            slot = self.slots[task.job.preferred % len(self.slots)]
            if slot in counts:
                return None if task.attempts and counts[slot] else slot
        free = [slot for slot in counts if counts[slot] < most]
        return min(free, key=lambda slot: counts[slot], default=None)

    def _wait(self, stream: Stream) -> None:
        """Until something happens: a job is done or lost, a worker is there or lost."""
        with self.slots.lock:
            starting = {slot.starting: slot for slot in self.slots if slot.starting is not None}
        left = self._seconds_left(stream)
        references = [*stream.pending, *starting]
        if not references:  # none could be started, or another thread has just seen one start
            time.sleep(min(left, 0.05))
            return
        ready, _ = ray.wait(references, num_returns=1, timeout=min(left, 1.0))
        for reference in ready:
            if reference not in starting:
                self._finished(stream, reference)
            elif not self.slots.started(starting[reference], reference):
                continue
            stream.moved = time.monotonic()

    def _seconds_left(self, stream: Stream) -> float:
        limit = stream.timeout_s if stream.pending else stream.start_timeout_s
        left = limit - (time.monotonic() - stream.moved)
        if left > 0:
            return left
        if stream.pending:
            stuck = list(stream.pending.values())
            for task in stuck:  # or the next call would wait for the same workers
                self.slots.replace(task.slot, task.actor)
            raise ClusterError(f"{', '.join(task.job.name for task in stuck)}: no answer for {limit:g} s")
        free, every = (resources().get("CPU", 0) for resources in (ray.available_resources, ray.cluster_resources))
        raise ClusterError(f"no worker could be started for {limit:g} s: {free} of the cluster's {every} CPUs are free")

    def _finished(self, stream: Stream, reference: Any) -> None:
        if reference not in stream.pending:
            return  # lost with an earlier one
        task = stream.pending[reference]
        try:
            stream.done[task.number] = ray.get(reference)
            del stream.pending[reference]
        except ray.exceptions.RayTaskError as error:
            raise error.cause if isinstance(error.cause, Exception) else error from error
        except ray.exceptions.RayError as error:  # the worker, its machine or the answer is lost
            self._lost(stream, task, error)

    def _lost(self, stream: Stream, task: Task, error: Exception) -> None:
        """All jobs of a lost worker are done again, each with a worker for itself."""
        left = [(reference, other) for reference, other in stream.pending.items() if other.actor is task.actor]
        for reference, other in reversed(left):
            other.attempts += 1
            del stream.pending[reference]
            stream.again.appendleft(other)
        self.slots.replace(task.slot, task.actor)
        if task.attempts >= self._attempts:
            reason = str(error).strip().splitlines()[0]
            raise ClusterError(f"{task.job.name}: its worker was lost {task.attempts} times ({reason})") from error


def connect(address: str | None) -> bool:
    """Whether Ray was started, or a cluster joined, which is this process's to end."""
    if ray.is_initialized():
        return False
    os.environ.setdefault("RAY_USAGE_STATS_ENABLED", "0")  # nothing is sent anywhere unless asked for
    os.environ.setdefault("RAY_IGNORE_UNHANDLED_ERRORS", "1")  # those of jobs whose run has ended with the first one
    local = address in (None, "local")
    if address is not None and not local:
        if address.startswith("ray://") and importlib.util.find_spec("grpc") is None:
            raise ImportError(f"grpcio is not installed; {address} needs it: pip install 'stair-kernels[ray]'")
        _require_reachable(address)
    options: dict[str, Any] = {"include_dashboard": False, "object_store_memory": STORE_BYTES} if local else {}
    try:
        ray.init("local" if local else address, log_to_driver=False, logging_level=logging.ERROR, **options)
    except (ConnectionError, RuntimeError) as error:
        reason = str(error).strip().splitlines()[0]
        if "No node info found" in reason:
            reason = (
                "this machine is no node of it; give --ray ray://HOST:10001, the address of its Ray Client server, or"
                f" make it one with `ray start --address={address}`"
            )
        raise ClusterError(f"no Ray cluster at {address}: {reason}") from error
    return True


def _require_reachable(address: str) -> None:
    """Raises ClusterError at once where Ray itself would try for a minute or two."""
    host, _, port = address.removeprefix("ray://").rpartition(":")
    if address == "auto":
        return
    try:
        socket.create_connection((host, int(port)), timeout=5).close()
    except (OSError, ValueError) as error:
        raise ClusterError(f"no Ray cluster at {address}: {error}") from error
