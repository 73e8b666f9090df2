"""What the CUDA C++ kernels (csrc/cuda) should take on an H100 that is not here: predicted, never measured.

    python bench/predict_cuda.py           # prints the table of docs/gpu.md; minutes
    python bench/predict_cuda.py --write   # writes it there

A few blocks of each kernel run in the interpreter of PTX (tests/ptx), on inputs like those of the sizes: what they load
through L2, the turns of the banks that they take and the instructions of their warps are counted and multiplied up.
Instructions are taken times those of the kernel's sm_90a machine code over those of its PTX; atomics of search count as
a read and a write of the banks. Each sum is divided by its rate; the largest is the bound. Left out: latencies, clocks
that fall under load, and PyTorch's own sorts of the indices.
"""

from __future__ import annotations

import argparse
import re
import sys
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from functools import cache
from pathlib import Path

import numpy as np
import torch
from predict import PAGE, SCHEDULERS
from tables import write_tables
from torch import Tensor
from work_sparse import make_rows

from stair_kernels import SparseIndex, SparseRows, index_gpu

sys.path.append(str(Path(__file__).resolve().parent.parent / "tests"))  # the interpreter, and how it starts the kernels
import test_search_ptx as search_launches
import test_sparse_dot_ptx as sparse_dot_launches
from cuda_library import cuobjdump, program, run
from ptx.traffic import Traffic, measured

SECTOR_BYTES = 32
V = 30522


@dataclass(frozen=True)
class Card:
    """Published rates; of L2 an assumption, and so is the time from the end of a launch to the next."""

    mem_gbps: float
    l2_gbps: float
    multiprocessors: int
    clock_ghz: float
    launch_ms: float


H100 = Card(3350, 5500, 132, 1.755, 0.003)


@dataclass(frozen=True)
class Cost:
    """What a kernel moves and does, all blocks together."""

    kernel: str
    sizes: str
    mem_bytes: float
    l2_bytes: float
    turns: float
    instructions: float
    launches: int = 1
    share: int = 1  # times are of one of so many: a query of a batch

    def parts_ms(self, card: Card = H100) -> dict[str, float]:
        clocks = 1e6 * card.multiprocessors * card.clock_ghz  # of all multiprocessors in a millisecond
        parts = {
            "memory": self.mem_bytes / card.mem_gbps / 1e6,
            "L2": self.l2_bytes / card.l2_gbps / 1e6,
            "banks": self.turns / clocks,
            "issue": self.instructions / SCHEDULERS / clocks,
            "launches": self.launches * card.launch_ms,
        }
        return {name: part / self.share for name, part in parts.items()}

    def total_ms(self) -> float:
        """The largest bound, and the launches."""
        parts = self.parts_ms()
        return parts.pop("launches") + max(parts.values())


@cache
def machine_code() -> dict[str, int]:
    """How many instructions each kernel of the library has for sm_90a."""
    parts = cuobjdump("-sass", "-arch", "sm_90a").split("Function : ")[1:]
    return {part.split()[0]: len(re.findall(r"/\*[0-9a-f]{4,}\*/ +(?!NOP)\S.*? ;", part)) for part in parts}


def instructions(traffic: Traffic, kernel: str, of: str = "") -> float:
    """Those of the interpreter, as machine code."""
    compiled = program(kernel, of)
    return traffic.instructions * machine_code()[compiled.kernel.name] / len(compiled.steps)


def topk(B: int, k: int) -> Cost:
    """Of a row of normal numbers."""
    dense, values, indices = torch.randn(1, V), torch.zeros(1, k), torch.zeros(1, k, dtype=torch.int32)
    with measured() as (memory, traffic):
        given = [dense, V, V, k, 1024, k, None, values, indices]
        run(program("topk_rows", "f"), "QqqiiqQQQ", given, (1,), 8192, "lockstep", memory)
    row_bytes = (traffic.loads.paid + traffic.stores.paid) * SECTOR_BYTES
    work = B * traffic.shared.paid, B * instructions(traffic, "topk_rows", "f")
    return Cost("topk", f"B={B:,}, V={V:,}, k={k}, float32", B * row_bytes, B * row_bytes, *work)


def rows_of(N: int, K: int, seed: int) -> SparseRows:
    return SparseRows.from_csr(make_rows(N, K, V, seed))


def sparse_dot(Q: int, N: int, K: int) -> Iterator[Cost]:
    """Of 4 queries and a range of documents, forward and the gradient of the queries."""
    queries, documents = 4, sparse_dot_launches.RANGE
    a, b = rows_of(queries, K, 1), rows_of(documents, K, 2)
    blocks, sizes = Q / queries * N / documents, f"Q=N={N:,}, K={K}, V={V:,}"
    postings, scores = 8.0 * N * K, 4.0 * Q * N
    for name, kernel, traffic in (
        ("sparse_dot", "score_rows", sparse_dot_launches.scores(a, b)[1]),
        ("sparse_dot, a gradient", "grad_rows", sparse_dot_launches.gradient(torch.randn(queries, documents), a, b)[1]),
    ):
        l2_bytes = blocks * traffic.loads.paid * SECTOR_BYTES
        work = blocks * traffic.shared.paid, blocks * instructions(traffic, kernel)
        yield Cost(name, sizes, postings + scores, l2_bytes, *work)


def rows_backward(B: int, L: int, K: int, D: int) -> Iterator[Cost]:
    """vocab_topk's: of the tokens of a row, and of 64 columns."""
    rows = rows_of(B, K, 1)
    indices = torch.where(rows.indices < 0, V, rows.indices)
    positions, columns = torch.randint(0, L, indices.shape).int(), torch.randint(0, V, (64,)).sort().values
    factors, n = torch.rand(indices.shape), indices.numel()
    sorted_indices, order = indices.flatten().sort(stable=True)
    starts = torch.searchsorted(sorted_indices, torch.arange(V + 1).int()).int()
    tokens = (order // K * L + positions.flatten()[order]).int()
    weight, hidden = torch.rand(V, D).bfloat16(), torch.rand(B * L, D).bfloat16()
    of_row = [indices[:1].contiguous(), positions[:1].contiguous(), factors[:1].contiguous(), None, 1, L, K]
    of_columns = [starts, tokens, factors, columns]
    sizes = f"B={B:,}, L={L}, K={K}, D={D}, V={V:,}, bfloat16"
    for name, of, operand, count, blocks, layout, given in (
        ("vocab_topk's gradient of hidden", "OfToken", weight, L, B, "QQQQiii4x", of_row),
        ("vocab_topk's gradient of weight", "OfColumn", hidden, 64, V / 64, "QQQQ", of_columns),
    ):
        kernel, out = rf"NS_8BFloat16ENS_\w*{of}", torch.zeros(count, D).bfloat16()
        with measured() as (memory, traffic):
            arguments = [operand, out, count, D, 1, *given]
            grid = -(-count // 8), -(-D // 256)
            run(program("sum_rows", kernel), "QQiii4x" + layout, arguments, grid, 0, "lockstep", memory)
        mem_bytes = operand.nbytes + blocks * out.nbytes + 8.0 * n
        work = blocks * traffic.shared.paid, blocks * instructions(traffic, "sum_rows", kernel)
        yield Cost(name, sizes, mem_bytes, blocks * traffic.loads.paid * SECTOR_BYTES, *work)


def search(documents: int, M: int, K: int, k: int, batches: Sequence[int]) -> Iterator[Cost]:
    """Of 4 queries in a range that nothing is known of, and in one that the best of another has been merged for."""
    queries, of_range = 4, search_launches.RANGE
    rows = rows_of(queries, K, 2)
    terms, order = torch.where(rows.indices < 0, V, rows.indices).sort(1)
    given = torch.where(terms == V, -1, terms), rows.values.gather(1, order)
    csr = make_rows(2 * of_range, M, V, 1)
    arrays = index_gpu.as_tensors(SparseIndex.build(csr)._segments[0], torch.device("cpu"))
    launches = search_launches.Launches(arrays, given, k)
    found, first = launches.range(0)
    launches.merge(found)
    _, later = launches.range(1)
    ranges = -(-documents // of_range)
    matched = [matched_postings(csr[part], given[0]) for part in (slice(of_range), slice(of_range, 2 * of_range))]
    for Q in batches:
        alone = max(min(-(-2 * H100.multiprocessors * 5 // Q), ranges), 1)  # ranges of the first launch
        groups = 1
        while alone * (2**groups - 1) < ranges:
            groups += 1
        cold, warm = alone * Q / queries, (ranges - alone) * Q / queries
        sectors = cold * first.loads.paid + warm * later.loads.paid
        of_rows = SECTOR_BYTES * sectors - 3 * (cold * matched[0] + warm * matched[1])  # and the little else
        postings = 3.0 * min(documents * M, Q * ranges * sum(matched) / 2 / queries)
        merged = 2 * 8.0 * Q * ranges * k
        turns = 2 * (cold * first.shared.paid + warm * later.shared.paid)
        issued = cold * instructions(first, "search_range") + warm * instructions(later, "search_range")
        sizes = f"{documents / 1e6:.1f} M documents of {M} terms, {Q:,} queries of {K}, k={k}"
        l2_bytes = sectors * SECTOR_BYTES + merged
        yield Cost("search, a query", sizes, postings + of_rows + merged, l2_bytes, turns, issued, 2 + 2 * groups, Q)


def matched_postings(csr: object, terms: Tensor) -> float:
    """How many postings of the documents belong to terms of the queries."""
    counts = np.asarray((csr != 0).sum(0)).ravel()
    return float(counts[terms[terms >= 0].numpy()].sum())


def table(costs: Sequence[Cost]) -> str:
    """Markdown; times in microseconds."""
    parts = "memory", "L2", "banks", "issue", "launches"
    head = ("kernel", "sizes", *parts, "total", "bound")
    lines = ["| " + " | ".join(("predicted, us", *head[1:])) + " |", "| --- | --- " + "| ---: " * 6 + "| --- |"]
    for cost in costs:
        times = cost.parts_ms()
        bound = max(parts, key=lambda name: times[name])
        cells = [f"{1e3 * times[name]:,.1f}" for name in parts]
        lines.append(f"| {cost.kernel} | {cost.sizes} | {' | '.join(cells)} | {1e3 * cost.total_ms():,.1f} | {bound} |")
    return "\n".join(lines)


def all_costs() -> Iterator[Cost]:
    torch.manual_seed(0)
    yield topk(1024, 256)
    yield from sparse_dot(16384, 16384, 64)
    yield from rows_backward(1024, 64, 256, 768)
    yield from search(8_800_000, 120, 45, 10, (1024, 1))
    yield from search(8_800_000, 120, 45, 100, (1024,))


def main(arguments: Sequence[str] | None = None) -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--write", action="store_true", help="write the table into docs/gpu.md")
    options = parser.parse_args(arguments)
    made = table(list(all_costs()))
    write_tables(PAGE, {"predicted CUDA kernels": made}) if options.write else print(made)
    return 0


if __name__ == "__main__":
    sys.exit(main())
