"""SparseIndex.search where it leaves documents out: collections with frequent terms of low weight, bit for bit.

test_isa.py runs this file again on every instruction set that the search has.
"""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
import scipy.sparse
from search_cases import naive
from test_index import assert_same

import stair_kernels as sk
from stair_kernels import _index
from stair_kernels.index_inputs import checked_rows

V = 300
FREQUENT = 40  # terms that many documents have
TOPICS = 30


def rows(random: np.random.Generator, N: int, frequent: int, topical: int, levels: int = 0) -> scipy.sparse.csr_matrix:
    """N rows: frequent terms of low weight, terms of a topic of high weight; few levels give equal scores."""
    topic = random.integers(0, TOPICS, N)
    width = (V - FREQUENT) // TOPICS
    low = (FREQUENT * random.random((N, frequent)) ** 2).astype(np.int64)
    high = FREQUENT + topic[:, None] * width + random.integers(0, width, (N, topical))
    columns = np.hstack([low, high])
    weights = np.hstack([0.05 + 0.3 * random.random(low.shape), 0.6 + random.random(high.shape)]).astype(np.float32)
    if levels:
        weights = np.ceil(weights * levels).astype(np.float32) / levels
    keys, first = np.unique(np.arange(N)[:, None] * V + columns, return_index=True)
    return scipy.sparse.csr_matrix(
        (weights.ravel()[first], keys % V, np.searchsorted(keys, np.arange(N + 1) * V)), (N, V)
    )


def make_queries(random: np.random.Generator) -> scipy.sparse.csr_matrix:
    """Topical ones, frequent terms alone, one term, none, every term, and weights of any size."""
    one = scipy.sparse.csr_matrix(([1.0, 1.0], ([0, 1], [2, V - 1])), (2, V), np.float32)
    every = scipy.sparse.csr_matrix(random.random((1, V)), dtype=np.float32)
    topical = rows(random, 6, 12, 6)
    kinds = [
        *(topical, rows(random, 3, 12, 0), one, scipy.sparse.csr_matrix((1, V), dtype=np.float32), every),
        *(topical[:2] * np.float32(1e-37), topical[:2] * np.float32(3e38 / topical.max())),
    ]
    return scipy.sparse.vstack(kinds, "csr").astype(np.float32)


@pytest.mark.parametrize("levels", [0, 4])
@pytest.mark.parametrize(
    ("N", "k"),
    [(1023, 1), (1024, 10), (2000, 30), (16384, 10), (16385, 256), (30000, 1), (30000, 10), (30000, 470)],
)
def test_pruning_changes_no_bit(N: int, k: int, levels: int) -> None:
    random = np.random.default_rng(N + k + levels)
    documents, queries, ids = rows(random, N, 14, 6, levels), make_queries(random), random.permutation(N)
    index = sk.SparseIndex.build(documents, ids)
    assert (index.stats()["frequent"] > 0) == (N >= 1024)
    assert_same(index.search(queries, k), naive(documents, queries, k, ids))


@pytest.mark.parametrize("N", [5000, 20000])
def test_queries_that_leave_nothing_out_are_exact(N: int) -> None:
    """No topics: most groups stay among the best, so that the optional terms' postings are all read."""
    random = np.random.default_rng(N)
    documents = scipy.sparse.random(N, 200, 0.025, "csr", np.float32, random)
    queries = scipy.sparse.random(10, 200, 0.5, "csr", np.float32, random)
    ids = np.arange(N)
    for k in (1, 10, 70):
        assert_same(sk.SparseIndex.build(documents).search(queries, k), naive(documents, queries, k, ids))


@pytest.mark.parametrize("N", [0, 1, 16, 17, 1500, 20000])
def test_reordering_changes_no_bit(N: int) -> None:
    random = np.random.default_rng(N)
    documents, queries, ids = rows(random, N, 14, 6, 4), make_queries(random), random.permutation(N)
    index = sk.SparseIndex.build(documents, ids, reorder=True)
    again = sk.SparseIndex.build(documents, ids, reorder=True)
    assert sorted(index._segments[0].numbers) == sorted(ids)
    assert (index._segments[0].numbers == again._segments[0].numbers).all()
    assert_same(index.search(queries, 10), naive(documents, queries, 10, ids))


def test_reordering_weights_of_any_size() -> None:
    """Rows near either end of float32's range are ordered as they are in the middle of it, and found exactly."""
    random = np.random.default_rng(7)
    documents = rows(random, 3000, 14, 6, 8)
    scaled = documents.copy()
    exponents = random.choice([-140, 0, 126], 3000).repeat(np.diff(documents.indptr))
    scaled.data = np.ldexp(documents.data, exponents)
    assert np.isfinite(scaled.data).all()
    assert (np.ldexp(scaled.data, -exponents) == documents.data).all(), "no bit is lost"
    order, again = (_index.cluster(checked_rows(one, "rows")) for one in (documents, scaled))
    assert order.tolist() == again.tolist()
    queries, ids = make_queries(random), random.permutation(3000)
    index = sk.SparseIndex.build(scaled, ids, reorder=True)
    assert_same(index.search(queries, 10), naive(scaled, queries, 10, ids))


def test_reordering_brings_topics_together() -> None:
    random = np.random.default_rng(3)
    documents = rows(random, 20000, 14, 6)
    zeros = [
        np.count_nonzero(sk.SparseIndex.build(documents, reorder=on)._segments[0].arrays["block_max"] == 0)
        for on in (0, 1)
    ]
    assert zeros[1] > 1.25 * zeros[0]


def test_a_compact_index_scores_the_rounded_weights() -> None:
    random = np.random.default_rng(4)
    documents, queries, ids = rows(random, 3000, 14, 6), make_queries(random), np.arange(3000)
    documents.data[::7] *= np.float32(1e-6)  # below the normal numbers of float16, some below all of them
    documents.data[::97] *= np.float32(1e-3)
    rounded = documents.copy()
    rounded.data = documents.data.astype(np.float16).astype(np.float32)
    rounded.eliminate_zeros()
    index = sk.SparseIndex.build(documents, compact=True)
    assert index.stats()["postings"] == rounded.nnz < documents.nnz
    assert_same(index.search(queries, 10), naive(rounded, queries, 10, ids))
    assert index._segments[0].arrays["row_weights"].dtype == np.float16
    documents.data[5] = 65520
    with pytest.raises(ValueError, match=r"^rows: expected finite weights >= 0 in float16, got inf in row 0"):
        sk.SparseIndex.build(documents, compact=True)


def test_stretches_of_documents_are_exact() -> None:
    """More documents than are bounded at a time, the best ones in the last."""
    random = np.random.default_rng(5)
    N = 32 * _index.RANGE + 3001
    documents = rows(random, N, 3, 2, 8)
    documents.data[documents.indptr[-2000] :] *= 1.25
    queries, ids = make_queries(random), np.arange(N) * 7
    index = sk.SparseIndex.build(documents, ids)
    for k in (5, 1000):
        assert_same(index.search(queries, k), naive(documents, queries, k, ids))


def test_equal_documents_go_by_the_lower_id() -> None:
    """Every document is among the best, until its id is compared."""
    random = np.random.default_rng(6)
    N = 20000
    one = rows(random, 1, 14, 6)
    documents = scipy.sparse.csr_matrix((np.tile(one.data, N), np.tile(one.indices, N), one.nnz * np.arange(N + 1)))
    documents.resize((N, V))
    ids = random.permutation(N) - 50
    ids[ids == -1] = N
    index = sk.SparseIndex.build(documents, ids)
    assert index.search(one, 12)[1].tolist() == [sorted(ids.tolist())[:12]]


@pytest.mark.parametrize("V", [5000, 1 << 16, (1 << 16) + 1, 1 << 20])
def test_long_queries_and_any_vocabulary(V: int) -> None:
    """More terms than the sums are made for, at the edges of the vocabulary as well."""
    random = np.random.default_rng(V)
    edges = scipy.sparse.csr_matrix(([3, 3], ([7, 9], [V - 1, 0])), (1500, V), np.float32)
    documents = scipy.sparse.random(1500, V, min(0.1, 200 / V), "csr", np.float32, random) + edges
    queries = scipy.sparse.random(3, V, 4500 / V, "csr", np.float32, random) + edges[7:10]
    ids = np.arange(1500)
    assert_same(sk.SparseIndex.build(documents).search(queries, 9), naive(documents, queries, 9, ids))


def test_codes_are_the_least_upper_bounds() -> None:
    random = np.random.default_rng(8)
    documents = rows(random, 3000, 14, 6)
    documents.data *= np.float32(10) ** random.integers(-40, 30, documents.nnz).astype(np.float32)
    documents.data[0], documents.data[1] = np.float32(1e-45), np.finfo(np.float32).max
    arrays: dict[str, Any] = sk.SparseIndex.build(documents)._segments[0].arrays
    columns = documents.tocsc()
    columns.sort_indices()
    columns.eliminate_zeros()
    weights = columns.data.astype(np.float64)
    units = np.repeat(arrays["units"].astype(np.float64), np.diff(columns.indptr))
    codes = arrays["codes"].astype(np.float64)
    assert (arrays["term_starts"] == columns.indptr).all()
    assert (arrays["documents"] == columns.indices % _index.RANGE).all()
    assert codes.min() >= 1
    assert (codes * units >= weights).all()
    assert ((codes == 1) | ((codes - 1) * units < weights)).all()
    largest = documents.max(axis=0).toarray()[0].astype(np.float64)
    smaller = np.nextafter(arrays["units"], np.float32(0)).astype(np.float64)
    assert ((255 * smaller < largest) | (largest == 0)).all()
