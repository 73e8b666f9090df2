"""SparseIndex.save and .open: the old or the new index after any kill or error; damage is named and never crashes."""

from __future__ import annotations

import errno
import hashlib
import json
import os
import re
import resource
import signal
import sys
import time
from collections.abc import Callable
from pathlib import Path
from types import FrameType
from typing import Any

import numpy as np
import pytest
import scipy.sparse
import torch

import stair_kernels as sk
from stair_kernels import index_files

V = 50


def random_rows(seed: int, N: int) -> scipy.sparse.csr_matrix:
    return scipy.sparse.random(N, V, 0.2, "csr", np.float32, np.random.default_rng(seed))


OLD = sk.SparseIndex.build(random_rows(1, 300))
NEW = sk.SparseIndex.build(random_rows(2, 400), ids=np.arange(400) * 3)
QUERIES = random_rows(3, 4)


def same(a: sk.SparseIndex, b: sk.SparseIndex) -> bool:
    return repr(a) == repr(b) and all(torch.equal(x, y) for x, y in zip(a.search(QUERIES, 20), b.search(QUERIES, 20)))


def other_than(index: sk.SparseIndex) -> sk.SparseIndex:
    return NEW if same(index, OLD) else OLD


def opened(path: Path) -> sk.SparseIndex:
    return sk.SparseIndex.open(path, verify=True)


def assert_tidy(path: Path) -> None:
    """Nothing but one index: its files, and nothing beside it."""
    names = sorted(re.sub("-.*", "", name) for name in os.listdir(path))
    assert names == sorted([*index_files.ARRAYS, "manifest.json", "writer.lock"])
    assert os.listdir(path.parent) == [path.name]


def start(action: Callable[[], object]) -> int:
    """The process id of a forked child that runs `action` and exits with 0, or with 1 after an exception."""
    child = os.fork()
    if child == 0:
        code = 1
        try:
            action()
            code = 0
        except Exception as error:
            os.write(2, f"{type(error).__name__}: {error}\n".encode())
        finally:
            os._exit(code)
    return child


def status(child: int) -> int:
    """The exit code of a child, or minus the signal that killed it."""
    return os.waitstatus_to_exitcode(os.waitpid(child, 0)[1])


def killed_at_line(number: int, action: Callable[[], object]) -> Callable[[], object]:
    """`action`, killed just before the given executed line of index_files.py, counted from 1."""

    def run() -> None:
        left = number

        def trace(frame: FrameType, event: str, argument: object) -> Any:
            nonlocal left
            if frame.f_code.co_filename != index_files.__file__:
                return None
            left -= event == "line"
            if left == 0:
                os.kill(os.getpid(), signal.SIGKILL)
            return trace

        sys.settrace(trace)
        action()

    return run


def error_of(action: Callable[[], object]) -> Exception | None:
    try:
        action()
    except (OSError, ValueError) as error:
        return error
    return None


def test_a_saved_index_is_the_same_index(tmp_path: Path) -> None:
    NEW.save(tmp_path / "index")
    index = opened(tmp_path / "index")
    assert same(index, NEW)
    assert index.stats() == NEW.stats()
    assert_tidy(tmp_path / "index")


def test_a_compact_index_is_saved_as_such(tmp_path: Path) -> None:
    index = sk.SparseIndex.build(random_rows(4, 2000), compact=True, reorder=True)
    index.save(tmp_path / "index")
    again = opened(tmp_path / "index")
    assert same(again, index)
    assert again.stats() == index.stats()
    assert again.stats()["bytes"] == sum(file.stat().st_size for file in (tmp_path / "index").glob("*.bin"))


@pytest.mark.parametrize("shape", [(0, 5), (3, 5), (0, 0), (3, 0)])
def test_an_empty_index_is_saved_too(tmp_path: Path, shape: tuple[int, int]) -> None:
    sk.SparseIndex.build(scipy.sparse.csr_matrix(shape, dtype=np.float32)).save(tmp_path / "index")
    index = opened(tmp_path / "index")
    assert (len(index), index.vocab_size) == shape
    assert index.search(scipy.sparse.csr_matrix((1, shape[1])), 2)[1].tolist() == [[-1, -1]]


def test_saving_replaces_and_readers_keep_theirs(tmp_path: Path) -> None:
    path = tmp_path / "index"
    path.mkdir()  # an empty directory holds nothing to lose
    OLD.save(path)
    reader = sk.SparseIndex.open(path)
    (path / "notes.txt").write_text("mine")
    NEW.save(path)
    assert same(reader, OLD)
    assert same(opened(path), NEW)
    assert (path / "notes.txt").read_text() == "mine"
    reader.save(path)  # from the very files that it replaces
    opened(path).save(path)  # the same contents again
    assert same(opened(path), OLD)
    (path / "notes.txt").unlink()
    assert_tidy(path)


def test_a_link_to_an_index_stays_a_link(tmp_path: Path) -> None:
    OLD.save(tmp_path / "real" / "index")
    (tmp_path / "link").symlink_to(tmp_path / "real" / "index")
    NEW.save(tmp_path / "link")
    assert (tmp_path / "link").is_symlink()
    assert same(opened(tmp_path / "real" / "index"), NEW)


def test_killed_at_any_line_of_a_first_save(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(index_files, "GRACE_S", 0.0)
    monkeypatch.setattr(os, "fsync", lambda descriptor: None)  # a kill, unlike a power cut, loses nothing written
    complete, number = 0, 0
    while True:
        number += 1
        path = tmp_path / str(number) / "index"
        end = status(start(killed_at_line(number, lambda path=path: NEW.save(path))))
        if path.exists():
            assert same(opened(path), NEW), f"half an index after line {number}"
            complete += 1
        if end == 0:
            break
        assert end == -signal.SIGKILL
        NEW.save(path)
        assert_tidy(path)
    assert number > 50
    assert 1 < complete < number


def test_killed_at_any_line_of_a_replacement(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(index_files, "GRACE_S", 0.0)
    monkeypatch.setattr(os, "fsync", lambda descriptor: None)  # a kill, unlike a power cut, loses nothing written
    path = tmp_path / "index"
    OLD.save(path)
    before, replaced, number = OLD, 0, 0
    while True:
        number += 1
        wanted = other_than(before)
        end = status(start(killed_at_line(number, lambda wanted=wanted: wanted.save(path))))
        after = opened(path)
        assert same(after, before) or same(after, wanted), f"a mixture after line {number}"
        replaced += same(after, wanted)
        before = after
        if end == 0:
            break
        assert end == -signal.SIGKILL
    assert same(after, wanted)
    assert number > 80
    assert 1 < replaced < number
    NEW.save(path)
    assert_tidy(path)


def test_readers_and_two_writers_at_once(tmp_path: Path) -> None:
    path = tmp_path / "index"
    OLD.save(path)

    def write_often() -> None:
        for round in range(25):
            (OLD if round % 2 else NEW).save(path)

    children = [start(write_often), start(write_often)]
    seen, deadline = 0, time.monotonic() + 20
    running = set(children)
    while running and time.monotonic() < deadline:
        index = opened(path)
        assert same(index, OLD) or same(index, NEW)
        seen += 1
        for child in list(running):
            pid, code = os.waitpid(child, os.WNOHANG)
            if pid:
                assert code == 0
                running.remove(child)
    assert not running, "the writers did not end in time"
    assert seen > 5
    assert_tidy(path)


@pytest.mark.parametrize("existing", [False, True])
@pytest.mark.parametrize("function", ["fsync", "rename", "replace", "open", "mkdir"])
def test_a_failing_system_call_leaves_the_old_or_the_new(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, function: str, existing: bool
) -> None:
    path = tmp_path / "index"
    real, failures, number = getattr(os, function), 0, 0
    while True:
        number += 1
        if existing and not path.exists():
            OLD.save(path)
        calls = 0

        def fail(*arguments: Any, number: int = number, **named: Any) -> Any:
            nonlocal calls
            if sys._getframe(1).f_globals.get("__name__") != "shutil":  # the clean-up itself may not fail
                calls += 1
                if calls == number:
                    raise OSError(errno.ENOSPC, "No space left on device")
            return real(*arguments, **named)

        with monkeypatch.context() as patch:
            patch.setattr(os, function, fail)
            error = error_of(lambda: NEW.save(path))
        if calls < number:
            break
        if error is None:  # `mkdir(exist_ok=True)` found the directory and passed over the failure
            continue
        assert re.search(f"cannot save the index: No space left on device; free some space.*{path}", str(error))
        failures += 1
        if path.exists():
            index = opened(path)
            assert same(index, NEW) or (existing and same(index, OLD))
            if same(index, OLD):
                assert_tidy(path)
        else:
            assert os.listdir(tmp_path) == []
    assert failures > 0 or (function, existing) == ("replace", False)
    assert_tidy(path)


def test_the_disk_has_the_data_before_the_manifest_names_it(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = tmp_path / "index"
    OLD.save(path)
    steps: list[str] = []
    real = {name: getattr(os, name) for name in ("fsync", "rename", "replace")}

    def sync(descriptor: int) -> None:
        steps.append("sync " + re.sub(r"-.*|\..*", "", Path(os.readlink(f"/proc/self/fd/{descriptor}")).name))
        real["fsync"](descriptor)

    def move(kind: str) -> Callable[..., None]:
        def moved(source: Path, destination: Path) -> None:
            real[kind](source, destination)
            steps.append("move " + re.sub(r"-.*|\..*", "", Path(destination).name))

        return moved

    if not os.path.exists("/proc/self/fd"):
        pytest.skip("needs /proc to tell which file is flushed")
    monkeypatch.setattr(os, "fsync", sync)
    monkeypatch.setattr(os, "rename", move("rename"))
    monkeypatch.setattr(os, "replace", move("replace"))
    NEW.save(path)
    staged = [f"sync {name}" for name in (*index_files.ARRAYS, "manifest", "")]
    moved = sorted(f"move {name}" for name in index_files.ARRAYS)
    n = len(staged)
    assert steps[:n] == staged
    assert sorted(steps[n : 2 * n - 2]) == moved
    assert steps[2 * n - 2 :] == ["sync index", "move manifest", "sync index"]


def test_a_file_size_limit_leaves_nothing(tmp_path: Path, capfd: pytest.CaptureFixture[str]) -> None:
    def limited() -> None:
        resource.setrlimit(resource.RLIMIT_FSIZE, (2000, 2000))
        NEW.save(tmp_path / "index")

    assert status(start(limited)) == 1
    assert "OSError: [Errno 27] cannot save the index: File too large" in capfd.readouterr().err
    assert os.listdir(tmp_path) == []


def test_no_permission_is_said(tmp_path: Path, capfd: pytest.CaptureFixture[str]) -> None:
    path = tmp_path / "index"
    OLD.save(path)
    for directory in (path, tmp_path):
        directory.chmod(0o555)
    tmp_path.parent.chmod(0o755)
    tmp_path.parent.parent.chmod(0o755)

    def unprivileged(target: Path) -> Callable[[], None]:
        def run() -> None:
            if os.getuid() == 0:
                os.setgroups([])
                os.setgid(65534)
                os.setuid(65534)
            NEW.save(target)

        return run

    for target in (path, tmp_path / "another"):
        assert status(start(unprivileged(target))) == 1
        assert f"cannot save the index: Permission denied; choose a path that you may write to: '{target}'" in (
            capfd.readouterr().err
        )
    tmp_path.chmod(0o755)
    path.chmod(0o755)
    assert same(opened(path), OLD)
    assert_tidy(path)


@pytest.mark.parametrize("kind", ["file", "directory", "another manifest", "damaged manifest"])
def test_what_is_no_index_is_not_overwritten(tmp_path: Path, kind: str) -> None:
    path = tmp_path / "index"
    if kind == "file":
        path.write_text("mine")
    else:
        path.mkdir()
        name = "photo.jpg" if kind == "directory" else "manifest.json"
        (path / name).write_text('{"format": "web app"}' if kind == "another manifest" else "mine")
    with pytest.raises(ValueError, match=r"^path: expected a new path or an existing index, but .* remove it"):
        OLD.save(path)
    assert os.listdir(tmp_path) == ["index"]
    assert path.is_file() or len(os.listdir(path)) == 1


def test_an_index_of_another_version_may_be_replaced(tmp_path: Path) -> None:
    path = tmp_path / "index"
    OLD.save(path)
    rewrite(path, version=99)
    NEW.save(path)
    assert same(opened(path), NEW)
    assert_tidy(path)


@pytest.mark.parametrize("kind", ["nothing", "file", "directory", "another manifest"])
def test_a_path_that_is_no_index_is_not_opened(tmp_path: Path, kind: str) -> None:
    path = tmp_path / "index"
    if kind == "file":
        path.write_text("mine")
    elif kind != "nothing":
        path.mkdir()
    if kind == "another manifest":
        (path / "manifest.json").write_text("[1]")
    with pytest.raises(ValueError, match=r"^path: expected a directory written by SparseIndex.save, but .*") as caught:
        sk.SparseIndex.open(path)
    assert str(path) in str(caught.value)


def test_any_damage_to_the_manifest_is_found(tmp_path: Path) -> None:
    OLD.save(tmp_path / "index")
    file = tmp_path / "index" / "manifest.json"
    text = file.read_bytes()
    damaged = [text[:length] for length in range(0, len(text) - 1, 5)]  # the last character is a newline
    damaged += [text[:i] + bytes([text[i] ^ (1 << i % 8)]) + text[i + 1 :] for i in range(0, len(text), 3)]
    damaged += [b"[" * 100_000, b"null", b"{}", b"\xff", text + text]
    for content in damaged:
        file.write_bytes(content)
        with pytest.raises(ValueError, match=r"^path: expected .*index") as caught:
            sk.SparseIndex.open(tmp_path / "index")
        assert "\n" not in str(caught.value)


def rewrite(path: Path, **fields: Any) -> None:
    """Change fields of the manifest ("row_weights__dtype" is a field of an array) and give it a right checksum."""
    manifest = json.loads((path / "manifest.json").read_text())
    for key, value in fields.items():
        name, _, field = key.partition("__")
        (manifest["arrays"][name] if field else manifest)[field or name] = value
    del manifest["checksum"]
    manifest["checksum"] = hashlib.sha256(json.dumps(manifest, sort_keys=True).encode()).hexdigest()
    (path / "manifest.json").write_text(json.dumps(manifest))


@pytest.mark.parametrize(
    ("fields", "message"),
    [
        ({"version": 1}, "of version 2, but .* has version 1: rebuild it, or use"),
        ({"version": None}, "of version 2, but .* has version None"),
        ({"documents": 299}, "array ids: expected .*'shape': .299"),
        ({"documents": -1}, "has the counts"),
        ({"documents": 300.0}, "has the counts"),
        ({"postings": 10**30}, "has the counts"),
        ({"vocab_size": True}, "has the counts"),
        ({"vocab_size": 51}, "array term_starts: expected .*'shape': .52"),
        ({"compact": 2}, "has the counts"),
        ({"compact": 1}, "array row_weights: expected .*'dtype': '<f2'"),
        ({"arrays": {}}, "does not list the arrays ids, row_starts, row_terms, "),
        ({"row_weights__dtype": "<f8"}, "array row_weights: expected"),
        ({"row_weights__shape": [1]}, "array row_weights: expected"),
        ({"row_weights__file": "../../etc/passwd"}, "array row_weights: its file or sha256 is not a name"),
        ({"row_weights__file": 3}, "array row_weights: its file or sha256 is not a name"),
        ({"row_weights__sha256": None}, "array row_weights: its file or sha256 is not a name"),
        ({"ids__file": "ids-0123456789abcdef.bin"}, "ids-0123456789abcdef.bin is missing"),
        (
            {"vocab_size": 49, "term_starts__shape": [50], "segments__shape": [49, 2], "units__shape": [49]},
            "expected 400 bytes, got 408",
        ),
    ],
)
def test_a_manifest_that_contradicts_itself_is_refused(tmp_path: Path, fields: dict[str, Any], message: str) -> None:
    OLD.save(tmp_path / "index")
    rewrite(tmp_path / "index", **fields)
    with pytest.raises(ValueError, match=f"^path: expected .*{message}"):
        sk.SparseIndex.open(tmp_path / "index")


@pytest.mark.parametrize("name", index_files.ARRAYS)
def test_damage_to_the_data_never_crashes(tmp_path: Path, name: str) -> None:
    path = tmp_path / "index"
    N = 1100  # terms have block maxima from 1,024 documents on
    sk.SparseIndex.build(random_rows(1, N), ids=np.arange(N) + 1).save(path)
    (file,) = path.glob(f"{name}-*.bin")
    content = file.read_bytes()
    for wrong_size in (content[:-1], content + b"\0", b""):
        file.write_bytes(wrong_size)
        with pytest.raises(ValueError, match=f"{file.name}: expected {len(content)} bytes, got {len(wrong_size)}"):
            sk.SparseIndex.open(path)
    file.unlink()
    with pytest.raises(ValueError, match=f"{file.name} is missing.*: rebuild it or use a copy"):
        sk.SparseIndex.open(path)
    rng = np.random.default_rng(4)
    noise = [rng.bytes(len(content)), b"\xff" * len(content), b"\x7f" * len(content), b"\0" * len(content)]
    past = np.resize(np.array([N + 1, 0, 0, 0], np.int32), len(content) // 4)
    noise.append(past.tobytes())  # unsorted, with a document just past the last
    flipped = []
    for i in rng.integers(0, len(content), 40):
        flipped.append(content[:i] + bytes([content[i] ^ (1 << int(i) % 8)]) + content[i + 1 :])
    for wrong in [*noise, *flipped]:
        file.write_bytes(wrong)
        with pytest.raises(ValueError, match=r"^path: expected a sound index, but .* is damaged"):
            sk.SparseIndex.open(path, verify=True)
        found: list[torch.Tensor] = []

        def search() -> None:
            index = sk.SparseIndex.open(path)
            found.extend(index.search(QUERIES, k)[1].ravel() for k in (5, 400))  # noqa: B023

        error = error_of(search)
        if error:
            assert name in ("term_starts", "units", "frequent_terms")
            assert re.search("expected (term_starts (from|that never)|finite units|frequent_terms that)", str(error))
        elif name != "ids":
            assert set(torch.cat(found).tolist()) <= {-1, *range(1, N + 1)}
