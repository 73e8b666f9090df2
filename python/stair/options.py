"""What the commands of `stair` share: options, and the model that they load; torch is imported on use."""

from __future__ import annotations

import json
import sys
from collections.abc import Iterator, Sequence
from contextlib import ExitStack, contextmanager
from pathlib import Path
from typing import Annotated, Any

import typer

from stair.console import err, stages

DEMO = Path("out/demo")

ModelOption = Annotated[
    Path | None, typer.Option("--model", help="Checkpoint folder.  [default: out/demo/model]", show_default=False)
]
KeepOption = Annotated[
    int | None,
    typer.Option("--k", min=1, help="Entries kept of a row.  [default: the checkpoint's]", show_default=False),
]
BatchOption = Annotated[int, typer.Option("--batch", min=1, help="Inputs encoded at a time.")]
RayOption = Annotated[
    str | None,
    typer.Option(
        "--ray",
        metavar="[ADDRESS]",
        help="Spread the work over a Ray cluster (host:port, ray://host:port, auto), or without an address over"
        " processes of this machine.",
        show_default=False,
    ),
]
WorkersOption = Annotated[
    int | None,
    typer.Option("--workers", min=1, help="Workers of --ray.  [default: one a CPU]", show_default=False),
]
CpusOption = Annotated[
    int | None,
    typer.Option(
        "--cpus",
        min=1,
        help="CPUs of a worker of --ray, which searches as many of its shards at a time.  [default: 1]",
        show_default=False,
    ),
]
SkipOption = Annotated[
    bool,
    typer.Option("--skip-unreadable", help="Leave out pictures that cannot be read, and list them at the end."),
]
DeviceOption = Annotated[
    str,
    typer.Option("--device", help="cpu; cuda or cuda:N: a GPU of this machine; with --ray, cuda: one for each worker."),
]
JsonOption = Annotated[bool, typer.Option("--json", help="Print JSON instead of tables.")]
DataArgument = Annotated[
    Path,
    typer.Argument(
        metavar="DATA",
        help="A CSV file (path,caption), a folder of pictures, dataset_coco.json or dataset_flickr30k.json (Karpathy),"
        " results_20130124.token (Flickr30k), or WebDataset tars ('shards/{000..003}.tar', quoted).",
    ),
]
FormatOption = Annotated[
    str | None,
    typer.Option(
        "--format", help="csv, folder, classes, karpathy, token or webdataset.  [default: by DATA]", show_default=False
    ),
]
ImagesOption = Annotated[
    Path | None,
    typer.Option(
        "--images", help="Where the pictures of COCO or Flickr30k are.  [default: beside DATA]", show_default=False
    ),
]
InputsArgument = Annotated[
    list[str] | None,
    typer.Argument(
        metavar="INPUT",
        help="Texts, picture files, folders of pictures, .txt files (a text a line), or - for the lines of stdin.",
        show_default=False,
    ),
]


def words(inputs: list[str] | None) -> list[str]:
    """The arguments, or stdin when there are none and something is piped in."""
    if inputs:
        return inputs
    if sys.stdin is None or sys.stdin.isatty():
        raise ValueError("INPUT: expected texts, picture files, folders, or lines on stdin; got nothing")
    return ["-"]


def require_checkpoint(folder: Path) -> Path:
    from stair import checkpoint

    return checkpoint.require_checkpoint(folder)


def load_model(folder: Path) -> tuple[Any, Any]:
    from stair.checkpoint import load

    with err.status("loading the model"):
        return load(folder)


def encoded(
    found: list[Any],
    folder: Path,
    k: int | None,
    batch: int,
    skip_unreadable: bool = False,
    device: str = "cpu",
) -> tuple[Any, Any, list[int], list[str]]:
    """(processor, rows, which of the inputs they are of, what was wrong with the others), with a progress bar."""
    from stair.encode import encode_readable, require_rows
    from stair.parallel import device_of

    place = device_of(device)
    model, processor = load_model(folder)
    model.to(place)
    with stages() as progress:
        made = encode_readable(
            model, processor, found, k=k, batch=batch, skip_unreadable=skip_unreadable, progress=progress
        )
    return processor, require_rows(made.rows), made.kept, made.left_out


def list_left_out(left_out: Sequence[str]) -> None:
    """On stderr: a line each, and how many."""
    for message in left_out:
        err.print(f"left out: {message}", markup=False)
    if left_out:
        err.print(f"{len(left_out)} left out, since they cannot be read", markup=False)


@contextmanager
def workers_of(ray: str | None, workers: int | None, device: str = "cpu", cpus: int | None = None) -> Iterator[Any]:
    """This process, or those of --ray: what does the jobs of `stair.cluster.work`."""
    from stair.cluster.work import Here

    if ray is not None and device not in ("cpu", "cuda"):
        raise ValueError(f"--device: expected cpu or cuda with --ray, got {device!r}")
    if ray is None:
        for name, given in (("--workers", workers), ("--cpus", cpus)):
            if given is not None:
                raise ValueError(f"{name}: expected --ray as well")
        yield Here()
        return
    from stair.cluster.ray import RayPool

    with ExitStack() as stack:
        with err.status("connecting to the cluster"):
            gpus = 0 if device == "cpu" else 1
            pool = stack.enter_context(RayPool(ray, workers=workers, cpus=cpus or 1, gpus=gpus))
        yield pool


def print_json(value: Any) -> None:
    print(json.dumps(value, indent=2, ensure_ascii=False))
