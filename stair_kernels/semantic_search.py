"""semantic_search_stair: SparseIndex in the shape of sentence-transformers' semantic_search_* functions."""

from __future__ import annotations

import contextlib
import time
from collections.abc import Iterator, Mapping, Sequence
from typing import Any, TypeAlias

import scipy.sparse
import torch
from torch import Tensor

from stair_kernels.index import SparseIndex
from stair_kernels.index_inputs import Rows
from stair_kernels.rows import SparseRows

Hits: TypeAlias = list[list[dict[str, int | float]]]
Embeddings: TypeAlias = Rows | Sequence[Tensor]  # a tensor may be of any layout


def semantic_search_stair(
    query_embeddings: Embeddings,
    corpus_embeddings: Embeddings | None = None,
    corpus_index: SparseIndex | None = None,
    top_k: int = 10,
    output_index: bool = False,
) -> tuple[Hits, float] | tuple[Hits, float, SparseIndex]:
    """The best documents for each query, exact: [[{"corpus_id", "score"}, ...], ...], largest score first.

    Args:
        query_embeddings: [Q, V], whatever a SparseEncoder's `encode` returns (a tensor, COO or dense, or a list of such
            rows) and what `SparseIndex.search` takes; [V] is one query.
        corpus_embeddings: [N, V] likewise; document n has the corpus_id n. Not read when corpus_index is given.
        corpus_index: the index that an earlier call with output_index returned, or any other; corpus_id is its id.
        top_k: documents a query, fewer where fewer share a term with it.
        output_index: return the index as well.

    Returns:
        (hits, seconds that the search took), with output_index (hits, seconds, index).

    Raises:
        ValueError: without corpus_embeddings and corpus_index, on embeddings of another kind, and as
            `SparseIndex.build` and `.search` do.
    """
    if corpus_index is None:
        if corpus_embeddings is None:
            raise ValueError("corpus_embeddings: expected embeddings or corpus_index, got neither")
        with _renamed({"rows": "corpus_embeddings"}):
            corpus_index = SparseIndex.build(_as_rows(corpus_embeddings, "corpus_embeddings"))
    queries = _as_rows(query_embeddings, "query_embeddings")
    start = time.perf_counter()
    with _renamed({"queries": "query_embeddings", "k": "top_k"}):
        scores, ids = corpus_index.search(queries, top_k)
    seconds = time.perf_counter() - start
    hits: Hits = [
        [{"corpus_id": number, "score": score} for number, score in zip(*pair) if number not in (-1, None)]
        for pair in zip(ids.tolist(), scores.tolist())
    ]
    return (hits, seconds, corpus_index) if output_index else (hits, seconds)


@contextlib.contextmanager
def _renamed(names: Mapping[str, str]) -> Iterator[None]:
    """SparseIndex's errors with this function's names of the arguments."""
    try:
        yield
    except ValueError as error:
        name, colon, rest = str(error).partition(":")
        raise ValueError(names.get(name, name) + colon + rest) from None


def _as_rows(embeddings: Any, name: str) -> Rows:
    if isinstance(embeddings, (list, tuple)) and embeddings and all(isinstance(row, Tensor) for row in embeddings):
        if len({(row.layout, row.shape, row.dtype, row.device) for row in embeddings}) > 1:
            raise ValueError(f"{name}: expected rows of one layout, shape and dtype, on one device, got several")
        embeddings = torch.stack(tuple(embeddings))
    if isinstance(embeddings, SparseRows) or scipy.sparse.issparse(embeddings):
        return embeddings
    if not isinstance(embeddings, Tensor) or embeddings.dim() not in (1, 2):
        got = list(embeddings.shape) if isinstance(embeddings, Tensor) else type(embeddings).__name__
        raise ValueError(
            f"{name}: expected what SparseEncoder.encode returns, SparseRows or a SciPy CSR matrix [N, V], got {got}"
        )
    if embeddings.layout not in (torch.strided, torch.sparse_coo):
        return embeddings
    rows = embeddings.detach().cpu()
    rows = rows if rows.dim() == 2 else rows.unsqueeze(0)
    if rows.dtype in (torch.bfloat16, torch.float16):  # SciPy has neither
        rows = rows.float()
    if rows.layout == torch.strided:
        return scipy.sparse.csr_matrix(rows.numpy())
    rows = rows.coalesce()
    return scipy.sparse.csr_matrix((rows.values().numpy(), rows.indices().numpy()), tuple(rows.shape))
