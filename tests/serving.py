"""A service in this process, on a port of its own, and a client that says what came over the wire."""

from __future__ import annotations

import http.client
import json
import threading
import time
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import uvicorn
from stair.checkpoint import load
from stair.encode import encode, read_inputs
from stair.search import items_of, save_collection
from stair.serve import Served, Settings, create_app
from stair.serve.server import bound
from tiny_stair import save_checkpoint, save_pictures


def save_tiny_collection(folder: Path) -> Path:
    """folder/index over folder/pictures and two texts, made by folder/model."""
    save_checkpoint(folder / "model")
    save_pictures(folder / "pictures")
    found = items_of(read_inputs([str(folder / "pictures"), "a red fruit", "the night sky"]))
    rows = encode(*load(folder / "model"), [entry for entry, _ in found])
    return save_collection(folder / "index", rows, [item for _, item in found], folder / "model")


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
