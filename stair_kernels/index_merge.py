"""What the segments of an index are together."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
import scipy.sparse

from stair_kernels.index_inputs import checked_allowed, checked_ids, checked_names, checked_rows
from stair_kernels.index_names import Strings
from stair_kernels.index_segments import Ids, Segment


def appended(segments: Sequence[Segment], new: Segment) -> tuple[Segment, ...]:
    """The segments and a new one, merged with those before it that are not twice as large: N documents are in at most
    log2 N + 1 segments, and a document is built again only into a segment that is half as large again.
    """
    if not len(new):
        return tuple(segments)
    kept, tail, size = list(segments), [new], len(new)
    while kept and len(kept[-1]) < 2 * size:
        tail.insert(0, kept.pop())
        size += len(tail[0])
    return (*kept, new if len(tail) == 1 else merged([tail], first_number=next_number(kept)))


def compacted(segments: Sequence[Segment]) -> Segment:
    """One segment without deleted documents: that which is there, or a new one."""
    if len(segments) > 1 or segments[0].alive is not None:
        return merged([segments])
    segments[0].require_checksum()
    return segments[0]


def merged(indexes: Sequence[Sequence[Segment]], reorder: bool = False, first_number: int = 0) -> Segment:
    """One segment of those of several indexes; string ids are numbered anew, in their order, from `first_number` on."""
    segments = [segment for index in indexes for segment in index]
    sizes = {segment.counts.vocab_size for segment in segments}
    if len(sizes) != 1:
        raise ValueError(f"indexes: expected at least one, all of the same vocab_size, got {sorted(sizes)}")
    for kind, what in (("name_bytes", "string ids"), ("payload_bytes", "payloads")):
        if len({getattr(segment.counts, kind) is None for segment in segments}) > 1:
            raise ValueError(f"indexes: expected all of them with {what} or none, got some")
    parts = [segment.live() for segment in segments]
    numbers = np.concatenate([part.numbers for part in parts])
    names = _cat([part.names for part in parts])
    if names is None:
        checked_ids(numbers, len(numbers))
    else:
        checked_names(names)
        number = np.repeat(np.arange(len(indexes)), [sum(map(len, index)) for index in indexes])
        order = np.lexsort((numbers, number))
        numbers = np.empty_like(numbers)
        numbers[order] = np.arange(first_number, first_number + len(order))
    rows = checked_rows(scipy.sparse.vstack([part.rows for part in parts], "csr"), "rows")
    compact = all(segment.counts.compact for segment in segments)
    return Segment.build(rows, numbers, names, _cat([part.payloads for part in parts]), reorder, compact)


def live_numbers(segments: Sequence[Segment]) -> np.ndarray:
    """int64 [N], ascending."""
    if len(segments) == 1:
        return segments[0].live_numbers
    return np.sort(np.concatenate([segment.live_numbers for segment in segments]))


def next_number(segments: Sequence[Segment]) -> int:
    """One more than the largest, at least 0."""
    return max([0, *(segment.next_number for segment in segments)])


def names_of(segments: Sequence[Segment], numbers: np.ndarray) -> np.ndarray:
    """The string ids of documents by their numbers, any shape; None where none has the number."""
    flat = numbers.ravel()
    names = np.full(flat.shape, None, object)
    for segment in segments:
        documents = segment.find_numbers(flat)
        held = np.flatnonzero(documents >= 0)
        names[held] = segment.decoded(documents[held])
    return names.reshape(numbers.shape)


def shown(ids: Ids, i: int) -> str:
    """An id as an error shows it."""
    return repr(ids.tolist()[i].decode()) if isinstance(ids, Strings) else str(ids[i])


def masks(allowed: Any, segments: Sequence[Segment]) -> list[np.ndarray | None]:
    """The documents of each segment that are searched; None: those that were not deleted."""
    if allowed is None:
        return [None for _ in segments]
    chosen = checked_allowed(allowed, sum(len(segment) for segment in segments))
    if isinstance(chosen, Strings) or chosen.dtype != bool:
        require_kind(chosen, segments, "allowed")
        return [segment.mask_of_ids(chosen) for segment in segments]
    if len(segments) == 1:
        return [segments[0].mask_of_live(chosen)]
    numbers = live_numbers(segments)
    return [segment.mask_of_live(chosen[np.searchsorted(numbers, segment.live_numbers)]) for segment in segments]


def require_kind(ids: Ids, segments: Sequence[Segment], name: str = "ids") -> None:
    """Raise ValueError on strings for an index with integer ids, or the other way round."""
    strings = segments[0].names is not None
    n = ids.n if isinstance(ids, Strings) else len(ids)
    if n and strings != isinstance(ids, Strings):
        kinds = ("strings", "integers") if strings else ("integers", "strings")
        raise ValueError(f"{name}: expected {kinds[0]} like the ids of the index, got {kinds[1]}")


def best(found: list[tuple[np.ndarray, np.ndarray]], k: int) -> tuple[np.ndarray, np.ndarray]:
    """The k best of the results of several segments."""
    scores, ids = (np.hstack(parts) for parts in zip(*found))
    order = np.lexsort((ids, -scores))[:, :k]
    return np.take_along_axis(scores, order, 1), np.take_along_axis(ids, order, 1)


def products(
    terms: np.ndarray, weights: np.ndarray, segments: Sequence[Segment], documents: np.ndarray
) -> dict[int, float]:
    """{term: product}, largest first, of a document, which has a place >= 0 in the segment that holds it."""
    for segment, document in zip(segments, documents):
        if document >= 0:
            own_terms, own_weights = segment.row(document)
            common, at, own_at = np.intersect1d(terms, own_terms, assume_unique=True, return_indices=True)
            with np.errstate(over="ignore"):  # as the score
                found = weights[at] * own_weights[own_at]
            return {int(common[i]): float(found[i]) for i in np.argsort(-found, kind="stable")}
    return {}


def _cat(parts: Sequence[Strings | None]) -> Strings | None:
    return Strings.cat([part for part in parts if part is not None]) if parts[0] is not None else None
