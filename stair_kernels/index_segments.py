"""One part of a SparseIndex: documents built together, searched by the C++ engine, and which of them were deleted."""

from __future__ import annotations

from functools import cached_property

import numpy as np
import scipy.sparse

from stair_kernels.index_files import Counts, _index


class Segment:
    """Immutable: `without` gives another segment over the same arrays."""

    def __init__(self, counts: Counts, arrays: dict[str, np.ndarray], alive: np.ndarray | None = None) -> None:
        self.counts = counts
        self.arrays = arrays
        self.alive = alive  # [N] bool, None: all
        self.engine = _index.Index(arrays)

    @staticmethod
    def build(documents: _index.Rows, ids: np.ndarray, reorder: bool, compact: bool) -> Segment:
        # Without reordering document numbers follow the ids.
        order = _index.cluster(documents) if reorder else np.argsort(ids)
        arrays = {"ids": ids[order], **_index.build(documents, order, compact)}
        sizes = len(documents), documents.vocab_size, len(arrays["codes"]), len(arrays["frequent_terms"])
        return Segment(Counts(*sizes, int(compact)), arrays)

    def without(self, documents: np.ndarray) -> Segment:
        """The segment without these document numbers."""
        other = Segment.__new__(Segment)
        other.__dict__.update(self.__dict__)
        other.__dict__.pop("live_ids", None)
        other.alive = np.ones(self.counts.documents, bool) if self.alive is None else self.alive.copy()
        other.alive[documents] = False
        return other

    def __len__(self) -> int:
        return self.counts.documents if self.alive is None else int(np.count_nonzero(self.alive))

    @cached_property
    def live_ids(self) -> np.ndarray:
        """The ids of the documents that were not deleted, ascending."""
        ids = self.arrays["ids"] if self.alive is None else self.arrays["ids"][self.alive]
        return np.sort(ids)

    @cached_property
    def _by_id(self) -> np.ndarray:
        """The document numbers in the order of their ids."""
        return np.argsort(self.arrays["ids"])

    def find(self, ids: np.ndarray) -> np.ndarray:
        """The document number of each id; -1 where it is not there or was deleted."""
        if self.counts.documents == 0:
            return np.full(len(ids), -1)
        places = np.searchsorted(self.arrays["ids"], ids, sorter=self._by_id).clip(max=self.counts.documents - 1)
        documents = self._by_id[places]
        there = self.arrays["ids"][documents] == ids
        if self.alive is not None:
            there &= self.alive[documents]
        return np.where(there, documents, -1)

    def mask_of_ids(self, ids: np.ndarray) -> np.ndarray:
        """bool [N]: the documents that have one of these ids and were not deleted."""
        documents = self.find(ids)
        mask = np.zeros(self.counts.documents, bool)
        mask[documents[documents >= 0]] = True
        return mask

    def mask_of_live(self, chosen: np.ndarray) -> np.ndarray:
        """bool [N] from a bool for each of live_ids."""
        order = self._by_id if self.alive is None else self._by_id[self.alive[self._by_id]]
        mask = np.zeros(self.counts.documents, bool)
        mask[order] = chosen
        return mask

    def search(
        self, rows: _index.Rows, k: int, n_threads: int, mask: np.ndarray | None
    ) -> tuple[np.ndarray, np.ndarray]:
        """Scores and ids as SparseIndex.search gives them, among the documents of a mask."""
        return self.engine.search(rows, k, n_threads, None if mask is None else _bits(mask))

    def row(self, document: int) -> tuple[np.ndarray, np.ndarray]:
        """The terms, ascending, and weights of a document."""
        part = slice(*self.arrays["row_starts"][document : document + 2])
        return self.arrays["row_terms"][part], self.arrays["row_weights"][part].astype(np.float32)

    def live_rows(self) -> tuple[scipy.sparse.csr_matrix, np.ndarray]:
        """The documents that were not deleted, and their ids."""
        arrays, counts = self.arrays, self.counts
        weights = arrays["row_weights"].astype(np.float32)
        terms = arrays["row_terms"].astype(np.int32)
        rows = scipy.sparse.csr_matrix((weights, terms, arrays["row_starts"]), (counts.documents, counts.vocab_size))
        if self.alive is None:
            return rows, arrays["ids"]
        return rows[self.alive], arrays["ids"][self.alive]


def _bits(mask: np.ndarray) -> np.ndarray:
    """A bit for each document, in words of 64."""
    packed = np.zeros(-(-len(mask) // 64) * 8, np.uint8)
    packed[: -(-len(mask) // 8)] = np.packbits(mask, bitorder="little")
    return packed.view("<u8").astype(np.uint64, copy=False)
