"""stair.cluster.ray on a real Ray cluster of two nodes, whose workers and nodes are killed in the middle."""

from __future__ import annotations

import contextlib
import json
import os
import re
import shutil
import signal
import socket
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterable, Iterator
from functools import partial
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import ray
import scipy.sparse
import torch
from ray.cluster_utils import Cluster
from serving import Client, random_rows, reload_under_load, running, save_shards, vector
from stair.checkpoint import load
from stair.cli import app
from stair.cluster import commands
from stair.cluster.parts import Parts
from stair.cluster.pool import Stream, Task, connect
from stair.cluster.ray import ClusterError, RayPool, open_collection, open_on
from stair.cluster.slots import Slot
from stair.cluster.work import Here, Job, build_shards, encode_parts
from stair.encode import Input, encode, read_inputs
from stair.formats.documents import as_csr
from stair.search import Collection, item_of, save_collection
from stair.serve import Folder, Settings
from tiny_stair import save_checkpoint, save_pictures
from typer.testing import CliRunner

from stair_kernels import SparseIndex

pytestmark = pytest.mark.xdist_group("ray")
STORE = 80 << 20  # the smallest that Ray takes
SHARDS = 3
with socket.create_server(("127.0.0.1", 0)) as free:
    CLIENT_PORT = free.getsockname()[1]


@pytest.fixture(scope="module")
def cluster() -> Iterator[Cluster]:
    """Two nodes with one CPU each; the head is one of them."""
    os.environ |= {"RAY_USAGE_STATS_ENABLED": "0", "RAY_worker_niceness": "0"}  # 15 is Ray's: slow on a busy machine
    head = {"num_cpus": 1, "include_dashboard": False, "ray_client_server_port": CLIENT_PORT}
    made = Cluster(True, head_node_args={**head, "object_store_memory": STORE})
    made.add_node(num_cpus=1, num_gpus=1, object_store_memory=STORE)  # no real one
    ray.init(made.address, log_to_driver=False, logging_level="ERROR")
    yield made
    ray.shutdown()
    made.shutdown()


@pytest.fixture(scope="module")
def pool(cluster: Cluster) -> Iterator[RayPool]:
    """Two workers, shared by the tests: what one kills another one gets in its place."""
    with RayPool(workers=2, attempts=2) as made:
        yield made


@pytest.fixture(scope="module")
def inputs(tmp_path_factory: pytest.TempPathFactory) -> list[Input]:
    folder = tmp_path_factory.mktemp("inputs")
    save_pictures(folder / "pictures")
    (folder / "texts.txt").write_text("".join(f"a w{i % 40} w{i * 7 % 50} red\n" for i in range(44)))
    return read_inputs([str(folder / "pictures"), str(folder / "texts.txt")])


@pytest.fixture(scope="module")
def place(tmp_path_factory: pytest.TempPathFactory, inputs: list[Input]) -> Path:
    """model/, and one/, the index of all inputs that this process built alone."""
    folder = tmp_path_factory.mktemp("ray")
    save_checkpoint(folder / "model")
    threads = torch.get_num_threads()
    torch.set_num_threads(1)  # as a worker of one CPU has
    rows = encode(*load(folder / "model"), inputs, batch=4)
    torch.set_num_threads(threads)
    save_collection(folder / "one", rows, [item_of(entry) for entry in inputs], folder / "model")
    return folder


@pytest.fixture(scope="module")
def many(pool: RayPool, place: Path, inputs: list[Input]) -> Path:
    """The same in shards that the workers built."""
    rows = encode_parts(inputs, place / "model", place / "rows", pool=pool, batch=4)
    build_shards(rows, place / "many", place / "model", shards=SHARDS, pool=pool)
    return place / "many"


COMMANDS = """
import json, sys
from stair.cli import app
for words in json.loads(sys.argv[1]):
    app(words, standalone_mode=False)
"""


@contextlib.contextmanager
def started(commands: list[list[str]], folder: Path) -> Iterator[subprocess.Popen[str]]:
    """Commands, one after the other in a process of their own, which is no part of Ray before."""
    words = [sys.executable, "-c", COMMANDS, json.dumps(commands)]
    environment = {**os.environ, "OMP_NUM_THREADS": "1"}
    pipes = {"stdout": subprocess.PIPE, "stderr": subprocess.PIPE}
    with subprocess.Popen(words, cwd=folder, env=environment, text=True, **pipes) as process:
        try:
            yield process
        finally:
            process.kill()


def test_the_commands_join_a_cluster(cluster: Cluster, place: Path, inputs: list[Input], tmp_path: Path) -> None:
    """Before `pool` takes the cluster's CPUs."""
    given = [str(entry.picture or entry.text) for entry in inputs[:6]]
    model, on_ray = ["--model", str(place / "model")], ["--workers", "1", "--ray", cluster.address]
    commands = [
        ["encode", *given, *model, "--out", "rows", *on_ray],
        ["index", "build", *given, *model, "--out", "index", "--shards", "2", *on_ray],
        ["search", "--index", "index", "--json", given[5], *on_ray],
        ["serve", "index", "--port", "0", *on_ray],
    ]
    with started(commands, tmp_path) as process:
        assert process.stderr is not None
        assert process.stdout is not None
        said = [process.stderr.readline() for _ in range(3)]
        found = re.fullmatch(r"6 documents at http://127\.0\.0\.1:(\d+) \(Ctrl-C stops\)\n", said[-1])
        assert said[:2] == ["6 rows in rows\n", "6 items in index\n"]
        assert found, said[-1]
        served = Client(int(found[1])).search(text=given[5], k=5).json["hits"]
        process.send_signal(signal.SIGINT)
        assert (process.wait(60), process.stderr.read()) == (130, "stair: stopped by Ctrl-C\n")
        (answer,) = json.loads(process.stdout.read())
    names = [hit["name"] for hit in answer["hits"]]
    assert (names[0], names) == (given[5], [hit["name"] for hit in served])
    rows, ids, _ = Parts.open(tmp_path / "rows").slice(0, 6)
    expected = encode(*load(place / "model"), inputs[:6])
    assert (ids, rows.indices.tolist()) == (given, expected.indices.tolist())


def test_a_worker_that_encodes_on_a_gpu_has_one_to_itself(
    cluster: Cluster, place: Path, inputs: list[Input], tmp_path: Path
) -> None:
    """Up to where torch sees none."""
    with RayPool(gpus=1) as pool:
        with pytest.raises(ValueError, match="expected one of 0 CUDA devices, got 'cuda'"):
            encode_parts(inputs, place / "model", tmp_path / "rows", pool=pool, device="cuda")
        assert (pool.workers, ray.available_resources().get("GPU", 0)) == (1, 0)
    with pytest.raises(ClusterError, match="no worker of 1 CPUs and 2 GPUs"):
        RayPool(gpus=2)


@pytest.mark.parametrize("where", ["this machine", "Ray Client"])
def test_a_command_starts_ray_or_asks_its_client_server(
    cluster: Cluster, place: Path, tmp_path: Path, where: str
) -> None:
    words = ["encode", "a w1 red", "w2", "--model", str(place / "model"), "--out", "rows", "--workers", "1", "--ray"]
    words += [f"ray://127.0.0.1:{CLIENT_PORT}"] if where == "Ray Client" else []
    with started([words], tmp_path) as process:
        assert process.communicate(timeout=120) == ("", "2 rows in rows\n")
    assert Parts.open(tmp_path / "rows").slice(0, 2)[1] == ["a w1 red", "w2"]


def assert_same(index: Any, one: Any, queries: Any, k: int) -> None:
    (scores, ids), (expected, names) = index.search(queries, k), one.search(queries, k)
    assert scores.numpy().tobytes() == expected.numpy().tobytes()
    assert ids.tolist() == names.tolist()


def wait_until(true: Callable[[], bool], seconds: float = 60) -> None:
    until = time.monotonic() + seconds
    while not true():
        assert time.monotonic() < until
        time.sleep(0.05)


def wait_for_workers(pool: RayPool) -> None:
    """Until all of them are there: some may still be started in the place of those that an earlier test killed."""

    def all_there() -> bool:
        assert list(pool.stream([Job("any", dict, (), "copy", ())])) == [{}]
        return all(slot.there for slot in pool.slots)

    wait_until(all_there)


def kill(pool: RayPool) -> None:
    """One of the workers that are there."""
    working = [slot.process for slot in pool.slots if slot.there]
    os.kill(working[0], signal.SIGKILL)


def stall(pool: RayPool) -> Slot:
    """One of the workers that are there stops, so that it keeps what it is given, and is killed half a second later."""
    slot = next(slot for slot in pool.slots if slot.there)
    os.kill(slot.process, signal.SIGSTOP)
    threading.Timer(0.5, os.kill, (slot.process, signal.SIGKILL)).start()
    return slot


@pytest.fixture
def lost(pool: RayPool, monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """The names of the jobs whose worker was lost."""
    names: list[str] = []
    lose = pool._lost

    def noted(stream: Stream, task: Task, error: Exception) -> None:
        names.append(task.job.name)
        lose(stream, task, error)

    monkeypatch.setattr(pool, "_lost", noted)
    return names


def test_rows_and_shards_survive_the_loss_of_workers(
    pool: RayPool, place: Path, inputs: list[Input], tmp_path: Path, lost: list[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    """A worker is killed that has parts to encode, and one that has shards to build; it comes out as one index."""
    monkeypatch.setattr("stair.cluster.pool.WINDOW", 2)  # or one worker could be done with all parts but the first
    done: list[int] = []

    def stalling(stage: str, number: int, total: int, numbers: dict[str, Any]) -> None:
        done.append(number)
        if (stage, len(done)) == ("encode", 2):
            stall(pool)

    rows = encode_parts(inputs, place / "model", tmp_path / "rows", pool=pool, batch=4, progress=stalling)
    assert (len(rows.parts), done[-1], done) == (12, len(inputs), sorted(set(done)))
    assert [name[:5] for name in lost] == ["part "]
    done.clear()
    stall(pool)
    assert build_shards(rows, tmp_path / "many", place / "model", shards=SHARDS, pool=pool, progress=stalling) == 48
    assert done == [1, 2, 3]
    assert [name[:6] for name in lost[1:]] == ["shard "]
    one, many = Collection.open(place / "one"), Collection.open(tmp_path / "many")
    assert many.items == one.items
    assert (many.index.rows(many.index.ids) != one.index.rows(one.index.ids)).nnz == 0
    queries, _, _ = rows.slice(0, 48)
    assert_same(many.index, one.index, queries, 60)
    assert not [path for path in tmp_path.rglob("*") if path.name.startswith(".")]


def test_the_commands_with_ray_give_what_they_give_without(
    pool: RayPool, place: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """By the workers that there are already."""
    asked: list[Any] = []

    def lent(address: str, workers: int | None, cpus: int, gpus: int) -> Any:
        asked.append((address, workers, cpus, gpus))
        return contextlib.nullcontext(pool)

    monkeypatch.setattr("stair.cluster.ray.RayPool", lent)
    on_ray = ["--ray", "--workers", "2"]
    build = ["index", "build", *on_ray, str(save_pictures(tmp_path / "pictures")), "a w1 red", "--shards", "2"]
    done = CliRunner().invoke(app, [*build, "--model", str(place / "model"), "--out", str(tmp_path / "many")])
    assert (done.exit_code, done.stderr) == (0, f"5 items in {tmp_path / 'many'}\n")
    search = ["search", "--index", str(tmp_path / "many"), "--json", "a w1 red"]
    found = [CliRunner().invoke(app, [*search, *more]) for more in ([], on_ray)]
    assert [one.exit_code for one in found] == [0, 0], found[1].output
    assert json.loads(found[1].stdout) == json.loads(found[0].stdout)
    assert json.loads(found[0].stdout)[0]["hits"][0]["name"] == "a w1 red"
    assert sorted(path.name for path in tmp_path.iterdir()) == ["many", "pictures"]
    assert asked == [("local", 2, 1, 0)] * 2


def test_large_queries_are_put_into_the_store_once(
    pool: RayPool, place: Path, queries: Any, many: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    put, known = list[Any](), ray.put

    def noted(value: Any) -> Any:
        put.append(value)
        return known(value)

    monkeypatch.setattr(ray, "put", noted)
    index, one = open_on(pool, many), Collection.open(place / "one").index
    assert_same(index, one, queries, 10)
    assert not put
    rows = scipy.sparse.vstack([as_csr(queries)] * 500, "csr")
    assert_same(index, one, rows, 3)
    ((_, sent, *_),) = put
    assert sent is rows


@pytest.fixture(scope="module")
def queries(place: Path, inputs: list[Input]) -> Any:
    return encode(*load(place / "model"), inputs[2:9])


def test_a_search_survives_the_loss_of_the_worker_that_it_waits_for(
    pool: RayPool, place: Path, queries: Any, many: Path, lost: list[str]
) -> None:
    index, one = open_on(pool, many), Collection.open(place / "one").index
    assert_same(index, one, queries, 10)
    stopped = stall(pool)
    before = stopped.actor
    assert_same(index, one, queries, 10)
    assert [name[:6] for name in lost] == ["shard "]
    assert index.payloads(one.ids[::-1]) == one.payloads(one.ids[::-1])
    assert_same(index, one, queries, 10)
    assert stopped.actor is not before


def test_a_worker_that_is_stuck_costs_one_time_out(pool: RayPool, place: Path, queries: Any, many: Path) -> None:
    """It is stopped and nobody kills it: the call that waits for it fails, and the next one has another worker."""
    index, one = commands.open_index(pool, many, timeout_s=1), Collection.open(place / "one").index
    wait_for_workers(pool)
    assert_same(index, one, queries, 10)
    stuck = next(slot for slot in pool.slots if slot.there)
    before = stuck.process
    os.kill(before, signal.SIGSTOP)
    with pytest.raises(ClusterError, match=r"shard \d \(.*\): no answer for 1 s"):
        index.search(queries, 10)
    start = time.monotonic()
    assert_same(index, one, queries, 10)
    assert time.monotonic() - start < 30
    wait_until(lambda: not Path(f"/proc/{before}").exists())


def test_the_service_answers_from_the_workers_and_while_one_is_lost(
    pool: RayPool, place: Path, many: Path, lost: list[str]
) -> None:
    on_workers = Folder(many, opened=partial(commands.open_index, pool))
    with running(Folder(place / "one"), Settings()) as alone, running(on_workers, Settings(timeout_s=60)) as client:
        for text in ("a w3 red", "w21"):
            expected = alone.search(text=text, k=6).json["hits"]
            assert client.search(text=text, k=6).json["hits"] == expected
            stall(pool)
            assert client.search(text=text, k=6).json["hits"] == expected
        assert [name[:5] for name in lost] == ["shard"] * 2
        assert not client.service.holder.stale()


def test_reloads_lose_nothing_and_leave_nothing_of_the_old_index_open(pool: RayPool, tmp_path: Path) -> None:
    wait_for_workers(pool)
    on_workers = Folder(tmp_path / "index", opened=partial(commands.open_index, pool))
    reload_under_load(on_workers, tmp_path / "index", partial(save_shards, shards=SHARDS), 4)
    mapped = [line for slot in pool.slots for line in Path(f"/proc/{slot.process}/maps").read_text().splitlines()]
    held = {line.split(maxsplit=5)[5] for line in mapped if str(tmp_path) in line}
    assert held
    assert not [name for name in held if name.endswith("(deleted)")]


def test_a_lost_worker_of_an_index_that_was_replaced_is_an_error_that_says_to_reload(
    pool: RayPool, tmp_path: Path
) -> None:
    """Its shard cannot be opened again: the files are those of another index."""
    row, ones = random_rows(9, 1), [SparseIndex.build(random_rows(seed)) for seed in (0, 1)]
    save = partial(save_shards, folder=tmp_path / "index", shards=SHARDS)
    expected = [one.search(row, 5)[1][0].tolist() for one in ones]
    wait_for_workers(pool)
    save(ones[0])
    with running(Folder(tmp_path / "index", opened=partial(commands.open_index, pool))) as client:

        def found() -> Any:
            return [hit["id"] for hit in client.search(**vector(row), k=5).json["hits"]]

        assert found() == expected[0]
        save(ones[1])
        assert found() == expected[0]
        kill(pool)
        refused = client.search(**vector(row), k=5)
        assert refused.error == (503, "busy", None)
        assert re.search("shard-0000. is not the shard .* reload the index", refused.json["error"]["message"])
        assert client.ask("POST", "/v1/reload").status == 200
        assert found() == expected[1]


def test_what_a_job_raises_is_raised_here(
    pool: RayPool, place: Path, inputs: list[Input], tmp_path: Path, many: Path
) -> None:
    (tmp_path / "broken.png").write_bytes(b"no picture")
    with pytest.raises(ValueError, match=r"broken\.png"):
        encode_parts([Input("x", picture=tmp_path / "broken.png")], place / "model", tmp_path / "rows", pool=pool)
    assert [path.name for path in tmp_path.iterdir()] == ["broken.png"]
    given = [*inputs[2:6], Input("x", picture=tmp_path / "broken.png"), *inputs[:2]]
    rows = encode_parts(given, place / "model", tmp_path / "rows", pool=pool, batch=1, skip_unreadable=True)
    assert [path.name for path in rows.folder.glob("*.npz")].count("part-00004.npz") == 0
    assert rows.slice(0, 9)[1] == [str(entry.picture or entry.name) for entry in inputs[2:6] + inputs[:2]]
    assert [message.partition(":")[0] for message in rows.left_out] == [str(tmp_path / "broken.png")]
    index = open_on(pool, many)
    with pytest.raises(ValueError, match="k: expected an integer >= 1, got 0"):
        index.search(scipy.sparse.csr_matrix((1, index.vocab_size), dtype="float32"), 0)


class Light:
    """A worker that needs no CPU, is there at once, and has one answer."""

    def ready(self) -> int:
        return os.getpid()

    def do(self, *job: Any) -> Any:
        return [{"vocab_size": 7}]

    def forget(self, owner: int) -> None:
        pass


class Broken(Light):
    """One that ends before it is there."""

    def ready(self) -> int:
        os._exit(1)


def light(kind: type) -> Any:
    ray.cloudpickle.register_pickle_by_value(__import__(__name__))
    return ray.remote(kind).options(num_cpus=0, max_restarts=0)


def test_one_worker_that_cannot_be_started_does_not_stop_the_others(
    cluster: Cluster, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("stair.cluster.slots.REST_S", 0.1)
    job = Job("one", dict, (), "copy", ())
    with RayPool(workers=2, attempts=2) as pool:
        pool.slots._make = light(Broken)
        for _ in range(2):  # with no other one it is an error, again and again
            with pytest.raises(ClusterError, match=r"a worker could not be started [23] times"):
                list(pool.stream([job], workers=1))
        pool.slots._make = light(Light)
        assert list(pool.stream([job], workers=1)) == [[{"vocab_size": 7}]]
        pool.slots._make = light(Broken)
        pool.slots.grow(2)

        def failed() -> int:
            assert list(pool.stream([job])) == [[{"vocab_size": 7}]]
            return pool.slots[1].failures

        wait_until(lambda: failed() > 3)
        pool.slots._make = light(Light)
        wait_until(lambda: not failed() and pool.slots[1].there)


def test_an_index_takes_no_more_workers_than_it_has_a_use_for(cluster: Cluster, many: Path) -> None:
    with RayPool(workers=6) as pool:
        pool.slots._make = light(Light)
        assert (open_on(pool, many).vocab_size, len(pool.slots)) == (7, SHARDS + 1)
        assert list(pool.stream([Job("one", dict, (), "copy", ())])) == [[{"vocab_size": 7}]]
        assert len(pool.slots) == pool.workers == 6


def test_the_number_of_jobs_ahead_is_bounded(pool: RayPool) -> None:
    taken: list[int] = []

    def jobs() -> Iterator[Job]:
        for number in range(200):
            taken.append(number)
            yield Job(str(number), dict, (), "copy", ())

    for number, _ in enumerate(pool.stream(jobs())):
        assert taken[-1] - number <= 8 * pool.workers
    assert taken == list(range(200))


class Dealt(Here):
    """A pool of two workers, in this process, that keeps the jobs it was given."""

    workers = 2

    def __init__(self) -> None:
        super().__init__()
        self.slots = SimpleNamespace(end=lambda owner: None)
        self.jobs: list[Job] = []

    def stream(self, jobs: Iterable[Job], *limits: Any) -> Iterator[Any]:
        self.jobs = list(jobs)
        yield from super().stream(self.jobs)


def test_fewer_workers_than_shards_have_several_each(tmp_path: Path) -> None:
    one, pool = SparseIndex.build(random_rows(0)), Dealt()
    save_shards(one, tmp_path / "many", 5)
    index, queries = open_on(pool, tmp_path / "many"), random_rows(1, 8)
    assert_same(index, one, queries, 10)
    assert [job.name.split(" (")[0] for job in pool.jobs] == ["shards 0 to 1", "shards 2 to 4"]
    assert (index.rows(one.ids) != one.rows(one.ids)).nnz == 0


def test_a_collection_is_searched_from_several_threads(pool: RayPool, place: Path, queries: Any, many: Path) -> None:
    many, one = open_collection(pool, many), Collection.open(place / "one")
    vocabulary = [str(v) for v in range(queries.vocab_size)]
    expected, found = one.search(queries, 5, vocabulary), dict[int, Any]()
    threads = [
        threading.Thread(target=lambda n=n: found.update({n: many.search(queries, 5, vocabulary)})) for n in range(3)
    ]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(60)
    assert found == {0: expected, 1: expected, 2: expected}


def test_a_shard_that_is_gone_is_an_error_and_not_fewer_documents(
    pool: RayPool, place: Path, tmp_path: Path, many: Path
) -> None:
    folder = Path(shutil.copytree(many, tmp_path / "many"))
    assert len(open_on(pool, folder)) == 48
    shutil.copytree(folder, tmp_path / "other")
    shutil.rmtree(tmp_path / "other" / "shard-00001")
    with pytest.raises(ValueError, match="shard-00001 does not exist"):
        open_on(pool, tmp_path / "other")


def test_an_address_that_cannot_be_joined_says_what_can(cluster: Cluster, monkeypatch: pytest.MonkeyPatch) -> None:
    """This machine is a node: Ray's answer where it is none."""

    def init(*arguments: Any, **options: Any) -> None:
        raise RuntimeError("No node info found matching attributes: '10.0.0.7' when trying to resolve node to connect")

    monkeypatch.setattr(ray, "is_initialized", lambda: False)
    monkeypatch.setattr(ray, "init", init)
    with pytest.raises(ClusterError, match=rf"{cluster.address}: this machine is no node of it; give --ray ray://"):
        connect(cluster.address)
    monkeypatch.setattr("importlib.util.find_spec", lambda name: None)
    with pytest.raises(
        ImportError, match=r"grpcio is not installed; ray://head:1 needs it: pip install 'stair-kernels\[ray"
    ):
        connect("ray://head:1")


def test_no_worker_and_no_cluster_are_errors(cluster: Cluster, place: Path) -> None:
    with (
        RayPool(workers=1, cpus=64, start_timeout_s=1) as pool,
        pytest.raises(ClusterError, match=r"no worker could be started for 1 s: .* of the cluster's"),
    ):
        list(pool.stream([Job("one", dict, (), "copy", ())]))
    with pytest.raises(ClusterError, match="closed"):
        list(pool.stream([Job("one", dict, (), "copy", ())]))
    with pytest.raises(ClusterError, match="has no worker of 64 CPUs"):
        RayPool(cpus=64)
    with RayPool(workers=1) as other, pytest.raises(ValueError, match="no sharded index"):
        open_on(other, place / "one")


def test_a_search_survives_the_loss_of_a_node(
    cluster: Cluster, pool: RayPool, place: Path, queries: Any, many: Path
) -> None:
    index, one = open_on(pool, many), Collection.open(place / "one").index
    wait_for_workers(pool)
    cluster.remove_node(next(iter(cluster.worker_nodes)))
    assert_same(index, one, queries, 10)  # one worker has all shards: no CPU is left for another
    assert_same(index, one, queries, 40)
    assert [slot.there for slot in pool.slots].count(True) == 1


def fatal() -> Any:
    os._exit(7)


def test_a_job_that_kills_its_workers_is_an_error_that_names_it(pool: RayPool) -> None:
    ray.cloudpickle.register_pickle_by_value(__import__(__name__))
    jobs = [Job(f"job {number}", fatal if number == 1 else dict, (), "copy", ()) for number in range(4)]
    found: list[Any] = []
    with pytest.raises(ClusterError, match="job 1: its worker was lost 2 times"):
        found.extend(pool.stream(jobs))
