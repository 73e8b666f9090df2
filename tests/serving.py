"""A service in this process, on a port of its own, and a client that says what came over the wire."""

from __future__ import annotations

import http.client
import json
import threading
import time
from collections.abc import Callable, Iterator, Mapping
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import scipy.sparse
import uvicorn
from stair.checkpoint import load
from stair.cluster import layout
from stair.cluster.layout import Manifest
from stair.encode import encode, read_inputs
from stair.search import items_of, save_collection
from stair.serve import Served, Settings, create_app
from stair.serve.answers import Query, answer
from stair.serve.server import bound
from tiny_stair import save_checkpoint, save_pictures

from stair_kernels import SparseIndex


def save_tiny_collection(folder: Path) -> Path:
    """folder/index over folder/pictures and two texts, made by folder/model."""
    save_checkpoint(folder / "model")
    save_pictures(folder / "pictures")
    found = items_of(read_inputs([str(folder / "pictures"), "a red fruit", "the night sky"]))
    rows = encode(*load(folder / "model"), [entry for entry, _ in found])
    return save_collection(folder / "index", rows, [item for _, item in found], folder / "model")


V, N = 50, 300


def random_rows(seed: int, n: int = N) -> scipy.sparse.csr_matrix:
    random = np.random.default_rng(seed)
    return scipy.sparse.random(n, V, 0.2, "csr", np.float32, random, lambda size: random.random(size, np.float32))


def vector(row: scipy.sparse.csr_matrix) -> dict[str, list[Any]]:
    return {"indices": row.indices.tolist(), "values": row.data.tolist()}


def save_shards(index: SparseIndex, folder: Path, shards: int) -> None:
    """The same documents as a sharded index."""
    with layout.building(folder) as staging:
        made = []
        for number, (first, end) in enumerate(layout.ranges(len(index), shards)):
            ids = index.ids[first:end]
            made.append(layout.write_shard(staging, number, SparseIndex.build(index.rows(ids), ids=ids)))
        layout.finish(staging, Manifest(tuple(made)))


@dataclass
class Fixed:
    """A source that gives what it is told to."""

    served: Served

    def open(self) -> Served:
        return self.served

    def stamp(self) -> object:
        return id(self.served)


@dataclass
class Answer:
    status: int
    headers: Mapping[str, str]
    body: bytes

    @property
    def json(self) -> Any:
        return json.loads(self.body)

    @property
    def error(self) -> tuple[int, str, str | None]:
        """(status, code, field); the message names the field."""
        (found,) = self.json.values()
        assert set(found) == {"code", "message", "field"}
        assert self.headers["Content-Type"] == "application/json"
        assert found["field"] is None or found["field"].split(".")[0] in found["message"]
        return self.status, found["code"], found["field"]


@dataclass
class Client:
    port: int
    service: Any = None
    local: threading.local = field(default_factory=threading.local)

    def ask(self, method: str, path: str, body: Any = None, headers: Mapping[str, str] | None = None) -> Answer:
        """One request on this thread's connection; an iterable of bytes is sent in chunks."""
        connection = getattr(self.local, "connection", None) or http.client.HTTPConnection("127.0.0.1", self.port, 60)
        self.local.connection = connection
        try:
            connection.request(method, path, body, dict(headers or {}))
            got = connection.getresponse()
            return Answer(got.status, got.headers, got.read())
        except BaseException:
            connection.close()
            raise

    def search(self, **query: Any) -> Answer:
        return self.ask("POST", "/v1/search", json.dumps(query), {"Content-Type": "application/json"})

    def upload(self, picture: bytes, **fields: Any) -> Answer:
        """A form with a picture."""
        parts = [
            f'--x\r\nContent-Disposition: form-data; name="{k}"\r\n\r\n{v}\r\n'.encode() for k, v in fields.items()
        ]
        head = (
            '--x\r\nContent-Disposition: form-data; name="image"; filename="a.png"\r\nContent-Type: image/png\r\n\r\n'
        )
        body = b"".join(parts) + head.encode() + picture + b"\r\n--x--\r\n"
        return self.ask("POST", "/v1/search/image", body, {"Content-Type": "multipart/form-data; boundary=x"})


def reload_under_load(source: Any, folder: Path, save: Callable[[SparseIndex, Path], None], reloads: int) -> None:
    """Generation g serves documents g % 2, and no request fails meanwhile; ids, matches and scores of an answer are all
    of one generation.
    """
    indexes = [SparseIndex.build(random_rows(seed), ids=range(seed * 1000, seed * 1000 + N)) for seed in (0, 1)]
    row = random_rows(9, 1)
    expected = [answer([Query(Served(index), 5, 3, row=(row.data, row.indices))])[0]["hits"] for index in indexes]
    save(indexes[1], folder)
    done = threading.Event()

    def hammer(client: Client) -> list[int]:
        generations = []
        while not done.is_set():
            found = client.search(**vector(row), k=5, matches=3)
            assert found.status == 200, found.body
            assert found.json["hits"] == expected[found.json["generation"] % 2]
            generations.append(found.json["generation"])
        return generations

    with running(source, Settings(batch=3, threads=2)) as client, ThreadPoolExecutor(4) as pool:
        loads = [pool.submit(hammer, client) for _ in range(4)]
        try:
            for generation in range(2, reloads + 2):
                save(indexes[generation % 2], folder)
                assert client.ask("POST", "/v1/reload").json == {"generation": generation, "documents": N}
        finally:
            done.set()
        for load_ in loads:
            seen = load_.result(30)
            assert seen == sorted(seen)
            assert len(set(seen)) > 1
        assert client.search(**vector(row), k=5, matches=3).json["hits"] == expected[generation % 2]


@contextmanager
def running(source: Any, settings: Settings | None = None) -> Iterator[Client]:
    app = create_app(source, settings)
    server = uvicorn.Server(uvicorn.Config(app, log_config=None, lifespan="on", ws="none", timeout_keep_alive=600))
    with bound("127.0.0.1", 0) as listener:
        thread = threading.Thread(target=server.run, args=([listener],))
        thread.start()
        try:
            until = time.monotonic() + 30
            while not server.started:
                assert thread.is_alive()
                assert time.monotonic() < until
                time.sleep(0.005)
            yield Client(listener.getsockname()[1], app.state.service)
        finally:
            server.should_exit = True
            thread.join(60)
            assert not thread.is_alive()
