"""SparseIndex.add, .delete, .compact, .merge, .matches and filters, against an index built of what is left."""

from __future__ import annotations

import threading
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import scipy.sparse
import torch
from search_cases import naive
from test_index import assert_same
from test_index_pruned import V, make_queries, rows

import stair_kernels as sk
from stair_kernels import index_merge
from stair_kernels.index_segments import Segment

N = 3000
RANDOM = np.random.default_rng(11)
DOCUMENTS = rows(RANDOM, N, 14, 6, 4)
IDS = RANDOM.permutation(5 * N)[:N]
QUERIES = make_queries(RANDOM)


def expected(kept: np.ndarray, k: int) -> tuple[torch.Tensor, torch.Tensor]:
    """What searching the kept documents (bool or numbers) gives."""
    return naive(DOCUMENTS[kept], QUERIES, k, IDS[kept])


def built(part: slice, **options: bool) -> sk.SparseIndex:
    return sk.SparseIndex.build(DOCUMENTS[part], IDS[part], **options)


@pytest.mark.parametrize("reorder", [False, True])
def test_any_history_is_the_index_of_what_is_left(tmp_path: Path, reorder: bool) -> None:
    index = built(slice(0, 2000), reorder=reorder)
    index.add(DOCUMENTS[2000:2900], IDS[2000:2900])
    kept = np.arange(N) < 2900
    for step in range(4):
        deleted = RANDOM.permutation(np.flatnonzero(kept))[:300]
        index.delete(torch.from_numpy(IDS[deleted]))
        kept[deleted] = False
        if step == 1:  # ids that were deleted may come back
            index.add(DOCUMENTS[deleted[:50]], IDS[deleted[:50]])
            kept[deleted[:50]] = True
        assert len(index) == kept.sum()
        assert index.ids.tolist() == sorted(IDS[kept])
        for k in (1, 10, 4000):
            assert_same(index.search(QUERIES, k), expected(kept, k))
    assert index.stats()["segments"] == 3
    assert index.stats()["deleted"] > 0
    index.save(tmp_path / "index")
    opened = sk.SparseIndex.open(tmp_path / "index", verify=True)
    assert_same(opened.search(QUERIES, 10), index.search(QUERIES, 10))
    index.compact(reorder=reorder)
    assert index.stats()["segments"] == 1
    assert index.stats()["deleted"] == 0
    assert index.stats()["postings"] == opened.stats()["postings"] == DOCUMENTS[kept].nnz
    assert_same(index.search(QUERIES, 10), expected(kept, 10))


def test_ids_that_number_the_documents_take_no_space(tmp_path: Path) -> None:
    index, ids = sk.SparseIndex.build(DOCUMENTS[:2000]), np.arange(N)
    assert "ids" not in index._segments[0].arrays
    index.add(DOCUMENTS[2000:])
    index.delete([0, 2500])
    kept, few = ~np.isin(ids, [0, 2500]), np.array([1, 7, 2001])
    index.save(tmp_path / "index")
    for one in (index, sk.SparseIndex.open(tmp_path / "index", verify=True)):
        assert one.ids.tolist() == ids[kept].tolist()
        assert_same(one.search(QUERIES, 10), naive(DOCUMENTS[kept], QUERIES, 10, ids[kept]))
        assert_same(one.search(QUERIES, 10, allowed=[7, -1, 2001, 0, 1, N]), naive(DOCUMENTS[few], QUERIES, 10, few))
        assert (one.rows([2999, 1]) != DOCUMENTS[[2999, 1]]).nnz == 0
        assert (one.rows(np.uint8([255, 1])) != DOCUMENTS[[255, 1]]).nnz == 0
        assert one.rows([]).shape == (0, V)
        for unknown in (-2, 0, 2500, N, np.uint64(2**63 - 1)):
            with pytest.raises(ValueError, match=f"^ids: expected ids that the index holds, got {unknown}"):
                one.delete([unknown])
    index.compact()
    assert "ids" in index._segments[0].arrays
    assert_same(index.search(QUERIES, 10), naive(DOCUMENTS[kept], QUERIES, 10, ids[kept]))


@pytest.mark.parametrize("share", [0.0, 0.001, 0.3, 1.0])
@pytest.mark.parametrize("segments", [1, 2])
def test_a_filter_is_the_index_of_what_it_allows(segments: int, share: float) -> None:
    index = built(slice(0, N)) if segments == 1 else built(slice(0, 2000), reorder=True)
    if segments == 2:
        index.add(DOCUMENTS[2000:], IDS[2000:])
    gone = np.arange(100)
    index.delete(IDS[gone])
    kept = RANDOM.random(N) < share
    kept[gone] = False
    ids = index.ids.numpy()
    for k in (1, 10, 300):
        for allowed in (np.isin(ids, IDS[kept]), torch.from_numpy(IDS[kept]), [*IDS[kept], -5, *IDS[gone]]):
            assert_same(index.search(QUERIES, k, allowed=allowed), expected(kept, k))


def test_a_filter_skips_whole_ranges() -> None:
    random = np.random.default_rng(12)
    documents, queries = rows(random, 40000, 6, 4, 4), make_queries(random)
    index, ids = sk.SparseIndex.build(documents), np.arange(40000)
    for first, last in ((0, 16384), (16384, 32768), (39990, 40000), (63, 65)):
        kept = (ids >= first) & (ids < last)
        got = index.search(queries, 7, allowed=kept)
        assert_same(got, naive(documents[kept], queries, 7, ids[kept]))
    every = scipy.sparse.csr_matrix(random.random((1, 5000)), dtype=np.float32)  # scored without sums
    wide = scipy.sparse.random(500, 5000, 0.02, "csr", np.float32, random)
    kept = np.arange(500) % 3 == 0
    got = sk.SparseIndex.build(wide).search(every, 7, allowed=kept)
    assert_same(got, naive(wide[kept], every, 7, np.flatnonzero(kept)))


def test_merging_indexes() -> None:
    parts = [built(slice(0, 1000)), built(slice(1000, 1000)), built(slice(1000, 2500), reorder=True)]
    parts[2].add(DOCUMENTS[2500:], IDS[2500:])
    parts[0].delete(IDS[:10])
    merged = sk.SparseIndex.merge(parts)
    assert merged.stats()["segments"] == 1
    assert_same(merged.search(QUERIES, 10), expected(np.arange(N) >= 10, 10))
    with pytest.raises(ValueError, match=r"^ids: expected unique integers, got"):
        sk.SparseIndex.merge([parts[0], parts[0]])
    with pytest.raises(ValueError, match=r"^indexes: expected at least one, all of the same vocab_size, got \[\]"):
        sk.SparseIndex.merge([])
    other = sk.SparseIndex.build(scipy.sparse.csr_matrix((1, 7), dtype=np.float32))
    with pytest.raises(ValueError, match=rf"^indexes: .* got \[7, {V}\]"):
        sk.SparseIndex.merge([parts[0], other])


def test_compact_indexes_stay_compact(tmp_path: Path) -> None:
    index = built(slice(0, 1500), compact=True)
    index.add(DOCUMENTS[1500:], IDS[1500:])
    index.delete(IDS[:5])
    before = index.search(QUERIES, 10)
    index.save(tmp_path / "index")
    index.compact()
    assert_same(index.search(QUERIES, 10), before)
    assert_same(sk.SparseIndex.open(tmp_path / "index").search(QUERIES, 10), before)
    assert index._segments[0].arrays["row_weights"].dtype == np.float16
    assert not sk.SparseIndex.merge([index, built(slice(0, 5))])._segments[0].counts.compact


def test_matches_add_up_to_the_score() -> None:
    index = built(slice(0, 2000), reorder=True)
    index.add(DOCUMENTS[2000:], IDS[2000:])
    scores, ids = index.search(QUERIES, 8)
    found = index.matches(QUERIES, ids)
    assert [len(of_query) for of_query in found] == [8] * QUERIES.shape[0]
    for q, of_query in enumerate(found):
        for score, matched, number in zip(scores[q].tolist(), of_query, ids[q].tolist()):
            if number == -1:
                assert matched == {}
                continue
            assert list(matched.values()) == sorted(matched.values(), reverse=True)
            total = np.float32(0)
            with np.errstate(over="ignore"):
                for term in sorted(matched):
                    total += np.float32(matched[term])
            assert total == np.float32(score)
    assert index.matches(QUERIES[:1], [[-1, 10**9]]) == [[{}, {}]]
    with pytest.raises(ValueError, match=r"^ids: expected ids \[1, k\], got \[8\]"):
        index.matches(QUERIES[:1], ids[0])


def test_ids_after_the_largest() -> None:
    index = sk.SparseIndex.build(DOCUMENTS[:0])
    index.add(DOCUMENTS[:3])
    index.add(DOCUMENTS[3:5])
    assert index.ids.tolist() == [0, 1, 2, 3, 4]
    index.add(DOCUMENTS[5:6], [2**63 - 1])
    with pytest.raises(ValueError, match=r"^ids: expected integers, as none are left after 9223372036854775807"):
        index.add(DOCUMENTS[6:7])


@pytest.mark.parametrize(
    ("call", "message"),
    [
        (
            lambda index: index.add(DOCUMENTS[:2], [90000, IDS[3]]),
            f"ids: expected ids that the index does not .* {IDS[3]}",
        ),
        (lambda index: index.add(DOCUMENTS[:2], [90001, 90001]), "ids: expected unique integers, got 90001"),
        (lambda index: index.add(DOCUMENTS[:2, :7]), f"rows: expected vocab_size {V} like the index, got 7"),
        (lambda index: index.delete([IDS[3], 90001]), "ids: expected ids that the index holds, got 90001"),
        (lambda index: index.delete([IDS[3], IDS[3]]), f"ids: expected unique integers, got {IDS[3]}"),
        (lambda index: index.delete([0.5]), r"ids: expected 1 integers or strings, one a row, got \[1\] float64"),
        (
            lambda index: index.search(QUERIES, 1, allowed=[True]),
            r"allowed: expected a bool \[1500\] or ids, got \[1\] bool",
        ),
        (lambda index: index.search(QUERIES, 1, allowed=[0.5]), r"allowed: expected .*, got \[1\] float64"),
    ],
)
def test_bad_changes_are_refused_and_change_nothing(call: Any, message: str) -> None:
    index = built(slice(0, 1500))
    before = index.stats()
    with pytest.raises(ValueError, match=f"^{message}"):
        call(index)
    assert index.stats() == before


def test_statistics_are_those_of_one_moment(monkeypatch: pytest.MonkeyPatch) -> None:
    index, other, size = built(slice(0, 1000)), built(slice(0, 2000)), Segment.__len__

    def changed_meanwhile(segment: Segment) -> int:
        index._segments = other._segments
        return size(segment)

    with monkeypatch.context() as patch:
        patch.setattr(Segment, "__len__", changed_meanwhile)
        stats = index.stats()
    assert (stats["documents"], stats["deleted"]) == (1000, 0)
    assert index.stats() == other.stats()


def test_what_is_saved_is_of_one_moment(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    parts = [slice(0, 1000), slice(1000, 2000)]
    old, new = (sk.SparseIndex.build(DOCUMENTS[part], metadata={"first": part.start}) for part in parts)
    old.save(tmp_path / "index")
    index = sk.SparseIndex.open(tmp_path / "index")
    new.save(tmp_path / "index")

    def reloaded_meanwhile(segments: tuple[Segment, ...]) -> Segment:
        assert index.reload()
        return index_merge.compacted(segments)

    monkeypatch.setattr("stair_kernels.index_disk.compacted", reloaded_meanwhile)
    index.save(tmp_path / "copy")
    copy = sk.SparseIndex.open(tmp_path / "copy")
    assert copy.metadata == {"first": 0}
    assert_same(copy.search(QUERIES, 10), old.search(QUERIES, 10))


def test_searches_while_documents_are_added_and_deleted() -> None:
    index = built(slice(0, 1000))
    states = [expected(np.arange(N) < 1000 + 100 * step, 5) for step in range(11)]
    stop, wrong = threading.Event(), []

    def search() -> None:
        while not stop.is_set():
            got = index.search(QUERIES, 5, n_threads=1)
            if not any(torch.equal(got[0], scores) and torch.equal(got[1], ids) for scores, ids in states):
                wrong.append(got)

    searchers = [threading.Thread(target=search) for _ in range(2)]
    for searcher in searchers:
        searcher.start()
    for step in range(10):
        first = 1000 + 100 * step
        index.add(DOCUMENTS[first : first + 100], IDS[first : first + 100])
        if step == 5:
            index.compact()
    stop.set()
    for searcher in searchers:
        searcher.join()
    assert not wrong
    assert_same(index.search(QUERIES, 5), states[-1])
