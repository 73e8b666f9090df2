"""Pictures with captions from the user's files: what format a source has, and the pairs in it."""

from __future__ import annotations

from pathlib import Path

from stair.datasets.karpathy import from_karpathy, from_token, is_karpathy
from stair.datasets.pairs import SUFFIXES, Pairs, Picture, TarPicture, read_picture
from stair.datasets.plain import from_class_folders, from_csv, from_folder
from stair.datasets.webdataset import from_webdataset, shards_of

FORMATS = ("csv", "folder", "classes", "karpathy", "token", "webdataset")

__all__ = ["FORMATS", "SUFFIXES", "Pairs", "Picture", "TarPicture", "format_of", "has_splits", "load_pairs"]
__all__ += ["from_class_folders", "read_picture"]


def format_of(source: Path | str) -> str:
    """One of FORMATS, by what `source` is called and holds. A folder of class folders is a "folder" until asked for.

    Raises:
        ValueError: when nothing is there.
    """
    name, path = str(source), Path(source)
    if path.is_dir():
        return "webdataset" if any(path.glob("*.tar")) else "folder"
    if ".tar" in path.name:
        shards_of(name)
        return "webdataset"
    if not path.exists():
        kinds = "a CSV file (path,caption), a folder of pictures, Karpathy's JSON, Flickr30k's .token or .tar shards"
        raise ValueError(f"{source}: no such file or folder; expected {kinds}")
    if path.suffix.lower() == ".token":
        return "token"
    return "karpathy" if path.suffix.lower() == ".json" or is_karpathy(path) else "csv"


def has_splits(format: str) -> bool:
    """Whether the format says itself what is trained on and what is tested."""
    return format == "karpathy"


def load_pairs(
    source: Path | str, format: str | None = None, *, split: str | None = None, images: Path | None = None
) -> Pairs:
    """The pictures and captions of `source`.

    csv: the columns path and caption. folder: pictures with .txt files beside them, or their names. classes: a folder
    of class folders. karpathy: dataset_coco.json or dataset_flickr30k.json. token: Flickr30k's results_20130124.token.
    webdataset: `shards/{000..003}.tar`, one tar or a folder of tars.

    Args:
        format: one of FORMATS; None to recognise it.
        split: train, val or test of a format that has splits; None for everything.
        images: where the pictures of karpathy and token are, when not beside the file.

    Raises:
        ValueError: naming the file and the line or entry when something in it is missing or wrong.
    """
    if format is not None and format not in FORMATS:
        raise ValueError(f"format: expected one of {', '.join(FORMATS)}, got {format!r}")
    kind = format_of(source) if format is None else format
    if split is not None and not has_splits(kind):
        raise ValueError(f"split: expected none, as a {kind} source has no splits of its own, got {split!r}")
    if images is not None and kind not in ("karpathy", "token"):
        raise ValueError(f"images: expected none for a {kind} source, got {images}")
    pairs = _load(kind, source, split, images)
    if len(pairs) < 2:
        of = f" of its split {split}" if split else ""
        raise ValueError(f"{source}: expected at least two pictures with captions{of}, got {len(pairs)}")
    return pairs


def training_and_held_out(
    source: Path | str,
    format: str | None = None,
    *,
    split: str | None = None,
    images: Path | None = None,
    held_out: float = 0.1,
    seed: int = 0,
) -> tuple[Pairs, Pairs | None]:
    """(pairs to train on, pairs to evaluate on, None where `held_out` is 0).

    A format with splits: `split`, or train, and val. Any other: a share `held_out` of the pictures, drawn by `seed`.
    """
    kind = format_of(source) if format is None else format
    if not has_splits(kind):
        pairs = load_pairs(source, kind, split=split, images=images)
        return pairs.split(held_out, seed) if held_out > 0 else (pairs, None)
    training = load_pairs(source, kind, split=split or "train", images=images)
    return training, load_pairs(source, kind, split="val", images=images) if held_out > 0 else None


def load_for_evaluation(
    source: Path | str, format: str | None = None, *, split: str | None = None, images: Path | None = None
) -> Pairs:
    """`load_pairs`, of the test split where the format has splits and none is named."""
    kind = format_of(source) if format is None else format
    return load_pairs(source, kind, split=split or ("test" if has_splits(kind) else None), images=images)


def load_labelled(source: Path | str, format: str | None = None, names: Path | None = None) -> Pairs:
    """Pictures with classes: a folder of class folders, or WebDataset tars with .cls.

    Args:
        names: a file with a class a line. Folders: their names, each with a tab and other words where wanted; tars: the
            class of number 0, 1, ... Without it the folders' names, or classes.txt beside the tars.

    Raises:
        ValueError: naming what is missing or does not fit.
    """
    kind = format_of(source) if format is None else format
    if kind == "webdataset":
        pairs = from_webdataset(str(source), names)
    elif kind in ("folder", "classes"):
        pairs = from_class_folders(Path(source), names)
    else:
        raise ValueError(f"{source}: expected pictures with classes, a folder of class folders or .tar shards")
    if not pairs.labels:
        raise ValueError(f"{source}: expected pictures with classes, got {len(pairs)} pictures without a .cls")
    return pairs


def _load(kind: str, source: Path | str, split: str | None, images: Path | None) -> Pairs:
    path = Path(source)
    if kind == "webdataset":
        return from_webdataset(str(source))
    wants_folder = kind in ("folder", "classes")
    if wants_folder != path.is_dir() or not path.exists():
        raise ValueError(f"{source}: expected {'a folder' if wants_folder else 'a file'} for the format {kind}")
    if kind == "karpathy":
        return from_karpathy(path, split, images)
    if kind == "token":
        return from_token(path, images)
    return {"csv": from_csv, "folder": from_folder, "classes": from_class_folders}[kind](path)
