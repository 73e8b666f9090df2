"""SparseIndex: exact top-k retrieval over sparse rows, kept in memory or on disk."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from typing import Any

import numpy as np
import scipy.sparse
import torch
from torch import Tensor

from stair_kernels import index_gpu, index_merge
from stair_kernels.index_disk import IndexOnDisk
from stair_kernels.index_inputs import Rows, as_ids, checked_ids, checked_payloads, checked_rows
from stair_kernels.index_layout import _index
from stair_kernels.index_manifest import checked_metadata
from stair_kernels.index_names import Strings
from stair_kernels.index_segments import Ids, Segment


class SparseIndex(IndexOnDisk):
    """Exact top-k maximum inner product over N sparse documents with non-negative weights.

        score[q, n] = sum_v query[q, v] * document[n, v]     in float32, v ascending

    That order and rounding (each product, then each sum, to float32) define the score: it has the same bits for any
    number of threads and after saving and opening. Documents are ranked by score descending, equal scores by the lower
    id, or where ids are strings in the order in which they were added; a document that shares no entry with the query
    (score 0) is not returned.

    Made by `SparseIndex.build`, `SparseIndex.open` or `SparseIndex.merge`. `add`, `delete` and `compact` change it in
    memory; `save` writes what it holds to a new place, `commit` what changed to where it was opened. Safe to search
    from several threads, also while another changes it: a search sees the index as it was when the search began.
    """

    @staticmethod
    def build(
        rows: Rows,
        ids: Any = None,
        *,
        payloads: Any = None,
        metadata: Mapping[str, Any] | None = None,
        reorder: bool = False,
        compact: bool = False,
    ) -> SparseIndex:
        """The index of the rows of a SparseRows, a SciPy CSR matrix or a torch sparse CSR tensor [N, V].

        Args:
            rows: N documents; weights finite and >= 0 in float32. Columns of a CSR may come in any order.
            ids: N unique integers other than -1, or N unique strings, that `search` returns for the documents; 0 .. N-1
                when None.
            payloads: N bytes objects that are kept with the documents: see the method of that name.
            metadata: a dict of what JSON can hold, kept in the manifest.
            reorder: lay documents that share terms side by side: search may leave more of them out, building takes
                longer. The results are the same.
            compact: round the weights to float16 (relative error <= 2^-11; below 6.1e-5 absolute error <= 3e-8), which
                makes the index smaller. The scores are exactly those of the rounded weights.

        Raises:
            ValueError: on negative, NaN or infinite weights (in float16 for a compact index), indices out of range or
                twice in a row, and on ids and payloads of another number or type, or ids that are not unique.
        """
        documents = checked_rows(rows, "rows", np.float16 if compact else np.float32)
        N = len(documents)
        given, kept = checked_ids(ids, N), checked_payloads(payloads, N)
        names = given if isinstance(given, Strings) else None
        numbers = np.arange(N) if isinstance(given, Strings) else given
        segment = Segment.build(documents, numbers, names, kept, reorder, compact)
        return SparseIndex([segment], checked_metadata(metadata))

    @staticmethod
    def merge(indexes: Iterable[SparseIndex], *, reorder: bool = False) -> SparseIndex:
        """One index of the documents of several, with the first one's metadata; compact when all of them are.

        Raises:
            ValueError: when there are none, their vocabularies or kinds of ids differ, two hold the same id, or a file
                of one is damaged.
        """
        held = [index._held() for index in indexes]
        segment = index_merge.merged([segments for segments, _ in held], reorder)
        return SparseIndex([segment], held[0][1])

    def to(self, device: str | torch.device) -> index_gpu.DeviceIndex:
        """The index as it is now on a CUDA device, to search there; it does not change when this one does.

        Raises:
            ValueError: for another kind of device and for string ids, and when a file of the index is damaged.
            RuntimeError: without the CUDA library.
        """
        device = index_gpu.checked_device(device)
        segment = index_merge.compacted(self._segments)
        if segment.names is not None:
            raise ValueError(f"device: expected an index with integer ids to copy to {device}, got string ids")
        return index_gpu.DeviceIndex(index_gpu.as_tensors(segment, device))

    def add(self, rows: Rows, ids: Any = None, *, payloads: Any = None) -> None:
        """Add documents, found by the searches that begin from now on; rounded to float16 in a compact index.

        They are a new segment, merged with those before it that are not twice as large.

        Args:
            rows: as for `build`, over the index's vocabulary.
            ids: as for `build`, none of which the index holds; those after the largest id when None.
            payloads: as for `build`, when the index has them.

        Raises:
            ValueError: as `build` does, on another vocabulary size, on ids that the index holds and on integers where
                the index has strings; when a file that it would merge is damaged. Nothing is added.
        """
        with self._changes:
            segments = self._segments
            compact = bool(segments[0].counts.compact)
            documents = self._checked_rows(rows, "rows", np.float16 if compact else np.float32)
            N, first = len(documents), index_merge.next_number(segments)
            if ids is None and first + N > np.iinfo(np.int64).max:
                raise ValueError(f"ids: expected integers, as none are left after {first - 1}, got None")
            given = checked_ids(np.arange(first, first + N) if ids is None else ids, N)
            index_merge.require_kind(given, segments)
            held = np.flatnonzero(np.max([segment.find(given) for segment in segments], axis=0) >= 0)
            if held.size:
                twice = index_merge.shown(given, held[0])
                raise ValueError(f"ids: expected ids that the index does not hold, got {twice}")
            kept = checked_payloads(payloads, N)
            if (kept is None) != (segments[0].payloads is None):
                expected = "none, as the index has" if kept is not None else f"{N}, as the index has them"
                raise ValueError(f"payloads: expected {expected}")
            names = given if isinstance(given, Strings) else None
            numbers = np.arange(first, first + N) if isinstance(given, Strings) else given
            new = Segment.build(documents, numbers, names, kept, False, compact)
            self._segments = index_merge.appended(segments, new)

    def delete(self, ids: Any) -> None:
        """Delete the documents with these ids from the searches that begin from now on; `compact` frees their memory.

        Raises:
            ValueError: on ids of another kind, that come twice or that the index does not hold; nothing is deleted.
        """
        with self._changes:
            flat, _ = as_ids(ids)
            given = checked_ids(ids, flat.n if isinstance(flat, Strings) else flat.size)
            index_merge.require_kind(given, self._segments)
            found = [segment.find(given) for segment in self._segments]
            if (unknown := np.flatnonzero(np.max(found, axis=0) < 0)).size:
                raise ValueError(f"ids: expected ids that the index holds, got {index_merge.shown(given, unknown[0])}")
            pairs = zip(self._segments, found)
            self._segments = tuple(s.without(f[f >= 0]) if (f >= 0).any() else s for s, f in pairs)

    def compact(self, *, reorder: bool = False) -> None:
        """Merge what was added into one segment without the deleted documents: less memory, faster search.

        Raises:
            ValueError: when a file of the index is damaged; nothing is changed.
        """
        with self._changes:
            merged = index_merge.merged([self._segments], True) if reorder else index_merge.compacted(self._segments)
            self._segments = (merged,)

    def search(self, queries: Rows, k: int, n_threads: int | None = None, *, allowed: Any = None) -> tuple[Tensor, Any]:
        """The k best documents for each query: (scores [Q, k] float32, ids [Q, k]), on the CPU.

        The ids are an int64 tensor, or a NumPy array of str.

        Args:
            queries: Q rows over the index's vocabulary, of any type and with any weights that `build` takes.
            k: results a query, at least 1; a query with fewer matches is padded with score -inf and id -1, or None.
            n_threads: threads over which the queries are spread; `torch.get_num_threads()` when None.
            allowed: only these documents are searched: a bool [N] for the documents in the order of `ids`, or ids,
                of which those that the index does not hold are passed over.

        Raises:
            ValueError: on bad queries, another vocabulary size, k < 1, n_threads < 1 or another kind of `allowed`, and
                when a string id that was found is damaged.
        """
        for name, number in (("k", k), ("n_threads", n_threads)):
            if (number is not None or name == "k") and (not isinstance(number, (int, np.integer)) or number < 1):
                raise ValueError(f"{name}: expected an integer >= 1, got {number!r}")
        rows = self._checked_rows(queries, "queries")
        segments = self._segments
        masks = index_merge.masks(allowed, segments)
        threads = n_threads or torch.get_num_threads()
        found = [segment.search(rows, k, threads, mask) for segment, mask in zip(segments, masks)]
        scores, ids = found[0] if len(found) == 1 else index_merge.best(found, k)
        return torch.from_numpy(scores), self._ids_of(segments, ids)

    def matches(self, queries: Rows, ids: Any) -> list[list[dict[int, float]]]:
        """Why documents were found: for each of the ids [Q, k], {term: product}, largest first; the score is their sum.

        An id that the index does not hold, as the -1 or None that pads `search`, has no terms.

        Raises:
            ValueError: on bad queries or ids of another shape or type, and when the row of a document is damaged.
        """
        rows, segments = self._checked_rows(queries, "queries"), self._segments
        given, shape = as_ids(ids, padding=True)
        if len(shape) != 2 or shape[0] != len(rows):
            raise ValueError(f"ids: expected ids [{len(rows)}, k], got {list(shape)}")
        places = np.reshape(self._places(given, segments), (len(segments), *shape))
        queried = [rows.row(q) for q in range(len(rows))]
        return [
            [index_merge.products(*queried[q], segments, places[:, q, i]) for i in range(shape[1])]
            for q in range(len(rows))
        ]

    def rows(self, ids: Any) -> scipy.sparse.csr_matrix:
        """The documents with these ids [n], [n, V] float32, as the index holds them.

        Raises:
            ValueError: on ids of another kind, shape or that the index does not hold, and when a row is damaged.
        """
        segments = self._segments
        parts = [segments[which].row(place) for which, place in zip(*self._found(ids, segments))]
        starts = np.cumsum([0, *(len(terms) for terms, _ in parts)])
        terms, weights = np.zeros(0, np.int32), np.zeros(0, np.float32)
        if parts:
            terms, weights = (np.concatenate(arrays) for arrays in zip(*parts))
        return scipy.sparse.csr_matrix((weights, terms, starts), (len(parts), self.vocab_size))

    def payloads(self, ids: Any) -> list[bytes]:
        """What was kept with the documents with these ids [n], n bytes objects.

        Raises:
            ValueError: when the index has no payloads, on ids of another kind, shape or that the index does not hold.
        """
        segments = self._segments
        if segments[0].payloads is None:
            raise ValueError("payloads: expected an index that was built with payloads")
        which, places = self._found(ids, segments)
        found = np.full(len(places), None, object)
        for number, segment in enumerate(segments):
            if segment.payloads is not None:
                found[which == number] = segment.payloads.take(places[which == number]).tolist()
        return found.tolist()

    @property
    def ids(self) -> Any:
        """int64 [N], ascending, or a NumPy array of str in the order in which they were added.

        Raises:
            ValueError: when a string id is damaged.
        """
        return self._ids_of(self._segments, index_merge.live_numbers(self._segments))

    @property
    def metadata(self) -> dict[str, Any]:
        """A copy of what `build` was given."""
        return checked_metadata(self._metadata)

    @property
    def vocab_size(self) -> int:
        """V, the number of columns."""
        return self._segments[0].counts.vocab_size

    def __len__(self) -> int:
        """N, the number of documents."""
        return sum(len(segment) for segment in self._segments)

    def stats(self) -> dict[str, int]:
        """Numbers: documents, deleted ones not yet compacted, segments, vocab_size, postings (entries), terms (columns
        with an entry) and frequent ones (with block maxima), the largest of the segments, compact (1: float16 weights),
        strings (1: ids are strings) and bytes of the arrays.
        """
        segments = self._segments
        every = sum(segment.counts.documents for segment in segments)
        documents = sum(len(segment) for segment in segments)
        return {
            "documents": documents,
            "deleted": every - documents,
            "segments": len(segments),
            "vocab_size": segments[0].counts.vocab_size,
            "terms": max(int(np.count_nonzero(np.diff(segment.arrays["term_starts"]))) for segment in segments),
            "frequent": max(segment.counts.frequent for segment in segments),
            "postings": sum(segment.counts.postings for segment in segments),
            "compact": segments[0].counts.compact,
            "strings": int(segments[0].names is not None),
            "bytes": sum(array.nbytes for segment in segments for array in segment.arrays.values()),
        }

    def __repr__(self) -> str:
        segments = self._segments
        N, P = sum(len(segment) for segment in segments), sum(segment.counts.postings for segment in segments)
        return f"SparseIndex(N={N}, V={segments[0].counts.vocab_size}, postings={P})"

    def _checked_rows(self, rows: Rows, name: str, dtype: type[np.floating[Any]] = np.float32) -> _index.Rows:
        checked = checked_rows(rows, name, dtype)
        if checked.vocab_size != self.vocab_size:
            raise ValueError(f"{name}: expected vocab_size {self.vocab_size} like the index, got {checked.vocab_size}")
        return checked

    @staticmethod
    def _ids_of(segments: Sequence[Segment], numbers: np.ndarray) -> Any:
        return torch.from_numpy(numbers) if segments[0].names is None else index_merge.names_of(segments, numbers)

    @staticmethod
    def _places(ids: Ids, segments: Sequence[Segment]) -> list[np.ndarray]:
        """The place of each id in each segment, or -1."""
        index_merge.require_kind(ids, segments)
        if not isinstance(ids, Strings) and ids.dtype.kind not in "iu" and ids.size:
            raise ValueError(f"ids: expected integers or strings, got {ids.dtype}")
        return [segment.find(ids) for segment in segments]

    def _found(self, ids: Any, segments: Sequence[Segment]) -> tuple[np.ndarray, np.ndarray]:
        """The number of the segment and the place of each document."""
        given, shape = as_ids(ids)
        if len(shape) != 1:
            raise ValueError(f"ids: expected ids [n], got {list(shape)}")
        places = np.array(self._places(given, segments))
        which, found = places.argmax(axis=0), places.max(axis=0)
        if (unknown := np.flatnonzero(found < 0)).size:
            raise ValueError(f"ids: expected ids that the index holds, got {index_merge.shown(given, unknown[0])}")
        return which, found
