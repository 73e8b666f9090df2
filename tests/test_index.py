"""SparseIndex.build and .search against the definition of the score, bit for bit."""

from __future__ import annotations

import re
import threading
from typing import Any

import numpy as np
import pytest
import scipy.sparse
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from search_cases import naive
from tolerance import assert_close

import stair_kernels as sk
from stair_kernels import _index

RANGE = _index.RANGE  # documents that the engine accumulates at a time
TINY = np.float32(1e-30)


def matrix(dense: Any) -> scipy.sparse.csr_matrix:
    return scipy.sparse.csr_matrix(np.asarray(dense, np.float32))


def assert_same(got: tuple[torch.Tensor, torch.Tensor], expected: tuple[torch.Tensor, torch.Tensor]) -> None:
    assert got[0].dtype == torch.float32
    assert got[1].dtype == torch.int64
    assert torch.equal(got[0].view(torch.int32), expected[0].view(torch.int32)), "scores differ in their bits"
    assert torch.equal(got[1], expected[1]), "ids differ"


def random_dense(rng: np.random.Generator, rows: int, V: int, density: float, levels: int) -> np.ndarray:
    """Rows with frequent first columns and, for few levels, many equal weights and so many equal scores."""
    frequent = np.linspace(1.0, 0.3, V) if V else np.zeros(0)
    weights = np.ceil(rng.random((rows, V)) * levels) / levels if levels else rng.exponential(1, (rows, V))
    return np.where(rng.random((rows, V)) < density * frequent, weights, 0).astype(np.float32)


@settings(max_examples=150, deadline=None)
@given(
    N=st.integers(0, 60),
    Q=st.integers(0, 5),
    V=st.integers(0, 40),
    k=st.integers(1, 70),
    density=st.sampled_from([0.0, 0.05, 0.5, 1.0]),
    levels=st.sampled_from([0, 1, 3]),
    seed=st.integers(0, 2**32 - 1),
)
def test_any_shape_is_exact(N: int, Q: int, V: int, k: int, density: float, levels: int, seed: int) -> None:
    rng = np.random.default_rng(seed)
    documents, queries = random_dense(rng, N, V, density, levels), random_dense(rng, Q, V, 0.7, levels)
    ids = rng.choice(10 * N + 1, N, replace=False) - 5 * N
    ids[ids == -1] = 10**12
    index = sk.SparseIndex.build(matrix(documents), ids)
    assert len(index) == N
    assert index.vocab_size == V
    assert_same(index.search(matrix(queries), k), naive(matrix(documents), matrix(queries), k, ids))


@pytest.fixture(scope="module")
def several_ranges() -> tuple[np.ndarray, np.ndarray]:
    """Documents over three ranges of the engine, the last one cut short, with matches on both sides of each edge."""
    rng = np.random.default_rng(1)
    N, V = 2 * RANGE + 1001, 24
    documents = random_dense(rng, N, V, 0.3, 0)
    documents[:, -2:] = 0
    edges = [0, RANGE - 1, RANGE, 2 * RANGE - 1, 2 * RANGE, N - 1]
    documents[edges, -2] = [1, 2, 1, 2, 3, 3]  # found by column V - 2 only
    documents[2 * RANGE + 5, -1] = 1  # column V - 1 skips two ranges
    queries = random_dense(rng, 20, V, 0.5, 0)
    queries[:3] = 0
    queries[0, -2] = queries[1, -1] = 1
    return documents, queries


@pytest.mark.parametrize("k", [1, 10, 3000])
def test_ranges_of_documents_are_exact(several_ranges: tuple[np.ndarray, np.ndarray], k: int) -> None:
    documents, queries = several_ranges
    ids = np.arange(len(documents))
    got = sk.SparseIndex.build(matrix(documents)).search(matrix(queries), k)
    assert_same(got, naive(matrix(documents), matrix(queries), k, ids))


def test_the_number_of_threads_changes_no_bit(several_ranges: tuple[np.ndarray, np.ndarray]) -> None:
    documents, queries = several_ranges
    index = sk.SparseIndex.build(matrix(documents))
    rows = matrix(np.tile(queries, (5, 1)))
    expected = index.search(rows, 50, n_threads=1)
    for n_threads in (None, 2, 3, 7, 500):
        assert_same(index.search(rows, 50, n_threads=n_threads), expected)
    for q in (0, 1, 17):
        assert_same(index.search(rows[q], 50), (expected[0][q : q + 1], expected[1][q : q + 1]))


def test_searches_from_several_threads_at_once(several_ranges: tuple[np.ndarray, np.ndarray]) -> None:
    documents, queries = several_ranges
    index, rows = sk.SparseIndex.build(matrix(documents)), matrix(queries)
    expected = index.search(rows, 20)
    results: list[Any] = []
    threads = [threading.Thread(target=lambda: results.append(index.search(rows, 20, n_threads=2))) for _ in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert len(results) == 4
    for result in results:
        assert_same(result, expected)


def test_scores_are_close_to_float64(several_ranges: tuple[np.ndarray, np.ndarray]) -> None:
    documents, queries = (torch.from_numpy(array) for array in several_ranges)
    scores, ids = sk.SparseIndex.build(matrix(documents)).search(matrix(queries[3:]), 100)
    truth = (queries[3:].double() @ documents.double().T).gather(1, ids)
    assert_close(scores, truth, (queries[3:] @ documents.T).gather(1, ids), "search")


@pytest.mark.filterwarnings("ignore:Sparse:UserWarning")
def test_every_type_of_rows_gives_the_same_index() -> None:
    rng = np.random.default_rng(2)
    dense = random_dense(rng, 50, 30, 0.4, 0).astype(np.float16).astype(np.float32)
    csr = matrix(dense)
    shuffled = csr.copy()
    for row in range(50):
        part = slice(csr.indptr[row], csr.indptr[row + 1])
        order = rng.permutation(part.stop - part.start)
        shuffled.indices[part], shuffled.data[part] = csr.indices[part][order], csr.data[part][order]
    shuffled.has_sorted_indices = False
    tensor = torch.from_numpy(dense).to_sparse_csr()
    narrow = torch.sparse_csr_tensor(
        tensor.crow_indices().int(), tensor.col_indices().int(), tensor.values().half(), tensor.shape
    )
    learned = sk.SparseRows.from_csr(csr)
    learned.values.requires_grad_()
    expected = sk.SparseIndex.build(csr).search(csr, 7)
    kinds = (
        csr,
        shuffled,
        scipy.sparse.csr_array(csr),
        csr.astype(np.float64),
        tensor,
        tensor.double(),
        narrow,
        learned,
    )
    for rows in kinds:
        index = sk.SparseIndex.build(rows)
        assert index.stats()["postings"] == csr.nnz
        assert_same(index.search(rows, 7), expected)
    assert not np.array_equal(shuffled.indices, csr.indices), "the caller's matrix was changed"


def test_no_match_is_no_result() -> None:
    index = sk.SparseIndex.build(matrix([[1, 0, 0], [0, 0, 0], [0, 2, 0], [TINY, 0, 0]]))
    scores, ids = index.search(matrix([[1, 0, 0], [0, 0, 5], [0, 0, 0], [TINY, 0, 0]]), 3)
    inf = torch.inf
    assert ids.tolist() == [[0, 3, -1], [-1, -1, -1], [-1, -1, -1], [0, -1, -1]]  # 1e-30 * 1e-30 rounds to 0
    assert scores.tolist() == [[1, float(TINY), -inf], [-inf] * 3, [-inf] * 3, [float(TINY), -inf, -inf]]


def test_an_entry_of_weight_zero_is_no_entry() -> None:
    rows = scipy.sparse.csr_matrix((np.float32([0, 1]), [0, 1], [0, 2]), (1, 3))
    index = sk.SparseIndex.build(rows)
    assert index.stats() == {
        "documents": 1,
        "deleted": 0,
        "segments": 1,
        "vocab_size": 3,
        "compact": 0,
        "strings": 0,
        "terms": 1,
        "postings": 1,
        "frequent": 0,
        "bytes": 2 * 4 + 2 + 4 + 4 * 8 + 3 * 2 * 4 + 2 + 1 + 3 * 4,
    }
    assert repr(index) == "SparseIndex(N=1, V=3, postings=1)"


def test_sums_that_overflow_are_infinite() -> None:
    index = sk.SparseIndex.build(matrix([[1e38, 0], [3e38, 3e38], [3e38, 0]]))
    scores, ids = index.search(matrix([[1, 1], [2, 0]]), 3)
    assert ids.tolist() == [[1, 2, 0], [1, 2, 0]]
    assert scores.tolist()[0][0] == np.inf
    assert scores.tolist()[1][:2] == [np.inf, np.inf]


def test_equal_scores_go_by_the_lower_id_given() -> None:
    ids = [7, 3, 2**62, -9, 5]
    index = sk.SparseIndex.build(matrix(np.ones((5, 1))), torch.tensor(ids))
    assert index.search(matrix([[1]]), 5)[1].tolist() == [sorted(ids)]
    assert index.search(matrix([[1]]), 2)[1].tolist() == [[-9, 3]]


def test_an_empty_index_and_no_queries() -> None:
    empty = sk.SparseIndex.build(matrix(np.zeros((0, 4))))
    assert len(empty) == 0
    assert empty.search(matrix(np.ones((2, 4))), 2)[1].tolist() == [[-1, -1], [-1, -1]]
    scores, ids = sk.SparseIndex.build(matrix(np.ones((3, 4)))).search(matrix(np.zeros((0, 4))), 2)
    assert scores.shape == ids.shape == (0, 2)


def bad_csr(indptr: list[int], indices: list[int], data: Any, shape: tuple[int, int]) -> scipy.sparse.csr_matrix:
    """A CSR matrix whose parts SciPy did not check."""
    csr = scipy.sparse.csr_matrix(shape, dtype=np.asarray(data).dtype)
    csr.indptr, csr.indices, csr.data = np.array(indptr), np.array(indices), np.asarray(data)
    return csr


NAN_ROW = sk.SparseRows(torch.tensor([[torch.nan, torch.nan]]), torch.tensor([[-1, -1]], dtype=torch.int32), None, 4)
TWICE = sk.SparseRows(torch.tensor([[2.0, 1.0]]), torch.tensor([[3, 3]], dtype=torch.int32), None, 4)
BAD_ROWS = {
    "negative": (bad_csr([0, 1, 2], [0, 1], [1.0, -0.5], (2, 4)), "finite weights >= 0 in float32, got -0.5 in row 1"),
    "nan": (bad_csr([0, 2], [0, 1], [1.0, np.nan], (1, 4)), "finite weights >= 0 in float32, got nan in row 0"),
    "inf": (bad_csr([0, 2], [0, 1], [np.inf, 1.0], (1, 4)), "finite weights >= 0 in float32, got inf in row 0"),
    "too large for float32": (bad_csr([0, 1], [0], [1e300], (1, 4)), "float32, got inf in row 0"),
    "complex": (bad_csr([0, 1], [0], [1j], (1, 4)), "expected real weights, got complex128"),
    "index V": (bad_csr([0, 1], [4], [1.0], (1, 4)), "expected indices in [0, 4), got 4 in row 0"),
    "index -1": (bad_csr([0, 1], [-1], [1.0], (1, 4)), "expected indices in [0, 4), got -1 in row 0"),
    "index 2^32": (bad_csr([0, 1], [2**32], [1.0], (1, 4)), "expected indices in [0, 4), got 4294967296 in row 0"),
    "twice": (bad_csr([0, 0, 3], [2, 1, 2], [1.0, 1, 0], (2, 4)), "unique indices within a row, got 2 twice in row 1"),
    "descending pointers": (bad_csr([0, 2, 1], [0, 1], [1.0, 1], (2, 4)), "never descend, got 2 then 1 at row 1"),
    "pointers past the end": (bad_csr([0, 3], [0, 1], [1.0, 1], (1, 4)), "at most 2 entries, got 0 to 3"),
    "pointers from 1": (bad_csr([1, 2], [0, 1], [1.0, 1], (1, 4)), "at most 2 entries, got 1 to 2"),
    "fewer weights": (bad_csr([0, 2], [0, 1], [1.0], (1, 4)), "as many indices as weights, got 2, 2 and 1"),
    "a NaN row": (NAN_ROW, "finite weights >= 0 in float32, got nan in row 0"),
    "twice in SparseRows": (TWICE, "unique indices within a row, got 3 twice in row 0"),
    "dense": (torch.ones(1, 4), "a torch sparse CSR tensor, got Tensor torch.strided"),
    "CSC": (scipy.sparse.csc_matrix((1, 4)), "a torch sparse CSR tensor, got csc_matrix csc"),
    "list": ([[1.0]], "a torch sparse CSR tensor, got list"),
}


@pytest.mark.parametrize(("rows", "message"), BAD_ROWS.values(), ids=BAD_ROWS)
def test_bad_rows_are_refused(rows: Any, message: str) -> None:
    with pytest.raises(ValueError, match=f"^rows: .*{re.escape(message)}"):
        sk.SparseIndex.build(rows)
    with pytest.raises(ValueError, match=f"^queries: .*{re.escape(message)}"):
        sk.SparseIndex.build(matrix(np.ones((1, 4)))).search(rows, 1)


@pytest.mark.parametrize(
    ("ids", "message"),
    [
        ([1, 2], r"expected 3 integers or strings, one a row, got \[2\] int64"),
        ([[1, 2, 3]], r"expected 3 integers or strings, one a row, got \[1, 3\] int64"),
        ([1.0, 2.0, 3.0], r"expected 3 integers or strings, one a row, got \[3\] float64"),
        ([True, False, True], r"expected 3 integers or strings, one a row, got \[3\] bool"),
        (["a", "b"], r"expected 3 strings, one a row, got \[2\]"),
        (["a", 1, "b"], "expected integers or strings, not both, got 1 among strings"),
        (["a", None, "b"], "expected integers or strings, not both, got None among strings"),
        (["a", "", "b"], "expected strings of at least one character, got ''"),
        (["a", "\ud800", "b"], r"expected strings that UTF-8 can hold, got '\\ud800'"),
        (["ä", "b", "ä"], "expected unique strings, got 'ä' more than once"),
        (np.array([1, 2, 2**63], np.uint64), "expected integers that fit int64, got 9223372036854775808"),
        ([4, 9, 4], "expected unique integers, got 4 more than once"),
        (torch.tensor([4, -1, 5]), "expected integers other than -1, which pads the results, got -1"),
    ],
)
def test_bad_ids_are_refused(ids: Any, message: str) -> None:
    with pytest.raises(ValueError, match=f"^ids: {message}$"):
        sk.SparseIndex.build(matrix(np.ones((3, 2))), ids)


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"k": 0}, "k: expected an integer >= 1, got 0"),
        ({"k": 2.0}, "k: expected an integer >= 1, got 2.0"),
        ({"k": 1, "n_threads": 0}, "n_threads: expected an integer >= 1, got 0"),
        ({"k": 1, "queries": matrix(np.ones((1, 3)))}, "queries: expected vocab_size 2 like the index, got 3"),
    ],
)
def test_bad_search_arguments_are_refused(arguments: dict[str, Any], message: str) -> None:
    index = sk.SparseIndex.build(matrix(np.ones((3, 2))))
    with pytest.raises(ValueError, match=f"^{message}$"):
        index.search(**{"queries": matrix(np.ones((1, 2))), **arguments})
