"""SparseIndex.open(mode="a"): commits that a kill cannot halve, one writer at a time, readers keep what they opened."""

from __future__ import annotations

import errno
import os
import shutil
import signal
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pytest
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

BASE = sk.SparseIndex.build(random_rows(1, 60))
MORE = random_rows(2, 200)
WRITER = "another writer has the index: wait until it is done, or give a larger timeout"


def add(first: int, end: int) -> Callable[[sk.SparseIndex], None]:
    return lambda index: index.add(MORE[first:end], np.arange(first, end) + 1000)


# What a writer does, a commit after each.
CHANGES: list[Callable[[sk.SparseIndex], object]] = [
    add(0, 10),
    lambda index: index.delete([3, 1002, 1003]),
    lambda index: (add(10, 12)(index), index.delete([5, 1011])),
    add(12, 40),
    lambda index: index.delete([7]),
    lambda index: index.compact(),
    lambda index: (index.delete([1000, 1001]), add(40, 41)(index)),
]


def states() -> list[sk.SparseIndex]:
    """The index before the first change and after each, in memory."""
    index = sk.SparseIndex.merge([BASE])
    found = [sk.SparseIndex(index._segments)]
    for change in CHANGES:
        change(index)
        found.append(sk.SparseIndex(index._segments))
    return found


STATES = states()


def write(path: Path, first: int = 0, end: int | None = None) -> None:
    """Every change from the given one on, up to another."""
    with sk.SparseIndex.open(path, mode="a", timeout=0) as index:
        for change in CHANGES[first:end]:
            change(index)
            index.commit()


def state_of(path: Path, least: int = 0) -> int:
    """Which of STATES lies there, found sound; a compacted one is told by its segments."""
    index = opened(path)
    for number in range(least, len(STATES)):
        if index.stats() == STATES[number].stats() and same(index, STATES[number]):
            return number
    raise AssertionError(f"no state from {least} on is what lies there: {index.stats()}")


@pytest.fixture
def path(tmp_path: Path) -> Path:
    BASE.save(tmp_path / "index")
    return tmp_path / "index"


def files(path: Path) -> dict[str, tuple[int, int]]:
    """The inode and the time of each data file."""
    return {file.name: (file.stat().st_ino, file.stat().st_mtime_ns) for file in path.glob("*.bin")}


def test_every_commit_is_what_lies_on_disk(path: Path) -> None:
    with sk.SparseIndex.open(path, mode="a") as index:
        for number, change in enumerate(CHANGES):
            change(index)
            assert state_of(path) == number, "written before the commit"
            index.commit()
            assert state_of(path) == number + 1
            assert same(index, STATES[number + 1])
    stats = STATES[-1].stats()
    assert_tidy(path, segments=stats["segments"], deleted_from=1)
    with sk.SparseIndex.open(path, mode="a") as index:
        index.compact()
    assert_tidy(path)
    assert same(opened(path), STATES[-1])


def test_a_commit_writes_what_is_new(path: Path) -> None:
    with sk.SparseIndex.open(path, mode="a") as index:
        before = files(path)
        manifest = (path / "manifest.json").stat()
        index.commit()
        assert (path / "manifest.json").stat().st_ino == manifest.st_ino, "nothing changed, but it was written"
        index.add(MORE[:10], np.arange(10) + 1000)
        index.delete([3])
        index.commit()
        after = files(path)
        assert before.items() < after.items(), "a segment was written again"
        assert sorted(name.split("-")[0] for name in after.keys() - before.keys()) == ["alive", "segment"]
        index.delete([4, 1004])
        index.commit()
        assert [name for name in files(path) if name.startswith("segment")] == [
            name for name in after if name.startswith("segment")
        ]


@pytest.mark.parametrize("sizes", [[1] * 100, range(19, 0, -1)], ids=["ones", "descending"])
def test_segments_grow_in_number_as_the_logarithm(path: Path, sizes: Sequence[int]) -> None:
    with sk.SparseIndex.open(path, mode="a") as index:
        first = 0
        for size in sizes:
            add(first, first + size)(index)
            index.commit()
            first += size
            assert index.stats()["segments"] <= np.log2(len(index)) + 1
    again = opened(path)
    assert same(again, sk.SparseIndex.merge([BASE, sk.SparseIndex.build(MORE[:first], np.arange(first) + 1000)]))
    assert len(list(path.glob("segment-*"))) == again.stats()["segments"]


def test_readers_keep_what_they_have_until_they_reload(path: Path) -> None:
    reader = sk.SparseIndex.open(path)
    first = reader._segments[0]
    write(path)
    assert same(reader, STATES[0])
    assert reader.reload()
    assert same(reader, STATES[-1])
    assert not reader.reload()
    assert first not in reader._segments
    engine = reader._segments[0].engine
    with sk.SparseIndex.open(path, mode="a") as index:
        index.delete([9])
    reader.add(MORE[150:151], [5000])  # in memory, dropped
    assert reader.reload()
    assert reader._segments[0].engine is engine, "a file that was open was opened again"
    assert same(reader, opened(path))
    assert 9 not in reader.ids
    assert 5000 not in reader.ids


def test_what_is_not_committed_is_not_written(path: Path) -> None:
    def fail() -> None:
        with sk.SparseIndex.open(path, mode="a") as index:
            index.delete([3])
            raise KeyError

    with pytest.raises(KeyError):
        fail()
    index = sk.SparseIndex.open(path, mode="a")
    index.delete([3])
    index.close()
    index.close()
    assert same(opened(path), BASE)
    assert_tidy(path)
    closed = r'^index: expected one that SparseIndex.open\(path, mode="a"\) opened and nobody closed'
    for other in (index, BASE, sk.SparseIndex.open(path)):
        with pytest.raises(ValueError, match=closed):
            other.commit()
    with pytest.raises(ValueError, match=r"^index: expected one that SparseIndex.open opened, got one that was built"):
        BASE.reload()


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"mode": "w"}, 'mode: expected "r" or "a", got \'w\''),
        ({"timeout": -1}, "timeout: expected seconds >= 0, got -1"),
        ({"timeout": float("nan")}, "timeout: expected seconds >= 0, got nan"),
        ({"timeout": "1"}, "timeout: expected seconds >= 0, got '1'"),
    ],
)
def test_bad_options_are_refused(path: Path, options: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match=f"^{message}"):
        sk.SparseIndex.open(path, **options)
    with pytest.raises(ValueError, match=r"^path: expected a directory written by SparseIndex.save, but .* does not"):
        sk.SparseIndex.open(path.parent / "nothing", mode="a")
    assert os.listdir(path.parent) == ["index"]


def test_one_writer_at_a_time(path: Path) -> None:
    with sk.SparseIndex.open(path, mode="a") as index:
        for other in (
            lambda: sk.SparseIndex.open(path, mode="a", timeout=0),
            lambda: sk.SparseIndex.open(path, mode="a", timeout=0.05),
            lambda: BASE.save(path, timeout=0),
            lambda: index.save(path, timeout=0),
        ):
            with pytest.raises(TimeoutError, match=f"{WRITER}: '{path}'"):
                other()
        assert status(start(lambda: write(path))) == 1
        child = start(lambda: time.sleep(60))  # has a copy of the lock's descriptor
        index.delete([3])
    try:
        with sk.SparseIndex.open(path, mode="a", timeout=0) as index:
            assert 3 not in index.ids
    finally:
        os.kill(child, signal.SIGKILL)
        status(child)


def test_a_writer_waits_for_another_and_starts_from_what_it_left(path: Path, tmp_path: Path) -> None:
    def delete() -> None:
        with sk.SparseIndex.open(path, mode="a", timeout=60) as index:
            index.delete([4])

    with sk.SparseIndex.open(path, mode="a") as index:
        child = start(delete)
        time.sleep(0.2)
        assert os.waitpid(child, os.WNOHANG) == (0, 0), "it did not wait"
        index.delete([3])
    assert status(child) == 0
    assert {*range(60)} - {*opened(path).ids.tolist()} == {3, 4}


def test_a_killed_writer_has_no_lock(path: Path) -> None:
    def hold() -> None:
        index = sk.SparseIndex.open(path, mode="a")
        index.delete([3])
        os.kill(os.getpid(), signal.SIGKILL)

    assert status(start(hold)) == -signal.SIGKILL
    write(path)
    assert state_of(path) == len(CHANGES)


def test_a_forked_process_does_not_commit(path: Path, capfd: pytest.CaptureFixture[str]) -> None:
    with sk.SparseIndex.open(path, mode="a") as index:
        assert status(start(index.commit)) == 1
        assert "ValueError: index: expected an open writer of" in capfd.readouterr().err
        assert status(start(index.close)) == 0
        with pytest.raises(TimeoutError, match=WRITER):
            sk.SparseIndex.open(path, mode="a", timeout=0)


def assert_named(path: Path) -> None:
    """Every data file is one that the manifest names."""
    manifest = (path / "manifest.json").read_text()
    assert [name for name in os.listdir(path) if name.endswith((".bin", ".tmp")) and name not in manifest] == []


def test_killed_at_any_operation(path: Path, tmp_path: Path) -> None:
    shutil.copytree(path, tmp_path / "base")
    reached, number, last = set(), 0, 0
    while True:
        number += 1
        shutil.rmtree(path)
        shutil.copytree(tmp_path / "base", path)
        end = status(start(killed_at_operation(number, lambda: write(path))))
        state = state_of(path, last)  # the later it is killed, the more is committed
        reached.add(state)
        last = state
        if end == 0:
            break
        assert end == -signal.SIGKILL
        with sk.SparseIndex.open(path, mode="a", timeout=0):
            assert_named(path)  # what the killed one left is removed
    assert number > 150
    assert reached == set(range(len(STATES)))


def test_killed_at_random_times(path: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """200 kills, each within two commits from any state on."""
    monkeypatch.setattr(os, "fsync", lambda descriptor: None)  # a kill, unlike a power cut, loses nothing written
    longest = []  # that the commits from each state on take
    for first in range(len(CHANGES)):
        shutil.copytree(path, tmp_path / str(first))
        before = time.monotonic()
        assert status(start(lambda first=first: write(path, first, first + 1))) == 0
        longest.append(2 * (time.monotonic() - before))
    random, kills, halved = np.random.default_rng(0), 0, 0
    while kills < 200:
        first = int(random.integers(len(CHANGES)))
        shutil.rmtree(path)
        shutil.copytree(tmp_path / str(first), path)
        child = start(lambda first=first: write(path, first, first + 2))
        time.sleep(longest[first] * random.random())
        os.kill(child, signal.SIGKILL)
        if status(child) == 0:  # it was faster than the first one
            longest[first] *= 0.9
            continue
        kills += 1
        state = state_of(path, first)
        halved += first < state < min(first + 2, len(CHANGES))
        if kills % 8 == 0 and state < len(CHANGES):
            write(path, state)
            assert_named(path)
            state_of(path, len(CHANGES))
    assert halved > 5, "they were not killed between the commits"


def test_a_manifest_that_was_renamed_but_not_synced_is_synced_by_the_next_commit(
    path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    real, synced = os.fsync, []

    def sync(descriptor: int) -> None:
        synced.append(os.fstat(descriptor).st_ino)
        if len(synced) == fails_at:
            raise OSError(errno.EIO, "Input/output error")
        real(descriptor)

    monkeypatch.setattr(os, "fsync", sync)
    directory = path.stat().st_ino
    with sk.SparseIndex.open(path, mode="a") as index:
        index.add(MORE[:10], np.arange(10) + 1000)
        fails_at = 4  # the segment, its name, the manifest, its name
        with pytest.raises(OSError, match="cannot write the index: Input/output error"):
            index.commit()
        assert len(opened(path)) == 70
        assert synced.count(directory) == 2
        assert synced[-1] == directory
        index.commit()
        assert synced.count(directory) > 2, "a manifest that may not be on the disk"
        before = files(path)
        index.delete([3])
        index.commit()
        assert before.items() < files(path).items(), "a segment was written again"


@pytest.mark.parametrize("function", ["fsync", "replace", "open", "listdir"])
def test_a_failing_system_call_leaves_one_that_can_be_committed(
    path: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, function: str
) -> None:
    shutil.copytree(path, tmp_path / "base")
    real, number = getattr(os, function), 0
    while True:
        number += 1
        shutil.rmtree(path)
        shutil.copytree(tmp_path / "base", path)
        with sk.SparseIndex.open(path, mode="a") as index:
            CHANGES[0](index)
            CHANGES[1](index)
            calls = 0

            def fail(*arguments: Any, number: int = number, **named: Any) -> Any:
                nonlocal calls
                calls += 1
                if calls == number:
                    raise OSError(errno.ENOSPC, "No space left on device")
                return real(*arguments, **named)

            with monkeypatch.context() as patch:
                patch.setattr(os, function, fail)
                error = error_of(index.commit)
            state = state_of(path)
            assert state == 2 or (state == 0 and error is not None)
            if error is not None:
                assert "cannot write the index: No space left on device; free some space or choose another" in str(
                    error
                )
                index.commit()
                assert state_of(path) == 2
                assert_named(path)
        if calls < number:
            break
    assert number > 1


def test_searches_while_another_process_adds(path: Path) -> None:
    def write_often() -> None:
        for number in range(10):
            with sk.SparseIndex.open(path, mode="a", timeout=60) as index:
                for part in range(4):
                    first = 4 * number + part
                    index.add(MORE[first : first + 1], [1000 + first])
                    if part % 2:
                        index.delete([first])
                    if number % 4 == 3:
                        index.compact()
                    index.commit()

    child = start(write_often)
    reader, seen, finished = sk.SparseIndex.open(path), set(), False
    deadline = time.monotonic() + 60
    while not finished:
        finished = os.waitpid(child, os.WNOHANG)[0] == child
        assert time.monotonic() < deadline, "the writer did not end in time"
        reader.reload()
        for index in (reader, sk.SparseIndex.open(path, verify=True)):
            held = index.ids.numpy()
            added = held[held >= 1000] - 1000
            gone = [n for n in range(len(added)) if n % 2]
            allowed = [gone, gone[:-1]]  # a commit adds one, and every second one deletes one
            assert added.tolist() == list(range(len(added)))
            assert np.setdiff1d(np.arange(60), held).tolist() in allowed
            expected = sk.SparseIndex.merge([BASE, sk.SparseIndex.build(MORE[: len(added)], added + 1000)])
            expected.delete(np.setdiff1d(np.arange(60), held))
            assert all(torch.equal(*pair) for pair in zip(index.search(QUERIES, 9), expected.search(QUERIES, 9)))
            seen.add(len(added))
    assert len(seen) > 3
    assert 40 in seen
