"""What the commands print: rich tables on stdout."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

from rich import box
from rich.markup import escape
from rich.table import Table
from rich.text import Text

from stair.console import duration, megabytes, out

if TYPE_CHECKING:
    from pathlib import Path

    from stair.classify import Classification
    from stair.demo import DemoResult
    from stair.evaluate import Evaluation
    from stair.explain import Explanation, Term
    from stair.info import Info
    from stair.search import Hit

BLOCKS = " ▏▎▍▌▋▊▉█"
SHADES = " ░▒▓█"


def table(*columns: str, right: Sequence[str] = ()) -> Table:
    """An empty table in the one style that all commands share."""
    made = Table(box=box.SIMPLE_HEAD, pad_edge=False)
    for column in columns:
        made.add_column(column, justify="right" if column in right else "left", overflow="fold")
    return made


def bar(share: float, width: int = 12) -> Text:
    """A horizontal bar, full at 1."""
    eighths = round(max(0.0, min(1.0, share)) * width * 8)
    full, rest = divmod(eighths, 8)
    return Text(("█" * full + (BLOCKS[rest] if rest else "")).ljust(width), style="cyan")


def hits(query: str, terms: dict[str, float], found: Sequence[Hit], shown: int = 4) -> None:
    """One search: what the query was read as, and each hit with the terms that matched."""
    read_as = ", ".join(escape(term) for term in list(terms)[:8]) or "no active term"
    out.print(f"[bold]{escape(query)}[/] [dim]read as {read_as}[/]")
    if not found:
        out.print("  nothing in the index shares a term with it")
        return
    made = table("", "score", "found", "matching terms (share of the score)", right=("", "score"))
    for hit in found:
        matched = ", ".join(f"{escape(match.term)} {match.share:.0%}" for match in hit.matches[:shown])
        rest = len(hit.matches) - shown
        matched += f" [dim]+{rest} more[/]" if rest > 0 else ""
        name = escape(hit.name) + (f"\n[dim]{escape(hit.picture)}[/]" if hit.picture else "")
        made.add_row(str(hit.rank), f"{hit.score:.3f}", name, matched)
    out.print(made)


def index_statistics(found: dict[str, Any]) -> None:
    """The numbers of an index, and what is kept with it."""
    made = table("", "", right=("",))
    made.show_header = False
    for name, number in found.items():
        if isinstance(number, int):
            made.add_row(name.replace("_", " "), f"{number:,}")
    for name, value in found["metadata"].items():
        made.add_row(escape(name), escape(str(value)))
    out.print(made)


def explanation(result: Explanation, shown: int = 12) -> None:
    """The terms of each side, then what they share and where in the picture it was seen."""
    if result.text is not None:
        _terms(f'Text "{escape(result.text)}"', "won by the word", result.text_terms, shown)
    if result.image is not None:
        _terms(f"Picture {escape(result.image)}", "seen at (row, column)", result.image_terms, shown)
    if result.score is None:
        return
    if not result.shared:
        out.print("Score 0: the text and the picture share no term.")
        return
    made = table(
        "term", "text", "picture", "share", "", "word", "seen at (row, column)", right=("text", "picture", "share")
    )
    out.print(f"[bold]Score {result.score:.3f} from {len(result.shared)} shared terms[/]")
    for term in result.shared[:shown]:
        weights = f"{term.text_weight:.3f}", f"{term.image_weight:.3f}", f"{term.share:.0%}"
        made.add_row(escape(term.term), *weights, bar(term.share), escape(term.text_where), term.image_where)
    out.print(made)
    _more(len(result.shared), shown)
    _heat_map(result)


def _terms(title: str, where: str, terms: Sequence[Term], shown: int) -> None:
    out.print(f"[bold]{title}: {len(terms)} active terms[/]")
    made = table("term", "weight", "", where, right=("weight",))
    heaviest = max((term.weight for term in terms), default=1.0)
    for term in terms[:shown]:
        made.add_row(escape(term.term), f"{term.weight:.3f}", bar(term.weight / heaviest), escape(term.where))
    out.print(made)
    _more(len(terms), shown)


def _more(count: int, shown: int) -> None:
    if count > shown:
        out.print(f"[dim]and {count - shown} more (--top {count} shows all)[/]\n")


def _heat_map(result: Explanation) -> None:
    from stair.explain import heat

    cells = heat(result.shared, result.grid)
    highest = max(max(row) for row in cells)
    if highest <= 0:
        return
    out.print("Where in the picture the score was seen:")
    for row in cells:
        shades = [SHADES[min(len(SHADES) - 1, round(cell / highest * (len(SHADES) - 1) + 0.49))] for cell in row]
        out.print("  " + "".join(shade * 2 for shade in shades) + "|", markup=False)


def recall(evaluations: dict[str, Evaluation]) -> None:
    """Recall at 1, 5 and 10 in per cent, a column a model; then the active terms."""
    names = list(evaluations)
    made = table("of 100 queries, found among the first 1 / 5 / 10", "queries", *names, right=("queries", *names))
    before = ""
    for group in zip(*(evaluation.recalls for evaluation in evaluations.values())):
        first = group[0]
        if first.set != before:
            made.add_row(f"[bold]{escape(first.set)}[/]")
            before = first.set
        numbers = (f"{found.r1:.1f} / {found.r5:.1f} / {found.r10:.1f}" for found in group)
        made.add_row(f"  {first.direction}", f"{first.count:,}", *numbers)
    out.print(made)
    for name, evaluation in evaluations.items():
        if evaluation.image_active:
            counts = f"{evaluation.text_active:.1f} active terms a text, {evaluation.image_active:.1f} a picture"
            out.print(f"{name}: {counts}")


def classification(found: Sequence[Classification]) -> None:
    """The share of pictures whose class is the first, and among the first five, in per cent."""
    made = table("method", "pictures", "classes", "first", "first 5", "terms a picture", right=("pictures", "classes"))
    for one in found:
        counts = f"{one.count:,}", f"{one.classes:,}"
        made.add_row(one.method, *counts, f"{one.top1:.1f}", f"{one.top5:.1f}", f"{one.image_active:.1f}")
    out.print(made)


def demo(result: DemoResult, page: Path, commands: Sequence[str]) -> None:
    """Recall, what training cost beside eager PyTorch, and what to do next."""
    evaluations = {"STAIR": result.evaluation}
    if result.baseline_evaluation is not None:
        evaluations["dense CLIP"] = result.baseline_evaluation
    recall(evaluations)
    cost = table("training", "steps", "a step", "peak memory", right=("steps", "a step", "peak memory"))
    trained = result.train
    cost.add_row("STAIR, fused", f"{trained.steps:,}", duration(trained.step_ms / 1000), megabytes(trained.peak_rss_mb))
    if trained.eager_step_ms is not None:
        eager_memory = megabytes(trained.eager_peak_rss_mb or 0)
        cost.add_row("STAIR, eager PyTorch", "", duration(trained.eager_step_ms / 1000), eager_memory)
    if result.baseline is not None:
        dense = result.baseline
        cost.add_row("dense CLIP", f"{dense.steps:,}", duration(dense.step_ms / 1000), "")
    out.print(cost)
    out.print(f"{duration(result.seconds['all'])} in all. Next:", markup=False)
    for line in (f"open {page}", *commands):
        out.print(f"  {line}", markup=False, soft_wrap=True)


def info(found: Info) -> None:
    """Versions, devices, kernels, and the command for whatever is missing."""
    made = table("", "")
    made.show_header = False
    for name, version in found.versions.items():
        made.add_row(name, version or "[dim]not installed[/]")
    made.add_section()
    cpu = found.cpu
    memory = f", {cpu['memory_gib']} GiB" if cpu["memory_gib"] else ""
    made.add_row("CPU", f"{escape(cpu['name'])}, {cpu['cores']} cores{memory}")
    made.add_row("instruction set in use", cpu["isa"] or "[dim]unknown: the kernels do not load[/]")
    made.add_row("GPU", "\n".join(map(escape, found.gpus)) or "[dim]none that PyTorch can use[/]")
    out.print(made)
    made = table("part", "for", "", "")
    for part in found.parts:
        state = "[green]there[/]" if part.there else "[yellow]missing[/]"
        made.add_row(part.name, part.purpose, state, escape(part.note))
    out.print(made)
    for device, names in found.operators.items():
        out.print(f"[bold]operators on {device}:[/] {', '.join(names) or '[dim]none[/]'}")
    for part in found.parts:
        if not part.there:
            out.print(f"To get {part.name}:\n  {escape(part.get)}", soft_wrap=True)
