"""The documentation: it builds without a warning and loads nothing from a network, and what its code blocks say works.

Python blocks are run, or where they are indented checked against what they call, and the `stair` and `curl` commands of
shell blocks are run; FAST says what is run in a long one's place, `stair serve` runs while the rest of its page does.
YAML is read as a recipe. Other commands are looked up: Make targets, files, options.
"""

from __future__ import annotations

import ast
import importlib
import inspect
import os
import re
import shlex
import shutil
import subprocess
import sys
import textwrap
from collections.abc import Iterator
from contextlib import ExitStack
from html.parser import HTMLParser
from pathlib import Path
from typing import Any

import pytest
import stair
import torch
import typer
from PIL import Image
from serving import running
from stair.cli import app
from stair.recipe import read_recipe
from stair.serve import Folder
from typer.testing import CliRunner

import stair_kernels as sk

ROOT = Path(__file__).resolve().parents[1]
PAGES = ["README.md", "CONTRIBUTING.md", *sorted(str(p.relative_to(ROOT)) for p in (ROOT / "docs").rglob("*.md"))]
BLOCK = re.compile(r"^```(\w+)\n(.*?)^```", re.MULTILINE | re.DOTALL)
COMMAND = re.compile(r"(?:stair|make|pip|python|bash|\.venv/bin/\w[\w-]*) \S")
APPLE = "out/demo/pictures/openmoji/1F34E.png"  # the short demo draws other pictures
SERVED = "127.0.0.1:8000"  # where a page says that its service is
FAST = {"stair train photos --out out/mine --minutes 10": "stair train photos --out out/mine --steps 2 --batch 4"}


@pytest.fixture(scope="module")
def place(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Path]:
    """A folder with photos/, out/demo as a short form of `make demo` leaves it, out/mine trained on the photos, and
    out/photos an index of them."""
    folder = tmp_path_factory.mktemp("docs")
    (folder / "photos").mkdir()
    for number in range(12):
        picture = Image.new("RGB", (80, 60), (20 * number, 255 - 20 * number, 100))
        picture.save(folder / "photos" / f"{'dog' if number % 2 else 'cat'} on a beach {number}.png")
    (folder / "holidays").mkdir()
    for name in ("photos/blurred.jpg", "holidays/hills.jpg"):
        picture.save(folder / name)
    before = Path.cwd()
    os.chdir(folder)
    for command in ("stair demo --fast", *FAST.values(), "stair index build photos --model out/mine --out out/photos"):
        run(command)
    yield folder
    os.chdir(before)


@pytest.fixture
def group(tmp_path: Path) -> Iterator[Any]:
    """A group of one process."""
    torch.distributed.init_process_group("gloo", init_method=f"file://{tmp_path}/store", rank=0, world_size=1)
    yield torch.distributed.group.WORLD
    torch.distributed.destroy_process_group()


def run(command: str) -> str:
    """A `stair` command in this process, which has imported what it needs; what it says."""
    program, *arguments = shlex.split(command)
    assert program == "stair", command
    done = CliRunner().invoke(app, arguments)
    assert done.exit_code == 0, f"{command}\n{done.stderr}"
    return done.output


def blocks(page: str) -> list[tuple[str, str]]:
    return BLOCK.findall((ROOT / page).read_text(encoding="utf-8"))


def written_commands(page: str) -> list[str]:
    """The commands of a page's shell blocks, of its indented ones and of `code` in the text, without their comments."""
    text = (ROOT / page).read_text(encoding="utf-8")
    lines = [line for kind, block in blocks(page) if kind == "sh" for line in block.splitlines()]
    rest = BLOCK.sub("", text)
    lines += re.findall(r"^    (.*)$", rest, re.MULTILINE)
    lines += [" ".join(code.split()) for code in re.findall(r"`([^`]+)`", rest)]
    return [command for command in map(without_comment, lines) if COMMAND.match(command)]


def without_comment(line: str) -> str:
    return re.split(r"\s+#\s|\s{3,}", line)[0].strip()


def indented_python(page: str) -> list[str]:
    """What needs more than a test has, a cluster for example."""
    text = BLOCK.sub("", (ROOT / page).read_text(encoding="utf-8"))
    found = re.findall(r"(?:^    .*\n|^\n)+", text, re.MULTILINE)
    return [textwrap.dedent(block) for block in found if re.search(r"^    (from|import) ", block, re.MULTILINE)]


def of_training(group: Any) -> dict[str, object]:
    """What docs/training.md takes as given: two towers' hidden states, a head and a process group."""
    model = torch.nn.Linear(8, 600)
    names = {"weight": model.weight, "bias": model.bias, "text": torch.randn(3, 5, 8), "image": torch.randn(3, 4, 8)}
    return {**names, "sk": sk, "model": model, "text_mask": torch.ones(3, 5).bool(), "scale": 20.0, "group": group}


@pytest.mark.parametrize("page", [page for page in PAGES if blocks(page)])
def test_the_code_blocks_of_a_page_run_in_their_order(page: str, place: Path, group: Any) -> None:
    names: dict[str, object] = of_training(group) if page == "docs/training.md" else {}
    drawn = next((place / "out/demo/pictures/openmoji").glob("*.png"))
    with ExitStack() as services:
        address = SERVED
        for number, (kind, text) in enumerate(blocks(page), 1):
            assert kind in ("python", "sh", "yaml"), f"{page}: a block of {kind}"
            if kind == "python":
                code = text.replace(SERVED, address)
                exec(compile(code, f"{page}, block {number}", "exec"), names)
                continue
            if kind == "yaml":  # a recipe
                Path("recipe.yaml").write_text(text, encoding="utf-8")
                read_recipe(Path("recipe.yaml"), {})  # refuses unknown names, types and values
                continue
            for line in text.splitlines():
                command = without_comment(line)
                if command.startswith("stair serve "):
                    client = services.enter_context(running(Folder(Path(shlex.split(command)[2]))))
                    address = f"127.0.0.1:{client.port}"
                elif command.startswith("stair "):
                    printed = run(FAST.get(command, command).replace(APPLE, str(drawn)))
                    assert printed.strip(), command
                elif command.startswith("curl ") and SERVED in command and shutil.which("curl"):
                    words = [*shlex.split(command.replace(SERVED, address)), "--silent", "--show-error", "--fail"]
                    assert subprocess.run(words, capture_output=True, check=True, timeout=60).stdout, command


@pytest.mark.parametrize("page", [page for page in PAGES if indented_python(page)])
def test_code_that_is_not_run_calls_what_there_is(page: str) -> None:
    """Its imports are there, and what is imported takes the arguments that it is given."""
    known: dict[str, Any] = {}
    for code in indented_python(page):
        nodes = list(ast.walk(ast.parse(code)))
        for node in nodes:
            if isinstance(node, ast.ImportFrom):
                module = importlib.import_module(str(node.module))
                known |= {alias.asname or alias.name: getattr(module, alias.name) for alias in node.names}
        for node in nodes:
            if isinstance(node, ast.Call) and isinstance(node.func, ast.Name) and node.func.id in known:
                given = {str(keyword.arg): None for keyword in node.keywords}
                inspect.signature(known[node.func.id]).bind(*node.args, **given)


def test_the_written_recipe_has_every_name_with_its_default(tmp_path: Path) -> None:
    (text,) = (text for kind, text in blocks("docs/training.md") if kind == "yaml" and "checkpoint_minutes" in text)
    (tmp_path / "recipe.yaml").write_text(text, encoding="utf-8")
    written = read_recipe(tmp_path / "recipe.yaml", {})
    assert written == read_recipe(None, {})
    assert set(re.findall(r"^(\w+):", text, re.MULTILINE)) == set(vars(written))


@pytest.mark.parametrize("page", [page for page in PAGES if written_commands(page)])
def test_the_commands_of_a_page_exist(page: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.syspath_prepend(ROOT / "bench")
    for command in written_commands(page):
        program, *words = shlex.split(command)
        if program == "stair":
            check_stair(words, command)
        elif program == "make":
            check_make(words, command)
        else:
            check_files(words, command)


def check_stair(words: list[str], line: str) -> None:
    """Its command is there, or stands for any (COMMAND), and so are its options."""
    command: Any = typer.main.get_command(app)
    known, names = {"--help", "--debug"}, [word for word in words if not word.startswith("-")]
    if names[:1] == ["COMMAND"]:
        return
    known |= {option for parameter in command.params for option in parameter.opts}
    while getattr(command, "commands", None) and names:
        assert names[0] in command.commands, line
        command = command.commands[names.pop(0)]
        known |= {option for parameter in command.params for option in parameter.opts}
    used = {word for word in words if word.startswith("--")}
    assert used <= known, (line, used - known)


def check_make(words: list[str], command: str) -> None:
    """Its targets are there, and `make bench` would take its options."""
    done = subprocess.run(["make", "--dry-run", *words], cwd=ROOT, capture_output=True, text=True, timeout=60)
    assert done.returncode == 0, f"{command}\n{done.stderr}"
    options = [word.removeprefix("ARGS=") for word in words if word.startswith("ARGS=")]
    if words[0] == "bench" and options and options != ["..."]:
        there = re.sub(r"--(compare|report) \S+", "", options[0])  # files of a run that there was not
        importlib.import_module("run")._parse(shlex.split(there))


def check_files(words: list[str], command: str) -> None:
    """Files of the checkout that it names are there, and a script knows the options that follow it."""
    paths = [word for word in words if "/" in word and not word.startswith("-")]
    for path in paths:
        assert (ROOT / path.partition("::")[0]).exists(), command
    scripts = [path for path in paths if path.endswith(".py") and not path.startswith("tests/test_")]
    for script in scripts:
        source = (ROOT / script).read_text(encoding="utf-8")
        assert all(f'"{word}"' in source for word in words if word.startswith("--")), command


@pytest.fixture(scope="module")
def site(tmp_path_factory: pytest.TempPathFactory) -> Path:
    pytest.importorskip("mkdocs", reason="mkdocs is not installed: pip install -e '.[docs]'")
    folder = tmp_path_factory.mktemp("docs")
    command = [sys.executable, "-m", "mkdocs", "build", "--strict", "--quiet", "--site-dir", str(folder)]
    environment = {**os.environ, "NO_MKDOCS_2_WARNING": "1"}
    done = subprocess.run(command, cwd=ROOT, env=environment, capture_output=True, text=True, timeout=300)
    assert (done.returncode, done.stderr) == (0, "")  # a broken link, anchor or reference is a warning, and fails
    return folder


class Loads(HTMLParser):
    """What a page fetches when it is opened."""

    def __init__(self, html: str) -> None:
        super().__init__()
        self.addresses: list[str] = []
        self.feed(html)

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        loaded = {"link": "href", "script": "src", "img": "src", "iframe": "src", "source": "src"}.get(tag)
        self.addresses += [value or "" for name, value in attrs if name == loaded]


def pages(site: Path) -> Iterator[tuple[str, str]]:
    for page in sorted(site.rglob("*.html")):
        yield page.relative_to(site).as_posix(), page.read_text(encoding="utf-8")


def test_no_page_loads_anything_from_a_network(site: Path) -> None:
    seen = 0
    for name, html in pages(site):
        for address in Loads(html).addresses:
            seen += 1
            assert not re.match(r"(https?:)?//", address), (name, address)
            assert name == "404.html" or (site / name).parent.joinpath(address.partition("?")[0]).exists(), address
    assert seen > 100
    for sheet in site.rglob("*.css"):
        assert not re.search(r"@import|url\(\s*['\"]?(https?:)?//", sheet.read_text(encoding="utf-8")), sheet


@pytest.mark.parametrize(
    ("page", "names"),
    [
        ("api/stair_kernels.html", [f"stair_kernels.{name}" for name in sk.__all__ if name != "__version__"]),
        ("api/stair.html", [f"stair.{name}" for name in stair.__all__]),
    ],
)
def test_every_public_name_is_in_the_reference(site: Path, page: str, names: list[str]) -> None:
    html = (site / page).read_text(encoding="utf-8")
    shown = set(re.findall(r'<h\d id="([^"]+)"', html))
    assert {name for name in names if name not in shown} == set()
    assert len(names) >= 5
