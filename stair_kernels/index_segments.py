"""One part of a SparseIndex: documents built together, searched by the C++ engine, and which of them were deleted."""

from __future__ import annotations

from functools import cached_property
from pathlib import Path
from typing import NamedTuple

import numpy as np
import scipy.sparse

from stair_kernels.index_files import Part, arrays_in, map_file, require_checksum
from stair_kernels.index_layout import Counts, _index
from stair_kernels.index_manifest import Entry, damaged
from stair_kernels.index_names import Strings

Ids = np.ndarray | Strings  # int64 [n], or n strings


class Stored(NamedTuple):
    """Where a segment lies on disk."""

    directory: Path
    entry: Entry
    data: np.ndarray  # its file, memory-mapped

    def require_checksum(self) -> None:
        require_checksum(self.directory, self.entry.file, self.data, self.entry.sha256)


class Live(NamedTuple):
    """The documents of a segment that were not deleted."""

    rows: scipy.sparse.csr_matrix
    numbers: np.ndarray
    names: Strings | None
    payloads: Strings | None


class Segment:
    """Immutable: `without` gives another segment over the same arrays."""

    def __init__(
        self,
        counts: Counts,
        arrays: dict[str, np.ndarray],
        alive: np.ndarray | None = None,  # [N] bool, None: all
        stored: Stored | None = None,
    ) -> None:
        self.counts = counts
        self.arrays = arrays
        self.alive = alive
        self.stored = stored
        self.engine = _index.Index(arrays)

    @staticmethod
    def build(
        documents: _index.Rows, numbers: np.ndarray, names: Strings | None, payloads: Strings | None, reorder: bool,
        compact: bool,
    ) -> Segment:  # fmt: skip
        # Without reordering document numbers follow the ids.
        order = _index.cluster(documents) if reorder else np.argsort(numbers)
        arrays = _index.build(documents, order, compact)
        if not (order[1:] > order[:-1]).all():
            numbers = numbers[order]
            names, payloads = (None if strings is None else strings.take(order) for strings in (names, payloads))
        if not (numbered := bool((numbers == np.arange(len(numbers))).all())):
            arrays["ids"] = numbers
        if names is not None:
            arrays["name_starts"], arrays["name_bytes"] = names
            arrays["name_order"] = _index.sort_names(*names)
        if payloads is not None:
            arrays["payload_starts"], arrays["payload_bytes"] = payloads
        sizes = len(documents), documents.vocab_size, len(arrays["codes"]), len(arrays["frequent_terms"])
        n_bytes = (None if strings is None else len(strings.data) for strings in (names, payloads))
        return Segment(Counts(*sizes, int(compact), int(numbered), *n_bytes), arrays)

    @staticmethod
    def open(directory: Path, entry: Entry, verify: bool, known: Segment | None) -> Segment:
        """The segment that an index directory lists, memory-mapped; `known` has its arrays open already."""
        if known is None or known.stored is None:
            stored = Stored(directory, entry, map_file(directory, entry.file, entry.counts.offsets()[1]))
            try:
                known = Segment(entry.counts, arrays_in(stored.data, entry.counts), None, stored)
            except ValueError as error:
                raise damaged(directory, f"{entry.file}: {error}") from error
        else:
            stored = Stored(directory, entry, known.stored.data)
        if verify:
            stored.require_checksum()
        return known._changed(_read_alive(directory, entry), stored)

    def without(self, documents: np.ndarray) -> Segment:
        """The segment without the documents at these places."""
        alive = np.ones(self.counts.documents, bool) if self.alive is None else self.alive.copy()
        alive[documents] = False
        return self._changed(alive, self.stored)

    def _changed(self, alive: np.ndarray | None, stored: Stored | None) -> Segment:
        other = Segment.__new__(Segment)
        other.__dict__.update(self.__dict__)
        for cached in ("live_numbers", "alive_bits"):
            other.__dict__.pop(cached, None)
        other.alive, other.stored = alive, stored
        return other

    def part(self, directory: Path | None) -> Part:
        """What is written of it into a directory, which may hold its arrays already; None: a new one."""
        entry = self.stored.entry if self.stored is not None and self.stored.directory == directory else None
        return Part(self.counts, self.arrays, self.alive_bits, self.counts.documents - len(self), entry)

    def require_checksum(self) -> None:
        """Raise ValueError unless its file is as it was written: so that no damage gets a new checksum."""
        if self.stored is not None:
            self.stored.require_checksum()

    def __len__(self) -> int:
        return self.counts.documents if self.alive is None else int(np.count_nonzero(self.alive))

    @cached_property
    def alive_bits(self) -> np.ndarray | None:
        return None if self.alive is None else bits_of(self.alive)

    @property
    def numbers(self) -> np.ndarray:
        """int64 [N]: what the engine returns for each document."""
        return np.arange(self.counts.documents) if self.counts.numbered else self.arrays["ids"]

    @property
    def next_number(self) -> int:
        """One more than the largest."""
        numbered = self.counts.numbered or self.counts.documents == 0
        return self.counts.documents if numbered else int(self.arrays["ids"].max()) + 1

    @cached_property
    def live_numbers(self) -> np.ndarray:
        """The numbers of the documents that were not deleted, ascending."""
        return np.sort(self.numbers if self.alive is None else self.numbers[self.alive])

    @cached_property
    def _by_number(self) -> np.ndarray | None:
        """The places of the documents in the order of their numbers; None: as they are."""
        if self.counts.numbered:
            return None
        numbers = self.numbers
        return None if (numbers[1:] > numbers[:-1]).all() else np.argsort(numbers)

    @property
    def names(self) -> Strings | None:
        return self._strings("name")

    @property
    def payloads(self) -> Strings | None:
        return self._strings("payload")

    def _strings(self, kind: str) -> Strings | None:
        starts = self.arrays.get(f"{kind}_starts")
        return None if starts is None else Strings(starts, self.arrays[f"{kind}_bytes"])

    def find(self, ids: Ids) -> np.ndarray:
        """The place of the document with each id; -1 where it is not there or was deleted."""
        if isinstance(ids, Strings):
            assert self.names is not None
            places = _index.find_names(*self.names, self.arrays["name_order"], *ids)
            return places if self.alive is None else np.where((places >= 0) & self.alive[places], places, -1)
        return self.find_numbers(ids)

    def find_numbers(self, numbers: np.ndarray) -> np.ndarray:
        """As `find`, by the numbers that the engine gives: integer ids, or where string ids come in their order."""
        if self.counts.documents == 0:
            return np.full(len(numbers), -1)
        if self.counts.numbered:
            places = numbers.clip(0, self.counts.documents - 1).astype(np.int64)
            there = places == numbers
        else:
            places = np.searchsorted(self.arrays["ids"], numbers, sorter=self._by_number)
            places = places.clip(max=self.counts.documents - 1)
            if self._by_number is not None:
                places = self._by_number[places]
            there = self.arrays["ids"][places] == numbers
        if self.alive is not None:
            there &= self.alive[places]
        return np.where(there, places, -1)

    def decoded(self, documents: np.ndarray) -> list[str]:
        """The string ids of documents."""
        assert self.names is not None
        try:
            return [name.decode() for name in self.names.take(documents).tolist()]
        except UnicodeDecodeError as error:
            raise self._damaged(f"a string id is no UTF-8: {error}") from error

    def mask_of_ids(self, ids: Ids) -> np.ndarray:
        """bool [N]: the documents that have one of these ids and were not deleted."""
        documents = self.find(ids)
        mask = np.zeros(self.counts.documents, bool)
        mask[documents[documents >= 0]] = True
        return mask

    def mask_of_live(self, chosen: np.ndarray) -> np.ndarray:
        """bool [N] from a bool for each of live_numbers."""
        order = np.arange(self.counts.documents) if self._by_number is None else self._by_number
        mask = np.zeros(self.counts.documents, bool)
        mask[order if self.alive is None else order[self.alive[order]]] = chosen
        return mask

    def search(
        self, rows: _index.Rows, k: int, n_threads: int, mask: np.ndarray | None
    ) -> tuple[np.ndarray, np.ndarray]:
        """Scores and numbers as SparseIndex.search gives them, among the documents of a mask; None: all."""
        return self.engine.search(rows, k, n_threads, self.alive_bits if mask is None else bits_of(mask))

    def row(self, document: int) -> tuple[np.ndarray, np.ndarray]:
        """The terms, ascending, and weights of a document; ValueError when its file is damaged."""
        first, end = self.arrays["row_starts"][document : document + 2].tolist()
        terms = self.arrays["row_terms"][max(first, 0) : max(end, 0)].astype(np.int32)
        if not 0 <= first <= end <= self.counts.postings or (terms[1:] <= terms[:-1]).any():
            raise self._damaged(f"document {document} has no sound row")
        return terms, self.arrays["row_weights"][first:end].astype(np.float32)

    def live(self) -> Live:
        """Raises ValueError when its file is damaged."""
        self.require_checksum()
        arrays, counts = self.arrays, self.counts
        self._require_ascending("row_starts", counts.postings)
        for strings in ("name", "payload"):
            if self._strings(strings) is not None:
                self._require_ascending(f"{strings}_starts", len(arrays[f"{strings}_bytes"]))
        weights = arrays["row_weights"].astype(np.float32)
        terms = arrays["row_terms"].astype(np.int32)
        starts = arrays["row_starts"].astype(np.int64)
        rows = scipy.sparse.csr_matrix((weights, terms, starts), (counts.documents, counts.vocab_size))
        if self.alive is None:
            return Live(rows, self.numbers, self.names, self.payloads)
        kept = np.flatnonzero(self.alive)
        names, payloads = (None if s is None else s.take(kept) for s in (self.names, self.payloads))
        return Live(rows[kept], self.numbers[kept], names, payloads)

    def _require_ascending(self, name: str, end: int) -> None:
        starts = self.arrays[name]
        if starts[0] != 0 or starts[-1] != end or (starts[1:] < starts[:-1]).any():
            raise self._damaged(f"{name} do not ascend from 0 to {end}")

    def _damaged(self, reason: str) -> ValueError:
        return damaged(Path("memory") if self.stored is None else self.stored.directory, reason)


def bits_of(mask: np.ndarray) -> np.ndarray:
    """A bit for each document, in words of 64."""
    packed = np.zeros(-(-len(mask) // 64) * 8, np.uint8)
    packed[: -(-len(mask) // 8)] = np.packbits(mask, bitorder="little")
    return packed.view("<u8").astype(np.uint64, copy=False)


def _read_alive(directory: Path, entry: Entry) -> np.ndarray | None:
    """bool [N]; its checksum is always compared: it takes N / 8 bytes."""
    if entry.alive is None:
        return None
    N = entry.counts.documents
    bits = map_file(directory, entry.alive.file, -(-N // 64) * 8)
    require_checksum(directory, entry.alive.file, bits, entry.alive.sha256)
    alive = np.unpackbits(bits, count=N, bitorder="little").view(bool)
    if int(np.count_nonzero(alive)) != N - entry.alive.deleted:
        raise damaged(directory, f"{entry.alive.file}: expected {entry.alive.deleted} deleted documents")
    return alive
