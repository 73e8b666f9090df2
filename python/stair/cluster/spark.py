"""Encoding and sharded indexes from a Spark DataFrame, for those whose data is there.

    rows = encode_dataframe(texts, "out/mine", id="id", text="caption")       # id, indices, values
    build_shards(rows, "/shared/index", shards=16, vocab_size=30522)

The index is an ordinary sharded one, on a file system that the executors and the driver share. A task that is lost is
done again, by Spark; its shard is written whole or not at all, and of two attempts the first one stays.
"""

from __future__ import annotations

import os
from collections.abc import Callable, Iterator, Mapping
from functools import cache
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import scipy.sparse

from stair.cluster import layout
from stair.cluster.layout import Manifest, Shard
from stair.cluster.work import Encoder
from stair.datasets import SUFFIXES
from stair.search import collection_metadata, payload_of

if TYPE_CHECKING:
    import pyarrow
    from pyspark.sql import DataFrame

try:
    import pyspark.sql.functions as sf
except ModuleNotFoundError as error:
    raise ImportError("Spark is not installed: pip install 'stair-kernels[spark]'") from error

ROWS = "id {}, indices array<int>, values array<float>"
BUILT = "number int, folder string, documents bigint, sha256 string, error string"
ID_TYPES = ("bigint", "int", "smallint", "tinyint", "string")


def encode_dataframe(
    df: DataFrame,
    model_dir: Path | str,
    *,
    id: str = "id",
    text: str | None = None,
    image: str | None = None,
    k: int | None = None,
    batch: int = 32,
) -> DataFrame:
    """The sparse rows of a column: a DataFrame (id, indices array<int>, values array<float>), heaviest term first.

    Lazy, as all of Spark: write it (Parquet, say) before it is used twice, or it is encoded twice.

    Args:
        df: with unique ids, integers or strings.
        model_dir: a checkpoint, at the same path on every executor.
        text: the column of texts, or
        image: the column of pictures: their bytes (`content` of Spark's binaryFile), or paths that executors can read.
        batch: inputs encoded at a time, by each task.

    Raises:
        ValueError: on a missing column or both or neither of text and image; in a task, on an empty text or a picture
            that cannot be read.
    """
    from stair.checkpoint import fingerprint

    if (text is None) == (image is None):
        raise ValueError(f"text, image: expected one of the two, got {text!r} and {image!r}")
    column = text or image
    assert column is not None
    _require_columns(df, id, column)
    folder, sha256, kind = os.path.abspath(model_dir), fingerprint(model_dir), _kind(df, id)

    def encode(batches: Iterator[pyarrow.RecordBatch]) -> Iterator[pyarrow.RecordBatch]:
        encoder = _encoder(folder, sha256)
        for table in _at_most(batches, batch):
            yield _encoded(encoder, table, text is not None, k)

    chosen = df.select(sf.col(id).alias("id"), sf.col(column).alias("input"))
    return chosen.mapInArrow(encode, ROWS.format(kind))


def build_shards(
    df: DataFrame,
    out: Path | str,
    *,
    shards: int,
    vocab_size: int,
    id: str = "id",
    indices: str = "indices",
    values: str = "values",
    payload: str | None = None,
    metadata: Mapping[str, Any] | None = None,
    model_dir: Path | str | None = None,
) -> int:
    """Builds a sharded index of the rows of a DataFrame; gives the number of documents.

    A document is in shard crc32(id) mod shards, whatever task builds it; one shard is in memory at a time in each. The
    index answers as one index of the rows in the order of their ids (strings: of their UTF-8 bytes) does.

    Args:
        df: with unique ids, integers or strings; indices [n] of integers and values [n] of floats >= 0 a row.
        out: a directory that driver and executors share; the index there is replaced when the new one is complete.
        payload: a column of bytes or strings that are kept with the documents.
        model_dir: the checkpoint that made the rows, for a collection, which `stair search` takes: each row is divided
            by its norm, and an id, which has to be a string, is the absolute path of a picture or else a text.

    Raises:
        ValueError: on missing columns, ids that are null or come twice, indices or weights that an index refuses,
            something else at `out`, or a payload, metadata or integer ids with `model_dir`.
    """
    _require_columns(df, id, indices, values, *([payload] if payload else []))
    kind = _kind(df, id)
    if shards < 1:
        raise ValueError(f"shards: expected an integer >= 1, got {shards}")
    out, items = Path(os.path.abspath(out)), model_dir is not None
    if model_dir is not None:
        if payload is not None or metadata is not None:
            raise ValueError("model_dir: expected neither payload nor metadata with it, got one")
        if kind != "string":
            raise ValueError(f"id: expected a column of strings with model_dir, got {kind}")
        metadata = collection_metadata(out, Path(model_dir))
    columns = {"id": id, "indices": indices, "values": values, **({"payload": payload} if payload else {})}
    chosen = df.select([sf.col(column).alias(name) for name, column in columns.items()])
    number = sf.pmod(sf.crc32(sf.col("id").cast("string").cast("binary")), sf.lit(shards)).cast("int")
    dealt = chosen.withColumn("shard", sf.coalesce(number, sf.lit(0)))
    sorted_ = dealt.repartitionById(shards, sf.col("shard")).sortWithinPartitions("shard", "id")
    with layout.building(out) as staging:
        build = _builder(str(staging), vocab_size, kind == "string", items)
        made = sorted_.mapInArrow(build, BUILT).collect()
        if wrong := [row.error for row in made if row.error]:
            raise ValueError(wrong[0])
        found = {row.number: Shard(row.folder, row.documents, row.sha256) for row in made}
        for missing in set(range(shards)) - set(found):  # without rows
            kept = items or payload is not None
            found[missing] = _build(str(staging), missing, [], vocab_size, kind == "string", kept, items)
        every = tuple(found[number] for number in range(shards))
        return layout.finish(staging, Manifest(every, dict(metadata or {}), "ids"))


def _builder(
    staging: str, vocab_size: int, strings: bool, items: bool = False
) -> Callable[[Iterator[pyarrow.RecordBatch]], Iterator[pyarrow.RecordBatch]]:
    """What a task does: its rows come by shard, and in a shard by id."""

    def build(batches: Iterator[pyarrow.RecordBatch]) -> Iterator[pyarrow.RecordBatch]:
        import pyarrow as pa

        for number, tables in _by_shard(batches):
            payloads = items or "payload" in tables[0].schema.names
            try:
                made = _build(staging, number, tables, vocab_size, strings, payloads, items)
                row = [number, made.folder, made.documents, made.sha256, None]
            except ValueError as error:  # trying again would not help: the driver raises it
                row = [number, None, None, None, f"shard {number}: {error}"]
            yield pa.RecordBatch.from_arrays(
                [pa.array([value], kind) for value, kind in zip(row, _built_types())],
                names=[field.split()[0] for field in BUILT.split(", ")],
            )

    return build


def _built_types() -> list[Any]:
    import pyarrow as pa

    return [pa.int32(), pa.string(), pa.int64(), pa.string(), pa.string()]


def _by_shard(batches: Iterator[pyarrow.RecordBatch]) -> Iterator[tuple[int, list[pyarrow.RecordBatch]]]:
    """Each shard's rows, complete."""
    number, tables = -1, list[Any]()
    for table in batches:
        shards = table.column("shard").to_numpy(zero_copy_only=False)
        cuts = [0, *(np.flatnonzero(np.diff(shards)) + 1).tolist(), len(shards)]
        for start, end in zip(cuts[:-1], cuts[1:]):
            if start == end:
                continue
            if shards[start] != number and tables:
                yield number, tables
                tables = []
            number = int(shards[start])
            tables.append(table.slice(start, end - start))
    if tables:
        yield number, tables


def _build(
    staging: str,
    number: int,
    tables: list[pyarrow.RecordBatch],
    vocab_size: int,
    strings: bool,
    payloads: bool,
    items: bool,
) -> Shard:
    """One shard. `payloads`: documents keep something, `items`: made of their ids, as a collection's are."""
    from stair_kernels import SparseIndex

    ids = [one for table in tables for one in table.column("id").to_pylist()]
    if None in ids:
        raise ValueError("id: expected integers or strings, got null")
    rows = [_csr_arrays(table) for table in tables]
    lengths, terms, weights = (np.concatenate([row[i] for row in rows] or [np.zeros(0)]) for i in range(3))
    starts = np.concatenate([[0], np.cumsum(lengths)]).astype(np.int64)
    if terms.size and not (terms.min() >= 0 and terms.max() < vocab_size):
        raise ValueError(f"indices: expected 0 .. {vocab_size - 1}, got {terms.min():.0f} .. {terms.max():.0f}")
    matrix = scipy.sparse.csr_matrix(
        (weights.astype(np.float32), terms.astype(np.int32), starts), (len(ids), vocab_size)
    )
    kept = None
    if items:
        norms = np.sqrt(np.asarray(matrix.power(2).sum(axis=1), np.float64)).ravel()
        matrix.data /= np.repeat(np.where(norms > 0, norms, 1), np.diff(matrix.indptr)).astype(np.float32)
        kept = [payload_of(_item(one)) for one in ids]
    elif payloads:
        kept = [_as_bytes(one) for table in tables for one in table.column("payload").to_pylist()]
    named = np.array(ids, str) if strings else np.array(ids, np.int64)
    return layout.write_shard(staging, number, SparseIndex.build(matrix, named, payloads=kept))


def _item(id: str) -> dict[str, Any]:
    path = Path(id)
    picture = path.is_absolute() and path.suffix.lower() in SUFFIXES
    return {"name": path.stem, "picture": id} if picture else {"name": id}


def _csr_arrays(table: pyarrow.RecordBatch) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Entries of each row, and all of them one after the other: terms and weights."""
    columns = [table.column(name) for name in ("indices", "values")]
    for column, name in zip(columns, ("indices", "values")):
        if column.null_count or column.flatten().null_count:
            raise ValueError(f"{name}: expected an array without null in every row, got null")
    counts = [np.asarray(column.value_lengths()) for column in columns]
    if (counts[0] != counts[1]).any():
        row = int(np.argmax(counts[0] != counts[1]))
        one = table.column("id")[row].as_py()
        raise ValueError(f"values: expected {counts[0][row]} of id {one!r}, as there are indices, got {counts[1][row]}")
    return counts[0], *(column.flatten().to_numpy(zero_copy_only=False) for column in columns)


def _as_bytes(payload: Any) -> bytes:
    if payload is None:
        raise ValueError("payload: expected bytes or a string in every row, got null")
    return payload.encode() if isinstance(payload, str) else bytes(payload)


@cache
def _encoder(folder: str, sha256: str) -> Encoder:
    """Of a Python process, which does many tasks."""
    return Encoder(folder, sha256)


def _at_most(batches: Iterator[pyarrow.RecordBatch], rows: int) -> Iterator[pyarrow.RecordBatch]:
    for table in batches:
        for start in range(0, table.num_rows, rows):
            yield table.slice(start, rows)


def _encoded(encoder: Encoder, table: pyarrow.RecordBatch, text: bool, k: int | None) -> pyarrow.RecordBatch:
    import pyarrow as pa
    import torch

    ids, given = (table.column(name) for name in ("id", "input"))
    inputs = given.to_pylist()
    with torch.inference_mode():
        if text:
            for one, words in zip(ids.to_pylist(), inputs):
                if not (words or "").strip():
                    raise ValueError(f"text: expected words, got {words!r} of id {one!r}")
            rows = encoder.model.encode_text(**encoder.processor(text=inputs), k=k)
        else:
            pictures = [_picture(one, number) for number, one in zip(ids.to_pylist(), inputs)]
            rows = encoder.model.encode_image(**encoder.processor(images=pictures), k=k)
    filled = (rows.indices >= 0).numpy()
    offsets = pa.array(np.concatenate([[0], np.cumsum(filled.sum(axis=1))]), pa.int32())
    arrays = [pa.ListArray.from_arrays(offsets, pa.array(part.numpy()[filled])) for part in (rows.indices, rows.values)]
    return pa.RecordBatch.from_arrays([ids, *arrays], names=["id", "indices", "values"])


def _picture(given: Any, id: Any) -> Any:
    """A decoded picture, of bytes or a path; ValueError naming its id."""
    import io

    from stair.datasets import read_picture

    source: Any = io.BytesIO(given) if isinstance(given, (bytes, bytearray)) else given
    try:
        return read_picture(source)
    except ValueError as error:
        raise ValueError(f"image of id {id!r}: {error}") from error


def _require_columns(df: DataFrame, *columns: str) -> None:
    for column in columns:
        if column not in df.columns:
            raise ValueError(f"df: expected a column {column!r}, got {', '.join(df.columns)}")


def _kind(df: DataFrame, id: str) -> str:
    """The SQL type of ids."""
    kind = dict(df.dtypes)[id]
    if kind not in ID_TYPES:
        raise ValueError(f"id: expected a column of integers or strings, got {kind}")
    return str(kind)
