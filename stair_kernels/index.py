"""SparseIndex: exact top-k retrieval over sparse rows, kept in memory or on disk."""

from __future__ import annotations

import os
import threading
from collections.abc import Iterable, Sequence
from typing import Any

import numpy as np
import scipy.sparse
import torch
from torch import Tensor

from stair_kernels import index_files, index_gpu
from stair_kernels.index_files import _index
from stair_kernels.index_inputs import Rows, as_array, checked_allowed, checked_ids, checked_rows
from stair_kernels.index_segments import Segment


class SparseIndex:
    """Exact top-k maximum inner product over N sparse documents with non-negative weights.

        score[q, n] = sum_v query[q, v] * document[n, v]     in float32, v ascending

    That order and rounding (each product, then each sum, to float32) define the score: it has the same bits for any
    number of threads and after saving and opening. Documents are ranked by score descending, equal scores by the lower
    id; a document that shares no entry with the query (score 0) is not returned.

    Made by `SparseIndex.build`, `SparseIndex.open` or `SparseIndex.merge`. `add` and `delete` change it in memory;
    `save` writes what it holds. Safe to search from several threads, also while another changes it: a search sees the
    index as it was when the search began.
    """

    def __init__(self, segments: Sequence[Segment]) -> None:
        self._segments = tuple(segments)  # replaced, never changed: a search keeps the tuple that it began with
        self._writer = threading.Lock()

    @staticmethod
    def build(rows: Rows, ids: Any = None, *, reorder: bool = False, compact: bool = False) -> SparseIndex:
        """The index of the rows of a SparseRows, a SciPy CSR matrix or a torch sparse CSR tensor [N, V].

        Args:
            rows: N documents; weights finite and >= 0 in float32. Columns of a CSR may come in any order.
            ids: N unique integers other than -1 that `search` returns for the documents; 0 .. N-1 when None.
            reorder: lay documents that share terms side by side: search may leave more of them out, building takes
                longer. The results are the same.
            compact: round the weights to float16 (relative error <= 2^-11; below 6.1e-5 absolute error <= 3e-8), which
                makes the index smaller. The scores are exactly those of the rounded weights.

        Raises:
            ValueError: on negative, NaN or infinite weights (in float16 for a compact index), indices out of range or
                twice in a row, and on ids of another number or type or not unique.
        """
        documents = checked_rows(rows, "rows", np.float16 if compact else np.float32)
        numbers = checked_ids(ids, len(documents))
        return SparseIndex([Segment.build(documents, numbers, reorder, compact)])

    @staticmethod
    def open(path: str | os.PathLike[str], verify: bool = False) -> SparseIndex:
        """The index that `save` wrote at `path`, memory-mapped: search reads the files as it needs them.

        The manifest, the files' sizes and the structure that memory safety rests on are always checked; `verify=True`
        reads every file and compares its SHA-256 too.

        Raises:
            ValueError: when `path` holds no index, one of another version, or a damaged one.
        """
        counts, arrays = index_files.read(path, verify)
        try:
            return SparseIndex([Segment(counts, arrays)])
        except ValueError as error:
            raise ValueError(f"path: expected a sound index, but {path} is damaged ({error}): rebuild it") from error

    @staticmethod
    def merge(indexes: Iterable[SparseIndex], *, reorder: bool = False) -> SparseIndex:
        """One index of the documents of several; compact when all of them are.

        Raises:
            ValueError: when there are none, their vocabularies differ or two hold the same id.
        """
        return SparseIndex([_merged([segment for index in indexes for segment in index._segments], reorder)])

    def save(self, path: str | os.PathLike[str]) -> None:
        """Write the index as a directory, or replace the index that is at `path`.

        A kill or an error at any moment leaves what was there or the new index, never a mixture; an index that was
        opened from `path` keeps its files. What was added and deleted since is written as `compact` would leave it.

        Raises:
            ValueError: when `path` is a file or a directory that is neither empty nor an index.
            OSError: when it cannot be written (no permission, disk full); nothing half written is left.
        """
        segment = _compacted(self._segments)
        index_files.write(path, segment.counts, segment.arrays)

    def to(self, device: str | torch.device) -> index_gpu.DeviceIndex:
        """The index as it is now on a CUDA device, to search there; it does not change when this one does.

        Raises:
            ValueError: for another kind of device.
            RuntimeError: without the CUDA library.
        """
        device = index_gpu.checked_device(device)
        segment = _compacted(self._segments)
        return index_gpu.DeviceIndex(index_gpu.as_tensors(segment.arrays, device))

    def add(self, rows: Rows, ids: Any = None) -> None:
        """Add documents, found by the searches that begin from now on; rounded to float16 in a compact index.

        Args:
            rows: as for `build`, over the index's vocabulary.
            ids: as for `build`, none of which the index holds; those after the largest id when None.

        Raises:
            ValueError: as `build` does, on another vocabulary size and on ids that the index holds.
        """
        with self._writer:
            compact = bool(self._segments[0].counts.compact)
            documents = self._checked_rows(rows, "rows", np.float16 if compact else np.float32)
            held = self.ids.numpy()
            if ids is None:
                first = int(held[-1]) + 1 if len(held) else 0
                if first + len(documents) > np.iinfo(np.int64).max:
                    raise ValueError(f"ids: expected integers, as none are left after {first - 1}, got None")
                ids = np.arange(first, first + len(documents))
            numbers = checked_ids(ids, len(documents))
            if (twice := np.intersect1d(numbers, held)).size:
                raise ValueError(f"ids: expected ids that the index does not hold, got {twice[0]}")
            self._segments = (*self._segments, Segment.build(documents, numbers, False, compact))

    def delete(self, ids: Any) -> None:
        """Delete the documents with these ids from the searches that begin from now on; `compact` frees their memory.

        Raises:
            ValueError: on ids that are not integers, come twice or that the index does not hold; nothing is deleted.
        """
        with self._writer:
            array = as_array(ids)
            numbers = checked_ids(array, array.size)
            found = [segment.find(numbers) for segment in self._segments]
            unknown = numbers[np.max(found, axis=0) < 0] if len(numbers) else numbers
            if len(unknown):
                raise ValueError(f"ids: expected ids that the index holds, got {unknown[0]}")
            pairs = zip(self._segments, found)
            self._segments = tuple(s.without(f[f >= 0]) if (f >= 0).any() else s for s, f in pairs)

    def compact(self, *, reorder: bool = False) -> None:
        """Merge what was added into one segment without the deleted documents: less memory, faster search."""
        with self._writer:
            self._segments = (_merged(self._segments, True) if reorder else _compacted(self._segments),)

    def search(
        self, queries: Rows, k: int, n_threads: int | None = None, *, allowed: Any = None
    ) -> tuple[Tensor, Tensor]:
        """The k best documents for each query: (scores [Q, k] float32, ids [Q, k] int64), on the CPU.

        Args:
            queries: Q rows over the index's vocabulary, of any type and with any weights that `build` takes.
            k: results a query, at least 1; a query with fewer matches is padded with score -inf and id -1.
            n_threads: threads over which the queries are spread; `torch.get_num_threads()` when None.
            allowed: only these documents are searched: a bool [N] for the documents in the order of `ids`, or ids,
                of which those that the index does not hold are passed over.

        Raises:
            ValueError: on bad queries, another vocabulary size, k < 1, n_threads < 1 or another kind of `allowed`.
        """
        for name, number in (("k", k), ("n_threads", n_threads)):
            if (number is not None or name == "k") and (not isinstance(number, (int, np.integer)) or number < 1):
                raise ValueError(f"{name}: expected an integer >= 1, got {number!r}")
        rows = self._checked_rows(queries, "queries")
        segments = self._segments
        masks = _masks(allowed, segments)
        threads = n_threads or torch.get_num_threads()
        found = [segment.search(rows, k, threads, mask) for segment, mask in zip(segments, masks)]
        scores, ids = found[0] if len(found) == 1 else _best(found, k)
        return torch.from_numpy(scores), torch.from_numpy(ids)

    def matches(self, queries: Rows, ids: Any) -> list[list[dict[int, float]]]:
        """Why documents were found: for each of the ids [Q, k], {term: product}, largest first; the score is their sum.

        An id that the index does not hold, as the -1 that pads `search`, has no terms.

        Raises:
            ValueError: on bad queries or ids of another shape or type.
        """
        rows = self._checked_rows(queries, "queries")
        array = as_array(ids)
        if array.ndim != 2 or len(array) != len(rows) or (array.dtype.kind not in "iu" and array.size):
            raise ValueError(f"ids: expected integers [{len(rows)}, k], got {list(array.shape)} {array.dtype}")
        segments, found = self._segments, []
        for q, of_query in enumerate(array):
            terms, weights = rows.row(q)
            places = [segment.find(of_query) for segment in segments]
            found.append([_products(terms, weights, segments, column) for column in np.transpose(places)])
        return found

    @property
    def ids(self) -> Tensor:
        """int64 [N], ascending."""
        return torch.from_numpy(_live_ids(self._segments))

    @property
    def vocab_size(self) -> int:
        """V, the number of columns."""
        return self._segments[0].counts.vocab_size

    def __len__(self) -> int:
        """N, the number of documents."""
        return sum(len(segment) for segment in self._segments)

    def stats(self) -> dict[str, int]:
        """Numbers: documents, deleted ones not yet compacted, segments, postings (entries), terms (columns with an
        entry) and frequent ones (with block maxima), the largest of the segments, and bytes of the arrays.
        """
        segments = self._segments
        every = sum(segment.counts.documents for segment in segments)
        return {
            "documents": len(self),
            "deleted": every - len(self),
            "segments": len(segments),
            "terms": max(int(np.count_nonzero(np.diff(segment.arrays["term_starts"]))) for segment in segments),
            "frequent": max(segment.counts.frequent for segment in segments),
            "postings": sum(segment.counts.postings for segment in segments),
            "bytes": sum(array.nbytes for segment in segments for array in segment.arrays.values()),
        }

    def __repr__(self) -> str:
        postings = sum(segment.counts.postings for segment in self._segments)
        return f"SparseIndex(N={len(self)}, V={self.vocab_size}, postings={postings})"

    def _checked_rows(self, rows: Rows, name: str, dtype: type[np.floating[Any]] = np.float32) -> _index.Rows:
        checked = checked_rows(rows, name, dtype)
        if checked.vocab_size != self.vocab_size:
            raise ValueError(f"{name}: expected vocab_size {self.vocab_size} like the index, got {checked.vocab_size}")
        return checked


def _compacted(segments: Sequence[Segment]) -> Segment:
    """One segment without deleted documents: that which is there, or a new one."""
    return segments[0] if len(segments) == 1 and segments[0].alive is None else _merged(segments, False)


def _live_ids(segments: Sequence[Segment]) -> np.ndarray:
    if len(segments) == 1:
        return segments[0].live_ids
    return np.sort(np.concatenate([segment.live_ids for segment in segments]))


def _masks(allowed: Any, segments: Sequence[Segment]) -> list[np.ndarray | None]:
    """The documents of each segment that are searched; None: all."""
    if allowed is None:
        return [segment.alive for segment in segments]
    array = checked_allowed(allowed, sum(len(segment) for segment in segments))
    if array.dtype != bool:
        return [segment.mask_of_ids(array) for segment in segments]
    if len(segments) == 1:
        return [segments[0].mask_of_live(array)]
    ids = _live_ids(segments)
    return [segment.mask_of_live(array[np.searchsorted(ids, segment.live_ids)]) for segment in segments]


def _merged(segments: Sequence[Segment], reorder: bool) -> Segment:
    sizes = {segment.counts.vocab_size for segment in segments}
    if len(sizes) != 1:
        raise ValueError(f"indexes: expected at least one, all of the same vocab_size, got {sorted(sizes)}")
    parts = [segment.live_rows() for segment in segments]
    ids = np.concatenate([ids for _, ids in parts])
    rows = scipy.sparse.vstack([rows for rows, _ in parts], "csr")
    compact = all(segment.counts.compact for segment in segments)
    return Segment.build(checked_rows(rows, "rows"), checked_ids(ids, len(ids)), reorder, compact)


def _best(found: list[tuple[np.ndarray, np.ndarray]], k: int) -> tuple[np.ndarray, np.ndarray]:
    """The k best of the results of several segments."""
    scores, ids = (np.hstack(parts) for parts in zip(*found))
    order = np.lexsort((ids, -scores))[:, :k]
    return np.take_along_axis(scores, order, 1), np.take_along_axis(ids, order, 1)


def _products(
    terms: np.ndarray, weights: np.ndarray, segments: Sequence[Segment], documents: np.ndarray
) -> dict[int, float]:
    """{term: product}, largest first, of a document, which has a number >= 0 in the segment that holds it."""
    for segment, document in zip(segments, documents):
        if document >= 0:
            own_terms, own_weights = segment.row(document)
            common, at, own_at = np.intersect1d(terms, own_terms, assume_unique=True, return_indices=True)
            with np.errstate(over="ignore"):  # as the score
                products = weights[at] * own_weights[own_at]
            return {int(common[i]): float(products[i]) for i in np.argsort(-products, kind="stable")}
    return {}
