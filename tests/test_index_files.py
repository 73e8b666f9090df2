"""SparseIndex.save and .open: the old or the new index after any kill or error; damage is named and never crashes."""

from __future__ import annotations

import errno
import hashlib
import json
import os
import re
import resource
import shutil
import signal
import sys
import threading
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import scipy.sparse
import torch
from index_cases import (
    QUERIES,
    assert_tidy,
    error_of,
    killed_at_operation,
    opened,
    random_rows,
    same,
    start,
    status,
)

import stair_kernels as sk
from stair_kernels import _index, index_files

OLD = sk.SparseIndex.build(random_rows(1, 300))
NEW = sk.SparseIndex.build(random_rows(2, 400), ids=np.arange(400) * 3)


def other_than(index: sk.SparseIndex) -> sk.SparseIndex:
    return NEW if same(index, OLD) else OLD


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
    (file,) = (tmp_path / "index").glob("*.bin")
    assert 0 <= file.stat().st_size - again.stats()["bytes"] < 64 * len(again._segments[0].arrays)


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


@pytest.mark.parametrize("timeout", [0, 10])
def test_another_save_that_looks_for_abandoned_ones_is_waited_for(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, timeout: float
) -> None:
    mkdir, looking = Path.mkdir, []

    def make(path: Path, *arguments: Any, **named: Any) -> None:
        mkdir(path, *arguments, **named)
        if path.suffix == ".saving":
            looking.append(index_files._lock(path, 0))
            threading.Timer(0.05, os.close, looking).start()

    monkeypatch.setattr(Path, "mkdir", make)
    NEW.save(tmp_path / "index", timeout=timeout)
    assert looking
    assert same(opened(tmp_path / "index"), NEW)
    assert_tidy(tmp_path / "index")


def test_a_link_to_an_index_stays_a_link(tmp_path: Path) -> None:
    OLD.save(tmp_path / "real" / "index")
    (tmp_path / "link").symlink_to(tmp_path / "real" / "index")
    NEW.save(tmp_path / "link")
    assert (tmp_path / "link").is_symlink()
    assert same(opened(tmp_path / "real" / "index"), NEW)


def test_killed_at_any_operation_of_a_first_save(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(index_files, "GRACE_S", 0.0)
    complete, number = 0, 0
    while True:
        number += 1
        path = tmp_path / str(number) / "index"
        end = status(start(killed_at_operation(number, lambda path=path: NEW.save(path))))
        if path.exists():
            assert same(opened(path), NEW), f"half an index after operation {number}"
            complete += 1
        if end == 0:
            break
        assert end == -signal.SIGKILL
        NEW.save(path)
        assert_tidy(path)
    assert number > 20
    assert 1 < complete < number


def test_killed_at_any_operation_of_a_replacement(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(index_files, "GRACE_S", 0.0)
    path = tmp_path / "index"
    OLD.save(path)
    before, replaced, number = OLD, 0, 0
    while True:
        number += 1
        wanted = other_than(before)
        end = status(start(killed_at_operation(number, lambda wanted=wanted: wanted.save(path))))
        after = opened(path)
        assert same(after, before) or same(after, wanted), f"a mixture after operation {number}"
        replaced += same(after, wanted)
        before = after
        if end == 0:
            break
        assert end == -signal.SIGKILL
    assert same(after, wanted)
    assert number > 20
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
        if path.exists() and not existing:
            shutil.rmtree(path)
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
        assert re.search(f"cannot write the index: No space left on device; free some space.*{path}", str(error))
        failures += 1
        if path.exists():
            index = opened(path)
            assert same(index, NEW) or (existing and same(index, OLD))
            if same(index, OLD):
                assert_tidy(path)
        else:
            assert os.listdir(tmp_path) == []
    assert failures > 0 or (function, existing) in (("rename", True), ("mkdir", True))
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
    written = ["sync unfinished", "move segment", "sync index", "sync unfinished", "move manifest", "sync index"]
    NEW.save(path)
    assert steps == written
    steps.clear()
    with sk.SparseIndex.open(path, mode="a") as index:
        index.delete([0])
        index.commit()
        assert steps == [step.replace("segment", "alive") for step in written]
    steps.clear()
    OLD.save(tmp_path / "another")
    assert steps == [re.sub("sync index", "sync ", step) for step in written] + [
        "move another",
        f"sync {tmp_path.name}",
    ]


def test_a_file_size_limit_leaves_nothing(tmp_path: Path, capfd: pytest.CaptureFixture[str]) -> None:
    def limited() -> None:
        resource.setrlimit(resource.RLIMIT_FSIZE, (2000, 2000))
        NEW.save(tmp_path / "index")

    assert status(start(limited)) == 1
    assert "OSError: [Errno 27] cannot write the index: File too large" in capfd.readouterr().err
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
        assert f"cannot write the index: Permission denied; choose a path that you may write to: '{target}'" in (
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
    """Change fields of the manifest and give it a right checksum: "row_weights__dtype" is a field of an array, those
    that the manifest has not itself are of its segment.
    """
    manifest = json.loads((path / "manifest.json").read_text())
    (segment,) = manifest["segments"]
    for key, value in fields.items():
        name, _, field = key.partition("__")
        owner = segment["arrays"][name] if field else manifest if name in manifest else segment
        owner[field or name] = value
    del manifest["checksum"]
    manifest["checksum"] = hashlib.sha256(json.dumps(manifest, sort_keys=True).encode()).hexdigest()
    (path / "manifest.json").write_text(json.dumps(manifest))


ALIVE = {"file": "alive-0123456789abcdef.bin", "sha256": "", "deleted": 3}


@pytest.mark.parametrize(
    ("fields", "message"),
    [
        ({"version": 3}, "of version 4, but .* has version 3: rebuild it, or use"),
        ({"version": None}, "of version 4, but .* has version None"),
        ({"version": 4.0}, "of version 4, but .* has version 4.0"),
        ({"documents": 299}, "array row_starts: expected .*'shape': .300"),
        ({"documents": -1}, "has the counts"),
        ({"documents": 300.0}, "has the counts"),
        ({"documents": None}, "has the counts"),
        ({"postings": 10**30}, "has the counts"),
        ({"vocab_size": True}, "has the counts"),
        ({"vocab_size": 51}, "array term_starts: expected .*'shape': .52"),
        ({"compact": 2}, "has the counts"),
        ({"numbered": 2}, "has the counts"),
        ({"numbered": 0}, "array ids: expected .* got None"),
        ({"compact": 1}, "array row_weights: expected .*'dtype': '<f2'"),
        ({"name_bytes": 7}, "array name_starts: expected .* got None"),
        ({"payload_bytes": "7"}, "has the counts"),
        ({"arrays": {}}, "array row_starts: expected .* got None"),
        ({"arrays": None}, "array row_starts: expected .* got None"),
        ({"row_weights__dtype": "<f8"}, "array row_weights: expected"),
        ({"row_weights__shape": [1]}, "array row_weights: expected"),
        ({"row_weights__offset": 64}, "array row_weights: expected"),
        ({"file": "../../etc/passwd"}, "a file or sha256 that is not a name"),
        ({"file": 3}, "a file or sha256 that is not a name"),
        ({"sha256": None}, "a file or sha256 that is not a name"),
        ({"file": "segment-0123456789abcdef.bin"}, "segment-0123456789abcdef.bin is missing"),
        ({"alive": []}, "has the deleted documents"),
        ({"alive": {**ALIVE, "file": "manifest.json"}}, "a file or sha256 that is not a name"),
        ({"alive": {**ALIVE, "deleted": 0}}, "has 0 deleted documents of 300"),
        ({"alive": {**ALIVE, "deleted": 301}}, "has 301 deleted documents of 300"),
        ({"alive": ALIVE}, "alive-0123456789abcdef.bin is missing"),
        ({"segments": []}, "lists no segments"),
        ({"segments": [1]}, "lists a segment 1"),
        ({"metadata": 3}, "or no metadata"),
    ],
)
def test_a_manifest_that_contradicts_itself_is_refused(tmp_path: Path, fields: dict[str, Any], message: str) -> None:
    OLD.save(tmp_path / "index")
    rewrite(tmp_path / "index", **fields)
    with pytest.raises(ValueError, match=f"^path: expected .*{message}"):
        sk.SparseIndex.open(tmp_path / "index")


def test_segments_that_do_not_fit_together_are_refused(tmp_path: Path) -> None:
    OLD.save(tmp_path / "index")
    sk.SparseIndex.build(random_rows(1, 9), compact=True).save(tmp_path / "other")
    (segment,) = json.loads((tmp_path / "other" / "manifest.json").read_text())["segments"]
    (own,) = json.loads((tmp_path / "index" / "manifest.json").read_text())["segments"]
    rewrite(tmp_path / "index", segments=[own, segment])
    with pytest.raises(ValueError, match="lists segments that do not fit together"):
        sk.SparseIndex.open(tmp_path / "index")


ARRAYS = tuple(NEW._segments[0].arrays)


@pytest.mark.parametrize("name", ARRAYS)
def test_damage_to_the_data_never_crashes(tmp_path: Path, name: str) -> None:
    path = tmp_path / "index"
    N = 1100  # terms have block maxima from 1,024 documents on
    sk.SparseIndex.build(random_rows(1, N), ids=np.arange(N) + 1).save(path)
    (file,) = path.glob("segment-*.bin")
    content = file.read_bytes()
    array = json.loads((path / "manifest.json").read_text())["segments"][0]["arrays"][name]
    size = int(np.prod(array["shape"])) * np.dtype(array["dtype"]).itemsize
    before, rest = content[: array["offset"]], content[array["offset"] + size :]
    content = content[array["offset"] : array["offset"] + size]
    rng = np.random.default_rng(4)
    noise = [rng.bytes(size), b"\xff" * size, b"\x7f" * size, b"\0" * size]
    past = np.resize(np.array([N + 1, 0, 0, 0], np.int32), size // 4 + 1)
    noise.append(past.tobytes()[:size])  # unsorted, with a document just past the last
    flipped = []
    for i in rng.integers(0, size, 40):
        flipped.append(content[:i] + bytes([content[i] ^ (1 << int(i) % 8)]) + content[i + 1 :])
    for wrong in [*noise, *flipped]:
        file.write_bytes(before + wrong + rest)
        with pytest.raises(ValueError, match=r"^path: expected a sound index, but .* is damaged"):
            sk.SparseIndex.open(path, verify=True)
        found: list[torch.Tensor] = []

        def search() -> None:
            index = sk.SparseIndex.open(path)
            found.extend(index.search(QUERIES, k)[1].ravel() for k in (5, 400))  # noqa: B023

        error = error_of(search)
        if error:
            assert name in ("term_starts", "units", "frequent_terms", "frequent_means")
            kinds = "term_starts (from|that never)|finite (units|frequent_means)|frequent_terms that"
            assert re.search(f"expected ({kinds})", str(error))
        elif name != "ids":
            assert set(torch.cat(found).tolist()) <= {-1, *range(1, N + 1)}


@pytest.mark.parametrize("value", [np.nan, np.inf, -1])
@pytest.mark.parametrize("name", ["units", "frequent_means"])
def test_what_terms_are_sorted_by_is_finite(name: str, value: float) -> None:
    arrays = dict(sk.SparseIndex.build(random_rows(1, 1100))._segments[0].arrays)
    arrays[name] = arrays[name].copy()
    arrays[name][3] = value
    with pytest.raises(ValueError, match=f"^expected finite {name} >= 0, got {value}"):
        _index.Index(arrays)


def test_a_file_of_another_size_is_refused(tmp_path: Path) -> None:
    path = tmp_path / "index"
    OLD.save(path)
    with sk.SparseIndex.open(path, mode="a") as index:
        index.delete([3])
    for file in path.glob("*.bin"):
        content = file.read_bytes()
        for wrong_size in (content[:-1], content + b"\0", b""):
            file.write_bytes(wrong_size)
            with pytest.raises(ValueError, match=f"{file.name}: expected {len(content)} bytes, got {len(wrong_size)}"):
                sk.SparseIndex.open(path)
        file.unlink()
        with pytest.raises(ValueError, match=f"{file.name} is missing.*: rebuild it or use a copy"):
            sk.SparseIndex.open(path)
        file.write_bytes(content)
    assert len(opened(path)) == len(OLD) - 1


def test_damage_is_not_written_again(tmp_path: Path) -> None:
    """What reads a whole segment compares its checksum: no damage gets a new one."""
    path = tmp_path / "index"
    OLD.save(path)
    (file,) = path.glob("segment-*.bin")
    content = bytearray(file.read_bytes())
    content[-1] ^= 1
    file.write_bytes(content)
    index = sk.SparseIndex.open(path)
    for action in (
        lambda: index.save(tmp_path / "copy"),
        lambda: index.compact(reorder=True),
        lambda: sk.SparseIndex.merge([index, NEW]),
        lambda: index.add(random_rows(5, 301), np.arange(301) + 1000),  # which merges the two
    ):
        with pytest.raises(ValueError, match=r"^path: expected a sound index, but .* does not match its checksum"):
            action()
    assert os.listdir(tmp_path) == ["index"]
