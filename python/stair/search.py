"""A searchable collection: a sparse index whose documents are items, and the model that made their rows."""

from __future__ import annotations

import json
import os
from collections.abc import Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any, cast

import numpy as np
import scipy.sparse

from stair.checkpoint import fingerprint
from stair.cluster.layout import SHARD_MANIFEST, is_sharded
from stair.files import replacing_folder, require_writable

if TYPE_CHECKING:
    from stair.encode import Input
    from stair_kernels import SparseIndex, SparseRows

FORMAT = "stair collection 2"


@dataclass
class Match:
    """One vocabulary entry that a query and an item share: weights of unit-length rows, and its part of the score."""

    term: str
    query: float
    item: float
    share: float  # query * item / score


@dataclass
class Hit:
    """One found item: what the index keeps of it, and why it was found."""

    rank: int
    score: float
    name: str
    picture: str | None  # a path, as seen from here
    item: dict[str, Any]
    matches: list[Match] = field(default_factory=list)

    def as_dict(self) -> dict[str, Any]:
        return asdict(self)


def matches_of(
    query: tuple[np.ndarray, np.ndarray],  # weights [K], vocabulary entries [K]
    item: tuple[np.ndarray, np.ndarray],
    vocabulary: Sequence[str],  # [V]
    most: int | None = None,
) -> list[Match]:
    """The `most` entries that make up most of sum_v query[v] * item[v], largest part first; ties by lower entry."""
    order = np.argsort(query[1], kind="stable")
    entries, weights = query[1][order], query[0][order].astype(np.float64)
    at = np.searchsorted(entries, item[1])
    at[at == len(entries)] = -1
    shared = (entries[at] == item[1]) & (item[1] >= 0) if len(entries) else np.zeros(len(at), bool)
    v, q, d = item[1][shared], weights[at[shared]], item[0][shared].astype(np.float64)
    products = q * d
    best = np.lexsort((v, -products))
    shares = products / (products[best].sum() or 1.0)
    columns = (column[best[:most]].tolist() for column in (v, q, d, shares))
    return [Match(vocabulary[v], q, d, share) for v, q, d, share in zip(*columns)]


def item_id(item: dict[str, Any]) -> str:
    """What an item is known by: the path of its picture, or for a text the text itself."""
    return item.get("picture") or item["name"]


def item_of(entry: Input) -> dict[str, Any]:
    """What is kept of an input."""
    picture = {} if entry.picture is None else {"picture": str(entry.picture.resolve())}
    return {"name": entry.name, **picture}


def items_of(inputs: Sequence[Input]) -> list[tuple[Input, dict[str, Any]]]:
    """The inputs with what is kept of each; one that comes twice is taken once."""
    found: dict[str, tuple[Input, dict[str, Any]]] = {}
    for entry in inputs:
        item = item_of(entry)
        found.setdefault(item_id(item), (entry, item))
    return list(found.values())


def require_replaceable(folder: Path) -> None:
    """Raises ValueError when something other than an index is at `folder`, or OSError when it cannot be written."""
    from stair.cluster import layout

    if folder.exists() and not folder.is_dir():
        raise ValueError(f"{folder} is a file: choose another folder with --out")
    try:
        layout.require_replaceable(folder)
    except ValueError as error:
        raise ValueError(
            f"{folder} exists and holds something other than an index: choose another folder with --out"
        ) from error
    require_writable(folder.parent)


def save_collection(
    folder: Path | str, rows: SparseRows, items: Sequence[dict[str, Any]], model_dir: Path | str
) -> Path:
    """Writes the index of `rows` and everything that search shows, whole or not at all.

    Args:
        folder: the index directory; an older index there is replaced, anything else is refused.
        rows: [N, K], as `STAIRModel.encode_image` or `encode_text` gives them.
        items: N dicts that JSON can hold, with at least "name"; "picture" is a path, absolute or relative to `folder`.
            No two have the same picture, or without pictures the same name.
        model_dir: the checkpoint that made `rows`; remembered, so that search finds it.

    Raises:
        ValueError: when the numbers of rows and items differ, an item comes twice, or `folder` holds something else.
    """
    from stair_kernels import SparseIndex

    folder = Path(folder)
    metadata = collection_metadata(folder, Path(model_dir))
    require_replaceable(folder)
    units, ids, payloads = documents(rows, items)
    index = SparseIndex.build(units, ids, payloads=payloads, metadata=metadata)
    if is_sharded(folder):
        with replacing_folder(folder) as staging:
            index.save(staging)
    else:
        index.save(folder)
    return folder


def collection_metadata(folder: Path, model_dir: Path) -> dict[str, Any]:
    """What the index of a collection at `folder` remembers of the checkpoint that made its rows."""
    return {
        "format": FORMAT,
        "model": os.path.relpath(model_dir, folder),
        "model_sha256": fingerprint(model_dir),
    }


def payload_of(item: dict[str, Any]) -> bytes:
    """What the index keeps of an item."""
    return json.dumps(item, ensure_ascii=False).encode()


def documents(rows: SparseRows, items: Sequence[dict[str, Any]]) -> tuple[SparseRows, list[str], list[bytes]]:
    """Rows, ids and payloads of a collection's index."""
    from stair.evaluate import unit

    if len(rows) != len(items):
        raise ValueError(f"items: expected {len(rows)}, one a row, got {len(items)}")
    return unit(rows.detach().to("cpu")), [item_id(item) for item in items], [payload_of(item) for item in items]


@dataclass
class Collection:
    """An opened index directory."""

    folder: Path
    index: SparseIndex  # string ids: item_id of each item, which is the payload as JSON
    model_dir: Path
    model_sha256: str

    @staticmethod
    def open(folder: Path | str, mode: str = "r", timeout: float = 10.0) -> Collection:
        """Raises ValueError when `folder` is not an index directory with its items.

        With mode "a" the collection is the one writer, as SparseIndex.open says, and its `with` block ends in a commit.
        """
        folder = Path(folder)
        index = open_index(folder, mode=mode, timeout=timeout)
        try:
            return Collection.require(folder, index)
        except ValueError:
            index.close()
            raise

    @staticmethod
    def require(folder: Path, index: SparseIndex) -> Collection:
        """As `of`, which raises ValueError in place of None."""
        collection = Collection.of(folder, index)
        if collection is None:
            raise ValueError(f"{folder} holds an index without items ({FORMAT}); build one with `stair index build`")
        return collection

    @staticmethod
    def of(folder: Path, index: SparseIndex) -> Collection | None:
        """The collection that an index opened from `folder` is; None when it has no items."""
        metadata = index.metadata
        if metadata.get("format") != FORMAT:
            return None
        model_dir = Path(os.path.normpath(folder.resolve() / metadata["model"]))
        return Collection(folder, index, model_dir, metadata["model_sha256"])

    def __enter__(self) -> Collection:
        return self

    def __exit__(self, *exception: Any) -> None:
        self.index.__exit__(*exception)

    def add(self, rows: SparseRows, items: Sequence[dict[str, Any]]) -> None:
        """Add items, as `save_collection` takes them, none of which it holds."""
        units, ids, payloads = documents(rows, items)
        self.index.add(units, ids, payloads=payloads)

    @property
    def items(self) -> list[dict[str, Any]]:
        """N items, in the order in which they were added."""
        return [json.loads(payload) for payload in self.index.payloads(self.index.ids)]

    def row(self, item: dict[str, Any]) -> tuple[np.ndarray, np.ndarray]:
        """An item's weights, descending and of unit length, and vocabulary entries."""
        row = self.index.rows([item_id(item)])
        order = np.argsort(-row.data, kind="stable")
        return row.data[order], row.indices[order]

    def require_model(self, model_dir: Path) -> None:
        """Raises ValueError when `model_dir` is another model than the one that made the index."""
        if fingerprint(model_dir) != self.model_sha256:
            raise ValueError(
                f"{model_dir} is not the checkpoint that built {self.folder}: leave --model out, or build the index"
                f" again with `stair index build --model {model_dir}`"
            )

    def search(self, query: SparseRows, k: int, vocabulary: Sequence[str]) -> list[list[Hit]]:
        """For each of the Q query rows its best k items, best first; items that share no entry are not found."""
        from stair.evaluate import unit

        units = unit(query.detach().to("cpu"))
        scores, ids = self.index.search(units, k)
        values, indices = units.values.numpy(), units.indices.numpy()
        found: list[list[Hit]] = []
        for row in range(len(units)):
            names = [name for name in ids[row] if name is not None]
            hits: list[Hit] = []
            held = rows_of(self.index.rows(names))
            for score, weights, payload in zip(scores[row].tolist(), held, self.index.payloads(names)):
                item = json.loads(payload)
                matches = matches_of((values[row], indices[row]), weights, vocabulary)
                path = self.picture(item)
                hits.append(Hit(len(hits) + 1, score, item["name"], str(path) if path else None, item, matches))
            found.append(hits)
        return found

    def picture(self, item: dict[str, Any]) -> Path | None:
        """Where an item's picture lies, or None for a text."""
        return Path(os.path.normpath(self.folder / item["picture"])) if item.get("picture") else None


def rows_of(rows: scipy.sparse.csr_matrix) -> list[tuple[np.ndarray, np.ndarray]]:
    """The weights and columns of each row of [n, V]."""
    return [(rows.data[a:b], rows.indices[a:b]) for a, b in zip(rows.indptr[:-1], rows.indptr[1:])]


def open_index(folder: Path, verify: bool = False, mode: str = "r", timeout: float = 10.0) -> SparseIndex:
    """Any index directory; the ValueError says what to do about one that is missing or damaged."""
    if not folder.exists():
        raise ValueError(f"{folder}: no such index; build one with `stair index build PICTURES --out {folder}`")
    if is_sharded(folder):
        return _open_sharded(folder, verify, mode)
    if not (folder / SHARD_MANIFEST).is_file():
        raise ValueError(
            f"{folder} is not an index directory (no {SHARD_MANIFEST}); build one with `stair index build`"
        )
    from stair_kernels import SparseIndex

    try:
        return SparseIndex.open(folder, verify, mode=mode, timeout=timeout)
    except ValueError as error:
        raise ValueError(f"{folder} cannot be used ({error}); build it again with `stair index build`") from error


def _open_sharded(folder: Path, verify: bool, mode: str) -> SparseIndex:
    """All shards in this process. They answer what a SparseIndex answers; what would change one is refused here."""
    from stair.cluster.shards import ShardedIndex

    if mode != "r":
        raise ValueError(f"{folder} is a sharded index, which does not change: build it again with `stair index build`")
    return cast("SparseIndex", ShardedIndex.open(folder, verify))


def statistics(folder: Path, verify: bool = False) -> dict[str, Any]:
    """What an index holds, its numbers and its metadata; `verify` reads every file."""
    index = open_index(folder, verify)
    return {**index.stats(), "disk_bytes": _disk_bytes(folder), "metadata": index.metadata}


def delete(folder: Path, words: Sequence[str], timeout: float = 10.0) -> int:
    """Delete documents by their ids, those of pictures given as any path to them; returns how many.

    Raises ValueError, and deletes none, when one is not there.
    """
    with open_index(folder, mode="a", timeout=timeout) as index:
        ids: list[Any]
        if index.stats()["strings"]:
            held = set(index.ids)
            ids = [next((name for name in _spellings(word, folder) if name in held), word) for word in words]
        else:
            try:
                ids = [int(word) for word in words]
            except ValueError:
                raise ValueError(f"ID: expected integers, as the ids of {folder} are, got {list(words)}") from None
        ids = list(dict.fromkeys(ids))
        index.delete(ids)
    return len(ids)


def compact(folder: Path, reorder: bool = False, timeout: float = 10.0) -> tuple[int, int]:
    """Make an index one segment without deleted documents; the bytes on disk before and after."""
    with open_index(folder, mode="a", timeout=timeout) as index:
        before = _disk_bytes(folder)
        index.compact(reorder=reorder)
    return before, _disk_bytes(folder)


def _spellings(word: str, folder: Path) -> tuple[str, str, str]:
    """A text or a path as it is, absolute, and as seen from the index."""
    place = os.path.realpath(word)
    return word, place, os.path.relpath(place, folder.resolve())


def _disk_bytes(folder: Path) -> int:
    return sum(file.stat().st_size for file in folder.rglob("*") if file.is_file())
