"""semantic_search_stair: what SparseIndex finds, in the shape of sentence-transformers' functions."""

from __future__ import annotations

import re
from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
import torch
from test_index import matrix, random_dense

import stair_kernels as sk

RANDOM = np.random.default_rng(1)
CORPUS = torch.from_numpy(random_dense(RANDOM, 40, 20, 0.4, 4))
QUERIES = torch.from_numpy(random_dense(RANDOM, 5, 20, 0.2, 4))
QUERIES[2] = 0


FORMS: dict[str, Callable[[torch.Tensor], Any]] = {
    "SciPy": matrix,
    "SparseRows": lambda rows: sk.SparseRows.from_dense(rows, 20),
    "CSR": torch.Tensor.to_sparse_csr,
    "COO": torch.Tensor.to_sparse,
    "COO in halves, not coalesced": lambda rows: torch.sparse_coo_tensor(
        torch.cat([rows.to_sparse().indices()] * 2, 1), torch.cat([rows.to_sparse().values() / 2] * 2), rows.shape
    ),
    "COO bfloat16": lambda rows: rows.bfloat16().to_sparse(),
    "dense": torch.Tensor.clone,
    "dense float16": torch.Tensor.half,
    "a list of dense rows": list,
    "a list of COO rows": lambda rows: list(rows.to_sparse()),
}


@pytest.mark.filterwarnings("ignore:Sparse:UserWarning")
@pytest.mark.parametrize("form", FORMS.values(), ids=FORMS)
def test_hits_are_those_of_the_index(form: Callable[[torch.Tensor], Any]) -> None:
    corpus, queries = form(CORPUS), form(QUERIES)
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


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"corpus_embeddings": [[1.0]]}, "corpus_embeddings: expected what SparseEncoder.encode returns, .* got list"),
        ({"corpus_embeddings": []}, "corpus_embeddings: expected what SparseEncoder.encode returns, .* got list"),
        ({"query_embeddings": QUERIES[None]}, r"query_embeddings: expected what .* got \[1, 5, 20\]"),
        ({"query_embeddings": QUERIES.numpy()}, "query_embeddings: expected what .* got ndarray"),
        ({"query_embeddings": [QUERIES[0], QUERIES[0].to_sparse()]}, "query_embeddings: expected rows of one layout"),
        ({"query_embeddings": QUERIES[:, 1:]}, "query_embeddings: expected vocab_size 20 like the index, got 19"),
        ({"query_embeddings": -QUERIES}, "query_embeddings: expected finite weights >= 0 in float32, got -"),
        ({"corpus_embeddings": -CORPUS}, "corpus_embeddings: expected finite weights >= 0 in float32, got -"),
        ({"top_k": 0}, "top_k: expected an integer >= 1, got 0"),
    ],
)
def test_errors_name_the_argument(arguments: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match=f"^{message}"):
        sk.semantic_search_stair(**{"query_embeddings": QUERIES, "corpus_embeddings": CORPUS, **arguments})
