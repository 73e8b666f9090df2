"""Load on `stair serve` over loopback: requests a second and latencies at 1, 8 and 32 clients, batched and not.

    python bench/serve.py                                # vectors, 100,000 made-up documents (bench/collection.py)
    python bench/serve.py --index out/demo/index         # texts, over a collection and its model
    python bench/serve.py --seconds 10 --clients 1 8 32 --rounds 3

Service and clients are processes of their own; a client sends its next query when it has the answer to the last. Every
query's answer is first compared with the one that Python gets, without HTTP. Settings take turns, round by round; a
figure is the median over the rounds. The limit beside it is what a query costs without HTTP: encoding, search and
matching terms alone, one at a time and 32 together. CPU time is told as well, as other work on the machine hardly
changes it.
"""

from __future__ import annotations

import argparse
import asyncio
import json
import os
import re
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from concurrent.futures import ProcessPoolExecutor, ThreadPoolExecutor
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy as np
from collection import make_collection

ROOT = Path(__file__).resolve().parent.parent
K, MATCHES = 10, 8
SETTINGS = {"one at a time": ("--batch", "1"), "batches": (), "batches, 2 ms": ("--wait-ms", "2")}
WORDS = "red green blue round small happy night morning cold fast fruit dog cat star sky house water tree"


@contextmanager
def service(index: Path, *options: str) -> Iterator[tuple[int, int]]:
    """Port and process of a service."""
    command = [sys.executable, "-m", "stair", "serve", str(index), "--port", "0", "--queue", "1024", *options]
    process = subprocess.Popen(command, stderr=subprocess.PIPE, text=True)
    assert process.stderr is not None
    try:
        line = process.stderr.readline()
        found = re.search(r"http://127\.0\.0\.1:(\d+)", line)
        if found is None:
            sys.exit(f"stair serve: {line}{process.stderr.read()}")
        yield int(found[1]), process.pid
    finally:
        process.terminate()
        process.wait(60)


async def client(port: int, bodies: list[bytes], first: int, until: float, times: list[float]) -> list[bytes]:
    """Sends the bodies in turn from `first` on, until it is time or, with `until` 0, each once; the answers."""
    reader, writer = await asyncio.open_connection("127.0.0.1", port)
    head = "POST /v1/search HTTP/1.1\r\nHost: 127.0.0.1\r\nContent-Type: application/json\r\nContent-Length: "
    answers = []
    at = first
    while time.perf_counter() < until if until else at < first + len(bodies):
        body = bodies[at % len(bodies)]
        start = time.perf_counter()
        writer.write(f"{head}{len(body)}\r\n\r\n".encode() + body)
        header = await reader.readuntil(b"\r\n\r\n")
        size = re.search(rb"content-length: (\d+)", header, re.IGNORECASE)
        if size is None or not header.startswith(b"HTTP/1.1 200"):
            raise RuntimeError(header.decode())
        answers.append(await reader.readexactly(int(size[1])))
        times.append(time.perf_counter() - start)
        at += 1
    writer.close()
    return answers


def load(port: int, bodies: list[bytes], clients: int, seconds: float) -> list[float]:
    """The time of each request, of `clients` at once."""
    times: list[float] = []

    async def run() -> None:
        until = time.perf_counter() + seconds
        await asyncio.gather(*(client(port, bodies, 17 * number, until, times) for number in range(clients)))

    asyncio.run(run())
    return times


def answers(port: int, bodies: list[bytes]) -> list[Any]:
    return [json.loads(found) for found in asyncio.run(client(port, bodies, 0, 0, []))]


class Direct:
    """The same queries in this process, without HTTP."""

    def __init__(self, folder: Path, asked: list[dict[str, Any]]) -> None:
        from stair.serve import Folder
        from stair.serve.answers import Query, answer

        served = Folder(folder).open()
        self.answer = answer
        self.queries = [Query(served, K, MATCHES, text=query.get("text")) for query in asked]
        for query, given in zip(self.queries, asked):
            if query.text is None:
                query.row = np.array(given["values"], np.float32), np.array(given["indices"], np.int32)

    def check(self, found: list[Any]) -> None:
        """Ends the run when an answer over HTTP is another one."""
        for number, (query, given) in enumerate(zip(self.queries, found)):
            (expected,) = self.answer([query])
            over, own = ([hit["score"] for hit in hits] for hits in (given["hits"], expected["hits"]))
            exact = query.text is None
            same = over == own if exact else np.allclose(over, own, rtol=1e-4, atol=0)
            if not same or (exact and given["hits"] != expected["hits"]):
                sys.exit(f"query {number} is wrong: {given['hits']}, expected {expected['hits']}")

    def cost_ms(self, size: int, seconds: float) -> tuple[float, float]:
        """Of a query in batches of `size`: by the clock, and CPU time."""
        times = []
        until, cpu = time.perf_counter() + seconds, time.process_time()
        while time.perf_counter() < until:
            for first in range(0, len(self.queries) - size + 1, size):
                start = time.perf_counter()
                self.answer(self.queries[first : first + size])
                times.append((time.perf_counter() - start) / size)
        return 1e3 * statistics.median(times), 1e3 * (time.process_time() - cpu) / (len(times) * size)


def made_up(folder: Path, options: argparse.Namespace) -> tuple[Path, list[dict[str, Any]]]:
    import stair_kernels as sk

    documents, queries = make_collection(options.documents, options.queries, seed=1)
    sk.SparseIndex.build(documents).save(folder / "index")
    rows = [queries["plain"][number] for number in range(options.queries)]
    return folder / "index", [{"indices": row.indices.tolist(), "values": row.data.tolist()} for row in rows]


def texts(count: int) -> list[dict[str, Any]]:
    """Two to six words each, drawn."""
    random = np.random.default_rng(1)
    return [{"text": " ".join(random.choice(WORDS.split(), random.integers(2, 7)))} for _ in range(count)]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--index", type=Path, help="texts over this collection in place of vectors")
    parser.add_argument("--documents", type=int, default=100_000)
    parser.add_argument("--queries", type=int, default=256)
    parser.add_argument("--clients", type=int, nargs="*", default=[1, 8, 32])
    parser.add_argument("--seconds", type=float, default=3.0)
    parser.add_argument("--rounds", type=int, default=3)
    options = parser.parse_args()
    with tempfile.TemporaryDirectory() as name:
        folder, asked = (options.index, texts(options.queries)) if options.index else made_up(Path(name), options)
        measure(folder, asked, options)


def cpu_s(process: int) -> float:
    """CPU time that a process has used."""
    fields = Path(f"/proc/{process}/stat").read_text().rpartition(")")[2].split()
    return (int(fields[11]) + int(fields[12])) / os.sysconf("SC_CLK_TCK")


def measure(folder: Path, asked: list[dict[str, Any]], options: argparse.Namespace) -> None:
    bodies = [json.dumps({**query, "k": K, "matches": MATCHES}).encode() for query in asked]
    direct = Direct(folder, asked)
    found: dict[tuple[str, int], list[tuple[float, ...]]] = {}
    print(f"{os.cpu_count()} cores, load before: {os.getloadavg()[0]:.1f}", flush=True)
    for number in range(options.rounds):
        for name, given in SETTINGS.items():
            with service(folder, *given) as (port, process), ProcessPoolExecutor(1) as pool:
                if number == 0:
                    direct.check(answers(port, bodies))
                pool.submit(load, port, bodies, 8, 0.5).result()
                for clients in options.clients:
                    before = cpu_s(process)
                    times = pool.submit(load, port, bodies, clients, options.seconds).result()
                    cpu = 1e3 * (cpu_s(process) - before) / len(times)
                    cuts = np.percentile(np.array(times) * 1e3, (50, 95, 99))
                    found.setdefault((name, clients), []).append((len(times) / options.seconds, *cuts.tolist(), cpu))
    print("\n| clients | | requests/s | p50, ms | p95, ms | p99, ms | CPU, ms a request |")
    print("|---:|---|---:|---:|---:|---:|---:|")
    for (name, clients), rounds in sorted(found.items(), key=lambda entry: entry[0][1]):
        rate, *rest = (statistics.median(column) for column in zip(*rounds))
        print(f"| {clients} | {name} | {rate:.0f} | " + " | ".join(f"{value:.2f}" for value in rest) + " |")
    for size in (1, 32):
        with ThreadPoolExecutor(1) as thread:  # as in the service: torch works otherwise in the main thread
            wall, cpu = thread.submit(direct.cost_ms, size, options.seconds).result()
        print(f"\nWithout HTTP, {size} at a time: {wall:.2f} ms a query, {1e3 / wall:.0f} a second; {cpu:.2f} ms CPU")


if __name__ == "__main__":
    main()
