"""What every command shares: one line for an error and the exit code it means, and progress bars on stderr."""

from __future__ import annotations

import errno
import io
import os
import re
import sys
import traceback
import warnings
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from typing import Any

import typer
from rich.console import Console
from rich.progress import (
    BarColumn,
    MofNCompleteColumn,
    Progress,
    TaskID,
    TextColumn,
    TimeElapsedColumn,
    TimeRemainingColumn,
)
from typer.core import TyperGroup

ADDRESS = re.compile(r"auto|local|ray://\S+|[\w.\-\[\]:]+:\d+")  # of a Ray cluster
BAD_INPUT = 2
ENVIRONMENT = 1
INTERRUPTED = 130

UsageError: Any = typer.BadParameter.__bases__[0]  # typer >= 0.20 carries its own copy of click's
ClickException: Any = UsageError.__bases__[0]

out = Console(highlight=False)
err = Console(stderr=True, highlight=False, soft_wrap=True)  # a message is one line, however long its paths are


class StoppedError(Exception):
    """Ctrl-C, with what was kept."""

    exit_code = INTERRUPTED


def describe(error: BaseException) -> tuple[str, int]:
    """(one line that says what happened and what to do, exit code) of anything a command can raise."""
    if isinstance(getattr(error, "exit_code", None), int) and not isinstance(error, ClickException):
        message, code = str(error), error.exit_code  # type: ignore[attr-defined]
    elif isinstance(error, ClickException):
        hint = f" ({error.ctx.command_path} --help shows an example)" if getattr(error, "ctx", None) else ""
        message, code = error.format_message().rstrip(".") + hint, BAD_INPUT
    elif isinstance(error, KeyboardInterrupt):
        message, code = str(error) or "stopped by Ctrl-C", INTERRUPTED
    elif isinstance(error, ImportError):
        missing = isinstance(error, ModuleNotFoundError) and "pip install" not in str(error)
        message = f"{error.name} is not installed: pip install 'stair-kernels[model]'" if missing else str(error)
        code = ENVIRONMENT
    elif "No space left on device" in str(error) or getattr(error, "errno", None) in (errno.ENOSPC, errno.EDQUOT):
        message, code = f"disk full{_where(error)}: free some space or choose another folder with --out", ENVIRONMENT
    elif isinstance(error, OSError):
        message, code = _describe_os(error)
    elif isinstance(error, MemoryError) or "can't allocate memory" in str(error) or "out of memory" in str(error):
        message, code = "out of memory: use a smaller --batch, or a machine with more memory", ENVIRONMENT
    elif isinstance(error, UnicodeDecodeError):
        message, code = f"the text is not UTF-8 ({error.reason} at byte {error.start}): save it as UTF-8", BAD_INPUT
    elif isinstance(error, ValueError):
        message, code = str(error), BAD_INPUT
    else:
        message = f"unexpected {type(error).__name__}: {error} (a bug: --debug shows where)"
        code = ENVIRONMENT
    return " ".join(message.split()), code


def _where(error: BaseException) -> str:
    name = getattr(error, "filename", None)
    return f" while writing {name}" if name else ""


def _describe_os(error: OSError) -> tuple[str, int]:
    name = error.filename if error.filename is not None else "a file"
    if isinstance(error, FileNotFoundError):
        ours = error.strerror not in (None, os.strerror(errno.ENOENT))  # says more
        return f"{name}: {error.strerror if ours else 'no such file or folder; check the path'}", BAD_INPUT
    if isinstance(error, (IsADirectoryError, NotADirectoryError, FileExistsError)):
        return f"{name}: {(error.strerror or str(error)).lower()}; check the path", BAD_INPUT
    if isinstance(error, PermissionError) or error.errno == errno.EROFS:
        return f"{name}: no permission to write or read it; choose another folder or change its rights", ENVIRONMENT
    return f"{name}: {error.strerror or error}", ENVIRONMENT


@contextmanager
def reported(debug: bool = False) -> Iterator[None]:
    """Turns every exception of a command into one line on stderr and SystemExit with its code.

    Codes: 2 bad input or usage, 1 the environment (packages, permissions, disk, memory, bugs), 130 Ctrl-C. With
    `debug` the traceback comes first.
    """
    try:
        yield
        sys.stdout.flush()
    except (Exception, KeyboardInterrupt) as error:
        if isinstance(error, BrokenPipeError):  # `stair ... | head` has seen enough
            _close_stdout()
            raise SystemExit(0) from None
        if isinstance(error, OSError):
            _close_stdout()
        message, code = describe(error)
        if debug:
            traceback.print_exc(file=sys.stderr)
        typer.secho("stair: ", err=True, nl=False, bold=True)
        typer.echo(message, err=True)
        raise SystemExit(code) from None


def with_address(words: Sequence[str]) -> list[str]:
    """Arguments in which a --ray that no address follows has the value "local"."""
    given = list(words)
    for place, word in enumerate(given):
        if word == "--":
            break
        if word == "--ray" and not ADDRESS.fullmatch(given[place + 1] if place + 1 < len(given) else ""):
            given[place] = "--ray=local"
    return given


class Commands(TyperGroup):
    """The command group: `--debug` is understood anywhere, and every error ends in `reported`."""

    def main(  # type: ignore[override]
        self, args: Sequence[str] | None = None, *, standalone_mode: bool = True, **extra: Any
    ) -> Any:
        words = list(sys.argv[1:] if args is None else args) or ["--help"]
        options = words[: words.index("--")] if "--" in words else words
        debug = "--debug" in options
        if debug:
            words.remove("--debug")
        words = with_address(words)
        quiet_libraries(debug)
        for stream in (sys.stdout, sys.stderr):
            if isinstance(stream, io.TextIOWrapper):  # a terminal that knows no bars gets question marks, not an error
                stream.reconfigure(errors="replace")
        with reported(debug):
            code = super().main(words, standalone_mode=False, **extra)
        if standalone_mode:
            raise SystemExit(code if isinstance(code, int) else 0)
        return code

    def invoke(self, ctx: Any) -> Any:
        try:
            return super().invoke(ctx)
        except BrokenPipeError as error:  # typer's own handler would exit with 1
            _close_stdout()
            raise SystemExit(0) from error
        except KeyboardInterrupt as stop:  # typer's own handler would exit without a word
            raise StoppedError(str(stop) or "stopped by Ctrl-C") from stop


def _close_stdout() -> None:
    """Sends what stdout still holds nowhere if it cannot be written: the interpreter would try again when it ends."""
    try:
        sys.stdout.flush()
    except OSError:
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())


def quiet_libraries(debug: bool) -> None:
    """Keeps the notices of libraries out of a command's stderr, unless `debug`."""
    if not debug:
        os.environ.setdefault("TRANSFORMERS_VERBOSITY", "error")
        os.environ.setdefault("HF_HUB_DISABLE_PROGRESS_BARS", "1")
        os.environ.setdefault("TOKENIZERS_PARALLELISM", "false")
        warnings.simplefilter("ignore")
        if "transformers" in sys.modules:  # it has read its environment already
            from transformers.utils import logging

            logging.set_verbosity_error()
            logging.disable_progress_bar()


NOTES = {  # what a progress bar tells of a training step
    "loss": "loss",
    "accuracy": "accuracy",
    "text_active": "terms a text",
    "image_active": "terms a picture",
    "samples_per_s": "samples/s",
}
STAGES = {
    "pictures": "drawing pictures",
    "features": "image features",
    "train": "training",
    "baseline": "training dense CLIP",
    "eager": "timing eager PyTorch",
    "evaluate": "evaluating",
    "encode": "encoding",
    "index": "indexing",
    "export": "writing",
}


@contextmanager
def stages(shown: bool = True) -> Iterator[Callable[[str, int, int, dict[str, Any]], None]]:
    """A progress callback (stage, done, total, numbers) that draws one bar a stage on stderr.

    The bars are gone when the work ends, and stdout stays clean for what the command prints. Nothing is drawn when
    stderr is no terminal or not `shown`.
    """
    columns = (BarColumn(), MofNCompleteColumn(), TimeElapsedColumn(), TimeRemainingColumn())
    note = TextColumn("[dim]{task.fields[note]}")
    tasks: dict[str, TaskID] = {}
    with Progress(
        TextColumn("{task.description}"),
        *columns,
        note,
        console=err,
        transient=True,
        disable=not (shown and err.is_terminal),
    ) as bars:

        def progress(stage: str, done: int, total: int, numbers: dict[str, Any]) -> None:
            if stage not in tasks:
                tasks[stage] = bars.add_task(STAGES.get(stage, stage), note="")
            note = ", ".join(f"{label} {numbers[name]:.3g}" for name, label in NOTES.items() if name in numbers)
            bars.update(tasks[stage], completed=done, total=total, note=note)

        yield progress


def duration(seconds: float) -> str:
    """Seconds as people say them: 340 ms, 4.2 s, 7 min 05 s."""
    if round(1000 * seconds) < 1000:
        return f"{1000 * seconds:.0f} ms"
    if round(seconds, 1) < 60:
        return f"{seconds:.1f} s"
    minutes, rest = divmod(round(seconds), 60)
    return f"{minutes} min {rest:02d} s"


def megabytes(amount: float) -> str:
    """Memory as people say it: 850 MB, 1.2 GB."""
    return f"{amount / 1000:.1f} GB" if amount >= 1000 else f"{amount:.0f} MB"
