"""One execution of the fuzzer: bytes become damage to an index directory, which must be refused or do no harm."""

from __future__ import annotations

import copy
import hashlib
import json
import os
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import scipy.sparse

import stair_kernels as sk

V = 40
VALUES = [
    None,
    True,
    -1,
    0,
    1,
    2,
    7,
    63,
    64,
    1.5,
    2**31,
    2**47,
    2**48,
    2**64,
    "",
    "x",
    "<i8",
    "..",
    [],
    {},
    [1],
    {"a": 1},
]


def rows(seed: int, N: int) -> scipy.sparse.csr_matrix:
    return scipy.sparse.random(N, V, 0.15, "csr", np.float32, np.random.default_rng(seed))


QUERIES = rows(5, 3)


class Bytes:
    """What is left of an input; zeros when nothing is."""

    def __init__(self, data: bytes) -> None:
        self.data = data

    def take(self, n: int) -> bytes:
        taken, self.data = self.data[:n], self.data[n:]
        return taken

    def below(self, n: int) -> int:
        return int.from_bytes(self.take(2 if n <= 1 << 16 else 4), "little") % n


def encoded(*numbers: int) -> bytes:
    """The start of an input: what `Bytes.below` gives of small numbers."""
    return b"".join(number.to_bytes(2, "little") for number in numbers)


class Target:
    """Sound indexes, and `run`, which damages a copy of one."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.bases = [folder / name for name in ("integers", "strings")]
        # Terms have block maxima from 1,024 documents on.
        sk.SparseIndex.build(rows(1, 1100), np.arange(1100) * 3 + 1, compact=True).save(self.bases[0])
        names = [f"é{n}" * (1 + n % 3) for n in range(90)]
        sk.SparseIndex.build(rows(2, 90), names, payloads=[b"p" * (n % 7) for n in range(90)]).save(self.bases[1])
        with sk.SparseIndex.open(self.bases[0], mode="a") as index:
            index.add(rows(3, 70))
            index.delete([1, 4, 61])
        with sk.SparseIndex.open(self.bases[1], mode="a") as index:
            index.add(rows(4, 7), list("abcdefg"), payloads=[b"q"] * 7)
            index.delete(["b", names[4]])
        self.texts = [(base / "manifest.json").read_bytes() for base in self.bases]

    def run(self, data: bytes) -> None:
        """Raises AssertionError where damage was not found that had to be, any other error where none may be."""
        given = Bytes(data)
        number = given.below(len(self.bases))
        damages: list[Callable[[Bytes, int], bool]] = [self.damage_manifest, self.forge_manifest, self.forge_arrays]
        kind = given.below(4)
        self.place = self.folder / "damaged"
        shutil.rmtree(self.place, ignore_errors=True)
        self.place.mkdir()
        for file in self.bases[number].iterdir():
            os.link(file, self.place / file.name)
        if kind == 3:
            self.damage_file(given, number)
            return
        sound = damages[kind](given, number)
        try:
            use(self.place)
        except ValueError as error:
            if sound or "\n" in str(error):
                raise AssertionError(f"not what it says: {error}") from error

    def write(self, name: str, content: bytes) -> None:
        """A new file: the old one may be mapped, and is another index's too."""
        (self.place / "new").write_bytes(content)
        os.replace(self.place / "new", self.place / name)

    def damage_manifest(self, given: Bytes, number: int) -> bool:
        text = bytearray(self.texts[number])
        if given.below(8) == 0:
            text = bytearray(given.data)
        else:
            for _ in range(1 + given.below(3)):
                first, length = given.below(len(text)), given.below(4)
                text[first : first + length] = given.take(given.below(5))
        self.write("manifest.json", bytes(text))
        try:
            return json.loads(text) == json.loads(self.texts[number])
        except (ValueError, RecursionError):
            return False

    def forge_manifest(self, given: Bytes, number: int) -> bool:
        """Fields of another type or value under a right checksum."""
        fields = json.loads(self.texts[number])
        for _ in range(1 + given.below(3)):
            at: Any = fields
            while True:
                keys = list(at) if isinstance(at, dict) else list(range(len(at)))
                if not keys:
                    break
                key = keys[given.below(len(keys))]
                if not isinstance(at[key], (dict, list)) or given.below(4) == 0:
                    value = copy.deepcopy(VALUES[given.below(len(VALUES))])  # or a later change would be of VALUES
                    at[key] = at[key] + given.below(3) - 1 if type(at[key]) is int and given.below(2) else value
                    break
                at = at[key]
        self.write("manifest.json", forged(fields))
        return False

    def forge_arrays(self, given: Bytes, number: int) -> bool:
        """Other contents of a segment or of the bits of the deleted, under right checksums."""
        fields = json.loads(self.texts[number])
        segment = fields["segments"][given.below(len(fields["segments"]))]
        owner = segment["alive"] if segment["alive"] and given.below(4) == 0 else segment
        content = bytearray((self.place / owner["file"]).read_bytes())
        spots = [array["offset"] for array in segment["arrays"].values()] if owner is segment else [0]
        for _ in range(1 + given.below(6)):
            first = spots[given.below(len(spots))] if given.below(2) else 0
            first = (first + given.below(1 << given.below(16))) % len(content)
            patch = [given.take(1), given.take(8), bytes(8), b"\xff" * 8, b"\x7f" * 8, given.take(64)][given.below(6)]
            patch = patch[: len(content) - first]
            content[first : first + len(patch)] = patch
        owner["sha256"] = hashlib.sha256(content).hexdigest()
        name = owner["file"].split("-")[0] + f"-{owner['sha256'][:16]}.bin"
        owner["file"] = name
        self.write(name, bytes(content))
        self.write("manifest.json", forged(fields))
        return False

    def damage_file(self, given: Bytes, number: int) -> None:
        """Other contents or another size under the old checksum: verification must find it."""
        names = sorted(name for name in os.listdir(self.place) if name.endswith(".bin"))
        name = names[given.below(len(names))]
        before = (self.place / name).read_bytes()
        content = bytearray(before)
        first = given.below(len(content))
        content[first : first + given.below(9)] = given.take(given.below(9))
        if content == before:
            return
        self.write(name, bytes(content))
        try:
            sk.SparseIndex.open(self.place, verify=True)
        except ValueError as error:
            if "is damaged" in str(error):
                return
        raise AssertionError(f"damage to {name} was not found")


def forged(fields: dict[str, Any]) -> bytes:
    fields.pop("checksum", None)
    fields["checksum"] = hashlib.sha256(json.dumps(fields, sort_keys=True).encode()).hexdigest()
    return json.dumps(fields).encode()


def use(place: Path) -> None:
    """Everything that may be done with an index."""
    index = sk.SparseIndex.open(place, verify=True)
    for k in (1, 5, 3000):
        scores, ids = index.search(QUERIES, k, n_threads=1)
        assert scores.shape == (3, k)
    index.search(QUERIES, 5, n_threads=1, allowed=np.arange(len(index)) % 2 == 0)
    index.stats()
    few = ids[:, :4]
    index.matches(QUERIES, few)
    kept = [number for number in few[0].tolist() if number not in (-1, None)]
    index.rows(kept)
    if index._segments[0].payloads is not None:
        index.payloads(kept)
    with sk.SparseIndex.open(place, mode="a", timeout=0) as writer:
        writer.delete(list(dict.fromkeys(kept)))
        writer.commit()
        writer.compact(reorder=True)
    sk.SparseIndex.open(place, verify=True).search(QUERIES, 5, n_threads=1)
