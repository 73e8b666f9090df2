"""SparseIndex over more than 2^31 and 2^32 postings: segment files of holes, few pages of which are touched."""

from __future__ import annotations

import math
from collections.abc import Mapping
from pathlib import Path
from typing import NamedTuple

import numpy as np
import pytest
import scipy.sparse
import torch
from test_index import assert_same
from test_index_pruned import make_queries, rows

import stair_kernels as sk
from stair_kernels import _index
from stair_kernels.index_layout import Counts
from stair_kernels.index_manifest import MANIFEST, Entry, Manifest, render

N = 9000  # documents that are more than holes; some terms are in more than a quarter of all
K = 10


class Filler(NamedTuple):
    """Documents before the others, each with every one of these terms."""

    documents: int  # whole ranges
    terms: int

    @property
    def postings(self) -> int:
        return self.documents * self.terms


PAST_31 = Filler(4 * _index.RANGE, 2**31 // (4 * _index.RANGE))
PAST_32 = Filler(_index.RANGE, 2**32 // _index.RANGE)


@pytest.fixture(scope="module")
def documents() -> scipy.sparse.csr_matrix:
    return rows(np.random.default_rng(1), N, 14, 6)


def write(path: Path, counts: Counts, arrays: Mapping[str, np.ndarray]) -> sk.SparseIndex:
    """An index directory of one segment whose arrays end with these, after zeros that are holes."""
    path.mkdir()
    file = f"segment-{'0' * 16}.bin"
    offsets, size = counts.offsets()
    with open(path / file, "wb") as stream:
        stream.truncate(size)
        for name, (dtype, shape) in counts.arrays().items():
            data = np.ascontiguousarray(arrays.get(name, np.zeros(0)), dtype)
            stream.seek(offsets[name] + math.prod(shape) * data.itemsize - data.nbytes)
            stream.write(data.data)
    (path / MANIFEST).write_bytes(render(Manifest((Entry(counts, file, "", None),), {})))
    return sk.SparseIndex.open(path)


def after(filler: Filler, near: sk.SparseIndex, path: Path) -> sk.SparseIndex:
    """The filler and then the documents of an index, whose terms come last as well."""
    counts, arrays = near._segments[0].counts, near._segments[0].arrays
    F, V, P = filler.documents, filler.terms, filler.postings
    chunks = F // _index.CHUNK
    written = {
        **arrays,
        "row_starts": np.concatenate([np.arange(F) * V, P + arrays["row_starts"].astype(np.int64)]),
        "row_terms": arrays["row_terms"].astype(np.int64) + V,
        "term_starts": np.concatenate([np.arange(V) * F, P + arrays["term_starts"]]),
        "segments": np.pad(arrays["segments"], ((0, 0), (F // _index.RANGE, 0))),
        "frequent_terms": arrays["frequent_terms"] + V,
        "block_max": np.pad(arrays["block_max"], ((0, 0), (chunks * _index.CHUNK_BLOCKS, 0))),
        "groups": np.pad(arrays["groups"], ((0, 0), (chunks * _index.CHUNK_GROUPS, 0), (0, 0))),
    }
    more = {"documents": F, "vocab_size": V, "postings": P}
    counts = counts._replace(**{name: getattr(counts, name) + number for name, number in more.items()})
    return write(path, counts, written)


@pytest.mark.parametrize("filler", [PAST_31, PAST_32], ids=["31", "32"])
def test_postings_past_2_to_the(tmp_path: Path, documents: scipy.sparse.csr_matrix, filler: Filler) -> None:
    """Row starts of 32 and of 64 bits, row terms of 16 and of 32: search, filters, rows and matches of the last."""
    near = sk.SparseIndex.build(documents)
    index = after(filler, near, tmp_path / "index")
    assert near.stats()["frequent"] == index.stats()["frequent"] > 0
    starts = index._segments[0].arrays["row_starts"]
    assert starts.dtype == (np.uint32 if filler is PAST_31 else np.int64)
    assert int(starts[filler.documents]) in (2**31, 2**32)
    assert len(index) == filler.documents + N
    queries = make_queries(np.random.default_rng(2))
    scores, ids = near.search(queries, K)
    found = (ids >= 0).numpy().all(axis=1)  # with fewer results every document of the filler would be scored
    queries, scores, ids = queries[found], scores[found], ids[found]
    assert len(ids) > 8
    moved = scipy.sparse.csr_matrix(
        (queries.data, queries.indices + filler.terms, queries.indptr), (queries.shape[0], index.vocab_size)
    )
    assert_same(index.search(moved, K), (scores, ids + filler.documents))
    some = np.arange(0, N, 7)
    scores, ids = near.search(queries, 3, allowed=some)
    assert_same(index.search(moved, 3, allowed=some + filler.documents), (scores, ids + filler.documents))
    last = np.arange(N - 5, N)
    rows_of_last = index.rows(last + filler.documents)
    assert (rows_of_last[:, filler.terms :] != documents[last]).nnz == 0
    assert rows_of_last.nnz == documents[last].nnz
    expected = [
        [{term + filler.terms: product for term, product in of_one.items()} for of_one in of_query]
        for of_query in near.matches(queries, torch.from_numpy(np.tile(last, (queries.shape[0], 1))))
    ]
    assert index.matches(moved, np.tile(last + filler.documents, (queries.shape[0], 1))) == expected


def test_as_many_documents_as_there_may_be(tmp_path: Path) -> None:
    most = 2**31 - 1
    counts = Counts(most, 2, 1, 0, 0, 1, None, None)
    arrays = {
        "row_starts": [1],
        "row_terms": [1],
        "row_weights": [0.5],
        "term_starts": [1],
        "segments": [1],
        "documents": [(most - 1) % _index.RANGE],
        "codes": [255],
        "units": [0.5 / 255],
    }
    index = write(tmp_path / "index", counts, {name: np.array(array) for name, array in arrays.items()})
    query = scipy.sparse.csr_matrix(np.array([[0, 2.0]], np.float32))
    scores, ids = index.search(query, 1)
    assert (scores.tolist(), ids.tolist()) == ([[1.0]], [[most - 1]])
    assert index.rows([most - 1]).toarray().tolist() == [[0, 0.5]]
    for name, what in (("documents", "documents"), ("vocab_size", "columns")):
        counts = Counts(0, 0, 0, 0, 0, 1, None, None)._replace(**{name: 2**31})
        with pytest.raises(ValueError, match=f"is damaged .*: expected at most 2147483647 {what}, got 2147483648"):
            write(tmp_path / name, counts, {})
