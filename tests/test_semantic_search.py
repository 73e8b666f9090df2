"""semantic_search_stair: what SparseIndex finds, in the shape of sentence-transformers' functions."""

from __future__ import annotations

import re

import numpy as np
import pytest
import torch
from test_index import matrix, random_dense

import stair_kernels as sk

RANDOM = np.random.default_rng(1)
CORPUS = torch.from_numpy(random_dense(RANDOM, 40, 20, 0.4, 3))
QUERIES = torch.from_numpy(random_dense(RANDOM, 5, 20, 0.2, 3))
QUERIES[2] = 0


@pytest.mark.filterwarnings("ignore:Sparse:UserWarning")
@pytest.mark.parametrize("layout", [torch.sparse_coo, torch.sparse_csr, None])
def test_hits_are_those_of_the_index(layout: torch.layout | None) -> None:
    corpus, queries = (rows.to_sparse(layout=layout) if layout else matrix(rows) for rows in (CORPUS, QUERIES))
    hits, seconds, index = sk.semantic_search_stair(queries, corpus, top_k=7, output_index=True)
    scores, ids = sk.SparseIndex.build(matrix(CORPUS)).search(matrix(QUERIES), 7)
    expected = [
        [{"corpus_id": n, "score": s} for n, s in zip(*pair) if n >= 0] for pair in zip(ids.tolist(), scores.tolist())
    ]
    assert hits == expected
    assert hits[2] == []
    assert seconds > 0
    again = sk.semantic_search_stair(queries, corpus_index=index, top_k=7)
    assert again[0] == hits
    assert len(again) == 2


def test_one_query_and_no_corpus() -> None:
    index = sk.SparseIndex.build(matrix(CORPUS), ids=np.arange(40) + 100)
    query = QUERIES[0].to_sparse()
    hits, _ = sk.semantic_search_stair(query, corpus_index=index, top_k=1)
    assert hits[0][0]["corpus_id"] == 100 + int((CORPUS @ QUERIES[0]).argmax())
    with pytest.raises(ValueError, match=re.escape("corpus_embeddings: expected embeddings or corpus_index, got")):
        sk.semantic_search_stair(query)
