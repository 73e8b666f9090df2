"""What shards and workers cost and gain: a query over one index, over shards here and on Ray; encoding with 1 and 2.

    python bench/cluster.py --documents 100000 --shards 2 --queries 50 --passes 5

Every answer is compared with the one index's before anything is timed; the three are timed in turn.
"""

from __future__ import annotations

import argparse
import json
import sys
import tempfile
import time
from pathlib import Path
from statistics import median
from typing import Any

import numpy as np
import torch
from collection import make_collection
from stair.cluster import layout
from stair.cluster.layout import Manifest
from stair.cluster.ray import RayPool, open_on
from stair.cluster.shards import ShardedIndex
from stair.cluster.work import encode_parts
from stair.encode import Input

from stair_kernels import SparseIndex

ROOT = Path(__file__).resolve().parents[1]


def save_shards(folder: Path, rows: Any, shards: int) -> None:
    with layout.building(folder) as staging:
        made = [
            layout.write_shard(staging, number, SparseIndex.build(rows[first:end], np.arange(first, end)))
            for number, (first, end) in enumerate(layout.ranges(rows.shape[0], shards))
        ]
        layout.finish(staging, Manifest(tuple(made)))


def searching(options: argparse.Namespace, folder: Path, pool: RayPool) -> None:
    made = make_collection(options.documents, options.queries, 0)
    queries = made.queries["plain"]
    SparseIndex.build(made.documents).save(folder / "one")
    save_shards(folder / "many", made.documents, options.shards)
    indexes: dict[str, Any] = {
        "one index": SparseIndex.open(folder / "one"),
        "shards here": ShardedIndex.open(folder / "many"),
        "shards on Ray": open_on(pool, folder / "many"),
    }
    for batch in (1, options.queries):
        groups = [queries[first : first + batch] for first in range(0, options.queries, batch)]
        times: dict[str, list[float]] = {name: [] for name in indexes}
        for number in range(options.passes + 1):
            for group in groups:
                expected = indexes["one index"].search(group, 10)
                for name, index in indexes.items():
                    start = time.perf_counter()
                    found = index.search(group, 10)
                    spent = time.perf_counter() - start
                    assert all(torch.equal(a, b) for a, b in zip(found, expected)), name
                    if number:  # the first pass warms up
                        times[name].append(1e6 * spent / batch)
        shown = {name: round(median(spent), 1) for name, spent in times.items()}
        print(json.dumps({"queries a call": batch, "median us a query": shown}))


def encoding(options: argparse.Namespace, folder: Path) -> None:
    texts = [Input(f"{i}", text=f"a w{i % 60} red w{i * 7 % 60} dog {i}") for i in range(options.texts)]
    rates: dict[int, list[float]] = {1: [], 2: []}
    for number in range(options.passes + 1):
        for workers, pool in options.pools.items():
            start = time.perf_counter()
            encode_parts(texts, options.model, folder / f"rows{workers}", pool=pool)
            if number:  # the first pass loads the model
                rates[workers].append(len(texts) / (time.perf_counter() - start))
    print(json.dumps({"texts/s": {workers: round(median(found), 1) for workers, found in rates.items()}}))


def random_model(folder: Path) -> Path:
    """A checkpoint of random weights, four layers of width 256, over the tests' 80 words."""
    from stair import STAIRConfig, STAIRModel, STAIRProcessor

    sys.path.insert(0, str(ROOT / "tests"))
    from tiny_stair import VISION, tokenizer

    sizes = {"hidden_size": 256, "num_hidden_layers": 4, "num_attention_heads": 4, "intermediate_size": 1024}
    STAIRModel(STAIRConfig(text_config={"vocab_size": 80, **sizes}, vision_config=VISION)).save_pretrained(folder)
    STAIRProcessor(tokenizer(), image_size=32, max_length=16).save_pretrained(folder)
    return folder


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--documents", type=int, default=100_000)
    parser.add_argument("--shards", type=int, default=2)
    parser.add_argument("--queries", type=int, default=50)
    parser.add_argument("--texts", type=int, default=2000)
    parser.add_argument("--passes", type=int, default=5)
    options = parser.parse_args()
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        options.model = random_model(folder / "model")
        with RayPool(workers=2, cpus=0.5) as two, RayPool(workers=1, cpus=0.5) as one:
            options.pools = {1: one, 2: two}
            searching(options, folder, two)
            encoding(options, folder)


if __name__ == "__main__":
    main()
