"""A collection for search engines to load: what is awkward about ids and terms, and what they are to find."""

from __future__ import annotations

import functools
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import scipy.sparse
from collection import V, make_collection
from peers import recall
from stair import STAIRProcessor
from stair.cli import app
from tiny_stair import save_checkpoint
from tokenizers import Tokenizer, models
from typer.testing import CliRunner

import stair_kernels as sk

K = 10
N = 2000
SAME = slice(100, 112)  # documents, all alike: more of them than are asked for
EMPTY = 7
SPECIAL = ["[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]"]
# The names of the most frequent terms.
TERMS = [
    *(
        '"',
        "\\",
        "#",
        "##ing",
        "##'",
        ".",
        "...",
        "a.b",
        ".5",
        "'",
        "{",
        "}",
        "[",
        "]",
        ":",
        ",",
        "/",
        "<b>",
        "&",
        "%s",
    ),
    *("$", "^", "_", "-", "--", "*", "?", "~", "|", "1", "007", "1e5", "null", "NULL", "true", "\\N", "\\n", "\\."),
    *("zoé", "日本", "##本", "🙂", "e\u0301", "ﬁ", "İ", "Ünï", "Apple", "APPLE", "apple", "#3", "##3", "_id", "terms"),
]
IDS = [
    *(" ", "a b", "pictures/a cat.png", 'quote"', "it's", "back\\slash", "\\N", "\\.", "tab\there", "line\nbreak"),
    *("return\r", "zoé", "日本", "🙂", "0", "007", "-1", "null", "a,b;c", "{x}", "<a&b>", "#1", "?q=1", "a::b", "%41"),
]
# An engine that keeps the weights as they are adds float32 in its own order.
FLOAT32 = 2.0**-20


class Case:
    """[N, V] documents of length 1 or empty, and [Q, V] queries; an index of the documents, saved, and a checkpoint."""

    def __init__(self, folder: Path, ids: Sequence[str] = IDS, empty: bool = True) -> None:
        documents, queries = make_collection(N, 12, seed=3)
        rows = documents.tolil()
        for number in range(SAME.start, SAME.stop):
            rows[number] = rows[SAME.start]
        rows = scipy.sparse.csr_matrix(rows)
        if empty:
            rows.data[rows.indptr[EMPTY] : rows.indptr[EMPTY + 1]] = 0
            rows.eliminate_zeros()
        lengths = np.sqrt(rows.multiply(rows).sum(axis=1)).A1
        self.documents = scipy.sparse.csr_matrix(
            scipy.sparse.diags_array(1 / np.where(lengths > 0, lengths, 1)) @ rows, dtype=np.float32
        )
        self.ids = [*ids, *(f"d{number}" for number in range(N - len(ids)))]
        self.number = {name: number for number, name in enumerate(self.ids)}
        frequent = scipy.sparse.random_array((6, V), density=0, format="lil", dtype=np.float32)
        for query in range(6):  # the awkward terms, each in some query
            for term in range(query, len(TERMS), 6):
                frequent[query, term] = 0.1 + 0.1 * (term % 7)
        kinds = [queries["plain"], queries["one rare term"][:4], frequent.tocsr(), self.documents[[SAME.start]]]
        self.queries = scipy.sparse.csr_matrix(scipy.sparse.vstack(kinds), dtype=np.float32)
        self.vocabulary = [*TERMS, *(f"w{v}" for v in range(V - len(TERMS) - len(SPECIAL))), *SPECIAL]
        self.index = sk.SparseIndex.build(self.documents, ids=self.ids)
        self.index.save(folder / "index")
        self.folder = folder
        save_checkpoint(folder / "model")
        pieces = Tokenizer(models.WordPiece({term: v for v, term in enumerate(self.vocabulary)}, unk_token="[UNK]"))
        STAIRProcessor(pieces, image_size=32, max_length=16).save_pretrained(folder / "model")

    def export(self, name: str, *options: Any, index: str = "index") -> Path:
        """The file that `stair export` writes."""
        file = self.folder / name
        arguments = ["export", self.folder / index, "--out", file, "--model", self.folder / "model", *options]
        done = CliRunner().invoke(app, [str(argument) for argument in arguments])
        assert done.exit_code == 0, done.stderr
        return file

    def query(self, number: int) -> tuple[list[int], list[float]]:
        """The terms of a query and their weights."""
        part = slice(self.queries.indptr[number], self.queries.indptr[number + 1])
        return self.queries.indices[part].tolist(), self.queries.data[part].tolist()

    @functools.cached_property
    def exact(self) -> np.ndarray:
        """[Q, N] float64: every score."""
        return (self.queries.astype(np.float64) @ self.documents.astype(np.float64).T).toarray()

    def check(
        self,
        found: Sequence[Sequence[tuple[str, float]]],
        off: np.ndarray | float,
        least: float = 1.0,
        short: bool = False,
    ) -> float:
        """The mean recall@10 of found [Q] lists of (id, score), each the engine's best K, best first.

        Args:
            off: [Q, N], how far a score may be from the exact one.
            least: the recall that is expected.
            short: whether less than there is may be found where that is fewer than K.
        """
        off = np.broadcast_to(off, self.exact.shape)
        ours, _ = self.index.search(self.queries, K)
        recalls = []
        for query, hits in enumerate(found):
            numbers = np.array([self.number[name] for name, _ in hits], int)
            scores = np.array([score for _, score in hits])
            exact, allowed = self.exact[query, numbers], off[query, numbers]
            matching = (self.exact[query] > 0).sum()
            assert len(hits) == min(K, matching) or (short and len(hits) < matching < K)
            assert len(set(numbers.tolist())) == len(hits)
            assert np.all(np.diff(scores) <= 1e-6 * scores[:-1]), scores
            assert np.all(np.abs(scores - exact) <= allowed), (query, scores - exact, allowed)
            # The n-th best here is the n-th best of SparseIndex, but for what the engine rounds off.
            assert np.all(np.abs(ours[query, : len(hits)].numpy() - scores) <= off[query].max() + 1e-6), query
            recalls.append(recall(self.documents, self.queries[query], numbers))
        assert np.mean(recalls) >= least, recalls
        return float(np.mean(recalls))

    def rounded(self, scale: float, query_scale: Any = None, least: int = 0) -> np.ndarray:
        """[Q, N]: how far a score is off when weights are integers round(w * scale), at least `least`, and the query's
        likewise, without an end."""
        documents, queries = self.documents.astype(np.float64), self.queries.astype(np.float64)
        half, has, asked = max(0.5, least) / scale, documents.sign().T, queries.sign()
        off = half * (queries @ has).toarray()
        if query_scale is not None:
            half_query = 0.5 / query_scale
            off += half_query * (asked @ documents.T).toarray() + half * half_query * (asked @ has).toarray()
        return off + FLOAT32 * self.exact.max()
