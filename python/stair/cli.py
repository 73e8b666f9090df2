"""The `stair` command line. Each command reads its arguments, calls one module and prints; torch is imported on use."""

from __future__ import annotations

import sys
from pathlib import Path
from typing import Annotated, Any

try:
    import typer

    from stair import cli_index, show
    from stair.console import Commands, StoppedError, err, out, stages
    from stair.options import (
        DEMO,
        BatchOption,
        DataArgument,
        FormatOption,
        ImagesOption,
        InputsArgument,
        JsonOption,
        KeepOption,
        ModelOption,
        encoded,
        load_model,
        print_json,
        require_checkpoint,
        words,
    )
except ModuleNotFoundError as error:
    sys.exit(f"stair: {error.name} is not installed; the command line needs it: pip install 'stair-kernels[model]'")

app = typer.Typer(
    cls=Commands,
    pretty_exceptions_enable=False,
    rich_markup_mode="markdown",
    context_settings={"help_option_names": ["-h", "--help"]},
    help="Sparse text and image representations: train, encode, index, search, explain.\n\n"
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
    from stair.files import require_writable

    found = read_inputs(words(inputs))
    if out_file is not None and out_file.suffix not in (".npz", ".jsonl"):
        raise ValueError(f"--out {out_file}: expected a name ending in .npz or .jsonl")
    if out_file is not None:
        require_writable(out_file.parent)
    _, processor, rows = encoded(found, model or DEMO / "model", k, batch)
    vocabulary = processor.vocabulary()
    if out_file is None:
        write_jsonl(sys.stdout, records(rows, found, vocabulary))
        return
    write_rows(out_file, rows, found, vocabulary)
    err.print(f"{len(rows)} rows in {out_file}", markup=False)


@app.command()
def search(
    queries: Annotated[list[str], typer.Argument(metavar="QUERY", help="Texts or pictures, as for `stair encode`.")],
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
    _, processor, rows = encoded(found, folder, None, 32)
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


@app.command()
def train(
    data: DataArgument,
    out_dir: Annotated[Path, typer.Option("--out", help="The checkpoint folder to write.")] = Path("out/model"),
    config_file: Annotated[
        Path | None, typer.Option("--config", help="A YAML file with the recipe: steps, batch, learning_rate, ...")
    ] = None,
    steps: Annotated[int | None, typer.Option(help="Optimizer steps at most.")] = None,
    minutes: Annotated[float | None, typer.Option(help="Minutes of training at most.")] = None,
    batch: Annotated[int | None, typer.Option(help="Pictures a step.")] = None,
    learning_rate: Annotated[float | None, typer.Option(help="Of the image tower.")] = None,
    precision: Annotated[str | None, typer.Option(help="Of the heads: auto, float32 or bfloat16.")] = None,
    text_encoder: Annotated[
        str | None,
        typer.Option(help="Start from this text encoder of transformers (folder or name), with --image-encoder."),
    ] = None,
    image_encoder: Annotated[
        str | None, typer.Option(help="And this vision encoder: CLIP, ViT, SigLIP, DINOv2 and their kin.")
    ] = None,
    freeze_image: Annotated[
        bool | None, typer.Option("--freeze-image", help="Train the vision encoder's head only.")
    ] = None,
    seed: Annotated[int | None, typer.Option(help="Of every random draw.")] = None,
    held_out: Annotated[
        float,
        typer.Option(
            min=0, max=0.9, help="Share of the pictures kept for evaluation; 0 = none. Karpathy: its val split."
        ),
    ] = 0.1,
    format_: FormatOption = None,
    split: Annotated[
        str | None,
        typer.Option("--split", help="Karpathy: train on train, val or test.  [default: train]", show_default=False),
    ] = None,
    images: ImagesOption = None,
    start: Annotated[
        Path | None,
        typer.Option("--from", help="Checkpoint to start from.  [default: published weights]", show_default=False),
    ] = None,
    accumulate: Annotated[
        int | None, typer.Option(help="Batches averaged for one step; negatives stay within a batch.")
    ] = None,
    tensorboard: Annotated[
        Path | None, typer.Option("--tensorboard", help="Write event files for TensorBoard here.")
    ] = None,
    resume: Annotated[
        bool, typer.Option("--resume", help="Go on where an interrupted or killed training stopped.")
    ] = False,
    as_json: JsonOption = False,
) -> None:
    """Train on your own pictures and captions. A flag overrides the same name in the YAML file.

    In a folder a picture's caption is the text of the .txt file beside it, else its name. Ctrl-C keeps a checkpoint.

    Example: `stair train photos.csv --out out/mine --minutes 10`

    COCO: `stair train coco/dataset_coco.json --text-encoder bert-base-uncased
    --image-encoder openai/clip-vit-base-patch32 --config recipe.yaml --out out/coco`

    Several processes: `torchrun --nproc-per-node 2 -m stair train ...`; the batch is each one's, negatives are all.
    """
    from stair.recipe import read_recipe

    flags: dict[str, Any] = {
        "steps": steps,
        "minutes": minutes,
        "batch": batch,
        "learning_rate": learning_rate,
        "precision": precision,
    }
    flags |= {
        "accumulate": accumulate,
        "seed": seed,
        "text_encoder": text_encoder,
        "image_encoder": image_encoder,
        "freeze_image": freeze_image,
    }
    config = read_recipe(config_file, flags)
    if start is not None:
        require_checkpoint(start)
    from stair.checkpoint import load
    from stair.datasets import training_and_held_out
    from stair.evaluate import evaluate_pairs
    from stair.parallel import Ranks
    from stair.train import train_pairs

    ranks = Ranks.join()
    training, held = training_and_held_out(
        data, format_, split=split, images=images, held_out=held_out, seed=config.seed
    )
    with stages(ranks.first) as progress:
        try:
            result = train_pairs(
                config,
                training,
                out_dir,
                init=start,
                resume=resume,
                progress=progress,
                tensorboard=tensorboard,
                ranks=ranks,
            )
        except KeyboardInterrupt as stop:
            raise StoppedError(f"{stop or 'stopped by Ctrl-C'} ({out_dir})") from stop
        ranks.leave()
        if not ranks.first:
            return
        evaluation = None
        if held is not None:
            model, processor = load(out_dir)
            evaluation = evaluate_pairs(model, processor, held, name=f"held-out part of {data}", progress=progress)
    if as_json:
        measured = None if evaluation is None else evaluation.as_dict()
        found = {"model": str(out_dir), "steps": result.steps, "seconds": result.seconds, "evaluation": measured}
        print_json(found)
        return
    err.print(f"{result.steps} steps in {result.seconds:.0f} s; checkpoint in {out_dir}", markup=False)
    if evaluation is not None:
        show.recall({"STAIR": evaluation})


@app.command("eval")
def evaluate(
    data: DataArgument,
    model: ModelOption = None,
    format_: FormatOption = None,
    split: Annotated[
        str | None,
        typer.Option("--split", help="Karpathy: train, val or test.  [default: test]", show_default=False),
    ] = None,
    images: ImagesOption = None,
    zero_shot: Annotated[
        Path | None,
        typer.Option(
            "--zero-shot",
            metavar="CLASSES",
            help="Classify the pictures of DATA's class folders (or tars with .cls) by name: a file with a class a"
            " line, FOLDER or FOLDER, a tab and its words.",
        ),
    ] = None,
    templates: Annotated[
        Path | None,
        typer.Option(
            "--templates", help="Texts for --zero-shot, one a line, with {} for the name.", show_default=False
        ),
    ] = None,
    probe: Annotated[
        Path | None,
        typer.Option(
            "--linear-probe",
            metavar="TRAIN",
            help="Fit a linear classifier on these class folders, measure it on DATA.",
        ),
    ] = None,
    strength: Annotated[
        float, typer.Option(min=1e-6, help="Of --linear-probe: inverse weight of its L2 penalty.")
    ] = 1.0,
    as_json: JsonOption = False,
) -> None:
    """Measure recall at 1, 5 and 10 both ways and how many terms are active; or classification.

    Example: `stair eval test.csv --model out/mine`

    COCO's 5,000 test pictures: `stair eval coco/dataset_coco.json --model out/coco --json`

    Classes: `stair eval photos/ --zero-shot classes.txt --templates templates.txt`, `stair eval photos/test
    --linear-probe photos/train`
    """
    folder = require_checkpoint(model or DEMO / "model")
    if templates is not None and zero_shot is None:
        raise ValueError("--templates: expected --zero-shot with it")
    from stair.measure import measure, read_task

    task = read_task(data, format_, split, images, zero_shot, templates, probe, strength)
    loaded, processor = load_model(folder)
    with stages() as progress:
        found = measure(loaded, processor, task, progress)
    if as_json:
        print_json(found.as_dict())
    elif found.recall is not None:
        show.recall({"STAIR": found.recall})
    else:
        show.classification(found.classified)


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
