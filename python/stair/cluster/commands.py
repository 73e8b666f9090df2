"""What `stair encode`, `stair index build` and `stair search` do with many workers, or in parts."""

from __future__ import annotations

import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any, cast

from stair import search
from stair.cluster import scratch
from stair.cluster.parts import Parts
from stair.cluster.work import SEARCH_TIMEOUT_S, Here, Pool, build_shards, encode_parts
from stair.encode import Input
from stair.formats import Documents, jsonl, write
from stair.formats.documents import as_csr
from stair.interchange import vocabulary_of
from stair.monitor import Progress
from stair.search import Collection


def encode(
    inputs: Sequence[Input],
    model_dir: Path,
    out: Path | None,
    **options: Any,
) -> tuple[int, Sequence[str]]:
    """Encodes into a folder of parts; or into parts that a file, or JSON lines on stdout, are then made of.

    Takes the options of `encode_parts`. Gives the number of rows, and what was wrong with each picture that was left
    out.
    """
    if out is not None and not out.suffix:
        rows = encode_parts(inputs, model_dir, out, **options)
        return len(rows), rows.left_out
    vocabulary = vocabulary_of(model_dir)
    with scratch.beside(out) as folder:
        rows = encode_parts(inputs, model_dir, folder / "rows", **options)
        if out is None:
            for part, ids, _ in rows.each():
                sys.stdout.writelines(jsonl.lines(Documents(as_csr(part), ids, vocabulary)))
        else:
            every, ids, _ = rows.slice(0, len(rows))
            write(out, Documents(as_csr(every), ids, vocabulary))
        return len(rows), rows.left_out


def build(
    source: Path | Sequence[Input],
    out: Path,
    model_dir: Path,
    *,
    shards: int,
    pool: Pool,
    progress: Progress,
    **options: Any,
) -> tuple[int, Sequence[str]]:
    """Builds a sharded index of encoded rows or of inputs, these encoded with the further options of `encode_parts`.

    Gives the number of documents, and what was wrong with each picture that was left out.
    """
    if isinstance(source, Path):
        return build_shards(Parts.open(source), out, model_dir, shards=shards, pool=pool, progress=progress), ()
    with scratch.beside(out) as folder:
        rows = encode_parts(source, model_dir, folder / "rows", pool=pool, progress=progress, **options)
        return build_shards(rows, out, model_dir, shards=shards, pool=pool, progress=progress), rows.left_out


def open_index(pool: Pool, folder: Path, timeout_s: float = SEARCH_TIMEOUT_S) -> Any:
    """An index directory, opened in this process or in the workers of a pool."""
    if isinstance(pool, Here):
        return search.open_index(folder)
    from stair.cluster import ray

    return ray.open_on(cast("ray.RayPool", pool), folder, timeout_s)


def open_collection(pool: Pool, folder: Path) -> Collection:
    """The same, of a collection; ValueError when it has no items."""
    return Collection.require(folder, open_index(pool, folder))
