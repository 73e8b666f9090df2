"""stair.cluster without a cluster: a sharded index gives what one index of all documents gives, bit for bit."""

from __future__ import annotations

import contextlib
import fcntl
import functools
import io
import json
import os
import shutil
import signal
import tracemalloc
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import scipy.sparse
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from index_cases import start, status
from stair.checkpoint import fingerprint
from stair.cli import app
from stair.cluster import commands, layout, scratch
from stair.cluster.layout import Manifest
from stair.cluster.parts import Parts
from stair.cluster.shards import Holder, LocalShards, ShardedIndex
from stair.cluster.work import Encoder, Here, build_shards, encode_parts
from stair.console import with_address
from stair.encode import Input, encode, read_inputs
from stair.formats import read
from stair.interchange import vocabulary_of
from stair.search import Collection, documents, item_of, save_collection
from tiny_stair import save_checkpoint, save_pictures
from typer.testing import CliRunner, Result

from stair_kernels import SparseIndex

V = 12


class Opened(LocalShards):
    """Shards that were never on disk."""

    def __init__(self, indexes: list[SparseIndex]) -> None:
        super().__init__(Path(), [])
        self.holders = [Holder(index) for index in indexes]


def sharded(indexes: list[SparseIndex], order: str = "added") -> ShardedIndex:
    shards = tuple(layout.Shard(f"shard-{i:05d}", len(index), "") for i, index in enumerate(indexes))
    return ShardedIndex("memory", Manifest(shards, {}, order), Opened(indexes))


def assert_same(found: tuple[Any, Any], expected: tuple[Any, Any]) -> None:
    assert found[0].numpy().tobytes() == expected[0].numpy().tobytes()
    assert found[0].shape == expected[0].shape
    assert np.asarray(found[1]).tolist() == np.asarray(expected[1]).tolist()
    assert type(found[1]) is type(expected[1])


def made(weights: np.ndarray, ids: Any) -> SparseIndex:
    kept = [str(one).encode() for one in ids]
    return SparseIndex.build(scipy.sparse.csr_matrix(weights), ids, payloads=kept)


def require_distinct(indexes: list[SparseIndex]) -> None:
    layout.require_distinct([lambda index=index: index for index in indexes])


@st.composite
def cases(draw: st.DrawFn) -> dict[str, Any]:
    """Few distinct weights, so that scores tie across shards; cuts that repeat, so that shards are empty."""
    N = draw(st.integers(0, 14))
    weights = draw(st.lists(st.lists(st.sampled_from([0, 0, 1, 2]), min_size=V, max_size=V), min_size=N, max_size=N))
    cuts = draw(st.lists(st.integers(0, N), max_size=4))
    ids = draw(st.permutations(range(-9, 9)))
    ids = [one - 30 if one == -1 else one for one in ids][:N]
    queries = draw(st.lists(st.lists(st.sampled_from([0, 0, 1, 1, 3]), min_size=V, max_size=V), max_size=3))
    return {
        "weights": np.array(weights, np.float32).reshape(N, V),
        "bounds": [0, *sorted(cuts), N],
        "ids": ids,
        "strings": draw(st.booleans()),
        "queries": scipy.sparse.csr_matrix(np.array(queries, np.float32).reshape(len(queries), V)),
        "k": draw(st.integers(1, 20)),
        "allowed": draw(st.sets(st.sampled_from(range(N))) if N else st.just(set())),
    }


@settings(max_examples=150, deadline=None)
@given(case=cases())
def test_shards_answer_as_one_index(case: dict[str, Any]) -> None:
    ids = np.array([f"é{one}" for one in case["ids"]], str) if case["strings"] else np.array(case["ids"], np.int64)
    bounds, queries, k = case["bounds"], case["queries"], case["k"]
    parts = [made(case["weights"][a:b], ids[a:b]) for a, b in zip(bounds[:-1], bounds[1:])]
    index, one = sharded(parts), made(case["weights"], ids)
    require_distinct(parts)
    layout.require_together(parts)
    assert_same(index.search(queries, k), one.search(queries, k))
    assert np.asarray(index.ids).tolist() == np.asarray(one.ids).tolist()
    mask = np.isin(np.arange(len(ids)), sorted(case["allowed"]))
    assert_same(index.search(queries, k, allowed=mask), one.search(queries, k, allowed=mask))
    assert_same(index.search(queries, k, allowed=ids[mask]), one.search(queries, k, allowed=ids[mask]))
    wanted = ids[mask][::-1]
    assert index.payloads(wanted) == one.payloads(wanted)
    found, expected = index.rows(wanted), one.rows(wanted)
    assert (found.shape, found.dtype) == (expected.shape, expected.dtype)
    assert found.toarray().tobytes() == expected.toarray().tobytes()
    _, hits = one.search(queries, k)
    assert index.matches(queries, hits) == one.matches(queries, hits)
    assert (len(index), index.vocab_size) == (len(one), V)


@settings(max_examples=100, deadline=None)
@given(case=cases(), shards=st.integers(1, 4), seed=st.integers(0, 99))
def test_in_the_order_of_their_ids_it_does_not_matter_which_shard_holds_a_document(
    case: dict[str, Any], shards: int, seed: int
) -> None:
    ids = np.sort(np.array([f"é{one}" for one in case["ids"]], str))
    which = np.random.default_rng(seed).integers(0, shards, len(ids))
    parts = [made(case["weights"][which == s], ids[which == s]) for s in range(shards)]
    index, one = sharded(parts, "ids"), made(case["weights"], ids)
    assert_same(index.search(case["queries"], case["k"]), one.search(case["queries"], case["k"]))
    assert index.ids.tolist() == one.ids.tolist()


@pytest.mark.parametrize("ids", [[7, 8, 9, 7], ["a", "b", "c", "a"]])
def test_an_id_in_two_shards_is_refused(ids: list[Any]) -> None:
    weights = np.eye(4, V, dtype=np.float32)
    with pytest.raises(ValueError, match=f"expected an id in one shard only, got {ids[0]!r} in two"):
        require_distinct([made(weights[:2], ids[:2]), made(weights[2:], ids[2:])])


def test_ids_are_told_apart_that_share_a_hash(monkeypatch: pytest.MonkeyPatch) -> None:
    weights, asked = np.eye(4, V, dtype=np.float32), list[str]()

    def short(one: str) -> int:
        asked.append(one)
        return len(one)

    monkeypatch.setattr("stair.cluster.layout.hash", short, raising=False)
    monkeypatch.setattr("stair.cluster.layout.IDS_AT_A_TIME", 1)
    require_distinct([made(weights[:2], ["a", "bb"]), made(weights[2:], ["c", "dd"])])
    assert asked == ["a", "bb", "c", "dd"] * 2  # once more, as some are suspect
    with pytest.raises(ValueError, match="expected an id in one shard only, got 'bb' in two"):
        require_distinct([made(weights[:2], ["a", "bb"]), made(weights[2:], ["c", "bb"])])


@pytest.mark.parametrize("strings", [False, True])
def test_the_check_for_ids_in_two_shards_holds_few_of_them_at_a_time(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, strings: bool
) -> None:
    """Of 8 shards of 5,000 paths of 80 characters, which are 6 MB together as objects of Python."""
    n, shards = 5000, 8
    rows = scipy.sparse.csr_matrix((n, 1), dtype=np.float32)
    for s in range(shards):
        ids = [f"{one:080}" if strings else one for one in range((s + 1) * n, s * n, -1)]
        SparseIndex.build(rows, ids=ids).save(tmp_path / str(s))
    opened = [functools.partial(SparseIndex.open, tmp_path / str(s)) for s in range(shards)]
    monkeypatch.setattr("stair.cluster.layout.IDS_AT_A_TIME", 100)
    layout.require_distinct(opened[:1])
    tracemalloc.start()
    layout.require_distinct(opened)
    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    assert peak < 9 * n * shards + 24 * n + 100 * 80 * 30 + 50_000


def test_shards_that_do_not_fit_together_are_refused() -> None:
    weights = np.eye(2, V, dtype=np.float32)
    for other in (made(weights[:, :5], [3, 4]), made(weights, ["a", "b"])):
        with pytest.raises(ValueError, match="shards: expected at least one, all of one vocabulary"):
            layout.require_together([made(weights, [1, 2]), other])
    with pytest.raises(ValueError, match="expected at least one"):
        layout.require_together([])


@pytest.mark.parametrize(
    ("call", "message"),
    [
        (lambda index: index.search(scipy.sparse.csr_matrix((1, V + 1)), 3), "queries: expected vocab_size 12"),
        (lambda index: index.search(scipy.sparse.csr_matrix((1, V)), 0), "k: expected an integer >= 1, got 0"),
        (lambda index: index.search(scipy.sparse.csr_matrix((1, V)), 1, 0), "n_threads: expected an integer >= 1"),
        (lambda index: index.rows([1, 99]), "ids: expected ids that the index holds, got 99"),
        (lambda index: index.payloads(["a"]), "ids: expected integers like the ids of the index, got strings"),
        (lambda index: index.rows([[1]]), r"ids: expected ids \[n\]"),
    ],
)
def test_a_bad_call_says_what_is_wrong(call: Any, message: str) -> None:
    weights = np.eye(3, V, dtype=np.float32)
    with pytest.raises(ValueError, match=message):
        call(sharded([made(weights[:2], [1, 2]), made(weights[2:], [3])]))


@pytest.fixture(scope="module")
def place(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """model/, pictures/, rows/ of 4 pictures and 30 texts, sharded/ and one/ built of them."""
    folder = tmp_path_factory.mktemp("shards")
    save_checkpoint(folder / "model")
    save_pictures(folder / "pictures")
    (folder / "texts.txt").write_text("".join(f"a w{i % 40} w{i * 7 % 50} red\n" for i in range(30)))
    inputs = read_inputs([str(folder / "pictures"), str(folder / "texts.txt")])
    rows = encode_parts(inputs, folder / "model", folder / "rows", pool=Here(), batch=4)
    assert build_shards(rows, folder / "sharded", folder / "model", shards=3, pool=Here()) == len(inputs)
    model = Collection.open(folder / "sharded").model_dir
    from stair.checkpoint import load

    whole = encode(*load(model), inputs, batch=4)
    save_collection(folder / "one", whole, [item_of(entry) for entry in inputs], folder / "model")
    return folder


def test_a_sharded_collection_is_searched_as_one(place: Path) -> None:
    many, one = Collection.open(place / "sharded"), Collection.open(place / "one")
    assert many.items == one.items
    rows = Parts.open(place / "rows")
    queries, _, items = rows.slice(2, 30)
    vocabulary = [str(v) for v in range(queries.vocab_size)]
    assert many.search(queries, 7, vocabulary) == one.search(queries, 7, vocabulary)
    assert len(many.search(queries, 7, vocabulary)) == 28
    assert_same(many.index.search(queries, 40), one.index.search(queries, 40))
    assert [item["name"] for item in items][:3] == ["grey", "red", "a w0 w0 red"]


@pytest.mark.parametrize("span", [(0, 0), (0, 1), (3, 9), (33, 34), (0, 34), (34, 40)])
def test_a_slice_of_parts_is_that_of_the_rows(place: Path, span: tuple[int, int]) -> None:
    parts = Parts.open(place / "rows")
    assert (len(parts), len(parts.parts) > 3) == (34, True)
    whole, ids, items = parts.slice(0, len(parts))
    rows, own_ids, own_items = parts.slice(*span)
    assert torch.equal(rows.values, whole[slice(*span)].values)
    assert torch.equal(rows.indices, whole[slice(*span)].indices)
    assert (own_ids, own_items) == (ids[slice(*span)], items[slice(*span)])


def copied(place: Path, tmp_path: Path) -> Path:
    return Path(shutil.copytree(place / "sharded", tmp_path / "sharded"))


def test_damage_is_found(place: Path, tmp_path: Path) -> None:
    folder = copied(place, tmp_path)
    ShardedIndex.open(folder, verify=True)
    (segment,) = (folder / "shard-00001").glob("segment-*.bin")
    data = bytearray(segment.read_bytes())
    data[-1] ^= 1
    segment.write_bytes(data)
    with pytest.raises(ValueError, match="does not match its checksum"):
        ShardedIndex.open(folder, verify=True)
    manifest = json.loads((folder / "shards.json").read_text())
    manifest["shards"].pop()
    (folder / "shards.json").write_text(json.dumps(manifest))
    with pytest.raises(ValueError, match="damaged sharded index"):  # a shard less would lose its documents silently
        ShardedIndex.open(folder)


def test_a_shard_that_is_missing_or_another_one_is_refused(place: Path, tmp_path: Path) -> None:
    folder = copied(place, tmp_path)
    shutil.rmtree(folder / "shard-00002")
    with pytest.raises(ValueError, match="does not exist"):
        ShardedIndex.open(folder)
    shutil.copytree(folder / "shard-00000", folder / "shard-00002")
    with pytest.raises(ValueError, match=r"is not the shard that shards\.json names"):
        ShardedIndex.open(folder)


def test_an_index_is_replaced_whole_or_not_at_all(place: Path, tmp_path: Path) -> None:
    folder = copied(place, tmp_path)
    parts = Parts.open(place / "rows")
    index = ShardedIndex.open(folder)
    queries = parts.slice(0, 2)[0]
    before = index.search(queries, 5)

    class Dies(Here):
        def stream(self, jobs: Any) -> Any:
            yield next(super().stream(jobs))
            raise RuntimeError("killed")

    with pytest.raises(RuntimeError, match="killed"):
        build_shards(parts, folder, place / "model", shards=2, pool=Dies())
    assert index.reload() is False
    assert [path.name for path in tmp_path.iterdir()] == ["sharded"]  # nothing half built is left
    build_shards(parts, folder, place / "model", shards=2, pool=Here())
    assert_same(index.search(queries, 5), before)  # what was opened stays
    assert index.reload() is True
    assert index.stats()["shards"] == 2
    assert_same(index.search(queries, 5), before)
    rows, _, items = parts.slice(0, 4)
    save_collection(folder, rows, items, place / "model")  # one index in its place
    assert len(Collection.open(folder).items) == 4
    with pytest.raises(ValueError, match="not the checkpoint that made the rows"):
        build_shards(parts, folder, save_checkpoint(tmp_path / "other", seed=1), shards=2, pool=Here())


def test_a_killed_build_leaves_the_old_index(place: Path, tmp_path: Path) -> None:
    folder = copied(place, tmp_path)
    parts = Parts.open(place / "rows")

    def killed(stage: str, done: int, total: int, numbers: dict[str, Any]) -> None:
        os.kill(os.getpid(), signal.SIGKILL)

    build = functools.partial(build_shards, parts, folder, place / "model", shards=2, pool=Here())
    assert status(start(functools.partial(build, progress=killed))) == -signal.SIGKILL
    assert len(list(tmp_path.iterdir())) == 2  # the index, and what the next build clears away
    assert ShardedIndex.open(folder, verify=True).stats()["shards"] == 3
    build()
    assert [path.name for path in tmp_path.iterdir()] == ["sharded"]


@pytest.mark.parametrize("command", ["build", "encode"])
def test_what_a_killed_run_left_beside_its_place_is_cleared_by_the_next(
    place: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, command: str
) -> None:
    """Encoded rows that were on their way to an index, or to stdout through the current folder."""
    monkeypatch.chdir(tmp_path)
    inputs = read_inputs([str(place / "pictures")])

    class Killed(Here):
        def stream(self, jobs: Any) -> Any:
            os.kill(os.getpid(), signal.SIGKILL)

    def run(pool: Here) -> None:
        given: dict[str, Any] = {"pool": pool, "k": None, "batch": 2, "progress": lambda *numbers: None}
        if command == "build":
            commands.build(inputs, tmp_path / "many", place / "model", shards=2, **given)
        else:
            commands.encode(inputs, place / "model", None, **given)

    with scratch.beside(tmp_path / "other") as held:  # another run's, which goes on
        (held / "rows").touch()
        (tmp_path / ".stair-0").mkdir()  # of one that was killed before it had its lock
        (tmp_path / ".stair-mine").mkdir()
        (tmp_path / ".stair-mine" / "letter.txt").touch()
        assert status(start(functools.partial(run, Killed()))) == -signal.SIGKILL
        assert len(list(tmp_path.glob(".stair-*"))) == 3
        run(Here())
        assert (held / "rows").exists()
    left = [".stair-mine", *(["many"] if command == "build" else [])]
    assert sorted(path.name for path in tmp_path.iterdir()) == left


def test_a_folder_that_is_cleared_before_its_lock_is_taken_is_not_used(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """As by another process that begins at the same time."""
    lock, taken = fcntl.flock, list[int]()

    def late(held: Any, kind: int) -> None:
        taken.append(kind)
        if len(taken) == 1:
            scratch.clear(tmp_path)
        lock(held, kind)

    monkeypatch.setattr(fcntl, "flock", late)
    with scratch.beside(tmp_path / "out") as work:
        assert list(tmp_path.iterdir()) == [work.parent]
        scratch.clear(tmp_path)
        assert work.is_dir()
    assert list(tmp_path.iterdir()) == []


def test_two_attempts_at_a_shard_leave_one(place: Path, tmp_path: Path) -> None:
    rows, _, items = Parts.open(place / "rows").slice(0, 4)
    units, ids, payloads = documents(rows, items)
    index = SparseIndex.build(units, ids, payloads=payloads)
    first = layout.write_shard(tmp_path, 0, index)
    assert layout.write_shard(tmp_path, 0, index) == first
    assert [path.name for path in tmp_path.iterdir()] == ["shard-00000"]
    with pytest.raises(RuntimeError, match="two attempts gave different documents"):
        layout.write_shard(tmp_path, 0, SparseIndex.build(units[:2], ids[:2], payloads=payloads[:2]))
    with pytest.raises(FileNotFoundError, match="a file system that every worker shares"):
        layout.write_shard(tmp_path / "gone", 0, index)
    assert not (tmp_path / "gone").exists()


def test_a_foreign_folder_is_kept(place: Path, tmp_path: Path) -> None:
    (tmp_path / "letter.txt").write_text("dear aunt")
    with pytest.raises(ValueError, match="another directory"):
        build_shards(Parts.open(place / "rows"), tmp_path, place / "model", shards=2, pool=Here())
    with pytest.raises(ValueError, match="something other than encoded rows"):
        encode_parts(read_inputs(["a dog"]), place / "model", tmp_path, pool=Here())
    assert [path.name for path in tmp_path.iterdir()] == ["letter.txt"]
    with pytest.raises(ValueError, match="shards: expected an integer >= 1, got 0"):
        layout.ranges(5, 0)


def stair(*words: object) -> Result:
    return CliRunner().invoke(app, [str(word) for word in words])


@pytest.mark.parametrize("out", ["rows", "rows.npz", None])
def test_inputs_are_encoded_into_a_folder_or_a_file(place: Path, tmp_path: Path, out: str | None) -> None:
    """The folder is read part by part; what it holds is what one file of all rows holds."""
    whole = tmp_path / "whole.jsonl"
    given = ["encode", place / "pictures", place / "texts.txt", "--model", place / "model", "--batch", 4]
    assert stair(*given, "--out", whole).exit_code == 0
    if out == "rows":
        done = stair(*given, "--out", tmp_path / out)
        assert (done.exit_code, done.stderr) == (0, f"34 rows in {tmp_path / out}\n")
        lines = [line for rows, ids, _ in Parts.open(tmp_path / out).each() for line in zip(ids, rows.nnz().tolist())]
        expected = [json.loads(line) for line in whole.read_text().splitlines()]
        assert lines == [(line["id"], len(line["vector"])) for line in expected]
        return
    captured = io.StringIO()
    with contextlib.redirect_stdout(captured):
        file = None if out is None else tmp_path / out
        inputs = read_inputs([str(place / "pictures"), str(place / "texts.txt")])
        quiet: Any = lambda *numbers: None  # noqa: E731
        commands.encode(inputs, place / "model", file, pool=Here(), k=None, batch=4, progress=quiet)
    if file is None:
        assert captured.getvalue() == whole.read_text()
    else:
        one, other = (read(path, vocabulary=vocabulary_of(place / "model")) for path in (whole, file))
        assert (one.names(), one.rows.data.tolist()) == (other.names(), other.rows.data.tolist())
    assert not list(tmp_path.glob(".*"))


@pytest.mark.parametrize("out", ["rows.npz", "rows", "one", "many"])
def test_an_unreadable_picture_is_named_and_may_be_left_out(
    place: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, out: str
) -> None:
    monkeypatch.chdir(tmp_path)
    shutil.copytree(place / "pictures", "pictures")
    Path("broken").mkdir()
    for folder in ("pictures", "broken"):
        Path(folder, "broken.png").write_bytes(b"no picture")
    words = ["encode"] if out.startswith("rows") else ["index", "build", *(["--shards", 2] if out == "many" else [])]
    given = [*words, "--out", out, "--model", place / "model", "--batch", 1]
    refused = stair(*given, "pictures", "a red dog")
    assert (refused.exit_code, refused.stderr.count("\n")) == (2, 1)
    assert "pictures/broken.png: not a readable picture" in refused.stderr
    none = stair(*given, "broken", "--skip-unreadable")
    assert (none.exit_code, "expected at least one that can be read, got none" in none.stderr) == (2, True)
    assert sorted(path.name for path in tmp_path.iterdir()) == ["broken", "pictures"]

    done = stair(*given, "pictures", "a red dog", "--skip-unreadable")
    first, second, last = done.stderr.splitlines()
    assert (done.exit_code, first.startswith("left out: ")) == (0, True)
    assert "pictures/broken.png: not a readable picture" in first
    assert (second, last.split()[0]) == ("1 left out, since they cannot be read", "5")
    if out.startswith("rows"):
        ids = read(Path(out)).names() if out == "rows.npz" else Parts.open(out).slice(0, 5)[1]
        assert ids == [*(f"pictures/{name}.png" for name in ("blue", "green", "grey", "red")), "a red dog"]
    else:
        assert [item["name"] for item in Collection.open(out).items] == ["blue", "green", "grey", "red", "a red dog"]


def test_a_missing_picture_is_never_left_out(place: Path, tmp_path: Path) -> None:
    """It may be missing on the machine of a worker only."""
    inputs = [*read_inputs([str(place / "pictures")]), Input("gone", picture=tmp_path / "gone.png")]
    with pytest.raises(ValueError, match=r"gone\.png: no such picture"):
        encode_parts(inputs, place / "model", tmp_path / "rows", pool=Here(), skip_unreadable=True)
    with pytest.raises(FileNotFoundError, match="a file system that every worker shares"):
        Encoder(str(place / "model"), fingerprint(place / "model")).encode(
            str(tmp_path / "gone"), 0, inputs, ["x"] * 5, None, 8, True
        )


def test_the_commands_understand_shards(place: Path, tmp_path: Path) -> None:
    out = tmp_path / "many"
    done = stair("index", "build", "--rows", place / "rows", "--model", place / "model", "--shards", 3, "--out", out)
    assert (done.exit_code, done.stderr) == (0, f"34 items in {out}\n")
    stats = json.loads(stair("index", "stats", out, "--json").stdout)
    assert (stats["shards"], stats["documents"], stats["disk_bytes"] > stats["bytes"]) == (3, 34, True)
    assert json.loads(stair("index", "verify", out, "--json").stdout)["sound"] is True
    found = [stair("search", "--index", folder, "--json", "a w3 red", "--k", 7) for folder in (out, place / "one")]
    answers = [[hit["name"] for hit in json.loads(one.stdout)[0]["hits"]] for one in found]
    assert answers[0] == answers[1]
    assert len(answers[0]) == 7
    for change in (["add", out, "a dog"], ["delete", out, "a w0 w0 red"], ["compact", out]):
        refused = stair("index", *change)
        assert refused.exit_code == 2
        assert "is a sharded index, which does not change: build it again" in refused.stderr
    assert stair("export", out, "--out", tmp_path / "rows.jsonl").exit_code == 0
    assert len((tmp_path / "rows.jsonl").read_text().splitlines()) == 34
    (next((out / "shard-00001").glob("segment-*.bin"))).unlink()
    assert stair("index", "verify", out).exit_code == 2


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (["encode", "a", "--workers", "2"], "--workers: expected --ray as well"),
        (["index", "build", "--rows", "no", "--shards", "2"], "--rows: expected a folder that `stair encode` wrote"),
        (
            ["index", "build", "--rows", "no", "--k", "2"],
            "--k: expected none with --rows, which are encoded already, got 2",
        ),
        (["index", "build", "--rows", "no", "--batch", "32"], "--batch: expected none with --rows"),
        (["index", "build", "--rows", "no", "--skip-unreadable"], "--skip-unreadable: expected none with --rows"),
        (["index", "build", "--rows", ".", "--scale", "2"], "--scale: expected none with a folder of --rows, got 2.0"),
        (["encode", "a", "--device", "cuda:1", "--ray"], "--device: expected cpu or cuda with --ray, got 'cuda:1'"),
        (["encode", "a", "--device", "tpu"], "device: expected auto, cpu, cuda or cuda:N, got 'tpu'"),
        (["index", "build", "a", "--scale", "2"], "--scale: expected none with inputs, got 2.0"),
        (["search", "a", "--index", "no", "--ray", "localhost:1"], "no Ray cluster at localhost:1"),
    ],
)
def test_what_makes_no_sense_is_one_line(words: list[str], message: str) -> None:
    if "--ray" in words:
        pytest.importorskip("ray", reason="Ray is not installed: pip install -e '.[ray]'")
    done = stair(*words)
    assert (done.exit_code in (1, 2), done.stderr.count("\n")) == (True, 1), done.stderr
    assert message in done.stderr


@pytest.mark.parametrize(
    ("words", "expected"),
    [
        (["search", "--ray", "a red fruit"], ["search", "--ray=local", "a red fruit"]),
        (["search", "a", "--ray"], ["search", "a", "--ray=local"]),
        (["search", "--ray", "--k", "3"], ["search", "--ray=local", "--k", "3"]),
        (["search", "--ray", "head:6379", "a"], ["search", "--ray", "head:6379", "a"]),
        (["search", "--ray", "ray://head:10001", "a"], ["search", "--ray", "ray://head:10001", "a"]),
        (["search", "--ray", "auto", "a"], ["search", "--ray", "auto", "a"]),
        (["search", "--", "--ray", "a"], ["search", "--", "--ray", "a"]),
    ],
)
def test_an_address_may_follow_ray(words: list[str], expected: list[str]) -> None:
    assert with_address(words) == expected
