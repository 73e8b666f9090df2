"""The `stair index` commands: build a collection, add to it, delete from it, and look after any index directory."""

from __future__ import annotations

import sys
from pathlib import Path
from typing import Annotated, Any

import typer

from stair import show
from stair.console import BAD_INPUT, err, stages
from stair.options import (
    DEMO,
    BatchOption,
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
    print_json,
    words,
    workers_of,
)

app = typer.Typer(
    invoke_without_command=True,
    rich_markup_mode="markdown",
    context_settings={"help_option_names": ["-h", "--help"]},
    help="Build, change and check search indexes. A change is on disk whole or not at all, also after a kill.\n\n"
    "Example: `stair index build photos/ --out out/photos`",
)

IndexArgument = Annotated[Path, typer.Argument(metavar="INDEX", help="An index directory.", show_default=False)]
WaitOption = Annotated[float, typer.Option("--wait", min=0, help="Seconds to wait for another writer of the index.")]


@app.callback()
def _commands(context: typer.Context) -> None:
    if context.invoked_subcommand is None:
        typer.echo(context.get_help())


@app.command()
def build(
    context: typer.Context,
    inputs: InputsArgument = None,
    out_dir: Annotated[Path, typer.Option("--out", help="The index directory to write.")] = Path("out/index"),
    model: ModelOption = None,
    k: KeepOption = None,
    batch: BatchOption = 32,
    skip_unreadable: SkipOption = False,
    device: DeviceOption = "cpu",
    rows_file: Annotated[
        Path | None,
        typer.Option(
            "--rows",
            help="Rows in place of inputs: a .jsonl, .npz, .csr or .ciff file, or a folder of `stair encode`.",
            show_default=False,
        ),
    ] = None,
    scale: Annotated[
        float | None, typer.Option(help="What the weights of --rows are divided by.", show_default=False)
    ] = None,
    shards: Annotated[
        int | None,
        typer.Option(
            "--shards", min=1, help="Build it in so many parts.  [default: one a worker of --ray]", show_default=False
        ),
    ] = None,
    ray: RayOption = None,
    workers: WorkersOption = None,
    as_json: JsonOption = False,
) -> None:
    """Build a search index over pictures or texts; an index that is there is replaced.

    Example: `stair index build photos/ --out out/photos`, then `stair search --index out/photos "a dog on a beach"`

    Of rows that are there: `stair index build --rows rows.jsonl --model out/mine --out out/photos`

    In parts, on many cores: `stair index build photos/ --ray --shards 4 --out out/photos`
    """
    from stair.encode import read_inputs
    from stair.search import items_of, require_replaceable, save_collection

    folder = model or DEMO / "model"
    if rows_file is not None and inputs:
        raise ValueError(f"INPUT, --rows: expected one of the two, got {inputs[0]!r} and {rows_file}")
    in_parts = rows_file is not None and rows_file.is_dir()
    if rows_file is not None:
        _refuse(context, "--rows, which are encoded already", "k", "batch", "skip_unreadable", "device")
    if rows_file is None or in_parts:
        _refuse(context, "a folder of --rows" if in_parts else "inputs", "scale")
    if in_parts or shards is not None or ray is not None or workers is not None:
        from stair.cluster import commands

        if rows_file is not None and not in_parts:
            raise ValueError(
                f"--rows: expected a folder that `stair encode` wrote, to build shards of, got {rows_file}"
            )
        require_replaceable(out_dir)
        with workers_of(ray, workers, device) as pool, stages() as progress:
            number, left_out = commands.build(
                rows_file or [entry for entry, _ in items_of(read_inputs(words(inputs)))],
                out_dir,
                folder,
                shards=shards or pool.workers,
                pool=pool,
                k=k,
                batch=batch,
                skip_unreadable=skip_unreadable,
                device=device,
                progress=progress,
            )
    elif rows_file is not None:
        from stair.interchange import index_rows

        number, left_out = index_rows(rows_file, out_dir, folder, scale=scale), []
    else:
        found = items_of(read_inputs(words(inputs)))
        require_replaceable(out_dir)
        _, rows, kept, left_out = encoded([entry for entry, _ in found], folder, k, batch, skip_unreadable, device)
        save_collection(out_dir, rows, [found[place][1] for place in kept], folder)
        number = len(rows)
    if as_json:
        print_json({"index": str(out_dir), "items": number, "model": str(folder), "left_out": left_out})
    else:
        list_left_out(left_out)
        err.print(f"{number} items in {out_dir}", markup=False)


def _refuse(context: typer.Context, of: str, *names: str) -> None:
    """Raises ValueError for options that were given and have no meaning."""
    for name in names:
        source = context.get_parameter_source(name)
        if source is not None and source.name == "COMMANDLINE":
            raise ValueError(f"--{name.replace('_', '-')}: expected none with {of}, got {context.params[name]}")


@app.command()
def add(
    index_dir: IndexArgument,
    inputs: InputsArgument = None,
    replace: Annotated[
        bool, typer.Option("--replace", help="Encode those that the index holds again, instead of leaving them out.")
    ] = False,
    k: KeepOption = None,
    batch: BatchOption = 32,
    wait: WaitOption = 10.0,
    as_json: JsonOption = False,
) -> None:
    """Add pictures or texts to an index, encoded by the model that built it.

    Example: `stair index add out/photos holidays/ "a text as well"`
    """
    from stair.encode import read_inputs
    from stair.search import Collection, item_id, items_of

    found = items_of(read_inputs(words(inputs)))
    with Collection.open(index_dir, mode="a", timeout=wait) as collection:
        held = set(collection.index.ids)
        twice = [item_id(item) for _, item in found if item_id(item) in held]
        if not replace:
            found = [(entry, item) for entry, item in found if item_id(item) not in held]
        if found:
            collection.require_model(collection.model_dir)
            _, rows, _, _ = encoded([entry for entry, _ in found], collection.model_dir, k, batch)
            if replace and twice:
                collection.index.delete(twice)
            collection.add(rows, [item for _, item in found])
    if as_json:
        print_json({"index": str(index_dir), "added": len(found), "replaced" if replace else "left": len(twice)})
        return
    what = "replaced" if replace else "there already, left as they are (--replace encodes them again)"
    note = f"; {len(twice)} were {what}" if twice else ""
    err.print(f"{len(found)} items added to {index_dir}{note}", markup=False)


@app.command()
def delete(
    index_dir: IndexArgument,
    ids: Annotated[
        list[str] | None,
        typer.Argument(metavar="ID", help="Picture files, texts or ids; - for the lines of stdin.", show_default=False),
    ] = None,
    wait: WaitOption = 10.0,
    as_json: JsonOption = False,
) -> None:
    """Delete items from an index: all of those named, or none when one is not there.

    Example: `stair index delete out/photos photos/blurred.jpg "a text"`
    """
    from stair.search import delete as delete_from

    given = [line for word in words(ids) for line in (sys.stdin.read().splitlines() if word == "-" else [word])]
    number = delete_from(index_dir, [line for line in given if line.strip()], wait)
    if as_json:
        print_json({"index": str(index_dir), "deleted": number})
    else:
        err.print(f"{number} items deleted from {index_dir}", markup=False)


@app.command()
def verify(index_dir: IndexArgument, as_json: JsonOption = False) -> None:
    """Read every file of an index and compare it with its checksum.

    Exit code 0 when it is sound, 2 when it is damaged or no index.

    Example: `stair index verify out/photos`
    """
    from stair.search import statistics

    try:
        with err.status("reading every file"):
            found = statistics(index_dir, verify=True)
    except ValueError as error:
        if not as_json:
            raise
        print_json({"index": str(index_dir), "sound": False, "error": str(error)})
        raise typer.Exit(BAD_INPUT) from error
    if as_json:
        print_json({"index": str(index_dir), "sound": True, **found})
    else:
        err.print(f"{index_dir} is sound: {found['documents']:,} documents, {found['bytes']:,} bytes", markup=False)


@app.command()
def stats(index_dir: IndexArgument, as_json: JsonOption = False) -> None:
    """Show what an index holds.

    Example: `stair index stats out/photos --json`
    """
    from stair.search import statistics

    found: dict[str, Any] = statistics(index_dir)
    if as_json:
        print_json({"index": str(index_dir), **found})
    else:
        show.index_statistics(found)


@app.command()
def compact(
    index_dir: IndexArgument,
    reorder: Annotated[
        bool, typer.Option("--reorder", help="Lay items that share terms side by side; takes longer.")
    ] = False,
    wait: WaitOption = 10.0,
    as_json: JsonOption = False,
) -> None:
    """Merge what was added and drop what was deleted: less disk, faster search.

    Example: `stair index compact out/photos`
    """
    from stair.search import compact as compact_index

    with err.status("compacting"):
        before, after = compact_index(index_dir, reorder, wait)
    if as_json:
        print_json({"index": str(index_dir), "bytes_before": before, "bytes_after": after})
    else:
        err.print(f"{index_dir}: {before:,} bytes before, {after:,} after", markup=False)
