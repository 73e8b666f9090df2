"""`stair train` and `stair eval`: what they take, and what they print."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Any

import typer

from stair import show
from stair.console import StoppedError, err, stages
from stair.options import (
    DEMO,
    DataArgument,
    FormatOption,
    ImagesOption,
    JsonOption,
    ModelOption,
    load_model,
    print_json,
    require_checkpoint,
)


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
    device: Annotated[str, typer.Option(help="cpu, cuda, cuda:N, or auto: a GPU where torch sees one.")] = "auto",
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

    ranks = Ranks.join(device)
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
