"""out/demo/index.html: what a demo run did, in one file that needs nothing else."""

from __future__ import annotations

import base64
import io
import platform
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from stair.console import duration, megabytes
from stair.templates import write_template

if TYPE_CHECKING:
    from stair.demo import DemoResult
    from stair.evaluate import Evaluation
    from stair.search import Collection, Hit

QUERIES = (
    "a red fruit",
    "something to keep off the rain",
    "a fast vehicle",
    "it lives in the sea",
    "a sad face",
    "play music",
    "cold weather",
    "birthday party",
    "outer space",
    "a sweet dessert",
    "wild animal with stripes",
    "time to sleep",
)
FOUND, PICTURES, TERMS = 5, 24, 7
RED_APPLE = "1F34E"
SIZE = 72  # side of an inlined picture in pixels


def write_page(result: DemoResult, out_path: Path | str) -> Path:
    """Writes the page of a finished demo, whole or not at all; gives its path.

    Reads the index, the items, the pictures and the model below `result.out_dir`.
    """
    write_template("demo.html", page_content(result), out_path)
    return Path(out_path)


def page_content(result: DemoResult) -> dict[str, Any]:
    """Everything the template shows, formatted."""
    from stair.plot import training_curves
    from stair.search import Collection
    from stair_kernels import __version__, cpu_isa

    collection = Collection.open(Path(result.out_dir) / "index")
    vocabulary, searches = _searches(result, collection)
    footer = (
        f"stair_kernels {__version__}, {cpu_isa()} kernels, Python {platform.python_version()}, {platform.machine()}"
    )
    return {
        "vocab_size": f"{result.vocab_size:,}",
        "tiles": _tiles(result, len(collection.items)),
        "styles": result.styles,
        "items": f"{len(collection.items):,}",
        "searches": searches,
        "pictures": _pictures(collection, vocabulary, result.styles[-1]),
        "held_out": f"{result.held_out:,}",
        **_recall(result.evaluation, result.baseline_evaluation),
        **_cost(result),
        "curve": training_curves(result.train.log, result.baseline.log if result.baseline else ()),
        "commands": next_commands(result),
        "sources": result.attributions,
        "footer": footer,
    }


def next_commands(result: DemoResult) -> list[str]:
    """What to try after the demo: a search, and an explanation of a picture in the style that was not trained on."""
    out_dir = Path(result.out_dir)
    drawn = sorted((out_dir / "pictures" / result.styles[-1]).iterdir())
    picture = next((path for path in drawn if path.stem == RED_APPLE), drawn[0])
    return [
        f'stair search --index {out_dir / "index"} "a red fruit"',
        f'stair explain --model {out_dir / "model"} --text "a red fruit" --image {picture}',
    ]


def _searches(result: DemoResult, collection: Collection) -> tuple[list[str], list[dict[str, Any]]]:
    """(vocabulary, what each of QUERIES found): a concept that several styles draw is shown once, at its best."""
    from stair.checkpoint import load
    from stair.encode import Input, encode, terms

    model, processor = load(Path(result.out_dir) / "model")
    vocabulary = processor.vocabulary()
    rows = encode(model, processor, [Input(query, text=query) for query in QUERIES])
    deep = FOUND * len(result.styles)
    searches = []
    for row, hits in enumerate(collection.search(rows, deep, vocabulary)):
        best: dict[str, Hit] = {}
        for hit in hits:
            best.setdefault(hit.name, hit)
        shown = [_hit(collection, hit, result.styles[-1]) for hit in list(best.values())[:FOUND]]
        searches.append({"query": QUERIES[row], "terms": list(terms(rows, row, vocabulary))[:8], "hits": shown})
    return vocabulary, searches


def _hit(collection: Collection, hit: Hit, unseen_style: str) -> dict[str, Any]:
    return {
        "name": hit.name,
        "score": f"{hit.score:.2f}",
        "picture": _picture(collection, hit.item),
        "tag": _tag(hit.item, unseen_style),
        "matches": [
            {
                "term": match.term,
                "percent": round(100 * match.share),
                "fill": round(100 * match.share / hit.matches[0].share),
            }
            for match in hit.matches[:3]
        ],
    }


def _tag(item: dict[str, Any], unseen_style: str) -> str:
    """What of the item training never saw."""
    new = [what for what, unseen in (("concept", item["held_out"]), ("style", item["style"] == unseen_style)) if unseen]
    return f"new {' and '.join(new)}" if new else ""


def _picture(collection: Collection, item: dict[str, Any]) -> str:
    """An item's picture as a data: address, small and on white."""
    from PIL import Image

    from stair.datasets import read_picture
    from stair.pictures import fit_square

    path = collection.picture(item)
    if path is None:
        raise ValueError(f"{collection.folder}: expected items with pictures, {item['name']!r} has none")
    stream = io.BytesIO()
    Image.fromarray(fit_square(read_picture(path), SIZE)).save(stream, "WEBP", quality=90, method=6)
    return "data:image/webp;base64," + base64.b64encode(stream.getvalue()).decode()


def _pictures(collection: Collection, vocabulary: Sequence[str], unseen_style: str) -> list[dict[str, Any]]:
    """Pictures in the style that training never saw, spread evenly: half of new concepts, half of seen ones."""
    items = collection.items
    drawn = [(number, item["held_out"]) for number, item in enumerate(items) if item["style"] == unseen_style]
    held, seen = ([number for number, held_out in drawn if held_out == wanted] for wanted in (True, False))
    shown = []
    for number in _spread(held, PICTURES // 2) + _spread(seen, PICTURES - PICTURES // 2):
        item = items[number]
        pairs = [(vocabulary[v], float(weight)) for weight, v in zip(*collection.row(item))]
        heaviest = pairs[0][1] if pairs else 1.0
        terms = [
            {"term": term, "weight": f"{weight:.2f}", "percent": round(100 * weight / heaviest)}
            for term, weight in pairs[:TERMS]
        ]
        shown.append(
            {
                "name": item["name"],
                "picture": _picture(collection, item),
                "tag": _tag(item, unseen_style),
                "terms": terms,
                "count": len(pairs),
            }
        )
    return shown


def _spread(numbers: Sequence[int], count: int) -> list[int]:
    """`count` of the numbers at even distances, or all when there are fewer."""
    if len(numbers) <= count:
        return list(numbers)
    return [numbers[place * len(numbers) // count] for place in range(count)]


def _recall(evaluation: Evaluation, baseline: Evaluation | None) -> dict[str, Any]:
    """The rows of the recall table; the better of the two models is marked in each column."""
    rows: list[dict[str, Any]] = []
    before = None
    for number, found in enumerate(evaluation.recalls):
        ours = (found.r1, found.r5, found.r10)
        rival = baseline.recalls[number] if baseline is not None else None
        theirs = (rival.r1, rival.r5, rival.r10) if rival is not None else ()
        cells = [
            {"value": f"{value:.1f}", "style": "stair best" if theirs and value > theirs[at] else "stair"}
            for at, value in enumerate(ours)
        ]
        cells += [
            {"value": f"{value:.1f}", "style": "best" if value > ours[at] else ""} for at, value in enumerate(theirs)
        ]
        rows.append(
            {
                "set": found.set,
                "direction": found.direction,
                "n": f"{found.count:,} among {found.candidates:,}",
                "cells": cells,
                "first": before not in (None, found.set),
            }
        )
        before = found.set
    return {"recall": rows, "has_baseline": baseline is not None}


def _tiles(result: DemoResult, items: int) -> list[dict[str, str]]:
    """The numbers at the top."""
    trained = result.train
    tiles = [
        (f"{items:,}", f"pictures of {result.concepts:,} concepts in the index"),
        (duration(trained.seconds), f"of training: {trained.steps:,} steps"),
        (f"{result.evaluation.image_active:.0f}", f"active terms in a picture, of {result.vocab_size:,}"),
        (f"{result.evaluation.text_active:.0f}", "active terms in a text"),
        (duration(trained.step_ms / 1000), "a training step"),
    ]
    if trained.eager_step_ms is not None:
        tiles.append((duration(trained.eager_step_ms / 1000), "the same step in eager PyTorch"))
    return [{"value": value, "label": label} for value, label in tiles]


def _cost(result: DemoResult) -> dict[str, Any]:
    """Time and memory of a step, fused and eager, and of the whole run."""
    trained = result.train
    bars = [("fused head of stair_kernels", trained.step_ms, True)]
    facts = [
        ("steps", f"{trained.steps:,}"),
        ("training", duration(trained.seconds)),
        ("peak memory, fused", megabytes(trained.peak_rss_mb)),
        ("the whole demo", duration(result.seconds["all"])),
    ]
    if trained.eager_step_ms is not None:
        bars.append(("eager PyTorch, which writes [B, L, V] logits", trained.eager_step_ms, False))
        facts.insert(
            2, ("as many steps at the eager time a step", duration(trained.steps * trained.eager_step_ms / 1000))
        )
        facts.insert(4, ("peak memory, eager", megabytes(trained.eager_peak_rss_mb or 0)))
    if result.baseline is not None:
        facts.insert(2, ("dense CLIP, the same steps", duration(result.baseline.seconds)))
    longest = max(milliseconds for _, milliseconds, _ in bars)
    return {
        "time_bars": [
            {"label": label, "value": duration(ms / 1000), "percent": round(100 * ms / longest, 1), "ours": ours}
            for label, ms, ours in bars
        ],
        "facts": [{"label": label, "value": value} for label, value in facts],
    }
