"""What `stair encode`, `stair index build` and `stair search` do with many workers, or in parts."""

from __future__ import annotations

import sys
import tempfile
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any, cast

from stair import search
from stair.cluster.parts import Parts
from stair.cluster.work import SEARCH_TIMEOUT_S, Here, Pool, build_shards, encode_parts
from stair.encode import Input
from stair.formats import Documents, jsonl, write
from stair.formats.documents import as_csr
from stair.interchange import vocabulary_of
from stair.monitor import Progress
from stair.search import Collection


@contextmanager
def _beside(out: Path | None) -> Iterator[Path]:
    """A hidden folder on the file system of `out`, which workers share, or of the current folder."""
    place = Path.cwd() if out is None else out.absolute().parent
    with tempfile.TemporaryDirectory(prefix=".stair-", dir=place) as folder:
        yield Path(folder)


def encode(
    inputs: Sequence[Input],
    model_dir: Path,
    out: Path | None,
    *,
    pool: Pool,
    k: int | None,
    batch: int,
    progress: Progress,
) -> int:
    """Encodes into a folder of parts; or into parts that a file, or JSON lines on stdout, are then made of."""
    if out is not None and not out.suffix:
        return len(encode_parts(inputs, model_dir, out, pool=pool, k=k, batch=batch, progress=progress))
    vocabulary = vocabulary_of(model_dir)
    with _beside(out) as folder:
        rows = encode_parts(inputs, model_dir, folder / "rows", pool=pool, k=k, batch=batch, progress=progress)
        if out is None:
            for part, ids, _ in rows.each():
                sys.stdout.writelines(jsonl.lines(Documents(as_csr(part), ids, vocabulary)))
        else:
            every, ids, _ = rows.slice(0, len(rows))
            write(out, Documents(as_csr(every), ids, vocabulary))
        return len(rows)


def build(
    source: Path | Sequence[Input],
    out: Path,
    model_dir: Path,
    *,
    shards: int,
    pool: Pool,
    k: int | None,
    batch: int,
    progress: Progress,
) -> int:
    """Builds a sharded index of encoded rows or of inputs; gives the number of documents."""
    if isinstance(source, Path):
        return build_shards(Parts.open(source), out, model_dir, shards=shards, pool=pool, progress=progress)
    with _beside(out) as folder:
        rows = encode_parts(source, model_dir, folder / "rows", pool=pool, k=k, batch=batch, progress=progress)
        return build_shards(rows, out, model_dir, shards=shards, pool=pool, progress=progress)


def open_index(pool: Pool, folder: Path, timeout_s: float = SEARCH_TIMEOUT_S) -> Any:
    """An index directory, opened in this process or in the workers of a pool."""
    if isinstance(pool, Here):
        return search.open_index(folder)
    from stair.cluster import ray

    return ray.open_on(cast("ray.RayPool", pool), folder, timeout_s)


def open_collection(pool: Pool, folder: Path) -> Collection:
    """The same, of a collection; ValueError when it has no items."""
    return Collection.require(folder, open_index(pool, folder))
