"""The command `stair serve`: its process from start to end, its signals, its errors."""

from __future__ import annotations

import re
import signal
import subprocess
import sys
import threading
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest
import scipy.sparse
from serving import Client
from stair.cli import app
from stair.serve.server import bound
from typer.testing import CliRunner

import stair_kernels as sk


@pytest.fixture
def index(tmp_path: Path) -> Path:
    sk.SparseIndex.build(scipy.sparse.identity(30, "float32", "csr")).save(tmp_path / "index")
    return tmp_path / "index"


@contextmanager
def served(index: Path, *options: str) -> Iterator[tuple[subprocess.Popen[str], Client]]:
    command = [sys.executable, "-m", "stair", "serve", str(index), "--port", "0", *options]
    process = subprocess.Popen(command, stderr=subprocess.PIPE, text=True)
    try:
        assert process.stderr is not None
        line = process.stderr.readline()
        found = re.fullmatch(r"30 documents at http://127\.0\.0\.1:(\d+) \(Ctrl-C stops\)\n", line)
        assert found, line
        yield process, Client(int(found[1]))
    finally:
        process.kill()
        process.wait(60)
        process.stderr.close()  # type: ignore[union-attr]


def test_sigterm_lets_requests_in_flight_finish_and_sighup_reloads(index: Path) -> None:
    """A query waits 3 s for its batch to fill; the process is told to stop while 8 of them do."""
    with served(index, "--wait-ms", "3000") as (process, client), ThreadPoolExecutor(8) as pool:
        with sk.SparseIndex.open(index, mode="a") as changed:
            changed.delete([7])
        process.send_signal(signal.SIGHUP)
        assert process.stderr is not None
        assert process.stderr.readline().endswith("generation 2: 29 documents\n")
        asked = [pool.submit(client.search, indices=[number], values=[1]) for number in range(8)]
        waiting = "stair_queue_queries 8.0"
        for _ in range(200):
            if waiting in client.ask("GET", "/metrics").body.decode():
                break
            threading.Event().wait(0.005)
        else:
            pytest.fail("the queries do not wait")
        process.send_signal(signal.SIGTERM)
        answers = [one.result(60) for one in asked]
        assert [answer.status for answer in answers] == [200] * 8
        assert [[hit["id"] for hit in answer.json["hits"]] for answer in answers] == [[n] for n in range(7)] + [[]]
        assert process.wait(60) == 0
        with pytest.raises(ConnectionError):
            Client(client.port).ask("GET", "/healthz")


def test_ctrl_c_ends_it_with_130(index: Path) -> None:
    with served(index) as (process, client):
        assert client.search(indices=[3], values=[2]).json["hits"][0]["score"] == 2
        process.send_signal(signal.SIGINT)
        assert process.wait(60) == 130
        assert process.stderr is not None
        assert process.stderr.read() == "stair: stopped by Ctrl-C\n"


def run(*arguments: object) -> tuple[int, str]:
    done = CliRunner().invoke(app, ["serve", *map(str, arguments)])
    return done.exit_code, done.stderr.strip()


def test_the_workers_of_a_cluster_have_the_time_of_a_request(index: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def opened(pool: Any, folder: Path, timeout_s: float) -> Any:
        raise ValueError(f"{folder.name} within {timeout_s:g} s")

    monkeypatch.setattr("stair.cluster.commands.open_index", opened)
    assert run(index, "--timeout", 3) == (2, "stair: index within 3 s")


def test_what_cannot_be_served_is_one_line(index: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    code, said = run(tmp_path / "nothing")
    assert (code, "no such index" in said, said.count("\n")) == (2, True, 0)
    with bound("127.0.0.1", 0) as taken:
        taken.listen()
        port = taken.getsockname()[1]
        code, said = run(index, "--port", port)
        assert (code, said) == (1, f"stair: 127.0.0.1:{port}: cannot listen there (Address already in use)")
    code, said = run(index, "--host", "no.such.name.invalid")
    assert (code, said.count("\n")) == (1, 0)
    assert "cannot listen there" in said
    monkeypatch.setitem(sys.modules, "fastapi", None)
    for name in [name for name in sys.modules if name.startswith("stair.serve")]:
        monkeypatch.delitem(sys.modules, name)
    code, said = run(index)
    wanted = "stair: fastapi is not installed; stair serve needs it: pip install 'stair-kernels[model,serve]'"
    assert (code, said) == (1, wanted)
