"""sparse_dot's kernels from the PTX that nvcc made of them, and what their accesses cost."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from cuda_library import built, program, run
from far import holes
from ptx.traffic import Traffic, measured
from test_sparse_dot import gradients, integer_rows
from torch import Tensor

from stair_kernels import SparseRows, reference

pytestmark = built

RANGE = 4096  # documents whose scores a block holds
SECTOR = 32
THREADS = 128


def inverted(b: SparseRows, order: str) -> list[Tensor | int]:
    """The struct Lists, filled by find_lists and make_postings."""
    (N, M), V = b.values.shape, b.vocab_size
    ranges, entries = -(-N // RANGE), N * M
    terms, places = b.indices.reshape(-1).sort(stable=True)
    starts, postings = torch.full((V * ranges + 1,), -9, dtype=torch.int32), torch.full((entries + 1,), -9)
    given = [terms, places, entries, M, ranges, V * ranges, starts]
    run(program("find_lists"), "QQqqqqQ", given, (V * ranges // THREADS + 1,), 0, order, threads=THREADS)
    given = [terms, places, b.values, entries, M, postings]
    run(program("make_postings"), "QQQqqQ", given, (entries // THREADS + 1,), 0, order, threads=THREADS)
    return [postings, starts, ranges, V]


def scores(
    a: SparseRows, b: SparseRows, order: str = "lockstep", score: Tensor | None = None, first_block: int = 0
) -> tuple[Tensor, Traffic]:
    (Q, K), (N, M) = a.values.shape, b.values.shape
    lists, start = inverted(b, order), torch.full((N,), 7.0)
    score = torch.full((Q, N), 7.0) if score is None else score
    run(program("start_scores"), "QqqQ", [b.values, N, M, start], (-(-N // 4),), 0, order, threads=THREADS)
    with measured() as (memory, traffic):
        given = [a.values, a.indices, K, *lists, start, N, score]
        run(program("score_rows"), "QQqQQqqQqQ", given, (Q, lists[2]), 0, order, memory, THREADS, first_block)
    return score, traffic


def gradient(
    upstream: Tensor, a: SparseRows, b: SparseRows, order: str = "lockstep", first_block: int = 0
) -> tuple[Tensor, Traffic]:
    (Q, K), N = a.values.shape, len(b)
    lists, grads = inverted(b, order), torch.full((Q, K), 7.0)
    with measured() as (memory, traffic):
        given = [upstream, N, a.indices, K, *lists, grads]
        run(program("grad_rows"), "QqQqQQqqQ", given, (Q,), 0, order, memory, THREADS, first_block)
    return grads, traffic


@pytest.mark.parametrize("order", ["lockstep", "reverse", "shuffled"])
@pytest.mark.parametrize(("Q", "N", "K", "V"), [(2, 33, 7, 30), (1, 5, 131, 140), (1, 700, 2, 3)])
def test_from_ptx_to_the_bit(Q: int, N: int, K: int, V: int, order: str) -> None:
    a, b, upstream = integer_rows(Q, K, V), integer_rows(N, K, V), torch.randint(-4, 5, (Q, N)).float()
    assert torch.equal(gradient(upstream, a, b, order)[0], gradients(reference, a, b, upstream)[0])
    a.values[-1, 0], b.values[3, 0] = torch.nan, torch.inf
    b.indices[4] = b.indices[4, 0]  # one term over and over
    assert torch.equal(scores(a, b, order)[0].nan_to_num(99.0), reference.sparse_dot(a, b).nan_to_num(99.0))


def test_several_ranges_from_ptx() -> None:
    a, b, upstream = integer_rows(1, 2, 3), integer_rows(RANGE + 5, 2, 3), torch.randint(-4, 5, (1, RANGE + 5)).float()
    assert torch.equal(scores(a, b)[0], reference.sparse_dot(a, b))
    assert torch.equal(gradient(upstream, a, b)[0], gradients(reference, a, b, upstream)[0])


def test_offsets_past_2_to_the_31(tmp_path: Path) -> None:
    """Q * N: the last block's scores lie there, and what its gradient reads."""
    N, K, V = RANGE, 3, 20
    Q = 2**31 // N + 2
    a = SparseRows(torch.zeros(Q, K), torch.full((Q, K), -1, dtype=torch.int32), None, V)
    last, b, upstream = integer_rows(1, K, V), integer_rows(N, 2, V), torch.randint(-4, 5, (1, N)).float()
    a.values[-1], a.indices[-1] = last.values, last.indices
    score = scores(a, b, score=holes(tmp_path, Q, N, dtype=torch.float32), first_block=Q - 1)[0]
    assert torch.equal(score[-1:], reference.sparse_dot(last, b))
    given = holes(tmp_path, Q, N, dtype=torch.float32)
    given[-1] = upstream
    grads = gradient(given, a, b, first_block=Q - 1)[0]
    assert torch.equal(grads[-1:], gradients(reference, last, b, upstream)[0])


def test_traffic_of_lists_without_gaps() -> None:
    """Every document holds both terms: whole sectors, each once, and a turn of the banks for 32 lanes."""
    N = 2048
    rows = SparseRows(torch.rand(N, 2), torch.arange(2).int().expand(N, 2).contiguous(), None, 2)
    postings, floats = 2 * N * 8 // SECTOR, N * 4 // SECTOR
    for traffic in (scores(rows[:1], rows)[1], gradient(torch.rand(1, N), rows[:1], rows)[1]):
        assert traffic.loads.paid <= 1.02 * (postings + floats), traffic
        assert traffic.shared.ratio <= 1.02, traffic
    stores = scores(rows[:1], rows)[1].stores
    assert stores.paid == stores.least == floats
