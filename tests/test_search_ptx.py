"""Search as nvcc compiled it, from its PTX: results, bounds of memory, offsets past 2^31, what accesses cost."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from cuda_library import built, program, run
from far import holes
from ptx.traffic import Traffic, measured
from search_cases import RANGE, Csr, Queries, arrays_of, best_of, documents, make_queries
from torch import Tensor

pytestmark = built

THREADS, SECTOR = 256, 32
WORDS = RANGE // 2
CAPACITY = 1024  # of a selection of up to 256
PLAN, TERM = 40, 12  # bytes of the structs
SLOT = 32  # bytes of shared memory for a slot of the query


class Launches:
    """The kernels one after the other, as the launcher starts them. With a `folder` for holes, for the last queries."""

    def __init__(
        self,
        arrays: dict[str, Tensor],
        queries: Queries,
        k: int,
        order: str = "lockstep",
        folder: Path | None = None,
    ) -> None:
        self.arrays, self.queries, self.k, self.order = arrays, queries, k, order
        (self.Q, self.K), self.N = queries[0].shape, len(arrays["ids"])
        self.folder = folder
        self.plans, self.terms = (
            self.new(self.Q * PLAN, dtype=torch.uint8),
            self.new(self.Q * self.K * TERM, dtype=torch.uint8),
        )
        self.best = self.new(self.Q, k)
        V = len(arrays["units"])
        given = [*queries, self.Q, self.K, arrays["units"], V, self.plans, self.terms, self.best, k]
        self.run("plan_queries", "QQqqQqQQQi", given, -(-self.Q // 8))

    def new(self, *shape: int, dtype: torch.dtype = torch.int64) -> Tensor:
        if self.folder:
            return holes(self.folder, *shape, dtype=dtype)
        return torch.full(shape, 7, dtype=dtype)

    def run(self, kernel: str, layout: str, given: list, blocks: int, shared: int = 0, **more: Any) -> None:
        first = blocks - 1 if self.folder else 0
        run(program(kernel), layout, given, (blocks,), shared, self.order, first_block=first, **more)

    def range(self, first: int) -> tuple[Tensor, Traffic]:
        """What search_range finds in a range, [Q, 1, k]."""
        arrays, (V, bounds) = self.arrays, self.arrays["segments"].shape
        postings = [arrays[name] for name in ("term_starts", "segments", "documents", "codes")]
        rows = [arrays[name] for name in ("row_starts", "row_terms", "row_weights")]
        rows.append(arrays["ranks"] if len(arrays["ranks"]) else None)
        flags = arrays["row_terms"].dtype == torch.int32, arrays["row_weights"].dtype == torch.float16
        found = self.new(self.Q, 1, self.k)
        given = [*postings, V, bounds - 1, *rows, *flags, self.plans, self.terms, self.K]
        given += [first, self.best, self.k, CAPACITY, found]
        shared = 4 * WORDS + 8 * CAPACITY + self.K * SLOT
        with measured() as (memory, traffic):
            self.run("search_range", "QQQQqqQQQQ??6xQQqqQiiQ", given, self.Q, shared, memory=memory)
        return found, traffic

    def merge(self, found: Tensor) -> None:
        given = [found, found[0].numel(), self.k, CAPACITY, self.plans, self.best]
        self.run("merge_best", "Qiii4xQQ", given, self.Q, 8 * CAPACITY)

    def results(self) -> tuple[Tensor, Tensor]:
        scores, ids = self.new(self.Q, self.k, dtype=torch.float32), self.new(self.Q, self.k)
        given = [self.plans, self.best, self.Q * self.k, self.k, self.arrays["ids"], scores, ids]
        self.run("write_best", "QQqi4xQQQ", given, -(-self.Q * self.k // THREADS))
        return scores, ids


@pytest.mark.parametrize("order", ["lockstep", "reverse", "shuffled"])
@pytest.mark.parametrize(
    ("N", "V", "M", "K", "k", "kind"), [(300, 70, 5, 40, 10, "words"), (RANGE + 9, 9, 1, 3, 5, "words")]
)
def test_from_ptx_to_the_bit(N: int, V: int, M: int, K: int, k: int, kind: str, order: str) -> None:
    rows, queries = documents(kind, N, V, M), make_queries(kind, 2, V, K)
    launches = Launches(arrays_of(rows), queries, k, order)
    for first in range(-(-N // RANGE)):
        launches.merge(launches.range(first)[0])
    assert all(map(torch.equal, launches.results(), best_of(rows, queries, k)))


def test_an_odd_number_of_postings() -> None:
    """The last lane's second posting is nobody's."""
    rows, queries = documents("one term", 65, 3, 1), (torch.zeros(1, 1).int(), torch.ones(1, 1))
    launches = Launches(arrays_of(rows), queries, 10)
    launches.merge(launches.range(0)[0])
    assert all(map(torch.equal, launches.results(), best_of(rows, queries, 10)))


def far(tensor: Tensor, folder: Path, before: int) -> Tensor:
    """The tensor's elements behind `before` others."""
    longer = holes(folder, before + tensor.numel(), dtype=tensor.dtype)
    longer[before:] = tensor
    return longer


def test_postings_and_rows_past_2_to_the_31(tmp_path: Path) -> None:
    rows, queries = documents("words", 200, 50, 5), make_queries("words", 1, 50, 20)
    arrays, before = arrays_of(rows), 2**31 + 3
    for name in ("documents", "codes", "row_terms", "row_weights"):
        arrays[name] = far(arrays[name], tmp_path, before)
    for name in ("term_starts", "row_starts"):
        arrays[name] = arrays[name] + before
    launches = Launches(arrays, queries, 10)
    launches.merge(launches.range(0)[0])
    assert all(map(torch.equal, launches.results(), best_of(rows, queries, 10)))


def test_queries_past_2_to_the_31(tmp_path: Path) -> None:
    """Q * K slots and Q * k results; the last block runs, and in it the last query has terms."""
    k = K = 200
    Q = 2**31 // K + 9
    rows, (indices, values) = documents("words", 200, 300, 5), make_queries("words", 1, 300, K)
    queries = tuple(far(part.flatten(), tmp_path, (Q - 1) * K).view(Q, K) for part in (indices, values))
    queries[0][-8:-1] = -1
    launches = Launches(arrays_of(rows), queries, k, folder=tmp_path)
    launches.merge(launches.range(0)[0])
    scores, ids = launches.results()
    want = best_of(rows, (indices, values), k)
    assert torch.equal(scores[-1:], want[0])
    assert torch.equal(ids[-1:], want[1])


def cost(rows: Csr) -> Traffic:
    """Of a query of all terms."""
    V = rows.shape[1]
    return Launches(arrays_of(rows), (torch.arange(V)[None].int(), torch.ones(1, V)), 8).range(0)[1]


def test_traffic_of_lists_without_gaps() -> None:
    """What six lists more cost, every document in all of them."""
    N, random = 4096, np.random.default_rng(0)
    weights = random.random((N, 12), np.float32) + np.float32(0.1)
    few, many = cost(Csr(weights[:, :6])), cost(Csr(weights))
    # whole sectors, each once; the rows that are scored are longer
    sectors = 6 * N * 3 // SECTOR
    assert sectors <= many.loads.paid - few.loads.paid <= 1.03 * sectors
    # 32 postings a turn; finding the pieces, and the scores, take a quarter beside
    turns = 6 * N // 32
    assert turns <= many.shared.paid - few.shared.paid <= 1.25 * turns
    # of the rest, the histogram: documents meet in its bins, and in the words of their sums, by chance
    assert few.shared.ratio <= 1.3
    assert few.stores.paid == few.stores.least
