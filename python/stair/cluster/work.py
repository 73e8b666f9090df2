"""Encoding and building as jobs that any worker can do, and do again; they run in this process or on a cluster.

A job names what it needs (a loaded model, an opened shard), which a worker makes once and keeps, and a method to call.
It writes files whole or not at all and gives back a few numbers, so that the process that deals the jobs stays small.
"""

from __future__ import annotations

import os
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Protocol

from stair.cluster import layout, parts
from stair.cluster.layout import Manifest, Shard
from stair.cluster.parts import Part, Parts
from stair.cluster.shards import LocalShards
from stair.encode import Input, batches, encode_readable
from stair.files import require_shared
from stair.monitor import Progress
from stair.search import collection_metadata, documents, item_of

PART = 1024  # rows, about, of one job
JOBS_A_WORKER = 4  # at least, so that a slow one holds up little
SEARCH_TIMEOUT_S = 120.0


class ClusterError(RuntimeError):
    """The cluster could not do a job: nothing of it is left out silently."""

    exit_code = 1


class ShardError(ValueError):
    """A shard that a worker was to open is missing, damaged or not the one that is meant."""


@dataclass(frozen=True)
class Job:
    """`make(*needs).method(*arguments)`; a worker keeps what `make(*needs)` gave it."""

    name: str  # what an error calls it
    make: Callable[..., Any]
    needs: tuple[Any, ...]
    method: str
    arguments: Any  # a tuple, or what Ray gives for one in its store
    preferred: int | None = None  # the worker that has it
    owner: int = 0  # until whose end it is kept; 0: as long as there is the worker


class Pool(Protocol):
    """What does jobs."""

    @property
    def workers(self) -> int:
        """How many at a time."""

    def stream(self, jobs: Iterable[Job]) -> Iterator[Any]:
        """What the jobs give, in their order; takes from `jobs` only as it goes on."""


class Desk:
    """What a worker has made, and uses again for the next job."""

    def __init__(self) -> None:
        self._made: dict[tuple[Any, ...], Any] = {}

    def do(
        self,
        make: Callable[..., Any],
        needs: tuple[Any, ...],
        method: str,
        arguments: tuple[Any, ...],
        owner: int = 0,
    ) -> Any:
        key = (owner, make.__module__, make.__qualname__, *needs)
        if key not in self._made:
            self._made[key] = make(*needs)
        return getattr(self._made[key], method)(*arguments)

    def forget(self, owner: int) -> None:
        """Drops what was made for an owner."""
        self._made = {key: made for key, made in self._made.items() if key[0] != owner}


class Here:
    """The pool of this process alone."""

    workers = 1

    def __init__(self) -> None:
        self._desk = Desk()

    def stream(self, jobs: Iterable[Job]) -> Iterator[Any]:
        for job in jobs:
            yield self._desk.do(job.make, job.needs, job.method, job.arguments, job.owner)


@dataclass(frozen=True)
class Written:
    """What became of the inputs of one job."""

    part: Part | None  # None: none of them could be read
    left_out: list[str]  # what was wrong with those that have no row


class Encoder:
    """A model, loaded once."""

    def __init__(self, model_dir: str, sha256: str, device: str = "cpu") -> None:
        from stair.checkpoint import fingerprint, load
        from stair.parallel import device_of

        place = device_of(device)

        if fingerprint(model_dir) != sha256:
            raise ValueError(f"{model_dir} is another checkpoint here than where the work was begun")
        self.model, self.processor = load(model_dir)
        self.model.to(place)  # type: ignore[arg-type]  # a decorator of transformers hides the signature

    def encode(
        self,
        folder: str,
        number: int,
        inputs: Sequence[Input],
        ids: Sequence[str],
        k: int | None,
        batch: int,
        skip_unreadable: bool,
    ) -> Written:
        """Encodes inputs, and writes their rows as one part."""
        require_shared(folder)  # before the work
        made = encode_readable(self.model, self.processor, inputs, k=k, batch=batch, skip_unreadable=skip_unreadable)
        if made.rows is None:
            return Written(None, made.left_out)
        items = [item_of(inputs[place]) for place in made.kept]
        part = parts.write_part(folder, number, made.rows, [ids[place] for place in made.kept], items)
        return Written(part, made.left_out)


class Builder:
    """Encoded rows, to be put into shards."""

    def __init__(self, folder: str) -> None:
        self.parts = Parts.open(folder)

    def build(self, staging: str, number: int, first: int, end: int) -> Shard:
        """The index of rows first to end - 1, written as a shard."""
        import numpy as np

        from stair_kernels import SparseIndex

        rows, _, items = self.parts.slice(first, end)
        units, ids, payloads = documents(rows, items)
        index = SparseIndex.build(units, np.array(ids, str), payloads=payloads)  # str also where there are none
        return layout.write_shard(staging, number, index)


def open_shards(folder: str, shards: tuple[Shard, ...]) -> LocalShards:
    try:
        return LocalShards(Path(folder), shards)
    except (ValueError, OSError) as error:
        raise ShardError(str(error)) from error


def encode_parts(
    inputs: Sequence[Input],
    model_dir: Path | str,
    out: Path | str,
    *,
    pool: Pool,
    k: int | None = None,
    batch: int = 32,
    skip_unreadable: bool = False,
    device: str = "cpu",
    progress: Progress = lambda stage, done, total, numbers: None,
) -> Parts:
    """Encodes inputs into a folder of parts: the rows of `stair.encode.encode_readable`, in the same batches.

    With device "cuda" each worker has a GPU: `pool` must give it one (`RayPool(gpus=1)`).

    Raises ValueError for no inputs, one that cannot be read, a worker without the device, or something else at `out`;
    whatever `pool` raises.
    """
    from stair.checkpoint import fingerprint

    if not inputs:
        raise ValueError("inputs: expected at least one, got none")
    sha256, model = fingerprint(model_dir), os.path.abspath(model_dir)
    groups = [list(group) for group in batches(inputs, batch)]
    size = max(1, min(-(-PART // batch), len(groups) // (JOBS_A_WORKER * pool.workers)))

    def jobs(staging: Path) -> Iterator[Job]:
        for number, start in enumerate(range(0, len(groups), size)):
            taken = [entry for group in groups[start : start + size] for entry in group]
            ids = [str(entry.picture or entry.name) for entry in taken]
            reachable = [_absolute(entry) for entry in taken]
            name = f"part {number} (inputs {ids[0]!r:.80} to {ids[-1]!r:.80})"
            arguments = (str(staging), number, reachable, ids, k, batch, skip_unreadable)
            yield Job(name, Encoder, (model, sha256, device), "encode", arguments)

    made, left_out, done = list[Part](), list[str](), 0
    with parts.writing(out) as staging:
        for written in pool.stream(jobs(staging)):
            made += [] if written.part is None else [written.part]
            left_out += written.left_out
            done += len(written.left_out) + (0 if written.part is None else written.part.rows)
            progress("encode", done, len(inputs), {})
        if not made:
            raise ValueError(f"inputs: expected at least one that can be read, got none ({left_out[0]})")
        parts.finish(staging, made, sha256, left_out)
    return Parts.open(out)


def build_shards(
    source: Parts,
    out: Path | str,
    model_dir: Path | str,
    *,
    shards: int,
    pool: Pool,
    progress: Progress = lambda stage, done, total, numbers: None,
) -> int:
    """Builds a collection of encoded rows, divided by their norms, as a sharded index; gives the number of documents.

    Shard s holds the rows from s N / shards on, so that the shards in their order are the one index of all rows.

    Raises ValueError for another checkpoint than the one that made the rows, for an item that comes twice, or when
    something else is at `out`; whatever `pool` raises.
    """
    out, folder = Path(out), os.path.abspath(source.folder)
    metadata = collection_metadata(out, Path(model_dir))
    if metadata["model_sha256"] != source.model_sha256:
        raise ValueError(f"--model: {model_dir} is not the checkpoint that made the rows of {source.folder}")
    spans = layout.ranges(len(source), shards)
    made: list[Shard] = []
    with layout.building(out) as staging:
        jobs = (
            Job(
                f"shard {number} (rows {first} to {end - 1})",
                Builder,
                (folder,),
                "build",
                (str(staging), number, *span),
            )
            for number, span in enumerate(spans)
            for first, end in [span]
        )
        for shard in pool.stream(jobs):
            made.append(shard)
            progress("index", len(made), shards, {})
        return layout.finish(staging, Manifest(tuple(made), metadata))


def _absolute(entry: Input) -> Input:
    """An input that a worker in another folder can read."""
    return entry if entry.picture is None else Input(entry.name, picture=entry.picture.absolute())
