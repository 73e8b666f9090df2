"""stair.cluster.spark on a real Spark cluster of two executors, whose processes die in the middle."""

from __future__ import annotations

import json
import os
import re
import shutil
import signal
import sys
import threading
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyspark
import pytest
import scipy.sparse
import torch
from pyspark.sql import DataFrame, SparkSession
from stair.checkpoint import fingerprint, load
from stair.cluster.shards import ShardedIndex
from stair.cluster.spark import _builder, _encoded, _encoder, build_shards, encode_dataframe
from stair.encode import encode, read_inputs
from stair.search import Collection, save_collection
from tiny_stair import save_checkpoint, save_pictures

from stair_kernels import SparseIndex

pytestmark = [
    pytest.mark.xdist_group("spark"),
    pytest.mark.skipif(
        not (os.environ.get("JAVA_HOME") or shutil.which("java")),
        reason="Spark needs Java: apt install default-jre-headless",
    ),
    pytest.mark.filterwarnings("ignore:PySpark does not yet fully support pandas"),
]
V, SHARDS = 30, 5
SCHEMA = "id string, indices array<int>, values array<float>"
QUICK = "-XX:TieredStopAtLevel=1 -XX:+UseSerialGC"  # for a JVM that lives a few seconds


@pytest.fixture(scope="module")
def spark() -> Iterator[SparkSession]:
    """A master and two workers with an executor of one core each, as processes of their own."""
    home = Path(pyspark.__file__).parent
    os.environ |= {"SPARK_HOME": str(home), "SPARK_LOCAL_IP": "127.0.0.1", "PYSPARK_PYTHON": sys.executable}
    pyspark.cloudpickle.register_pickle_by_value(sys.modules[__name__])
    settings = {
        "spark.ui.enabled": "false",
        "spark.driver.memory": "512m",
        "spark.driver.extraJavaOptions": QUICK,
        "spark.executor.extraJavaOptions": QUICK,
        "spark.default.parallelism": "2",
        "spark.sql.adaptive.enabled": "false",
        "spark.sql.codegen.wholeStage": "false",  # compiling takes longer than what is compiled
        "spark.sql.codegen.factoryMode": "NO_CODEGEN",
        "spark.sql.shuffle.partitions": "2",
        "spark.ui.showConsoleProgress": "false",
    }
    building = SparkSession.builder.master("local-cluster[2,1,1024]")
    for name, value in settings.items():
        building = building.config(name, value)
    interrupted = signal.getsignal(signal.SIGINT)
    session = building.getOrCreate()
    session.sparkContext.setLogLevel("OFF")
    yield session
    session.stop()
    signal.signal(signal.SIGINT, interrupted)  # Spark puts its own there


def dying_once(marker: Path) -> Any:
    """Passes a DataFrame on; the first process that comes to a second batch dies."""

    def work(batches: Iterator[Any]) -> Iterator[Any]:
        for number, batch in enumerate(batches):
            if number:
                try:
                    marker.touch(exist_ok=False)
                except FileExistsError:
                    pass
                else:
                    os._exit(7)
            yield batch

    return work


def rows_of(seed: int, N: int) -> scipy.sparse.csr_matrix:
    """Few distinct weights, so that scores tie across shards."""
    rows = scipy.sparse.random(N, V, 0.2, "csr", np.float32, np.random.default_rng(seed))
    rows.data = np.ceil(3 * rows.data)
    return rows


def table(spark: SparkSession, rows: scipy.sparse.csr_matrix, ids: list[Any], schema: str = SCHEMA) -> DataFrame:
    records = [
        (one, rows.indices[a:b].tolist(), rows.data[a:b].tolist())
        for one, a, b in zip(ids, rows.indptr[:-1], rows.indptr[1:])
    ]
    return spark.createDataFrame(records, schema)


def executors() -> list[int]:
    """The processes of this test's executors."""
    mark = b"CoarseGrainedExecutorBackend"
    every = [path for path in Path("/proc").iterdir() if path.name.isdigit()]
    driver = str(os.getpid())
    return [int(path.name) for path in every if mark in _read(path / "cmdline") and driver in _ancestors(path.name)]


def _read(path: Path) -> bytes:
    try:
        return path.read_bytes()
    except OSError:  # it has just ended
        return b""


def _ancestors(process: str) -> set[str]:
    found = set[str]()
    while (words := _read(Path("/proc", process, "stat")).rpartition(b")")[2].split()) and process not in found:
        found.add(process)
        process = words[1].decode()
    return found


def failures(spark: SparkSession, stages: set[int]) -> int:
    """Tasks that failed and stages that were begun again."""
    found = [spark.sparkContext.statusTracker().getStageInfo(stage) for stage in stages]
    return sum(stage.numFailedTasks + stage.currentAttemptId for stage in found if stage is not None)


def stages_of(spark: SparkSession) -> set[int]:
    tracker = spark.sparkContext.statusTracker()
    jobs = [tracker.getJobInfo(job) for job in tracker.getJobIdsForGroup()]
    return {stage for job in jobs if job is not None for stage in job.stageIds}


def kill_one_when(folder: Path, killed: list[int]) -> None:
    """Kills an executor as soon as a first shard is there."""
    deadline = time.monotonic() + 120
    while time.monotonic() < deadline and not list(folder.glob(".*/shard-*")):
        time.sleep(0.01)
    killed += executors()[:1]
    for process in killed:
        os.kill(process, signal.SIGKILL)


def assert_same(index: ShardedIndex, one: SparseIndex) -> None:
    queries = rows_of(7, 6)
    for k in (1, 10, 500):
        (scores, ids), (expected, names) = index.search(queries, k), one.search(queries, k)
        assert scores.numpy().tobytes() == expected.numpy().tobytes()
        assert np.asarray(ids).tolist() == np.asarray(names).tolist()


def test_the_shards_of_a_dataframe_are_the_one_index_though_an_executor_dies(
    spark: SparkSession, tmp_path: Path
) -> None:
    rows, killed, before = rows_of(0, 200), list[int](), stages_of(spark)
    ids = [f"é{number * 37 % 200}" for number in range(200)]
    killer = threading.Thread(target=kill_one_when, args=(tmp_path, killed))
    killer.start()
    frame = table(spark, rows, ids).withColumn("kept", pyspark.sql.functions.upper("id"))
    out = tmp_path / "index"
    built = build_shards(frame, out, shards=SHARDS, vocab_size=V, payload="kept", metadata={"of": "spark"})
    killer.join()
    assert (built, len(killed)) == (200, 1)
    assert failures(spark, stages_of(spark) - before) > 0  # the kill hit work, which was done again
    index = ShardedIndex.open(out, verify=True)
    order = np.argsort(ids)
    one = SparseIndex.build(rows[order], np.array(ids)[order])
    assert_same(index, one)
    assert index.ids.tolist() == one.ids.tolist()
    assert index.payloads(["é3", "é199"]) == ["É3".encode(), "É199".encode()]
    assert (index.metadata, index.stats()["shards"]) == ({"of": "spark"}, SHARDS)
    assert [path.name for path in tmp_path.iterdir()] == ["index"]


def test_integer_ids_shards_without_rows_and_an_id_that_comes_twice(spark: SparkSession, tmp_path: Path) -> None:
    rows, ids = rows_of(1, 3), [5, -7, 2**40]
    frame = table(spark, rows, ids, SCHEMA.replace("string", "bigint"))
    assert build_shards(frame, tmp_path / "index", shards=4, vocab_size=V) == 3
    assert_same(ShardedIndex.open(tmp_path / "index"), SparseIndex.build(rows, ids))
    with pytest.raises(ValueError, match="ids: expected unique integers, got 5 more than once"):
        build_shards(frame.union(frame.where("id = 5")), tmp_path / "twice", shards=1, vocab_size=V)
    assert [path.name for path in tmp_path.iterdir()] == ["index"]


def batch_of(records: list[Any], shard: int = 0) -> pa.RecordBatch:
    """What a task of build_shards is given."""
    names = ["id", "indices", "values", "shard"]
    kinds = [pa.string(), pa.list_(pa.int32()), pa.list_(pa.float32()), pa.int32()]
    columns = [[(*record, shard)[number] for record in records] for number in range(len(names))]
    return pa.RecordBatch.from_arrays([pa.array(c, kind) for c, kind in zip(columns, kinds)], names=names)


@pytest.mark.parametrize(
    ("records", "message"),
    [
        ([("a", [1], [1.0]), ("b", [2], [1.0]), ("a", [3], [1.0])], "ids: expected unique strings, got 'a'"),
        ([("a", [1, V], [1.0, 2.0])], rf"indices: expected 0 .. {V - 1}, got 1 .. {V}"),
        ([("a", [1, 2], [1.0])], "values: expected 2 of id 'a', as there are indices, got 1"),
        ([(None, [1], [1.0])], "id: expected integers or strings, got null"),
        ([("a", [1], [-1.0])], "rows: .*>= 0"),
        ([("a", None, [1.0])], "indices: expected an array without null"),
    ],
)
def test_what_an_index_refuses_is_told_and_not_tried_again(tmp_path: Path, records: list[Any], message: str) -> None:
    """The task gives the error back, in place of a shard."""
    (answer,) = _builder(str(tmp_path), V, True)(iter([batch_of(records)]))
    (row,) = answer.to_pylist()
    assert re.search(f"shard 0: .*{message}", row["error"])
    assert list(tmp_path.iterdir()) == []


def test_a_task_may_have_several_shards_in_any_batches(tmp_path: Path) -> None:
    rows = [[(f"{shard}{i}", [i], [1.0]) for i in range(5)] for shard in range(3)]
    batches = [
        batch_of(rows[0][:2]),
        batch_of(rows[0][2:]),
        batch_of(rows[1], 1),
        batch_of([], 1),
        batch_of(rows[2], 2),
    ]
    joined = [pa.Table.from_batches(batches).combine_chunks().to_batches()[0]]
    for given, place in ((batches, "split"), (joined, "joined")):
        (tmp_path / place).mkdir()
        made = [answer.to_pylist()[0] for answer in _builder(str(tmp_path / place), V, True)(iter(given))]
        assert [(row["number"], row["documents"], row["error"]) for row in made] == [(n, 5, None) for n in range(3)]
    every = [SparseIndex.open(tmp_path / "joined" / f"shard-{n:05d}").ids.tolist() for n in range(3)]
    assert every == [[one for one, _, _ in shard] for shard in rows]


def test_an_item_of_a_collection_is_made_of_its_id(tmp_path: Path) -> None:
    ids = ["/photos/a dog.png", "a dog.png", "file:/photos/x.png", "/photos"]
    made = _builder(str(tmp_path), V, True, True)(iter([batch_of([(one, [1, 2], [3.0, 4.0]) for one in ids])]))
    assert next(made).to_pylist()[0]["error"] is None
    index = SparseIndex.open(tmp_path / "shard-00000")
    items = [json.loads(payload) for payload in index.payloads(ids)]
    assert items == [{"name": "a dog", "picture": ids[0]}, *({"name": one} for one in ids[1:])]
    np.testing.assert_allclose(index.rows(ids[:1]).data, [0.6, 0.8], rtol=1e-6)


def test_texts_are_encoded_though_a_process_dies(spark: SparkSession, tmp_path: Path) -> None:
    model_dir = save_checkpoint(tmp_path / "model")
    texts = [f"a w{number % 40} red" for number in range(8)]
    frame = spark.createDataFrame(list(enumerate(texts)), "id bigint, text string").coalesce(1)
    spark.conf.set("spark.sql.execution.arrow.maxRecordsPerBatch", 4)
    frame = frame.mapInArrow(dying_once(tmp_path / "died"), frame.schema)
    found = sorted(encode_dataframe(frame, model_dir, text="text", batch=4).collect())
    assert (tmp_path / "died").exists()
    torch.set_num_threads(1)
    model, processor = load(model_dir)
    expected = encode(model, processor, read_inputs(texts), batch=4)
    for number, row in enumerate(found):
        kept = expected.indices[number] >= 0
        assert (row.id, row.indices) == (number, expected.indices[number][kept].tolist())
        torch.testing.assert_close(torch.tensor(row.values), expected.values[number][kept])
    named = spark.createDataFrame([(texts[row.id], row.indices, row.values) for row in found], SCHEMA)
    with pytest.raises(ValueError, match="id: expected a column of strings with model_dir, got bigint"):
        build_shards(frame, tmp_path / "many", shards=2, vocab_size=80, indices="id", values="id", model_dir=model_dir)
    assert build_shards(named, tmp_path / "many", shards=2, vocab_size=80, model_dir=model_dir) == len(texts)
    rows = encode(model, processor, read_inputs(texts), batch=4)
    save_collection(tmp_path / "one", rows, [{"name": text} for text in texts], model_dir)
    vocabulary = processor.vocabulary()
    many, one = (Collection.open(tmp_path / name).search(rows[:3], 1, vocabulary) for name in ("many", "one"))
    assert [hits[0].item for hits in many] == [hits[0].item for hits in one] == [{"name": text} for text in texts[:3]]
    assert [hits[0].score for hits in many] == pytest.approx([hits[0].score for hits in one])


def test_pictures_are_encoded_from_bytes_and_paths(tmp_path: Path) -> None:
    """What a task does with a batch."""
    encoder = _encoder(str(save_checkpoint(tmp_path / "model")), fingerprint(tmp_path / "model"))
    files = sorted(save_pictures(tmp_path / "pictures").iterdir())
    expected = encode(encoder.model, encoder.processor, read_inputs([str(tmp_path / "pictures")]))
    names = [path.stem for path in files]
    for given in ([path.read_bytes() for path in files], [str(path) for path in files]):
        batch = pa.RecordBatch.from_arrays([pa.array(names), pa.array(given)], names=["id", "input"])
        found = _encoded(encoder, batch, False, None).to_pylist()
        assert [row["id"] for row in found] == names
        assert [row["indices"] for row in found] == [[v for v in row if v >= 0] for row in expected.indices.tolist()]
    broken = pa.RecordBatch.from_arrays([pa.array(["x"]), pa.array([b"no picture"])], names=["id", "input"])
    with pytest.raises(ValueError, match="image of id 'x'"):
        _encoded(encoder, broken, False, None)


def test_wrong_columns_are_refused(spark: SparkSession, tmp_path: Path) -> None:
    frame = spark.createDataFrame([(0.5, "a")], "id double, text string")
    with pytest.raises(ValueError, match="id: expected a column of integers or strings, got double"):
        encode_dataframe(frame, save_checkpoint(tmp_path / "model"), text="text")
    with pytest.raises(ValueError, match="df: expected a column 'caption', got id, text"):
        encode_dataframe(frame, tmp_path / "model", text="caption")
    with pytest.raises(ValueError, match="text, image: expected one of the two"):
        encode_dataframe(frame, tmp_path / "model")
    with pytest.raises(ValueError, match="shards: expected an integer >= 1, got 0"):
        build_shards(table(spark, rows_of(0, 1), ["a"]), tmp_path / "out", shards=0, vocab_size=V)
