"""The `stair` command line. Each command reads its arguments, calls one module and prints; torch is imported on use."""

from __future__ import annotations

import sys
from pathlib import Path
from typing import Annotated, Any

try:
    import typer

    from stair import cli_index, cli_serve, cli_train, show
    from stair.console import Commands, StoppedError, err, out, stages
    from stair.options import (
        DEMO,
        BatchOption,
        CpusOption,
        DeviceOption,
        InputsArgument,
        JsonOption,
        KeepOption,
        ModelOption,
        RayOption,
        SkipOption,
        WorkersOption,
        encoded,
        list_left_out,
        load_model,
        print_json,
        words,
        workers_of,
    )
except ModuleNotFoundError as error:
    sys.exit(f"stair: {error.name} is not installed; the command line needs it: pip install 'stair-kernels[model]'")

app = typer.Typer(
    cls=Commands,
    pretty_exceptions_enable=False,
    rich_markup_mode="markdown",
    context_settings={"help_option_names": ["-h", "--help"]},
    help="Sparse text and image representations: train, encode, index, search, serve, explain.\n\n"
    'Start with `stair demo`, then `stair search --index out/demo/index "a red fruit"`. '
    "`--debug` anywhere shows the traceback of an error.",
)


def _print_version(wanted: bool) -> None:
    if wanted:
        from importlib.metadata import version as installed

        out.print(f"stair-kernels {installed('stair-kernels')}")
        raise typer.Exit


app.add_typer(cli_index.app, name="index")


@app.callback()
def _options(
    version: Annotated[
        bool, typer.Option("--version", help="Print the version and exit.", is_eager=True, callback=_print_version)
    ] = False,
) -> None:
    pass


@app.command()
def demo(
    minutes: Annotated[float, typer.Option(help="About how long it may take on two cores.")] = 8.0,
    baseline: Annotated[bool, typer.Option("--baseline", help="Also train a dense CLIP and compare.")] = False,
    out_dir: Annotated[Path, typer.Option("--out", help="Where everything goes.")] = DEMO,
    fast: Annotated[
        bool, typer.Option("--fast", help="A few concepts and steps: does it run? Learns nothing.")
    ] = False,
    resume: Annotated[bool, typer.Option("--resume", help="Go on where an interrupted demo stopped.")] = False,
) -> None:
    """Train a small STAIR on real pictures, measure it, build an index and write a page that shows it all.

    Example: `stair demo --minutes 8 --baseline`, then open out/demo/index.html
    """
    from stair.demo import run
    from stair.page import next_commands, write_page

    shortened: dict[str, Any] = {"concepts": 40, "steps": 4, "batch": 8} if fast else {}
    with stages() as progress:
        try:
            result = run(out_dir, minutes, baseline, progress, resume=resume, **shortened)
        except KeyboardInterrupt as stop:
            raise StoppedError(f"{stop or 'stopped by Ctrl-C'} ({out_dir})") from stop
    page = write_page(result, out_dir / "index.html")
    show.demo(result, page, next_commands(result))


@app.command()
def encode(
    inputs: InputsArgument = None,
    out_file: Annotated[
        Path | None,
        typer.Option(
            "--out",
            help="Write NAME.jsonl, .npz, .csr or .ciff instead of JSON lines on stdout; a NAME without an ending is a"
            " folder that is written in parts.",
        ),
    ] = None,
    model: ModelOption = None,
    k: KeepOption = None,
    batch: BatchOption = 32,
    skip_unreadable: SkipOption = False,
    device: DeviceOption = "cpu",
    ray: RayOption = None,
    workers: WorkersOption = None,
) -> None:
    """Turn texts and pictures into sparse rows of term: weight.

    Example: `stair encode "a red fruit" photos/ --out rows.npz`

    Many of them, on many cores: `stair encode photos/ --ray --out rows`, then `stair index build --rows rows --ray`
    """
    from stair.encode import documents, read_inputs
    from stair.files import require_writable
    from stair.formats import format_of, jsonl, write

    found = read_inputs(words(inputs))
    in_parts = out_file is not None and not out_file.suffix
    if out_file is not None:
        if not in_parts:
            format_of(out_file)
        require_writable(out_file.parent)
    if in_parts or ray is not None or workers is not None:
        from stair.cluster import commands

        with workers_of(ray, workers, device) as pool, stages() as progress:
            number, left_out = commands.encode(
                found,
                model or DEMO / "model",
                out_file,
                pool=pool,
                k=k,
                batch=batch,
                skip_unreadable=skip_unreadable,
                device=device,
                progress=progress,
            )
    else:
        processor, rows, kept, left_out = encoded(found, model or DEMO / "model", k, batch, skip_unreadable, device)
        made, number = documents(rows, [found[place] for place in kept], processor.vocabulary()), len(rows)
        if out_file is None:
            sys.stdout.writelines(jsonl.lines(made))
        else:
            write(out_file, made)
    list_left_out(left_out)
    if out_file is not None:
        err.print(f"{number} rows in {out_file}", markup=False)


@app.command()
def export(
    index_dir: Annotated[Path, typer.Argument(metavar="INDEX", help="An index directory.")],
    out_file: Annotated[Path, typer.Option("--out", help="The file to write; more may lie beside it.")],
    format_: Annotated[
        str | None,
        typer.Option(
            "--format",
            help="csr (big-ann), npz, jsonl, ciff, opensearch, elasticsearch, vespa, qdrant, milvus, pgvector or "
            "seekdb.  [default: by the ending of --out]",
            show_default=False,
        ),
    ] = None,
    keys: Annotated[str, typer.Option(help="What terms are called: token or id.")] = "token",
    scale: Annotated[
        float | None,
        typer.Option(help="Integer weights round(weight * scale), of jsonl, ciff and vespa.", show_default=False),
    ] = None,
    model: Annotated[
        Path | None,
        typer.Option("--model", help="Whose tokens.  [default: the one that built the index]", show_default=False),
    ] = None,
    as_json: JsonOption = False,
) -> None:
    """Write an index's rows as a file that another search engine reads.

    Example: `stair export out/photos --format opensearch --out photos.ndjson`

    For Lucene through Anserini: `stair export out/photos --out photos.jsonl --scale 100`
    """
    from stair.files import require_writable
    from stair.formats import format_of
    from stair.interchange import export as write_export

    format_of(out_file, format_)
    require_writable(out_file.parent)
    with stages() as progress:
        meta = write_export(
            index_dir,
            out_file,
            format=format_,
            keys=keys,
            scale=scale,
            model_dir=model,
            progress=lambda done, total: progress("export", done, total, {}),
        )
    if as_json:
        print_json({"file": str(out_file), **meta})
    else:
        err.print(f"{meta['documents']} documents in {out_file} ({meta['format']})", markup=False)


@app.command()
def search(
    queries: Annotated[list[str], typer.Argument(metavar="QUERY", help="Texts or pictures, as for `stair encode`.")],
    index_dir: Annotated[Path, typer.Option("--index", help="An index directory.")] = DEMO / "index",
    k: Annotated[int, typer.Option("--k", min=1, help="Items shown a query.")] = 5,
    model: Annotated[
        Path | None,
        typer.Option("--model", help="Checkpoint.  [default: the one that built the index]", show_default=False),
    ] = None,
    ray: RayOption = None,
    workers: WorkersOption = None,
    cpus: CpusOption = None,
    as_json: JsonOption = False,
) -> None:
    """Find the items of an index that fit a text or a picture, and the terms that matched.

    Example: `stair search --index out/demo/index "a red fruit"`
    """
    from stair.cluster import commands
    from stair.encode import read_inputs, terms

    found = read_inputs(queries)
    with workers_of(ray, workers, cpus=cpus) as pool:
        collection = commands.open_collection(pool, index_dir)
        folder = model or collection.model_dir
        collection.require_model(folder)
        processor, rows, _, _ = encoded(found, folder, None, 32)
        vocabulary = processor.vocabulary()
        results = collection.search(rows, k, vocabulary)
    if as_json:
        answers = [
            {
                "query": entry.name,
                "terms": terms(rows, row, vocabulary),
                "hits": [hit.as_dict() for hit in results[row]],
            }
            for row, entry in enumerate(found)
        ]
        print_json(answers)
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
    out_dir: Annotated[
        Path | None, typer.Option("--out", help="Also write a page (index.html) and a picture of it into this folder.")
    ] = None,
    as_json: JsonOption = False,
) -> None:
    """Show the terms of a text and of a picture, what they share, and where in the picture it was seen.

    Example: `stair explain --text "a red fruit" --image apple.png --out out/why`, then open out/why/index.html
    """
    from stair.datasets import read_picture
    from stair.explain import explain as explained
    from stair.explain_page import fitted, write_explanation
    from stair.files import require_writable

    if text is None and image is None:
        raise ValueError("--text, --image: expected at least one of the two")
    if text is not None and not text.strip():
        raise ValueError("--text: expected words, got an empty text")
    picture = None if image is None else read_picture(image)
    if out_dir is not None:
        require_writable(out_dir)
    model_, processor = load_model(model or DEMO / "model")
    result = explained(model_, processor, text=text, image=picture, image_name=str(image), k=k)
    if out_dir is not None:
        shown = None if picture is None else fitted(processor.images, picture)
        page, plot = write_explanation(result, shown, out_dir, top)
        err.print(f"page in {page}, picture in {plot}", markup=False)
    if as_json:
        print_json(result.as_dict())
    else:
        show.explanation(result, top)


app.command()(cli_train.train)
app.command("eval")(cli_train.evaluate)
app.command()(cli_serve.serve)


@app.command()
def info(as_json: JsonOption = False) -> None:
    """Show versions, devices, which kernels are there, what is missing and the command that gets it.

    Example: `stair info --json`
    """
    from stair.info import collect

    found = collect()
    if as_json:
        print_json(found.as_dict())
    else:
        show.info(found)


def main() -> None:
    """The entry point of the `stair` command."""
    app(prog_name="stair")


if __name__ == "__main__":
    main()
