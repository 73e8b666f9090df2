"""Times exact search beside a plain C loop over inverted lists, one query at a time on one thread.

    python bench/search.py                                     # 100,000 and 400,000 made-up documents
    python bench/search.py --documents 100000 --seed 7 --queries 100
    python bench/search.py --wordnet                           # 117,659 glosses of WordNet, and whether they are found
    python bench/search.py --collection out/demo/index         # what `stair index` or `make demo` wrote, asked by name

Each kind of query is first answered by both and compared; a wrong answer ends the run with exit code 1. Then passes of
the two alternate; the least of a query's times counts, as other work on the machine only adds to them. The batch on two
threads is judged by CPU time as well: on a busy machine a second core is not always there.
"""

from __future__ import annotations

import argparse
import ctypes
import sys
import time
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import scipy.sparse
import torch
from collection import make_collection
from native import compiled_library
from stair.checkpoint import load
from stair.formats.documents import as_csr
from stair.search import Collection
from wordnet import wordnet

import stair_kernels as sk
from stair_kernels import _index

ROOT = Path(__file__).resolve().parent.parent
K = 10
BATCH = 256


class Yardstick:
    """The C loop over the inverted lists of the documents."""

    def __init__(self, documents: scipy.sparse.csr_matrix) -> None:
        lists = documents.T.tocsr()
        library = ctypes.CDLL(str(compiled_library(ROOT / "bench" / "taat.cpp", ROOT / "build" / "bench")))
        self.search = library.term_at_a_time
        self.arrays = [lists.indptr.astype(np.int64), lists.indices.astype(np.int32), lists.data.astype(np.float32)]
        self.sums = np.zeros(documents.shape[0] + 16, np.float32)
        self.ids, self.scores = np.zeros(K, np.int32), np.zeros(K, np.float32)

    def call(self, query: scipy.sparse.csr_matrix) -> Any:
        """A function of no arguments that answers the query into ids and scores."""
        terms, weights = query.indices.astype(np.int32), query.data.astype(np.float32)
        arrays = [*self.arrays, terms, weights]
        pointers = [ctypes.c_void_p(array.ctypes.data) for array in arrays]
        N = len(self.sums) - 16
        rest = [ctypes.c_void_p(self.ids.ctypes.data), ctypes.c_void_p(self.scores.ctypes.data)]
        sums = ctypes.c_void_p(self.sums.ctypes.data)
        size, count, k = (ctypes.c_int64(number) for number in (len(terms), N, K))

        def run(arrays: list[np.ndarray] = arrays) -> None:  # holds what the pointers point to
            self.search(*pointers, size, sums, count, k, *rest)

        return run


def compare(
    index: sk.SparseIndex, yardstick: Yardstick, queries: scipy.sparse.csr_matrix, kind: str, tolerance: float
) -> None:
    scores, ids = (part.numpy() for part in index.search(queries, K))
    for q in range(queries.shape[0]):
        yardstick.call(queries[q])()
        expected = np.where(yardstick.ids >= 0, yardstick.scores, -np.inf)
        # The same products in the same order; the loop's compiler may fuse multiply-adds.
        if not np.allclose(scores[q], expected, rtol=tolerance, atol=0) or ((ids[q] < 0) != (yardstick.ids < 0)).any():
            sys.exit(f"{kind}: query {q} is wrong: {scores[q]} {ids[q]}, the C loop has {expected} {yardstick.ids}")


def times_us(calls: list[list[Any]], passes: int) -> np.ndarray:
    """[implementations, queries]: the least over passes that take turns."""
    times = np.zeros((passes, len(calls), len(calls[0])))
    for number in range(-1, passes):
        for i, of_one in enumerate(calls):
            of_one[0]()  # brings back what the other pushed out of the caches
            for q, call in enumerate(of_one):
                start = time.perf_counter()
                call()
                times[max(number, 0), i, q] = time.perf_counter() - start
    return np.min(times, axis=0) * 1e6


def batch_speedup(engine: Any, queries: scipy.sparse.csr_matrix, passes: int) -> tuple[float, float]:
    """How much faster a batch is on two threads than on one: by the clock, and if each thread had a core to itself."""
    batch = _rows(queries[np.resize(np.arange(queries.shape[0]), BATCH)])
    calls = [[partial(engine.search, batch, K, n)] for n in (1, 2)]
    one, two = times_us(calls, 4 * passes)[:, 0]
    cpu = np.zeros((2, 4 * passes))
    for number in range(4 * passes):
        for i, (call,) in enumerate(calls):
            start = time.process_time()
            call()
            cpu[i, number] = time.process_time() - start
    return float(one / two), float(2 * cpu[0].min() / cpu[1].min())


def _rows(queries: scipy.sparse.csr_matrix) -> _index.Rows:
    return _index.Rows(queries.indptr, queries.indices, queries.data, queries.shape[1], False)


def made_up(N: int, options: argparse.Namespace) -> None:
    run(*make_collection(N, options.queries, options.seed), options)


def real(options: argparse.Namespace) -> None:
    """The glosses of WordNet; a query is a gloss's lemmas, and finds that gloss or not."""
    collection = wordnet()
    run(collection.documents, {"lemmas": collection.queries[: options.queries]}, options)
    index = sk.SparseIndex.build(collection.documents)
    ids = index.search(collection.queries, 100, n_threads=2)[1].numpy()
    place = ids == collection.answers[:, None]
    found = [100 * place[:, :k].any(axis=1).mean() for k in (1, 10, 100)]
    print(
        f"\nThe own gloss of {len(ids):,} lemmas among the first 1 / 10 / 100: "
        + " / ".join(f"{r:.1f}%" for r in found)
    )


def collected(options: argparse.Namespace) -> None:
    """The items of a collection; a query is an item's name."""
    run(*named_items(options.collection, options.queries), options)


def named_items(folder: Path, Q: int) -> tuple[scipy.sparse.csr_matrix, dict[str, scipy.sparse.csr_matrix]]:
    """The rows of a collection's items, and the names of Q of them as its model encodes them."""
    collection = Collection.open(folder)
    model, processor = load(collection.model_dir)
    documents = collection.index.rows(collection.index.ids)
    names = sorted({item["name"] for item in collection.items})
    asked = [names[i] for i in np.random.default_rng(0).permutation(len(names))[:Q]]
    with torch.inference_mode():
        parts = [as_csr(model.encode_text(**processor(text=asked[i : i + 64]))) for i in range(0, len(asked), 64)]
    return documents, {"names": scipy.sparse.vstack(parts, "csr")}


def run(
    documents: scipy.sparse.csr_matrix, kinds: dict[str, scipy.sparse.csr_matrix], options: argparse.Namespace
) -> None:
    N = documents.shape[0]
    start = time.perf_counter()
    index = sk.SparseIndex.build(documents, **options.build)
    build_s = time.perf_counter() - start
    stats = index.stats()
    yardstick = Yardstick(documents)
    print(
        f"\n{N} documents, {documents.nnz / N:.0f} terms each; build {build_s:.2f} s "
        f"({build_s * 1e5 / N:.2f} s per 100,000), {stats['bytes'] / stats['postings']:.2f} bytes a posting\n"
    )
    print("| queries | terms | postings | C loop, us | ours, us | ratio of medians | of means | least |")
    print("|---|---:|---:|---:|---:|---:|---:|---:|")
    counts = np.bincount(documents.indices, minlength=documents.shape[1])
    hard: list[np.ndarray] = []  # [2, queries] of each kind but the first
    for number, (kind, queries) in enumerate(kinds.items()):
        compare(index, yardstick, queries, kind, options.tolerance)
        rows = [queries[q] for q in range(queries.shape[0])]
        ours = [partial(index._segments[0].engine.search, _rows(row), K, 1) for row in rows]
        loop, own = times_us([[yardstick.call(row) for row in rows], ours], options.passes)
        hard += [np.stack([loop, own])] if number else []
        postings = counts[queries.indices].sum() / queries.shape[0]
        print(
            f"| {kind} | {queries.nnz / queries.shape[0]:.0f} | {postings:.0f} | {np.median(loop):.1f} | "
            f"{np.median(own):.1f} | {np.median(loop) / np.median(own):.2f} | {loop.mean() / own.mean():.2f} | "
            f"{(loop / own).min():.2f} |"
        )
    if hard:
        loop, own = np.hstack(hard)
        of_means, mean = loop.mean() / own.mean(), np.mean(loop / own)
        print(f"\nAll kinds but the first together: ratio of means {of_means:.2f}, mean of ratios {mean:.2f}")
    speedup = batch_speedup(index._segments[0].engine, next(iter(kinds.values())), options.passes)
    print(f"\nA batch of {BATCH} on 2 threads: {speedup[0]:.2f}x by the clock, {speedup[1]:.2f}x by CPU time")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--documents", type=int, nargs="*", default=[100_000, 400_000])
    parser.add_argument("--wordnet", action="store_true", help="WordNet's glosses (bench/wordnet.py) in their place")
    parser.add_argument("--collection", type=Path, help="the items of a collection in their place")
    parser.add_argument("--queries", type=int, default=200, help="of each kind")
    parser.add_argument("--passes", type=int, default=5)
    parser.add_argument("--seed", type=int, default=1)
    parser.add_argument("--reorder", action="store_true", help="cluster the documents")
    parser.add_argument("--compact", action="store_true", help="float16 rows; answers are then close, not the same")
    options = parser.parse_args()
    options.build = {"reorder": options.reorder, "compact": options.compact}
    options.tolerance = 2e-3 if options.compact else 1e-5
    torch.set_num_threads(1)
    if options.wordnet:
        real(options)
        return
    if options.collection is not None:
        collected(options)
        return
    for N in options.documents:
        made_up(N, options)


if __name__ == "__main__":
    main()
