"""The `stair` command line. Each command reads its arguments, calls one module and prints; torch is imported on use."""

from __future__ import annotations

import json
import sys
from pathlib import Path
from typing import Annotated, Any

try:
    import typer

    from stair import show
    from stair.console import Commands, StoppedError, err, out, progress_bars
except ModuleNotFoundError as error:
    sys.exit(f"stair: {error.name} is not installed; the command line needs it: pip install 'stair-kernels[model]'")

DEMO = Path("out/demo")

app = typer.Typer(
    cls=Commands,
    no_args_is_help=True,
    add_completion=False,
    pretty_exceptions_enable=False,
    rich_markup_mode="markdown",
    context_settings={"help_option_names": ["-h", "--help"]},
    help="Sparse text and image representations: train, encode, index, search, explain.\n\n"
    "Start with `stair demo`, then `stair search --index out/demo/index \"a red fruit\"`. "
    "`--debug` anywhere shows the traceback of an error.",
)

ModelOption = Annotated[
    Path | None, typer.Option("--model", help="Checkpoint folder.  [default: out/demo/model]", show_default=False)
]
KeepOption = Annotated[
    int | None, typer.Option("--k", min=1, help="Entries kept of a row.  [default: the checkpoint's]", show_default=False)
]
BatchOption = Annotated[int, typer.Option("--batch", min=1, help="Inputs encoded at a time.")]
JsonOption = Annotated[bool, typer.Option("--json", help="Print JSON instead of tables.")]
InputsArgument = Annotated[
    list[str] | None,
    typer.Argument(
        metavar="[INPUT]...",
        help="Texts, picture files, folders of pictures, .txt files (a text a line), or - for the lines of stdin.",
        show_default=False,
    ),
]


@app.callback()
def _options(
    version: Annotated[bool, typer.Option("--version", help="Print the version and exit.", is_eager=True)] = False,
) -> None:
    if version:
        from importlib.metadata import version as installed

        out.print(f"stair-kernels {installed('stair-kernels')}")
        raise typer.Exit


@app.command()
def encode(
    inputs: InputsArgument = None,
    out_file: Annotated[
        Path | None, typer.Option("--out", help="Write NAME.jsonl or NAME.npz instead of JSON lines on stdout.")
    ] = None,
    model: ModelOption = None,
    k: KeepOption = None,
    batch: BatchOption = 32,
) -> None:
    """Turn texts and pictures into sparse rows of term: weight.

    Example: `stair encode "a red fruit" photos/ --out rows.npz`
    """
    from stair.encode import read_inputs, records, write_jsonl, write_rows

    found = read_inputs(_words(inputs))
    if out_file is not None and out_file.suffix not in (".npz", ".jsonl"):
        raise ValueError(f"--out {out_file}: expected a name ending in .npz or .jsonl")
    _, processor, rows = _encoded(found, model or DEMO / "model", k, batch)
    vocabulary = processor.vocabulary()
    if out_file is None:
        write_jsonl(sys.stdout, records(rows, found, vocabulary))
        return
    write_rows(out_file, rows, found, vocabulary)
    err.print(f"{len(rows)} rows in {out_file}", markup=False)


@app.command()
def index(
    inputs: InputsArgument = None,
    out_dir: Annotated[Path, typer.Option("--out", help="The index directory to write.")] = Path("out/index"),
    model: ModelOption = None,
    k: KeepOption = None,
    batch: BatchOption = 32,
) -> None:
    """Build a search index over pictures or texts.

    Example: `stair index photos/ --out out/photos`, then `stair search --index out/photos "a dog on a beach"`
    """
    from stair.encode import read_inputs
    from stair.search import require_replaceable, save_collection

    found = read_inputs(_words(inputs))
    require_replaceable(out_dir)
    folder = model or DEMO / "model"
    _, _, rows = _encoded(found, folder, k, batch)
    items: list[dict[str, Any]] = [
        {"name": entry.name} if entry.picture is None else {"name": entry.name, "picture": str(entry.picture.resolve())}
        for entry in found
    ]
    save_collection(out_dir, rows, items, folder)
    err.print(f"{len(rows)} items in {out_dir}", markup=False)


@app.command()
def search(
    queries: Annotated[list[str], typer.Argument(metavar="QUERY...", help="Texts or pictures, as for `stair encode`.")],
    index_dir: Annotated[Path, typer.Option("--index", help="An index directory.")] = DEMO / "index",
    k: Annotated[int, typer.Option("--k", min=1, help="Items shown a query.")] = 5,
    model: Annotated[
        Path | None,
        typer.Option("--model", help="Checkpoint.  [default: the one that built the index]", show_default=False),
    ] = None,
    as_json: JsonOption = False,
) -> None:
    """Find the items of an index that fit a text or a picture, and the terms that matched.

    Example: `stair search --index out/demo/index "a red fruit"`
    """
    from stair.encode import read_inputs, terms
    from stair.search import Collection

    found = read_inputs(queries)
    collection = Collection.open(index_dir)
    folder = model or collection.model_dir
    collection.require_model(folder)
    _, processor, rows = _encoded(found, folder, None, 32)
    vocabulary = processor.vocabulary()
    results = collection.search(rows, k, vocabulary)
    if as_json:
        answers = [
            {"query": entry.name, "terms": terms(rows, row, vocabulary), "hits": [hit.as_dict() for hit in results[row]]}
            for row, entry in enumerate(found)
        ]
        _print_json(answers)
        return
    for row, entry in enumerate(found):
        show.hits(entry.name, terms(rows, row, vocabulary), results[row])


@app.command()
def explain(
    text: Annotated[str | None, typer.Option("--text", help="A text.")] = None,
    image: Annotated[Path | None, typer.Option("--image", help="A picture file.")] = None,
    model: ModelOption = None,
    k: KeepOption = None,
    top: Annotated[int, typer.Option("--top", min=1, help="Terms shown in each table.")] = 12,
    as_json: JsonOption = False,
) -> None:
    """Show the terms of a text and of a picture, what they share, and where in the picture it was seen.

    Example: `stair explain --text "a red fruit" --image apple.png`
    """
    from stair.data import read_picture
    from stair.explain import explain as explained

    if text is None and image is None:
        raise ValueError("--text, --image: expected at least one of the two")
    if text is not None and not text.strip():
        raise ValueError("--text: expected words, got an empty text")
    picture = None if image is None else read_picture(image)
    model_, processor = _load(model or DEMO / "model")
    result = explained(model_, processor, text=text, image=picture, image_name=str(image), k=k)
    if as_json:
        _print_json(result.as_dict())
    else:
        show.explanation(result, top)


@app.command()
def info(as_json: JsonOption = False) -> None:
    """Show versions, devices, which kernels are there, what is missing and the command that gets it.

    Example: `stair info --json`
    """
    from stair.info import collect

    found = collect()
    if as_json:
        _print_json(found.as_dict())
    else:
        show.info(found)


def _words(inputs: list[str] | None) -> list[str]:
    """The arguments, or stdin when there are none and something is piped in."""
    if inputs:
        return inputs
    if sys.stdin is None or sys.stdin.isatty():
        raise ValueError("INPUT: expected texts, picture files, folders, or lines on stdin; got nothing")
    return ["-"]


def _load(folder: Path) -> tuple[Any, Any]:
    from stair.checkpoint import load

    with err.status("loading the model"):
        return load(folder)


def _encoded(found: list[Any], folder: Path, k: int | None, batch: int) -> tuple[Any, Any, Any]:
    """(model, processor, rows) of inputs, with a progress bar."""
    from stair.encode import encode as encode_inputs

    model, processor = _load(folder)
    with progress_bars() as bars:
        task = bars.add_task("encoding", total=len(found), note="")
        rows = encode_inputs(
            model, processor, found, k=k, batch=batch, advance=lambda count: bars.advance(task, count)
        )
    return model, processor, rows


def _print_json(value: Any) -> None:
    print(json.dumps(value, indent=2, ensure_ascii=False))


def main() -> None:
    """The entry point of the `stair` command."""
    app(prog_name="stair")


if __name__ == "__main__":
    main()
