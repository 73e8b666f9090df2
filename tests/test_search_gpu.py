"""Search on a GPU, to the bit: as the CPU engine and a plain sum; tests/test_simt.py runs the kernels without one."""

from __future__ import annotations

import re

import numpy as np
import pytest
import torch
from search_cases import HAS_KERNEL, RANGE, Csr, arrays_of, best_of, csr_of, documents, make_queries, on_gpu, searched
from torch import Tensor

from stair_kernels import SparseIndex, SparseRows, cuda, index_gpu

INF = float("inf")


def same(got: tuple[Tensor, Tensor], want: tuple[Tensor, Tensor]) -> bool:
    return all(map(torch.equal, got, want))


@on_gpu
@pytest.mark.parametrize(
    ("N", "V", "M", "Q", "K", "k", "kind"),
    [
        (0, 5, 1, 2, 3, 4, "words"),
        (1, 1, 1, 2, 1, 1, "words"),
        (5, 300, 4, 3, 70, 9, "words"),  # k > N, more terms than lanes
        (66, 5, 1, 2, 5, 100, "words"),  # no posting may be missed: all documents of one term each
        (1500, 600, 1, 1, 600, 2000, "words"),  # the same, with more pieces than the warps look up at a time
        (700, 40, 5, 3, 40, 10, "ties"),
        (RANGE, 1, 1, 1, 1, 100, "ties"),  # more candidates than there is room for, of one score
        (RANGE - 1, 50, 3, 2, 9, 10, "words"),
        (RANGE, 2000, 2, 2, 300, 3, "words"),  # more terms than threads
        (RANGE + 1, 9, 1, 2, 1, 5, "one term"),  # a term in all documents, the last of them alone in its range
        (2 * RANGE + 7, 40, 2, 2, 7, 100, "ties"),
        (5000, 3, 2, 2, 3, 2048, "ties"),
        (900, 70, 5, 3, 20, 300, "tiny"),  # scores that are subnormal, or 0
        (900, 70, 5, 3, 20, 10, "huge"),  # scores that are infinite
    ],
)
def test_shapes_that_break(N: int, V: int, M: int, Q: int, K: int, k: int, kind: str) -> None:
    rows, queries = documents(kind, N, V, M), make_queries(kind, Q, V, K)
    got = searched(arrays_of(rows), queries, k)
    assert same(got, best_of(rows, queries, k))
    assert same(got, SparseIndex.build(rows).search(csr_of(queries, V), k))


@on_gpu
@pytest.mark.parametrize("half", [False, True], ids=["float32", "float16"])
@pytest.mark.parametrize("V", [2**16, 2**16 + 1])
def test_types_of_the_rows(V: int, half: bool) -> None:
    rows, queries = documents("half", 400, V, 9), make_queries("words", 3, V, 30)
    queries[0][0, :9] = torch.from_numpy(rows[[7]].indices)
    queries[0][0] = queries[0][0].sort().values
    arrays = arrays_of(rows, half)
    assert arrays["row_terms"].dtype == (torch.uint16 if V == 2**16 else torch.int32)
    assert arrays["row_weights"].dtype == (torch.float16 if half else torch.float32)
    assert same(searched(arrays, queries, 10), best_of(rows, queries, 10))


@on_gpu
def test_later_groups_know_the_best_so_far() -> None:
    """So many queries that a launch takes one range, then two, then the last: good documents everywhere."""
    N, V, Q, k = 3 * RANGE + 50, 30, 160, 4
    rows = documents("words", N, V, 1)
    indices = torch.arange(Q)[:, None].int() % V
    queries = indices, torch.rand(Q, 1) + 0.5
    assert same(searched(arrays_of(rows), queries, k), best_of(rows, queries, k))


@on_gpu
def test_bounds_do_not_rank() -> None:
    """Codes of 101 for weights of 100.01 of a unit, and a better document with some of 100.0, 101.0 for the others."""
    K, others = 60, 30
    best, second, many = np.full(K, 255.0), np.full(K, 101.0), np.full((others, K), 100.01)
    second[:50] = 100.0
    rows = Csr(np.concatenate([many, second[None], best[None]]).astype(np.float32))
    queries = torch.arange(K)[None].int(), torch.ones(1, K)
    scores, ids = searched(arrays_of(rows), queries, 2)
    assert ids.tolist() == [[others + 1, others]]
    assert same((scores, ids), best_of(rows, queries, 2))


@on_gpu
def test_a_document_that_is_barely_better_in_a_later_group() -> None:
    """By units of its weights' last places. Codes are 1, where a bound that is rounded down is a fifth too low."""
    K, Q, k = 60, 160, 3
    weights = np.full((5, K), np.float32(1))
    weights[:2] -= np.float32(2**-24)
    weights[2] = 255  # the best, which makes the units
    N, places = RANGE + 9, [5, 9, 11, RANGE + 1, RANGE + 7]
    rows = Csr((weights.ravel(), (np.repeat(places, K), np.tile(np.arange(K), 5))), shape=(N, K))
    queries = torch.arange(K).int().expand(Q, K).contiguous(), torch.ones(Q, K)
    scores, ids = searched(arrays_of(rows), queries, k)
    assert (ids == torch.tensor([11, RANGE + 1, RANGE + 7])).all()
    assert same((scores[:1], ids[:1]), best_of(rows, (queries[0][:1], queries[1][:1]), k))


@on_gpu
def test_results_are_ids() -> None:
    ids = np.random.default_rng(0).permutation(300) * 2**40 - 7
    rows, queries = documents("ties", 300, 40, 5), make_queries("ties", 3, 40, 9)
    index = SparseIndex.build(rows, ids)
    assert same(searched(arrays_of(rows, ids=ids), queries, 20), index.search(csr_of(queries, 40), 20))


@on_gpu
def test_equal_scores_of_reordered_documents_rank_by_id() -> None:
    N, V = RANGE + 500, 30
    rows, queries = documents("ties", N, V, 2), make_queries("ties", 2, V, 9)
    ids = np.random.default_rng(0).permutation(N)
    index = SparseIndex.build(rows, ids, reorder=True)
    arrays = index_gpu.as_tensors(index._segments[0], torch.device("cpu"))
    assert len(arrays["ranks"]) == N
    assert same(searched(arrays, queries, 50), index.search(csr_of(queries, V), 50))


@on_gpu
@pytest.mark.parametrize("bad", [torch.nan, INF, -1.0, "twice", "descending", "hole"])
def test_a_query_that_cannot_be_refused_is_poisoned(bad: float | str) -> None:
    """The others are what they are without it."""
    rows, queries = documents("words", 300, 40, 5), make_queries("words", 5, 40, 9)
    want = best_of(rows, queries, 20)
    if isinstance(bad, float):
        queries[1][0, 4] = bad
    else:
        queries[0][0, 3:6] = torch.tensor(
            {"twice": [20, 21, 21], "descending": [21, 22, 20], "hole": [21, -1, 22]}[bad]
        )
    scores, ids = searched(arrays_of(rows), queries, 20)
    assert scores[0].isnan().all()
    assert (ids[0] == -1).all()
    assert same((scores[1:], ids[1:]), (want[0][1:], want[1][1:]))


@on_gpu
def test_terms_past_the_vocabulary_and_weights_of_0_are_none() -> None:
    rows, queries = documents("words", 300, 40, 5), make_queries("words", 3, 40, 9)
    wanted = queries[0].clone(), queries[1].clone()
    queries[0][0, 7:] = torch.tensor([40, 2**31 - 1])
    queries[1][0, 2] = 0
    wanted[0][0, 7:] = -1
    wanted[1][0, 2] = 0
    assert same(searched(arrays_of(rows), queries, 30), best_of(rows, wanted, 30))


@on_gpu
def test_a_term_of_weight_0_alone_finds_nothing() -> None:
    rows = documents("one term", 20, 3, 1)
    scores, ids = searched(arrays_of(rows), (torch.zeros(1, 1).int(), torch.zeros(1, 1)), 5)
    assert (scores == -INF).all()
    assert (ids == -1).all()


@on_gpu
@pytest.mark.parametrize(
    ("N", "V", "M", "Q", "K", "k", "kind"), [(RANGE + 90, 9, 1, 2, 3, 5, "words"), (300, 70, 5, 2, 40, 10, "ties")]
)
def test_every_path_once(N: int, V: int, M: int, Q: int, K: int, k: int, kind: str) -> None:
    """Few launches, for ThreadSanitizer, which makes each take a second."""
    rows, queries = documents(kind, N, V, M), make_queries(kind, Q, V, K)
    queries[1][0, 0] = 0  # the others move up
    assert same(searched(arrays_of(rows), queries, k), best_of(rows, queries, k))


@on_gpu
def test_rows_in_any_order() -> None:
    """SparseRows descend by value; the index's own arrays, and its search."""
    rows, queries = documents("words", 500, 60, 5), make_queries("words", 4, 60, 12)
    values, order = queries[1].sort(dim=1, descending=True)
    given = SparseRows(values, queries[0].gather(1, order), None, 60).to(str(HAS_KERNEL))
    arrays = {name: tensor.to(str(HAS_KERNEL)) for name, tensor in arrays_of(rows).items()}
    scores, ids = index_gpu.DeviceIndex(arrays).search(given, 7)
    assert str(scores.device.type) == torch.device(str(HAS_KERNEL)).type
    assert same((scores.cpu(), ids.cpu()), best_of(rows, queries, 7))


@on_gpu
def test_opcheck() -> None:
    rows, queries = documents("words", 50, 20, 3), make_queries("words", 2, 20, 5)
    given = [tensor.to(str(HAS_KERNEL)) for tensor in (*queries, *arrays_of(rows).values())]
    torch.library.opcheck(torch.ops.stair.search.default, (*given, 5))


@on_gpu
def test_refused_sizes_are_named() -> None:
    arrays = arrays_of(documents("words", 50, 20, 3))
    queries = make_queries("words", 2, 20, 5)
    with pytest.raises(RuntimeError, match="search: k: expected 1 to 2048 results of a query on a GPU, got 2049"):
        searched(arrays, queries, 2049)
    wide = torch.full((1, 1025), -1, dtype=torch.int32), torch.zeros(1, 1025)
    with pytest.raises(RuntimeError, match="search: queries: expected at most 1024 slots on a GPU, got 1025"):
        searched(arrays, wide, 5)
    with pytest.raises(RuntimeError, match=r"search: segments: expected .* at least 40 elements, got 39"):
        searched({**arrays, "segments": arrays["segments"].flatten()[1:].clone()}, queries, 5)


def test_bad_input_to_an_index_on_a_gpu() -> None:
    index = index_gpu.DeviceIndex(arrays_of(documents("words", 50, 20, 3)))
    queries = SparseRows(torch.ones(1, 1), torch.zeros(1, 1).int(), None, 20)
    cases = [
        (queries.to_dense(), 5, "queries: expected SparseRows for an index on cpu, got Tensor"),
        (queries.to("meta"), 5, "queries: expected device cpu like the index, got meta"),
        (
            SparseRows(queries.values, queries.indices, None, 21),
            5,
            "queries: expected vocab_size 20 like the index, got 21",
        ),
        (queries, 2049, "k: expected an integer from 1 to 2048 on a GPU, got 2049"),
        (queries, 0, "k: expected an integer from 1 to 2048 on a GPU, got 0"),
        (
            SparseRows(torch.zeros(1, 1025), torch.full((1, 1025), -1).int(), None, 20),
            5,
            "queries: expected at most 1024 slots a query on a GPU, got 1025",
        ),
    ]
    for rows, k, message in cases:
        with pytest.raises(ValueError, match=re.escape(message)):
            index.search(rows, k)


def test_an_index_goes_to_cuda_devices_alone(monkeypatch: pytest.MonkeyPatch) -> None:
    index = SparseIndex.build(documents("words", 50, 20, 3))
    with pytest.raises(ValueError, match="device: expected a CUDA device, got cpu"):
        index.to("cpu")
    monkeypatch.setattr(cuda, "LIBRARY_BUILT", False)
    with pytest.raises(RuntimeError, match=r"SparseIndex.to on CUDA tensors needs _C_cuda\.so, which is not built"):
        index.to("cuda:0")


@on_gpu
def test_a_snapshot_of_a_changed_index(monkeypatch: pytest.MonkeyPatch) -> None:
    """Added documents are in it, deleted ones are not; later changes do not reach it."""
    monkeypatch.setattr(index_gpu, "checked_device", torch.device)
    rows, queries = documents("ties", 400, 40, 5), make_queries("ties", 3, 40, 9)
    index = SparseIndex.build(rows[:300], np.arange(300) * 3)
    index.add(rows[300:], np.arange(100) * 3 + 1)
    index.delete([3, 4, 300])
    want = index.search(csr_of(queries, 40), 50)
    on_device = index.to(str(HAS_KERNEL))
    assert repr(on_device).startswith("DeviceIndex(N=397, V=40, device='")
    index.delete(want[1][0, :5])
    assert len(on_device) == 397
    assert same(searched(on_device.arrays, queries, 50), want)
