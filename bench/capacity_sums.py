"""From capacity.py's measurements to tables: the growth, a fit of it, and what larger collections need."""

from __future__ import annotations

import math
from collections.abc import Sequence
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
from scipy.optimize import nnls

PAGE = Path(__file__).resolve().parent.parent / "docs" / "capacity.md"
DOCUMENTS = (10**7, 10**8, 10**9)
# A machine of the sums: what of its memory the index may take, and a shard for each core.
MEMORY_GB, CORES, FILLED = 256, 32, 0.75
BUSY = (0.1, 0.5)  # of the time
WORDS = "32"
BATCH = 32  # queries of a call on Ray
# Of the encoders on one H100, predicted: BERT-base's 2 x 85 million operations a token at 40 % of 989 TFLOP/s, and the
# head at B=256, L=64, D=768, V=30,522 (docs/gpu.md).
TOKENS, ENCODER_S, HEAD_S = 64, 64 * 170e6 / (0.4 * 989e12), 1.28e-3 / 256


class Fit(NamedTuple):
    """fixed + each * documents."""

    fixed: float
    each: float

    def at(self, documents: float) -> float:
        return self.fixed + self.each * documents


def fit(documents: Sequence[float], values: Sequence[float]) -> Fit:
    """Least squares of the relative errors, neither number below 0: a large size does not outweigh the small ones."""
    x, y = np.asarray(documents, float), np.asarray(values, float)
    (fixed, each), _ = nnls(np.stack([1 / y, x / y], 1), np.ones_like(y))
    return Fit(float(fixed), float(each))


def simulate(service_us: np.ndarray, gaps_us: np.ndarray) -> np.ndarray:
    """Microseconds from each query's arrival to its last shard's answer.

    Args:
        service_us: [queries, shards], what each shard, which answers one query after the other, needs for each.
        gaps_us: [queries], from an arrival to the next.
    """
    arrivals = np.cumsum(gaps_us)
    free = np.zeros(service_us.shape[1])
    done = np.zeros(len(arrivals))
    for q, arrival in enumerate(arrivals):
        free = np.maximum(free, arrival) + service_us[q]
        done[q] = free.max()
    return done - arrivals


def tail(query_us: np.ndarray, shards: int, busy: float, seed: int = 0, queries: int = 20_000) -> tuple[float, float]:
    """Simulated (median, 99th percentile) with `shards` shards like the one measured.

    A long query is long for every shard; how much a single answer differs from the query's median is drawn from the
    repeats, [repeats, queries], for each shard by itself.
    """
    random = np.random.default_rng(seed)
    middle = np.median(query_us, axis=0)
    spread = (query_us / middle).ravel()
    times = random.choice(middle, queries)
    free, done = np.zeros(shards), np.zeros(queries)
    arrivals = np.cumsum(random.exponential(query_us.mean() / busy, queries))
    for q in range(queries):
        free = np.maximum(free, arrivals[q]) + times[q] * random.choice(spread, shards)
        done[q] = free.max() - arrivals[q]
    half, most = np.percentile(done, (50, 99))
    return float(half), float(most)


class Sums(NamedTuple):
    documents: int
    gigabytes: float
    machines: int
    shards: int
    shard_us: float  # mean time of a query in a shard
    per_second: float  # queries that a core can answer, for its shard
    sent: tuple[float, ...]  # a second, from one process to a worker of Ray a machine: one a call, many a call
    tails: tuple[tuple[float, float], ...]  # us, for each of BUSY
    at_a_time: int  # shards of a machine, which its memory lets it build at a time
    rebuild_s: float  # all machines building their shards
    encode_cpu_h: float  # all cores
    encode_gpu_h: float  # one H100, predicted


def sums(record: dict[str, Any], documents: int) -> Sums:
    lines = record["indexes"]
    sizes = [line["documents"] for line in lines]
    size = fit(sizes, [line["bytes"] for line in lines])
    time = fit(sizes, [np.mean(line["query_us"]) for line in lines])
    build = fit(sizes, [line["build_s"] + line["save_s"] for line in lines])
    beside = fit(sizes, [line["build_mb"] * 2**20 for line in lines])
    gigabytes = size.each * documents / 1e9
    machines = math.ceil(gigabytes / (FILLED * MEMORY_GB))
    shards = machines * CORES
    of_shard = documents / shards
    shard_us = time.at(of_shard)
    building = beside.at(of_shard) + 8 * lines[-1]["terms"] * of_shard
    at_a_time = min(CORES, max(1, int(FILLED * MEMORY_GB * 1e9 / building)))
    like = min(lines, key=lambda line: abs(math.log(line["documents"] / of_shard)))
    query_us = np.array(like["query_us"]) * shard_us / np.mean(like["query_us"])
    return Sums(
        documents,
        gigabytes,
        machines,
        shards,
        shard_us,
        1e6 / shard_us,
        tuple(1e6 * queries / us.at(machines) for queries, us in fan_out(record)),
        tuple(tail(query_us, shards, busy) for busy in BUSY),
        at_a_time,
        math.ceil(CORES / at_a_time) * build.at(of_shard),
        documents / (record["encode_per_second"][WORDS] * CORES * machines) / 3600,
        documents * (ENCODER_S + HEAD_S) / 3600,
    )


def fan_out(record: dict[str, Any]) -> tuple[tuple[int, Fit], ...]:
    """Of one query a call and of BATCH: how many, and microseconds by the number of workers."""
    lines = record["fan_out"]
    number = [line["workers"] for line in lines]
    return tuple((n, fit(number, [line[us] for line in lines])) for n, us in ((1, "call_us"), (BATCH, "batch_us")))


def fan_out_table(record: dict[str, Any]) -> str:
    rows = [f"| workers of Ray | a call of one query, us | a call of {BATCH}, us |", "|---:|---:|---:|"]
    rows += [f"| {line['workers']} | {line['call_us']:,.0f} | {line['batch_us']:,.0f} |" for line in record["fan_out"]]
    one, many = (f"{us.fixed:,.0f} + {us.each:,.0f} a worker" for _, us in fan_out(record))
    return "\n".join([*rows, f"| fit | {one} | {many} |"])


def growth_table(record: dict[str, Any]) -> str:
    lines = ["| documents | build, s | save, s | memory beside the rows, MB | bytes a document | open, ms |"]
    lines[0] += " median, us | 99 %, us | mean, ns a document |"
    lines.append("|---:" * 9 + "|")
    for line in record["indexes"]:
        N, times = line["documents"], np.array(line["query_us"])
        half, most = np.percentile(times, (50, 99))
        mean = 1e3 * times.mean() / N
        lines.append(
            f"| {N:,} | {line['build_s']:.2f} | {line['save_s']:.2f} | {line['build_mb']:,.0f} |"
            f" {line['bytes'] / N:,.0f} | {line['open_ms']:.1f} | {half:,.0f} | {most:,.0f} | {mean:.2f} |"
        )
    return "\n".join(lines)


def fit_table(record: dict[str, Any]) -> str:
    lines = record["indexes"]
    sizes = [line["documents"] for line in lines]
    rows = ["| | fixed | for a million documents | largest error of the fit |", "|---|---:|---:|---:|"]
    for name, unit, values in (
        ("size", "MB", [line["bytes"] / 1e6 for line in lines]),
        ("build and save, one core", "s", [line["build_s"] + line["save_s"] for line in lines]),
        ("memory of a build beside the rows", "MB", [line["build_mb"] for line in lines]),
        ("a query, one core, mean", "us", [np.mean(line["query_us"]) for line in lines]),
    ):
        found = fit(sizes, values)
        error = max(abs(found.at(size) / value - 1) for size, value in zip(sizes, values, strict=True))
        rows.append(f"| {name} | {found.fixed:,.2f} {unit} | {found.each * 1e6:,.2f} {unit} | {100 * error:.0f} % |")
    return "\n".join(rows)


def shards_table(record: dict[str, Any]) -> str:
    given = record["sharded"]
    number, of_shard = given["shards"], given["documents"]
    search, merge = np.array(given["search_us"]), np.array(given["merge_us"])
    text = (
        f"{number * of_shard:,} documents in {number} shards of {of_shard:,}, one core"
        f" through all of them: median {np.median(search) / 1e3:.2f} ms, 99 % {np.percentile(search, 99) / 1e3:.2f} ms;"
        f" the merge takes {np.median(merge):.0f} us.\n\n"
    )
    rows = [
        "| two shards, a thread each, busy | mean alone, both at work, us | 50 / 95 / 99 % measured, us | simulated |"
    ]
    rows.append("|---:|---:|---:|---:|")
    for line in record["two_shards"]:
        means = f"{line['alone_us']:,.0f} / {line['together_us']:,.0f}"
        cells = (" / ".join(f"{v:,.0f}" for v in line[name]) for name in ("measured_us", "simulated_us"))
        rows.append(f"| {100 * line['load']:.0f} % | {means} | " + " | ".join(cells) + " |")
    return text + "\n".join(rows)


def sums_table(record: dict[str, Any]) -> str:
    found = [sums(record, documents) for documents in DOCUMENTS]
    rows = [
        "| documents | " + " | ".join(f"{line.documents:,}" for line in found) + " |",
        "|---|" + "---:|" * len(found),
    ]
    for name, cells in (
        ("index, GB", [f"{line.gigabytes:,.0f}" for line in found]),
        (f"machines of {MEMORY_GB} GB, {100 * FILLED:.0f} % filled", [f"{line.machines:,}" for line in found]),
        (f"shards, one for each of {CORES} cores", [f"{line.shards:,}" for line in found]),
        ("documents a shard", [f"{line.documents // line.shards:,}" for line in found]),
        ("a query in a shard, mean, us", [f"{line.shard_us:,.0f}" for line in found]),
        ("core seconds a query", [f"{line.shard_us * line.shards / 1e6:,.3f}" for line in found]),
        ("queries a second at most", [f"{line.per_second:,.0f}" for line in found]),
        (
            f"that one process can send to a Ray worker a machine, one / {BATCH} a call",
            [" / ".join(f"{v:,.0f}" for v in line.sent) for line in found],
        ),
        *(
            (
                f"{100 * busy:.0f} % busy: {busy:g} of that; 50 / 99 % of the answers after, ms",
                [" / ".join(f"{v / 1e3:.2f}" for v in line.tails[i]) for line in found],
            )
            for i, busy in enumerate(BUSY)
        ),
        ("shards of a machine built at a time, for the memory", [f"{line.at_a_time:,}" for line in found]),
        ("rebuild on all machines, s", [f"{line.rebuild_s:,.1f}" for line in found]),
        (f"encode texts of {WORDS} words on all cores, h", [f"{line.encode_cpu_h:,.2f}" for line in found]),
        (
            f"encode texts of {TOKENS} tokens on one H100, **predicted**, h",
            [f"{line.encode_gpu_h:,.2f}" for line in found],
        ),
    ):
        rows.append(f"| {name} | " + " | ".join(cells) + " |")
    return "\n".join(rows)


def tables(record: dict[str, Any]) -> dict[str, str]:
    """Those of PAGE, by name."""
    return {
        "growth": growth_table(record),
        "fit": fit_table(record),
        "shards": shards_table(record),
        "fan-out": fan_out_table(record),
        "sums": sums_table(record),
    }
