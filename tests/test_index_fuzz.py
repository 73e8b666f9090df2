"""Damage to an index directory of any kind, seeded; `make fuzz` looks for more. STAIR_FUZZ_RUNS sets how many."""

from __future__ import annotations

import json
import os
from pathlib import Path

import numpy as np
import pytest
from fuzz.index_target import Target, encoded, use

RUNS = int(os.environ.get("STAIR_FUZZ_RUNS", "300"))


@pytest.fixture(scope="module")
def target(tmp_path_factory: pytest.TempPathFactory) -> Target:
    return Target(tmp_path_factory.mktemp("fuzz"))


@pytest.mark.parametrize("kind", range(4))
def test_damage_is_refused_or_does_no_harm(target: Target, kind: int, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(os, "fsync", lambda descriptor: None)
    random = np.random.default_rng(kind)
    for run in range(RUNS // 4):
        given = encoded(run % 2, kind) + random.bytes(200)
        try:
            target.run(given)
        except BaseException:
            print(f"input: {given!r}")
            raise


def test_the_undamaged_are_used(target: Target, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(os, "fsync", lambda descriptor: None)
    for number in range(2):
        target.run(encoded(number, 0, 1))  # the rest is 0: nothing is changed
        manifest = json.loads((target.place / "manifest.json").read_text())
        assert len(manifest["segments"]) == 1, "it was not compacted"
        use(target.place)


def test_damage_that_is_not_found_fails(target: Target, monkeypatch: pytest.MonkeyPatch) -> None:
    given = encoded(1, 3, 2, 0, 2) + b"ab" + encoded(2)  # two bytes of a segment's ids
    target.run(given)
    monkeypatch.setattr("stair_kernels.index_segments.require_checksum", lambda *arguments: None)
    with pytest.raises(AssertionError, match="was not found"):
        target.run(given)


def test_the_target_is_small(target: Target) -> None:
    assert sum(file.stat().st_size for base in target.bases for file in Path(base).iterdir()) < 300_000
