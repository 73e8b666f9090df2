"""semantic_search_stair: SparseIndex in the shape of sentence-transformers' semantic_search_* functions."""

from __future__ import annotations

import time
from typing import Any, TypeAlias

import torch
from torch import Tensor

from stair_kernels.index import SparseIndex
from stair_kernels.index_inputs import Rows

Hits: TypeAlias = list[list[dict[str, int | float]]]


def semantic_search_stair(
    query_embeddings: Rows,
    corpus_embeddings: Rows | None = None,
    corpus_index: SparseIndex | None = None,
    top_k: int = 10,
    output_index: bool = False,
) -> tuple[Hits, float] | tuple[Hits, float, SparseIndex]:
    """The best documents for each query, exact: [[{"corpus_id", "score"}, ...], ...], largest score first.

    Args:
        query_embeddings: [Q, V], what `SparseIndex.search` takes or a torch COO tensor, as a SparseEncoder encodes;
            [V] is one query.
        corpus_embeddings: [N, V] likewise; document n has the corpus_id n. Not read when corpus_index is given.
        corpus_index: the index that an earlier call with output_index returned, or any other; corpus_id is its id.
        top_k: documents a query, fewer where fewer share a term with it.
        output_index: return the index as well.

    Returns:
        (hits, seconds that the search took), with output_index (hits, seconds, index).

    Raises:
        ValueError: without corpus_embeddings and corpus_index, and as `SparseIndex.build` and `.search` do.
    """
    if corpus_index is None:
        if corpus_embeddings is None:
            raise ValueError("corpus_embeddings: expected embeddings or corpus_index, got neither")
        corpus_index = SparseIndex.build(_as_csr(corpus_embeddings))
    start = time.perf_counter()
    scores, ids = corpus_index.search(_as_csr(query_embeddings), top_k)
    seconds = time.perf_counter() - start
    hits: Hits = [
        [{"corpus_id": number, "score": score} for number, score in zip(*pair) if number not in (-1, None)]
        for pair in zip(ids.tolist(), scores.tolist())
    ]
    return (hits, seconds, corpus_index) if output_index else (hits, seconds)


def _as_csr(embeddings: Any) -> Rows:
    if isinstance(embeddings, Tensor) and embeddings.layout == torch.sparse_coo:
        rows = embeddings.detach().cpu()
        return (rows if rows.dim() == 2 else rows.unsqueeze(0)).coalesce().to_sparse_csr()
    return embeddings
