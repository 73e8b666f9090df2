"""What 10^7, 10^8 and 10^9 documents need, from what smaller collections are measured to need.

    python bench/capacity.py measure          # bench/capacity.json; 20 minutes, 24 GiB, 20 GB of disk, alone
    python bench/capacity.py measure --sizes 50000 100000 --shards 2 50000 --texts 500 --out out/capacity.json
    python bench/capacity.py report --write   # the tables of docs/capacity.md from bench/capacity.json

Documents are made up (bench/collection.py). Each size is made, built and saved in a process of its own, so that
the peak of its memory is its own, then searched on one thread, memory-mapped.
"""

from __future__ import annotations

import argparse
import json
import multiprocessing
import os
import queue
import sys
import tempfile
import threading
import time
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import scipy.sparse
import torch
from capacity_sums import BATCH, PAGE, simulate, tables
from collection import QUERY_TERMS, Language, make_documents
from machine import environment
from stair.cluster.shards import merged
from stair.files import replacing
from tables import write_tables

import stair_kernels as sk

ROOT = Path(__file__).resolve().parent.parent
RECORD = ROOT / "bench" / "capacity.json"
K, QUERIES, REPEATS, SEED = 10, 400, 5, 1
SIZES, SHARDS = (100_000, 200_000, 400_000, 1_000_000, 2_000_000, 4_000_000), (10, 1_000_000)
FAN_OUT = (1, 2, 4, 8)  # workers of Ray
LOADS = (0.3, 0.6)  # of what two threads can answer at most, for the comparison with the simulation


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("command", choices=("measure", "report"))
    parser.add_argument("--sizes", type=int, nargs="+", default=SIZES, help="documents of a single index")
    parser.add_argument("--shards", type=int, nargs=2, default=SHARDS, metavar=("NUMBER", "DOCUMENTS"))
    parser.add_argument("--fan-out", type=int, nargs="+", default=FAN_OUT, help="workers of Ray, a small shard each")
    parser.add_argument("--texts", type=int, default=4000, help="texts that are encoded")
    parser.add_argument("--out", type=Path, default=RECORD, help="the record")
    parser.add_argument("--write", action="store_true", help=f"put the tables into {PAGE.relative_to(ROOT)}")
    options = parser.parse_args()
    if options.command == "measure":
        with tempfile.TemporaryDirectory(dir=options.out.parent) as folder:
            record = measure(options, Path(folder))
        options.out.parent.mkdir(parents=True, exist_ok=True)
        with replacing(options.out) as stream:
            json.dump(record, stream)
    made = tables(json.loads(options.out.read_text()))
    print(*made.values(), sep="\n\n")
    if options.write:
        write_tables(PAGE, made)
    return 0


def measure(options: argparse.Namespace, folder: Path) -> dict[str, Any]:
    torch.set_num_threads(1)
    number, documents = options.shards
    queries = make_queries()
    record: dict[str, Any] = {**environment(torch.device("cpu"), 1), "k": K, "indexes": [], "terms": []}
    record["encode_per_second"] = encoding(options.texts)
    shards: list[sk.SparseIndex] = []
    for shard in range(number):
        built = alone(build, folder / f"shard-{shard}", documents, shard)
        shards.append(sk.SparseIndex.open(folder / f"shard-{shard}"))
        say(f"shard {shard + 1} of {number}: {built}")
    for size in options.sizes:
        place = folder / f"single-{size}"
        line = {"documents": size, **alone(build, place, size, 0), **searching(place, queries)}
        record["indexes"].append(line)
        say(str({name: value for name, value in line.items() if name != "query_us"}))
    record["sharded"] = {"shards": number, "documents": documents, **searching_shards(shards, queries)}
    record["two_shards"] = [two_shards(shards[:2], queries, load) for load in LOADS]
    record["fan_out"] = fan_out(folder, queries[:BATCH], options.fan_out)
    return record


def say(text: str) -> None:
    print(text, file=sys.stderr, flush=True)


def alone(function: Any, *arguments: Any) -> Any:
    """The function's result, from a process of its own."""
    with multiprocessing.get_context("spawn").Pool(1) as pool:
        return pool.apply(function, arguments)


def build(place: Path, N: int, part: int) -> dict[str, float]:
    """Documents [part * N, (part + 1) * N) of the collection, built and saved; seconds and memory."""
    rows = make_documents(language(part), N)
    before = forget_peak()
    start = time.perf_counter()
    index = sk.SparseIndex.build(rows, np.arange(part * N, (part + 1) * N))
    build_s = time.perf_counter() - start
    build_mb = memory_mb("VmHWM") - before
    check(index, rows)
    saving = time.perf_counter()
    index.save(place)
    stats = index.stats()
    return {
        "terms": rows.nnz / N,
        "bytes": stats["bytes"],
        "postings": stats["postings"],
        "build_s": round(build_s, 2),
        "save_s": round(time.perf_counter() - saving, 2),
        "build_mb": round(max(build_mb, 0.1), 1),  # where nothing was taken anew, the process had it already
    }


def forget_peak() -> float:
    """Linux begins anew to note the most memory that this process holds; what it holds now, MB."""
    Path("/proc/self/clear_refs").write_text("5")
    return memory_mb("VmRSS")


def memory_mb(name: str) -> float:
    line = next(line for line in Path("/proc/self/status").read_text().splitlines() if line.startswith(name))
    return int(line.split()[1]) / 1024


def check(index: sk.SparseIndex, rows: scipy.sparse.csr_matrix) -> None:
    """Some documents as queries, beside all their products: a wrong score ends the run."""
    asked = rows[:: max(1, rows.shape[0] // 3)][:3]
    scores = index.search(asked, K)[0].numpy()
    dense = (rows @ asked.T.tocsr()).toarray().T
    expected = -np.sort(-dense, axis=1)[:, :K]
    if not np.allclose(scores, expected, rtol=1e-5, atol=0):
        sys.exit(f"{rows.shape[0]} documents: {scores} instead of {expected}")


def language(part: int) -> Language:
    """The same topics and terms for every part, with draws of its own."""
    made = Language(np.random.default_rng(SEED))
    made.random = np.random.default_rng([SEED, part])
    return made


def make_queries() -> scipy.sparse.csr_matrix:
    return language(1 << 20).about(QUERIES, QUERY_TERMS)


def searching(place: Path, queries: scipy.sparse.csr_matrix) -> dict[str, Any]:
    """Time to open; [REPEATS][QUERIES] microseconds of queries one at a time on one thread, from Python."""
    os.sync()  # what is still being written would be timed too
    start = time.perf_counter()
    index = sk.SparseIndex.open(place)
    open_ms = (time.perf_counter() - start) * 1e3
    rows = [queries[q] for q in range(queries.shape[0])]
    times = []
    for repeat in range(-1, REPEATS):  # the first reads the files
        taken = []
        for row in rows:
            start = time.perf_counter()
            index.search(row, K, n_threads=1)
            taken.append(round((time.perf_counter() - start) * 1e6, 1))
        times += [taken] if repeat >= 0 else []
    return {"open_ms": round(open_ms, 2), "query_us": times}


def searching_shards(shards: Sequence[sk.SparseIndex], queries: scipy.sparse.csr_matrix) -> dict[str, Any]:
    """One query at a time through all shards on one thread: microseconds of the search and of the merge."""
    os.sync()
    search, merge = [], []
    for q in [*range(queries.shape[0])] * 2:  # the first time reads the files
        start = time.perf_counter()
        parts = [shard.search(queries[q], K, n_threads=1) for shard in shards]
        between = time.perf_counter()
        merged([(scores.numpy(), ids.numpy()) for scores, ids in parts], K)
        search.append(round((between - start) * 1e6, 1))
        merge.append(round((time.perf_counter() - between) * 1e6, 1))
    return {"search_us": search[queries.shape[0] :], "merge_us": merge[queries.shape[0] :]}


def two_shards(shards: Sequence[sk.SparseIndex], queries: scipy.sparse.csr_matrix, load: float) -> dict[str, Any]:
    """Queries that arrive at random at two shards, each with a thread of its own: measured, and simulated.

    The simulation has the times that the queries take while both threads are at work, which share memory and Python;
    `load` is the share of the time that a shard is busy then.
    """
    rows = [queries[q] for q in range(queries.shape[0])]
    alone_us, together_us = (
        np.median([timed(rows, at_a_time) for _ in range(3)], 0) for at_a_time in (shards[:1], shards)
    )
    random = np.random.default_rng(SEED)
    asked = random.integers(0, len(rows), 20 * len(rows))
    gaps = random.exponential(together_us.mean() / load, len(asked))
    found = open_loop(shards, [rows[q] for q in asked], np.cumsum(gaps))
    expected = simulate(together_us[asked], gaps)
    places = (50, 95, 99)
    return {
        "load": load,
        "alone_us": round(float(alone_us.mean()), 1),
        "together_us": round(float(together_us.mean()), 1),
        "measured_us": [round(float(v), 1) for v in np.percentile(found, places)],
        "simulated_us": [round(float(v), 1) for v in np.percentile(expected, places)],
    }


def fan_out(folder: Path, queries: scipy.sparse.csr_matrix, numbers: Sequence[int]) -> list[dict[str, float]]:
    """Microseconds of a call on Ray, of one query and of all of them, by the number of workers; little to search.

    One process asks workers on this machine, which share its cores: what sending, answering and merging takes.
    """
    from cluster import save_shards  # which needs Ray, as little else here does
    from stair.cluster.ray import RayPool, open_on

    documents = make_documents(language(0), 1000)
    found = []
    for number in numbers:
        place = folder / f"fan-out-{number}"
        save_shards(place, documents, number)
        with RayPool(workers=number, cpus=0.1) as pool:
            index = open_on(pool, place)
            spent: dict[str, list[float]] = {"call_us": [], "batch_us": []}
            for repeat in range(-1, 20 * REPEATS):  # the first warms up
                for name, asked in (("call_us", queries[repeat % queries.shape[0]]), ("batch_us", queries)):
                    start = time.perf_counter()
                    index.search(asked, K)
                    spent[name] += [(time.perf_counter() - start) * 1e6] if repeat >= 0 else []
        found.append({"workers": number, **{name: round(float(np.median(us)), 1) for name, us in spent.items()}})
        say(str(found[-1]))
    return found


def timed(rows: Sequence[scipy.sparse.csr_matrix], shards: Sequence[sk.SparseIndex]) -> np.ndarray:
    """[queries, shards] microseconds, each shard asked by a thread of its own, all of them at work to the end."""
    taken = np.zeros((len(rows), len(shards)))

    def ask(i: int) -> None:
        for q, row in enumerate(rows):
            start = time.perf_counter()
            shards[i].search(row, K, n_threads=1)
            taken[q, i] = (time.perf_counter() - start) * 1e6

    threads = [threading.Thread(target=ask, args=(i,)) for i in range(len(shards))]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    return taken


def open_loop(
    shards: Sequence[sk.SparseIndex], rows: Sequence[scipy.sparse.csr_matrix], arrivals_us: np.ndarray
) -> np.ndarray:
    """Microseconds from each query's arrival to its last shard's answer; nobody waits for an answer before asking."""
    done = np.zeros((len(rows), len(shards)))
    waiting: list[queue.SimpleQueue[int | None]] = [queue.SimpleQueue() for _ in shards]

    def serve(i: int) -> None:
        while (q := waiting[i].get()) is not None:
            shards[i].search(rows[q], K, n_threads=1)
            done[q, i] = time.perf_counter()

    threads = [threading.Thread(target=serve, args=(i,)) for i in range(len(shards))]
    interval = sys.getswitchinterval()
    sys.setswitchinterval(1e-4)  # a thread that is due does not wait 5 ms for Python
    for thread in threads:
        thread.start()
    begin = time.perf_counter()
    due = begin + arrivals_us / 1e6
    for q in range(len(rows)):
        time.sleep(max(0.0, due[q] - time.perf_counter()))
        for line in waiting:
            line.put(q)
    for line in waiting:
        line.put(None)
    for thread in threads:
        thread.join()
    sys.setswitchinterval(interval)
    return (done.max(axis=1) - due) * 1e6


def encoding(n_texts: int) -> dict[str, float]:
    """Texts a second through SPLADE-tiny and the fused head on one thread, by the number of words: medians."""
    from stair.pretrained import initial_model

    model, processor = initial_model()
    model.eval()
    given = {words: list(_texts(n_texts * 8 // words, words)) for words in (8, 32, 128)}
    rates: dict[int, list[float]] = {words: [] for words in given}
    for repeat in range(-1, REPEATS):  # the first warms up
        for words, texts in given.items():
            start = time.perf_counter()
            with torch.inference_mode():
                for first in range(0, len(texts), 32):
                    model.encode_text(**processor(text=texts[first : first + 32]), k=128)
            rates[words] += [len(texts) / (time.perf_counter() - start)] if repeat >= 0 else []
    return {str(words): round(float(np.median(found)), 1) for words, found in rates.items()}


def _texts(n: int, words: int) -> Iterator[str]:
    from stair.emoji import load_concepts

    known = sorted({word for concept in load_concepts() for word in concept.name.split()})
    random = np.random.default_rng(SEED)
    for _ in range(n):
        yield " ".join(random.choice(known, words))


if __name__ == "__main__":
    sys.exit(main())
