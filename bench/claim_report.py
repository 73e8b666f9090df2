"""What claim.py found, as a record, as tables and as a plot."""

from __future__ import annotations

import json
import statistics
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from stair.evaluate import DIRECTIONS
from stair.files import replacing
from tables import write_tables

ROOT = Path(__file__).resolve().parent.parent
RECORD, PLOT, PAGE = ROOT / "bench" / "claim.json", ROOT / "docs" / "claim.svg", ROOT / "docs" / "claim.md"
VARIANTS = {"clip": "dense CLIP", "single": "STAIR, single stage", "three": "STAIR, three stages"}
SETS = ("seen", "keywords", "held_out")  # the order of Material.evaluation()
KEPT = (4, 8, 16, 32, 64, 128, 256)  # entries of a row, for the curve; the last is the tables'

Runs = dict[str, list[dict[str, Any]]]  # by variant


def report(folder: Path) -> int:
    """Writes RECORD, PLOT and the tables of PAGE, and prints them, of the seeds that every variant has finished."""
    found = {name: [json.loads(f.read_text()) for f in sorted(folder.glob(f"{name}-*.json"))] for name in VARIANTS}
    seeds = set.intersection(*({run["recipe"]["seed"] for run in of_variant} for of_variant in found.values()))
    if not seeds:
        raise SystemExit(f"{folder}: expected a seed with a run of each of {', '.join(VARIANTS)}")
    runs: Runs = {name: [run for run in found[name] if run["recipe"]["seed"] in seeds] for name in VARIANTS}
    with replacing(RECORD) as stream:
        stream.write(_compact({name: [_short(run) for run in of_variant] for name, of_variant in runs.items()}))
    recipe = runs["clip"][0]["recipe"]
    print(f"{len(seeds)} seeds, {recipe['steps']} steps of {recipe['batch']}\n")
    tables = {"recall": recall_table(runs), "differences": difference_table(runs), "terms": terms_table(runs)}
    print(*tables.values(), sep="\n\n")
    write_tables(PAGE, tables)
    plot(runs)
    return 0


def recall_table(runs: Runs) -> str:
    """Recall@1/5/10 of every set and direction, means and standard errors over seeds."""
    lines = ["| | " + " | ".join(VARIANTS.values()) + " |", "|---|" + "---|" * len(VARIANTS)]
    for name in SETS:
        for direction in DIRECTIONS:
            cells = []
            for found in runs.values():
                at = [_mean([run["recall"][name][direction][place] for run in found]) for place in range(3)]
                cells.append(" / ".join(at))
            lines.append(f"| {name}, {direction} | " + " | ".join(cells) + " |")
    cells = [_mean([fit(run) for run in found], digits=2) for found in runs.values()]
    lines.append("| contrastive loss of a training batch, last tenth | " + " | ".join(cells) + " |")
    return "\n".join(lines)


def fit(run: dict[str, Any]) -> float:
    """Mean contrastive loss of the steps that were kept of the last tenth of training."""
    late = [line for line in run["loss"] if line["step"] > 0.9 * run["recipe"]["steps"]]
    return statistics.fmean(line.get("contrastive", line["loss"]) for line in late)


def difference_table(runs: Runs) -> str:
    """Recall@1 minus CLIP's of the same seed."""
    others = [name for name in VARIANTS if name != "clip"]
    lines = [
        "| R@1 minus dense CLIP's | " + " | ".join(VARIANTS[name] for name in others) + " |",
        "|---|" + "---:|" * len(others),
    ]
    for name in SETS:
        for direction in DIRECTIONS:
            cells = []
            for other in others:
                pairs = zip(runs[other], runs["clip"])
                cells.append(
                    _mean([a["recall"][name][direction][0] - b["recall"][name][direction][0] for a, b in pairs], "+")
                )
            lines.append(f"| {name}, {direction} | " + " | ".join(cells) + " |")
    return "\n".join(lines)


def terms_table(runs: Runs) -> str:
    """Active terms before any cut, and the share of a picture's first ten terms that name what it shows."""
    lines = ["| | " + " | ".join(VARIANTS[name] for name in runs if name != "clip") + " |", "|---|---:|---:|"]
    sparse = {name: found for name, found in runs.items() if name != "clip"}
    for number, side in enumerate(("text", "picture")):
        for name in ("seen", "held_out"):
            cells = [_mean([run["active"][name][number] for run in found]) for found in sparse.values()]
            lines.append(f"| active terms of a {side}, {name} | " + " | ".join(cells) + " |")
    for name in ("seen", "held_out"):
        cells = [_mean([run["named"][name][0] for run in found]) for found in sparse.values()]
        most = next(iter(sparse.values()))[0]["named"][name][1]
        lines.append(f"| first 10 terms that name it, %, {name} (at most {most}) | " + " | ".join(cells) + " |")
    return "\n".join(lines)


def plot(runs: Runs) -> None:
    """Recall@1 of the seen concepts against the terms kept in a row, CLIP as a line."""
    import matplotlib
    from matplotlib.backends.backend_svg import FigureCanvasSVG
    from matplotlib.figure import Figure

    figure = Figure(figsize=(8, 3.6), layout="constrained")
    FigureCanvasSVG(figure)
    panels = figure.subplots(1, 2, sharey=True)
    for axes, direction in zip(panels, DIRECTIONS):
        for variant, color, shape in (("single", "#0072b2", "o"), ("three", "#d55e00", "s")):
            points = [[run["curve"][str(k)]["seen"][direction][0] for run in runs[variant]] for k in KEPT]
            means, errors = zip(*(_statistics(values) for values in points))
            axes.errorbar(KEPT, means, errors, color=color, marker=shape, capsize=2, label=VARIANTS[variant])
        mean, error = _statistics([run["recall"]["seen"][direction][0] for run in runs["clip"]])
        axes.axhline(mean, color="#555555", linestyle="--", label="dense CLIP")
        axes.axhspan(mean - error, mean + error, color="#555555", alpha=0.2, linewidth=0)
        axes.set_xscale("log", base=2)
        axes.set_xticks(KEPT, [str(k) for k in KEPT])
        axes.set_title(direction)
        axes.set_xlabel("terms kept in a row, k")
        axes.grid(alpha=0.3)
    panels[0].set_ylabel("recall@1, %")
    panels[0].legend(loc="lower right")
    with matplotlib.rc_context({"svg.hashsalt": "stair", "svg.fonttype": "none"}), replacing(PLOT) as stream:
        figure.savefig(stream, format="svg", metadata={"Date": None})


def _statistics(values: Sequence[float]) -> tuple[float, float]:
    """Mean and standard error."""
    error = statistics.stdev(values) / len(values) ** 0.5 if len(values) > 1 else 0.0
    return statistics.fmean(values), error


def _mean(values: Sequence[float], sign: str = "", digits: int = 1) -> str:
    mean, error = _statistics(values)
    return f"{mean:{sign}.{digits}f} ± {error:.{digits}f}"


def _short(run: dict[str, Any]) -> dict[str, Any]:
    return {name: value for name, value in run.items() if name != "loss"} | {"fit": round(fit(run), 3)}


def _compact(runs: Runs) -> str:
    """JSON, a line a run."""
    parts = [f'"{name}": [\n' + ",\n".join(json.dumps(run) for run in found) + "\n]" for name, found in runs.items()]
    return "{\n" + ",\n".join(parts) + "\n}\n"
