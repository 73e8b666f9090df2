"""stair.search: what is found, why, and what is refused."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest
import torch
from stair.checkpoint import load
from stair.encode import encode, read_inputs
from stair.search import Collection, items_of, matches_of, save_collection
from tiny_stair import COLORS, save_checkpoint, save_pictures

from stair_kernels import SparseIndex, SparseRows


@pytest.fixture(scope="module")
def place(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """model/, pictures/ and an index/ over the pictures."""
    folder = tmp_path_factory.mktemp("search")
    save_checkpoint(folder / "model")
    save_pictures(folder / "pictures")
    model, processor = load(folder / "model")
    inputs = read_inputs([str(folder / "pictures")])
    items = [{"name": entry.name, "picture": f"../pictures/{entry.name}.png"} for entry in inputs]
    save_collection(folder / "index", encode(model, processor, inputs), items, folder / "model")
    return folder


def test_hits_are_ranked_by_the_cosine_of_the_rows(place: Path) -> None:
    model, processor = load(place / "model")
    collection = Collection.open(place / "index")
    query = encode(model, processor, read_inputs(["a red fruit"]))
    (hits,) = collection.search(query, 10, processor.vocabulary())
    pictures = encode(model, processor, read_inputs([str(place / "pictures")])).to_dense().double()
    text = query.to_dense().double()[0]
    cosine = pictures @ text / pictures.norm(dim=1) / text.norm()
    best = cosine.argsort(descending=True)
    assert [hit.name for hit in hits] == [sorted(COLORS)[number] for number in best]
    np.testing.assert_allclose([hit.score for hit in hits], cosine[best], rtol=1e-5)
    assert [hit.rank for hit in hits] == [1, 2, 3, 4]


def test_matches_are_the_shared_terms_and_their_shares_sum_to_one(place: Path) -> None:
    model, processor = load(place / "model")
    collection = Collection.open(place / "index")
    rows = encode(model, processor, read_inputs(["a red fruit"]))
    (hits,) = collection.search(rows, 1, processor.vocabulary())
    in_query = {processor.term(v) for v in rows.indices[0].tolist() if v >= 0}
    number = sorted(COLORS).index(hits[0].name)
    weights, entries = collection.row(collection.items[number])
    assert weights.tolist() == sorted(weights, reverse=True)
    assert np.linalg.norm(weights) == pytest.approx(1)
    in_item = {processor.term(int(v)) for v in entries}
    assert {match.term for match in hits[0].matches} == in_query & in_item
    assert sum(match.share for match in hits[0].matches) == pytest.approx(1)
    assert sum(match.query * match.item for match in hits[0].matches) == pytest.approx(hits[0].score, rel=1e-5)
    assert [match.share for match in hits[0].matches] == sorted((m.share for m in hits[0].matches), reverse=True)


def test_a_picture_finds_itself(place: Path) -> None:
    model, processor = load(place / "model")
    rows = encode(model, processor, read_inputs([str(place / "pictures" / "blue.png")]))
    ((best, *_),) = Collection.open(place / "index").search(rows, 3, processor.vocabulary())
    assert best.name == "blue"
    assert best.score == pytest.approx(1, abs=1e-5)


def test_an_empty_query_row_finds_nothing(place: Path) -> None:
    model, processor = load(place / "model")
    rows = encode(model, processor, read_inputs(["a red fruit"]))
    rows.values.zero_()
    rows.indices.fill_(-1)
    assert Collection.open(place / "index").search(rows, 3, processor.vocabulary()) == [[]]


def test_matches_of_disjoint_rows_is_empty() -> None:
    row = np.array([0.6, 0.8, 0.0]), np.array([1, 2, -1])
    other = np.array([1.0]), np.array([3])
    assert matches_of(row, other, list("abcd")) == []


def test_the_index_directory_moves_with_its_model(place: Path, tmp_path: Path) -> None:
    moved = tmp_path / "moved"
    place_copy = {name: (place / name).resolve() for name in ("index", "model", "pictures")}
    moved.mkdir()
    for name, source in place_copy.items():
        (moved / name).symlink_to(source)
    collection = Collection.open(moved / "index")
    collection.require_model(collection.model_dir)
    picture = collection.picture(collection.items[0])
    assert picture is not None
    assert picture.is_file()


def test_another_checkpoint_is_refused(place: Path, tmp_path: Path) -> None:
    save_checkpoint(tmp_path / "other", seed=1)
    collection = Collection.open(place / "index")
    collection.require_model(place / "model")
    with pytest.raises(ValueError, match="not the checkpoint that built"):
        collection.require_model(tmp_path / "other")


def test_a_folder_that_is_no_index_is_refused_and_kept(place: Path, tmp_path: Path) -> None:
    (tmp_path / "letter.txt").write_text("dear aunt")
    with pytest.raises(ValueError, match="not an index directory"):
        Collection.open(tmp_path)
    rows = encode(*load(place / "model"), read_inputs(["a dog"]))
    with pytest.raises(ValueError, match="something other than an index"):
        save_collection(tmp_path, rows, [{"name": "a dog"}], place / "model")
    assert [path.name for path in tmp_path.iterdir()] == ["letter.txt"]


@pytest.mark.parametrize("damage", ["segment-*.bin", "manifest.json"])
def test_a_damaged_index_says_so(place: Path, tmp_path: Path, damage: str) -> None:
    rows = encode(*load(place / "model"), read_inputs(["a dog"]))
    save_collection(tmp_path / "index", rows, [{"name": "a dog"}], place / "model")
    (file,) = (tmp_path / "index").glob(damage)
    file.write_bytes(b"{}")
    with pytest.raises(
        ValueError, match=r"cannot be used \(path: expected .*; build it again with `stair index build`"
    ):
        Collection.open(tmp_path / "index")


def test_an_index_without_items_is_refused(tmp_path: Path) -> None:
    SparseIndex.build(SparseRows.from_dense(torch.eye(3), 1)).save(tmp_path / "index")
    with pytest.raises(ValueError, match="holds an index without items"):
        Collection.open(tmp_path / "index", mode="a")
    SparseIndex.open(tmp_path / "index", mode="a", timeout=0).close()  # it let go of it


def test_items_are_added_and_deleted(place: Path, tmp_path: Path) -> None:
    model, processor = load(place / "model")
    words = ["a dog", "a red fruit", "the sky"]
    rows = encode(model, processor, read_inputs(words))
    save_collection(tmp_path / "index", rows[:1], [{"name": words[0]}], place / "model")
    with Collection.open(tmp_path / "index", mode="a") as collection:
        collection.add(rows[1:], [{"name": word, "number": 3} for word in words[1:]])
        collection.index.delete(["a dog"])
    collection = Collection.open(tmp_path / "index")
    assert collection.items == [{"name": word, "number": 3} for word in words[1:]]
    for row, word in enumerate(words):
        found = [hit.name for hit in collection.search(rows[row : row + 1], 1, processor.vocabulary())[0]]
        assert found == ([word] if row else found)
        assert "a dog" not in found
    with pytest.raises(ValueError, match="got 'the sky'"):
        collection.add(rows[2:], [{"name": "the sky"}])


def test_an_index_is_replaced_whole(place: Path, tmp_path: Path) -> None:
    model, processor = load(place / "model")
    for words in (["a dog", "a cat"], ["a star"]):
        rows = encode(model, processor, read_inputs(words))
        save_collection(tmp_path / "index", rows, [{"name": word} for word in words], place / "model")
    assert [item["name"] for item in Collection.open(tmp_path / "index").items] == ["a star"]
    assert [path.name for path in tmp_path.iterdir()] == ["index"]


def test_items_and_rows_must_agree(place: Path, tmp_path: Path) -> None:
    rows = encode(*load(place / "model"), read_inputs(["a dog"]))
    with pytest.raises(ValueError, match="expected 1, one a row, got 2"):
        save_collection(tmp_path / "index", rows, [{"name": "a"}, {"name": "b"}], place / "model")


def test_an_item_comes_once(place: Path, tmp_path: Path) -> None:
    assert [item for _, item in items_of(read_inputs(["a dog", "a cat", "a dog"]))] == [
        {"name": "a dog"},
        {"name": "a cat"},
    ]
    rows = encode(*load(place / "model"), read_inputs(["a dog", "a dog"]))
    with pytest.raises(ValueError, match="expected unique strings, got 'a dog' more than once"):
        save_collection(tmp_path / "index", rows, [{"name": "a dog"}] * 2, place / "model")
    assert list(tmp_path.iterdir()) == []


def test_what_is_kept_is_plain_json(place: Path) -> None:
    index = SparseIndex.open(place / "index")
    assert index.vocab_size == 80
    assert [json.loads(payload)["name"] for payload in index.payloads(index.ids)] == sorted(COLORS)
    assert index.metadata["model"] == "../model"
