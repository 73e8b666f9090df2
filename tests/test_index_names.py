"""String ids, payloads and metadata of a SparseIndex, in memory and on disk."""

from __future__ import annotations

import json
import re
import tracemalloc
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from index_cases import QUERIES, opened, random_rows, same

import stair_kernels as sk
from stair_kernels import _index
from stair_kernels.index_names import Strings

N = 300
ROWS = random_rows(7, N)
RANDOM = np.random.default_rng(8)
# Prefixes of each other, NUL, several bytes a character, and an order that is not that of the rows.
NAMES = [f"{'é' * (n % 3)}{n % 17}\0{'x' * (n % 5)}{n}" for n in RANDOM.permutation(N)]


def named(part: slice, **options: Any) -> sk.SparseIndex:
    return sk.SparseIndex.build(ROWS[part], NAMES[part], payloads=payloads(part), **options)


def payloads(part: slice) -> list[bytes]:
    return [name.encode() * 2 + b"\0" if number % 3 else b"" for number, name in enumerate(NAMES)][part]


def assert_finds(index: sk.SparseIndex, order: list[int], k: int = 20) -> None:
    """The results are those of the documents numbered in this order, under their names."""
    expected = sk.SparseIndex.build(ROWS[order])
    scores, numbers = expected.search(QUERIES, k)
    got, names = index.search(QUERIES, k)
    assert torch.equal(got, scores)
    by_number = np.array([*(NAMES[n] for n in order), None], object)  # the last one for -1
    assert names.dtype == object
    assert names.tolist() == by_number[numbers.numpy()].tolist()
    assert index.ids.tolist() == [NAMES[n] for n in order]
    shuffled = [NAMES[n] for n in RANDOM.permutation(order)]
    assert index.payloads(shuffled) == [payloads(slice(None))[NAMES.index(name)] for name in shuffled]
    assert (index.rows(shuffled) != ROWS[[NAMES.index(name) for name in shuffled]]).nnz == 0


@pytest.mark.parametrize("reorder", [False, True])
def test_strings_go_through_every_change(tmp_path: Path, reorder: bool) -> None:
    path = tmp_path / "index"
    named(slice(0, 200), reorder=reorder).save(path)
    order = list(range(200))
    with sk.SparseIndex.open(path, mode="a") as index:
        assert_finds(index, order)
        index.add(ROWS[200:260], NAMES[200:260], payloads=payloads(slice(200, 260)))
        index.delete(NAMES[50:70])
        order = [*range(50), *range(70, 260)]
        assert_finds(index, order)
        index.add(ROWS[60:61], np.array(NAMES[60:61], object), payloads=payloads(slice(60, 61)))  # comes back, last
        order.append(60)
        assert_finds(index, order)
    assert_finds(opened(path), order)
    with sk.SparseIndex.open(path, mode="a") as index:
        index.compact(reorder=reorder)
        assert sorted(index._segments[0].numbers) == list(range(len(order))), "the deleted ones' numbers stay empty"
        assert reorder or "ids" not in index._segments[0].arrays
    assert_finds(opened(path), order)
    merged = sk.SparseIndex.merge([named(slice(270, 300)), opened(path)], reorder=reorder)
    assert_finds(merged, [*range(270, 300), *order])
    merged.save(path)
    assert_finds(opened(path), [*range(270, 300), *order])


def test_equal_scores_go_by_the_order_of_adding() -> None:
    index = sk.SparseIndex.build(sk.SparseRows.from_dense(torch.ones(3, 1), 1), ["c", "a", "b"])
    index.add(sk.SparseRows.from_dense(torch.ones(1, 1), 1), ["A"])
    assert index.search(sk.SparseRows.from_dense(torch.ones(1, 1), 1), 5)[1].tolist() == [["c", "a", "b", "A", None]]


def test_merging_the_last_segments_keeps_the_order() -> None:
    index, order = named(slice(0, 100)), list(range(100))
    for first, end in ((100, 130), (130, 140), (140, 143)):
        index.add(ROWS[first:end], NAMES[first:end], payloads=payloads(slice(first, end)))
        index.delete(NAMES[first : first + 2])
        order += range(first + 2, end)
    assert index.stats()["segments"] == 4
    index.add(ROWS[143:150], NAMES[143:150], payloads=payloads(slice(143, 150)))  # with all but the first segment
    assert index.stats()["segments"] == 2
    assert_finds(index, [*order, *range(143, 150)])
    assert sorted(index._segments[1].numbers) == list(range(100, len(index)))


def test_filters_and_matches_take_strings() -> None:
    index = named(slice(0, 200))
    index.add(ROWS[200:], NAMES[200:], payloads=payloads(slice(200, N)))
    kept = RANDOM.permutation(N)[:80]
    numbers = sk.SparseIndex.build(ROWS)
    expected = numbers.search(QUERIES, 9, allowed=np.isin(np.arange(N), kept))
    for allowed in (
        [NAMES[n] for n in kept],
        [*(NAMES[n] for n in kept), "nobody"],
        np.isin(index.ids, [NAMES[n] for n in kept]),
    ):
        scores, ids = index.search(QUERIES, 9, allowed=allowed)
        assert torch.equal(scores, expected[0])
        assert ids.tolist() == [[NAMES[n] for n in row] for row in expected[1]]
    assert index.matches(QUERIES, ids) == numbers.matches(QUERIES, expected[1])
    assert index.matches(QUERIES[:1], [[None, "nobody", ""]]) == [[{}, {}, {}]]
    assert index.search(QUERIES, 3, allowed=[])[1].tolist() == [[None] * 3] * QUERIES.shape[0]
    assert index.search(QUERIES, 3, allowed=["nobody"])[1].tolist() == [[None] * 3] * QUERIES.shape[0]


def test_types_that_strings_may_come_in() -> None:
    for ids in (["a", "bb"], ("a", "bb"), np.array(["a", "bb"]), np.array(["a", "bb"], object)):
        assert sk.SparseIndex.build(ROWS[:2], ids).ids.tolist() == ["a", "bb"]
    empty = sk.SparseIndex.build(ROWS[:0], np.array([], str))
    empty.add(ROWS[:1], ["a"])
    assert empty.ids.tolist() == ["a"]
    hits = sk.semantic_search_stair(QUERIES, corpus_index=named(slice(0, 3)), top_k=5)[0]
    assert {hit["corpus_id"] for of_query in hits for hit in of_query} <= {*NAMES[:3]}


def test_rows_and_payloads_by_integers() -> None:
    index = sk.SparseIndex.build(ROWS, np.arange(N) * 2, payloads=payloads(slice(None)), metadata={"model": "x"})
    index.delete([4])
    assert index.payloads(torch.tensor([6, 0])) == [payloads(slice(None))[3], payloads(slice(None))[0]]
    assert (index.rows([6, 0]) != ROWS[[3, 0]]).nnz == 0
    assert index.rows([]).shape == (0, ROWS.shape[1])
    assert index.payloads([]) == []
    index.metadata["model"] = "y"
    assert sk.SparseIndex.merge([index]).metadata == index.metadata == {"model": "x"}


def test_metadata_is_kept(tmp_path: Path) -> None:
    metadata = {"model": "ünïcode \ud7ff", "numbers": [1, 2.5, None, True], "nested": {"a": {}}}
    sk.SparseIndex.build(ROWS, metadata=metadata).save(tmp_path / "index")
    with sk.SparseIndex.open(tmp_path / "index", mode="a") as index:
        index.delete([3])
    assert opened(tmp_path / "index").metadata == metadata
    assert json.loads((tmp_path / "index" / "manifest.json").read_text())["metadata"] == metadata


BAD: dict[str, tuple[Callable[[sk.SparseIndex], object], str]] = {
    "held": (
        lambda i: i.add(ROWS[:1], NAMES[3:4], payloads=[b""]),
        f"ids: expected ids that the index does not hold, got {NAMES[3]!r}",
    ),
    "twice": (lambda i: i.delete(["a", "a"]), "ids: expected unique strings, got 'a' more than once"),
    "unknown": (lambda i: i.delete([NAMES[3], "nobody"]), "ids: expected ids that the index holds, got 'nobody'"),
    "integers": (
        lambda i: i.add(ROWS[:1], [3], payloads=[b""]),
        "ids: expected strings like the ids of the index, got integers",
    ),
    "no ids": (
        lambda i: i.add(ROWS[:1], payloads=[b""]),
        "ids: expected strings like the ids of the index, got integers",
    ),
    "delete integers": (lambda i: i.delete([3]), "ids: expected strings like the ids of the index, got integers"),
    "filter": (lambda i: i.search(QUERIES, 1, allowed=[3]), "allowed: expected strings like the ids of the index, got"),
    "filter [1, 2]": (
        lambda i: i.search(QUERIES, 1, allowed=[["a", "b"]]),
        "allowed: expected a bool [200] or ids, got [1, 2]",
    ),
    "mixed": (lambda i: i.delete(["a", 3]), "ids: expected integers or strings, not both, got 3 among strings"),
    "no payloads": (lambda i: i.add(ROWS[:1], ["a"]), "payloads: expected 1, as the index has them"),
    "few payloads": (
        lambda i: i.add(ROWS[:2], ["a", "b"], payloads=[b""]),
        "payloads: expected 2 bytes objects, one a row, got 1 of bytes",
    ),
    "payloads of str": (
        lambda i: i.add(ROWS[:1], ["a"], payloads=["x"]),
        "payloads: expected 1 bytes objects, one a row, got 1 of str",
    ),
    "payloads of nobody": (lambda i: i.payloads(["nobody"]), "ids: expected ids that the index holds, got 'nobody'"),
    "rows of nobody": (lambda i: i.rows([NAMES[1], "nobody"]), "ids: expected ids that the index holds, got 'nobody'"),
    "rows [1, 2]": (lambda i: i.rows([["a", "b"]]), "ids: expected ids [n], got [1, 2]"),
    "floats": (lambda i: sk.SparseIndex.build(ROWS).rows([0.5]), "ids: expected integers or strings, got float64"),
    "strings for integers": (
        lambda i: sk.SparseIndex.build(ROWS).delete(["a"]),
        "ids: expected integers like the ids of the index, got strings",
    ),
    "payloads of none": (
        lambda i: sk.SparseIndex.build(ROWS).payloads([3]),
        "payloads: expected an index that was built with payloads",
    ),
    "unasked payloads": (
        lambda i: sk.SparseIndex.build(ROWS).add(ROWS[:1], payloads=[b""]),
        "payloads: expected none, as the index has",
    ),
    "merge of both": (
        lambda i: sk.SparseIndex.merge([i, sk.SparseIndex.build(ROWS)]),
        "indexes: expected all of them with string ids or none",
    ),
    "merge twice": (
        lambda i: sk.SparseIndex.merge([i, i]),
        f"ids: expected unique strings, got {NAMES[0]!r} more than once",
    ),
    "metadata": (
        lambda i: sk.SparseIndex.build(ROWS, metadata={"a": b""}),
        "metadata: expected what JSON can hold, got Object of type bytes",
    ),
    "metadata NaN": (
        lambda i: sk.SparseIndex.build(ROWS, metadata={"a": np.nan}),
        "metadata: expected what JSON can hold, got Out of range",
    ),
    "metadata list": (lambda i: sk.SparseIndex.build(ROWS, metadata=[]), "metadata: expected a dict, got list"),
}


@pytest.mark.parametrize(("call", "message"), BAD.values(), ids=BAD)
def test_bad_calls_are_refused_and_change_nothing(call: Callable[[sk.SparseIndex], object], message: str) -> None:
    index = named(slice(0, 200))
    with pytest.raises(ValueError, match=f"^{re.escape(message)}"):
        call(index)
    assert same(index, named(slice(0, 200)))


@settings(max_examples=100, deadline=None)
@given(
    names=st.lists(st.binary(min_size=1, max_size=4), unique=True, max_size=30),
    others=st.lists(st.binary(max_size=4), max_size=10),
)
def test_names_are_found(names: list[bytes], others: list[bytes]) -> None:
    strings, wanted = Strings.of(names), Strings.of([*names, *others])
    order = _index.sort_names(*strings)
    assert [names[n] for n in order] == sorted(names)
    places = {name: number for number, name in enumerate(names)}
    assert _index.find_names(*strings, order, *wanted).tolist() == [places.get(name, -1) for name in wanted.tolist()]
    assert strings.take(order).tolist() == sorted(names)
    assert Strings.cat([strings, wanted]).tolist() == [*names, *names, *others]


def peak_memory(action: Callable[[], object]) -> int:
    tracemalloc.start()
    try:
        action()
        return tracemalloc.get_traced_memory()[1]
    finally:
        tracemalloc.stop()


def test_strings_take_little_more_memory_than_their_bytes() -> None:
    """Taken in another order, and when an index is built of them and compacted: a few copies, nothing a byte."""
    size, each = 6_000_000, 20_000
    strings = Strings(np.arange(0, size + 1, each), RANDOM.integers(0, 256, size, np.uint8))
    order = RANDOM.permutation(N)
    taken = strings.take(order)
    assert taken.tolist() == [strings.tolist()[number] for number in order]
    assert size <= peak_memory(lambda: strings.take(order)) < 1.1 * size
    index = sk.SparseIndex.build(ROWS, NAMES, payloads=strings.tolist())
    index.delete(NAMES[:1])
    assert peak_memory(index.compact) < 4 * size
    assert index.payloads(NAMES[-2:]) == strings.tolist()[-2:]
    given = strings.tolist()
    assert peak_memory(lambda: sk.SparseIndex.build(ROWS, NAMES, payloads=given)) < 2 * size
    assert peak_memory(lambda: sk.SparseIndex.build(ROWS, order, payloads=given)) < 3 * size


def test_damaged_names_never_crash() -> None:
    """Whatever the arrays hold: names are cut to the bytes, places to the documents."""
    strings, random = Strings.of([name.encode() for name in NAMES]), np.random.default_rng(9)
    order = _index.sort_names(*strings)
    for _ in range(300):
        starts, places = strings.starts.copy(), order.copy()
        starts[random.integers(0, N + 1, 5)] = random.integers(-(2**62), 2**62, 5)
        places[random.integers(0, N, 5)] = random.integers(-(2**31), 2**31, 5)
        assert Strings(starts, strings.data).take(RANDOM.permutation(N)).n == N
        found = _index.find_names(starts, strings.data, places, *strings)
        assert ((found >= -1) & (found < N)).all()
        assert sorted(_index.sort_names(starts, strings.data)) == list(range(N))
    with pytest.raises(ValueError, match="order: expected one entry per name"):
        _index.find_names(*strings, order[1:], *strings)
    with pytest.raises(ValueError, match="expected n \\+ 1 starts of names, got none"):
        _index.sort_names(strings.starts[:0], strings.data)
    for number in (-1, N):
        with pytest.raises(ValueError, match="numbers: expected numbers of strings"):
            strings.take(np.array([0, number]))
