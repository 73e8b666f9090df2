"""Indexes from files of rows, and files of rows from indexes."""

from __future__ import annotations

import os
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np

from stair.formats import Documents, read, write
from stair.formats.documents import Meta, Progress


def vocabulary_of(model_dir: Path) -> list[str]:
    """The terms of a checkpoint in the order of their numbers."""
    from stair.checkpoint import require_checkpoint
    from stair.processing import STAIRProcessor

    return STAIRProcessor.from_pretrained(require_checkpoint(model_dir)).vocabulary()


def export(
    folder: Path,
    out: Path,
    *,
    format: str | None = None,
    keys: str = "token",
    scale: float | None = None,
    model_dir: Path | None = None,
    progress: Progress = lambda done, total: None,
) -> Meta:
    """Writes the documents of an index as `stair.formats.write` does; gives what that gives.

    Args:
        model_dir: whose vocabulary names the terms; of a collection, the checkpoint that built it when None.

    Raises:
        ValueError: when there is no index, the vocabulary is missing or of another size, and as `write` does.
    """
    from stair.search import Collection, open_index

    index = open_index(folder)
    collection = Collection.of(folder, index)
    vocabulary = None
    if keys == "token":
        source = collection.model_dir if model_dir is None and collection is not None else model_dir
        if source is None:
            raise ValueError(f"--model: {folder} does not say which checkpoint built it; give one, or --keys id")
        vocabulary = vocabulary_of(source)
        if len(vocabulary) != index.vocab_size:
            raise ValueError(f"--model: expected a vocabulary of {index.vocab_size} terms, got {len(vocabulary)}")
    ids = index.ids
    names = ids.tolist() if isinstance(ids, np.ndarray) else np.asarray(ids)
    documents = Documents(index.rows(ids), names, vocabulary, None if collection is None else collection.items)
    return write(out, documents, format=format, keys=keys, scale=scale, progress=progress)


def index_rows(
    file: Path, out_dir: Path, model_dir: Path, *, format: str | None = None, scale: float | None = None
) -> int:
    """Builds a collection of a file's rows, divided by their L2 norms as all collections are; gives their number.

    An id that is the path of a picture is that picture, any other is a text.
    """
    from stair.datasets import SUFFIXES
    from stair.search import require_replaceable, save_collection
    from stair_kernels import SparseRows

    require_replaceable(out_dir)
    vocabulary = vocabulary_of(model_dir)
    documents = read(file, format=format, vocabulary=vocabulary, scale=scale)
    if documents.vocab_size != len(vocabulary):
        raise ValueError(f"{file}: expected {len(vocabulary)} terms like {model_dir}, got {documents.vocab_size}")
    names: Sequence[str] = documents.names()
    pictures = [Path(name).suffix.lower() in SUFFIXES and os.path.isfile(name) for name in names]
    items: list[dict[str, Any]] = [
        {"name": Path(name).stem, "picture": str(Path(name).resolve())} if picture else {"name": name}
        for name, picture in zip(names, pictures)
    ]
    most = int(np.diff(documents.rows.indptr).max(initial=1))
    save_collection(out_dir, SparseRows.from_csr(documents.rows, k=most), items, model_dir)
    return len(items)
