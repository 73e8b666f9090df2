"""A searchable collection: the sparse index, the items it holds, their rows, and the model that made them."""

from __future__ import annotations

import json
import os
from collections.abc import Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from stair.checkpoint import fingerprint
from stair.files import replacing_folder, require_writable

if TYPE_CHECKING:
    from stair_kernels import SparseIndex, SparseRows

FORMAT = "stair collection 1"
SIDECAR = "items.json"


@dataclass
class Match:
    """One vocabulary entry that a query and an item share: weights of unit-length rows, and its part of the score."""

    term: str
    query: float
    item: float
    share: float  # query * item / score


@dataclass
class Hit:
    """One found item: what `items.json` says of it, and why it was found."""

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
) -> list[Match]:
    """The entries two rows share, largest part of sum_v query[v] * item[v] first."""
    weights = {int(v): float(weight) for weight, v in zip(*item) if v >= 0}
    shared = [(int(v), float(weight), weights[int(v)]) for weight, v in zip(*query) if v >= 0 and int(v) in weights]
    score = sum(q * d for _, q, d in shared)
    found = [Match(vocabulary[v], q, d, q * d / score if score else 0.0) for v, q, d in shared]
    return sorted(found, key=lambda match: -match.share)


def require_replaceable(folder: Path) -> None:
    """Raises ValueError when something other than a collection is at `folder`, or OSError when it cannot be written."""
    if folder.exists() and not folder.is_dir():
        raise ValueError(f"{folder} is a file: choose another folder with --out")
    if folder.is_dir() and any(folder.iterdir()) and not (folder / SIDECAR).exists():
        raise ValueError(f"{folder} exists and holds something other than an index: choose another folder with --out")
    require_writable(folder.parent)


def save_collection(
    folder: Path | str, rows: SparseRows, items: Sequence[dict[str, Any]], model_dir: Path | str
) -> Path:
    """Writes the index of `rows` and everything that search shows, whole or not at all.

    Args:
        folder: the index directory; an older collection there is replaced, anything else is refused.
        rows: [N, K], as `STAIRModel.encode_image` or `encode_text` gives them.
        items: N dicts with at least "name"; "picture" is a path, absolute or relative to `folder`.
        model_dir: the checkpoint that made `rows`; remembered, so that search finds it.

    Raises:
        ValueError: when the numbers of rows and items differ, or `folder` holds something else.
    """
    from stair.evaluate import unit
    from stair_kernels import SparseIndex

    folder, model_dir = Path(folder), Path(model_dir)
    if len(rows) != len(items):
        raise ValueError(f"items: expected {len(rows)}, one a row, got {len(items)}")
    require_replaceable(folder)
    units = unit(rows.detach().to("cpu"))
    header = {
        "format": FORMAT,
        "model": os.path.relpath(model_dir, folder),
        "model_sha256": fingerprint(model_dir),
        "vocab_size": rows.vocab_size,
        "items": list(items),
    }
    with replacing_folder(folder) as temporary:
        SparseIndex.build(units).save(temporary)
        for name in ("values", "indices", "positions"):
            tensor = getattr(units, name)
            if tensor is not None:
                np.save(temporary / f"{name}.npy", tensor.numpy())
        (temporary / SIDECAR).write_text(json.dumps(header, ensure_ascii=False, indent=1), encoding="utf-8")
    return folder


@dataclass
class Collection:
    """An opened index directory."""

    folder: Path
    index: SparseIndex
    items: list[dict[str, Any]]
    values: np.ndarray  # [N, K] float32, unit rows, memory-mapped
    indices: np.ndarray  # [N, K] int32
    vocab_size: int
    model_dir: Path
    model_sha256: str

    @staticmethod
    def open(folder: Path | str) -> Collection:
        """Raises ValueError when `folder` is not an index directory with its items."""
        folder = Path(folder)
        if not folder.exists():
            raise ValueError(f"{folder}: no such index; build one with `stair index PICTURES --out {folder}`")
        if not (folder / SIDECAR).is_file():
            raise ValueError(f"{folder} is not an index directory (it has no {SIDECAR}); build one with `stair index`")
        from stair_kernels import SparseIndex

        try:
            header = json.loads((folder / SIDECAR).read_text(encoding="utf-8"))
            if not isinstance(header, dict) or header.get("format") != FORMAT:
                raise ValueError(f"expected format {FORMAT!r}")
            values = np.load(folder / "values.npy", mmap_mode="r")
            indices = np.load(folder / "indices.npy", mmap_mode="r")
            index = SparseIndex.open(folder)
        except (ValueError, EOFError, FileNotFoundError) as error:
            raise ValueError(f"{folder} is a damaged index ({error}); build it again with `stair index`") from error
        if len(header["items"]) != len(values):
            raise ValueError(f"{folder} is a damaged index ({len(header['items'])} items, {len(values)} rows)")
        model_dir = Path(os.path.normpath(folder.resolve() / header["model"]))
        return Collection(
            folder, index, header["items"], values, indices, header["vocab_size"], model_dir, header["model_sha256"]
        )

    def require_model(self, model_dir: Path) -> None:
        """Raises ValueError when `model_dir` is another model than the one that made the index."""
        if fingerprint(model_dir) != self.model_sha256:
            raise ValueError(
                f"{model_dir} is not the checkpoint that built {self.folder}: leave --model out, or build the index"
                f" again with `stair index --model {model_dir}`"
            )

    def search(self, query: SparseRows, k: int, vocabulary: Sequence[str]) -> list[list[Hit]]:
        """For each of the Q query rows its best k items, best first; items that share no entry are not found."""
        from stair.evaluate import unit

        units = unit(query.detach().to("cpu"))
        scores, ids = (np.asarray(array) for array in self.index.search(units, k))
        values, indices = units.values.numpy(), units.indices.numpy()
        found: list[list[Hit]] = []
        for row in range(len(units)):
            hits: list[Hit] = []
            for score, position in zip(scores[row], ids[row]):
                if position < 0 or score <= 0:
                    continue
                item = self.items[int(position)]
                matches = matches_of(
                    (values[row], indices[row]), (self.values[position], self.indices[position]), vocabulary
                )
                path = self.picture(item)
                hits.append(Hit(len(hits) + 1, float(score), item["name"], str(path) if path else None, item, matches))
            found.append(hits)
        return found

    def picture(self, item: dict[str, Any]) -> Path | None:
        """Where an item's picture lies, or None for a text."""
        return Path(os.path.normpath(self.folder / item["picture"])) if item.get("picture") else None
