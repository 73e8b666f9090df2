"""The loaders on small files in the real formats: CSV, folders, Karpathy's JSON, Flickr30k's tokens, tar shards."""

from __future__ import annotations

import io
import json
import tarfile
from pathlib import Path
from typing import Any

import pytest
from PIL import Image
from stair.datasets import (
    Pairs,
    TarPicture,
    format_of,
    from_class_folders,
    load_for_evaluation,
    load_pairs,
    read_picture,
    training_and_held_out,
)
from stair.datasets.webdataset import samples, shards_of
from stair.features import FilePictures
from stair.pictures import ImageSettings
from tiny_stair import COLORS, write


def test_csv_pairs_are_relative_to_the_file_and_gather_captions(pictures: Path) -> None:
    table = write(pictures.parent / "pairs.csv", "caption,path\na red disc,pictures/red.png\nred,pictures/red.png\n")
    with open(table, "a", encoding="utf-8") as stream:
        stream.write('"grey, round",pictures/grey.png\n')
    pairs = load_pairs(table)
    assert pairs.pictures == [pictures / "red.png", pictures / "grey.png"]
    assert pairs.texts == [["a red disc", "red"], ["grey, round"]]


def test_folder_pairs_take_captions_from_names_or_text_files(pictures: Path) -> None:
    (pictures / "red.png").rename(pictures / "big_red-disc.png")
    write(pictures / "grey.txt", "grey\n\nnot a colour\n")
    found = dict(zip([path.name for path in load_pairs(pictures).pictures], load_pairs(pictures).texts))
    assert found["big_red-disc.png"] == ["big red disc"]
    assert found["grey.png"] == ["grey", "not a colour"]


@pytest.mark.parametrize(
    ("table", "message"),
    [
        ("picture,text\nred.png,red\n", "expected the columns path,caption"),
        ("", "expected the columns path,caption"),
        ("path,caption\nred.png,red\nnone.png,none\n", "line 3: no such picture"),
        ("path,caption\nred.png,\n", "line 2: expected a path and a caption"),
        ("path,caption\nred.png\n", "line 2: expected a path and a caption"),
        ("path,caption\nred.png,red\n", "expected at least two pictures"),
    ],
)
def test_bad_tables_name_the_line(pictures: Path, table: str, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        load_pairs(write(pictures / "pairs.csv", table))


def test_a_missing_source_is_named(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="nowhere: no such file or folder"):
        load_pairs(tmp_path / "nowhere")


def test_split_parts_do_not_overlap() -> None:
    pairs = Pairs([Path(f"{n}.png") for n in range(20)], [[str(n)] for n in range(20)])
    training, held = pairs.split(0.2, seed=1)
    assert len(training) == 16
    assert len(held) == 4
    assert {*training.pictures, *held.pictures} == {*pairs.pictures}
    assert [path.stem for path in held.pictures] == [texts[0] for texts in held.texts]
    assert held.pictures == pairs.split(0.2, seed=1)[1].pictures


SPLITS = ("train", "restval", "val", "test", "test", "train")


def coco_entry(number: int, split: str) -> dict[str, Any]:
    """As dataset_coco.json has them."""
    raws = [f"A {split} picture, number {number} .", f" Another  caption of {number}."]
    return {
        "filepath": "val2014" if split != "train" else "train2014",
        "sentids": [2 * number, 2 * number + 1],
        "filename": f"COCO_{number:012d}.jpg",
        "imgid": number,
        "split": split,
        "sentences": [
            {"tokens": raw.lower().split(), "raw": raw, "imgid": number, "sentid": 2 * number + at}
            for at, raw in enumerate(raws)
        ],
        "cocoid": 1000 + number,
    }


def save_coco(folder: Path) -> Path:
    entries = [coco_entry(number, split) for number, split in enumerate(SPLITS)]
    for entry in entries:
        file = folder / entry["filepath"] / entry["filename"]
        file.parent.mkdir(parents=True, exist_ok=True)
        Image.new("RGB", (8, 6), (entry["imgid"], 0, 0)).save(file)
    return write(folder / "dataset_coco.json", json.dumps({"images": entries, "dataset": "coco"}))


def test_karpathy_coco_has_its_splits(tmp_path: Path) -> None:
    file = save_coco(tmp_path)
    assert format_of(file) == "karpathy"
    trained = load_pairs(file, split="train")
    assert [path.name for path in trained.pictures] == [f"COCO_{number:012d}.jpg" for number in (0, 1, 5)]
    assert trained.pictures[1].parent.name == "val2014"
    assert trained.texts[0] == ["A train picture, number 0 .", "Another caption of 0."]
    assert len(load_pairs(file)) == 6
    assert [path.name[-6:-4] for path in load_for_evaluation(file).pictures] == ["03", "04"]


def test_training_on_karpathy_holds_out_its_val_split(tmp_path: Path) -> None:
    file = save_coco(tmp_path)
    loaded = json.loads(file.read_text())
    loaded["images"][3]["split"] = "val"
    file.write_text(json.dumps(loaded))
    trained, held = training_and_held_out(file)
    assert len(trained) == 3
    assert [path.name[-6:-4] for path in held.pictures] == ["02", "03"]
    assert training_and_held_out(file, held_out=0.0)[1] is None


@pytest.mark.parametrize("folder", ["", "images", "flickr30k-images"])
def test_flickr30k_in_karpathys_form(tmp_path: Path, folder: str) -> None:
    entries = []
    for number, name in enumerate(("1000092795.jpg", "10002456.jpg")):
        (tmp_path / folder).mkdir(exist_ok=True)
        Image.new("RGB", (5, 5)).save(tmp_path / folder / name)
        entry = coco_entry(number, "test")
        del entry["filepath"], entry["cocoid"]
        entries.append({**entry, "filename": name})
    file = write(tmp_path / "dataset_flickr30k.json", json.dumps({"images": entries, "dataset": "flickr30k"}))
    assert load_pairs(file, split="test").pictures[0] == tmp_path / folder / "1000092795.jpg"


TOKENS = (
    "1000092795.jpg#0\tTwo young guys with shaggy hair look at their hands .\n"
    "1000092795.jpg#1\tTwo young , White males are outside near many bushes .\n"
    "10002456.jpg#0\tSeveral men in hard hats are operating a giant pulley system .\n"
)


def save_flickr(folder: Path, tokens: str = TOKENS) -> Path:
    (folder / "flickr30k-images").mkdir(parents=True, exist_ok=True)
    for name in ("1000092795.jpg", "10002456.jpg"):
        Image.new("RGB", (5, 5)).save(folder / "flickr30k-images" / name)
    return write(folder / "results_20130124.token", tokens)


def test_flickr30k_in_its_own_form(tmp_path: Path) -> None:
    pairs = load_pairs(save_flickr(tmp_path))
    assert [path.name for path in pairs.pictures] == ["1000092795.jpg", "10002456.jpg"]
    assert [len(texts) for texts in pairs.texts] == [2, 1]
    assert pairs.texts[0][1] == "Two young , White males are outside near many bushes ."
    moved = tmp_path / "elsewhere"
    (tmp_path / "flickr30k-images").rename(moved)
    assert load_pairs(tmp_path / "results_20130124.token", images=moved).pictures[1] == moved / "10002456.jpg"


def broken(**changes: Any) -> str:
    entries = [coco_entry(0, "train"), {**coco_entry(1, "train"), **changes}]
    return json.dumps({"images": entries, "dataset": "coco"})


@pytest.mark.parametrize(
    ("name", "content", "message"),
    [
        ("dataset_coco.json", "{", r"dataset_coco\.json: not JSON .*line 1"),
        ("dataset_coco.json", '{"annotations": []}', r"expected Karpathy's"),
        ("dataset_coco.json", broken(filename=""), r"images\[1\]: expected a filename, got ''"),
        ("dataset_coco.json", broken(filename="no.jpg"), r"images\[1\]: no such picture: .*no\.jpg.*--images"),
        ("dataset_coco.json", broken(split="dev"), r"images\[1\]: expected a split of train, .* got 'dev'"),
        ("dataset_coco.json", broken(sentences=[]), r"images\[1\]: expected sentences, got \[\]"),
        (
            "dataset_coco.json",
            broken(sentences=[{"raw": "a"}, {"raw": " "}]),
            r"images\[1\], sentences\[1\]: expected a raw",
        ),
        ("dataset_coco.json", json.dumps({"images": [3]}), r"images\[0\]: expected an object, got int"),
        ("x.token", TOKENS + "10002456.jpg Several\n", r"x\.token, line 4: expected NAME#NUMBER"),
        ("x.token", TOKENS + "10002456.jpg#2\t\n", r"x\.token, line 4: expected NAME#NUMBER"),
        ("x.token", TOKENS + "9.jpg#0\tnine\n", r"x\.token, line 4: no such picture"),
        ("x.token", TOKENS[:10], r"x\.token, line 1"),
    ],
)
def test_bad_caption_files_name_the_entry(tmp_path: Path, name: str, content: str, message: str) -> None:
    save_coco(tmp_path)
    save_flickr(tmp_path)
    with pytest.raises(ValueError, match=message):
        load_pairs(write(tmp_path / name, content))


def add(tar: tarfile.TarFile, name: str, content: bytes) -> None:
    member = tarfile.TarInfo(name)
    member.size = len(content)
    tar.addfile(member, io.BytesIO(content))


def encoded(color: tuple[int, int, int], kind: str) -> bytes:
    stream = io.BytesIO()
    Image.new("RGB", (9, 7), color).save(stream, kind)
    return stream.getvalue()


def save_shard(file: Path, members: dict[str, bytes], mode: str = "w") -> Path:
    file.parent.mkdir(parents=True, exist_ok=True)
    with tarfile.open(file, mode) as tar:
        for name, content in members.items():
            add(tar, name, content)
    return file


def save_shards(folder: Path) -> None:
    """Two shards as img2dataset and ImageNet's converters write them; the second has a long name and a folder."""
    long = "a" * 120
    save_shard(
        folder / "000.tar",
        {
            "000000.jpg": encoded((200, 0, 0), "jpeg"),
            "000000.txt": b"a red picture\n",
            "000000.json": b'{"width": 9}',
            "000001.png": encoded((0, 200, 0), "png"),
            "000001.json": json.dumps({"captions": ["green", "not red"]}).encode(),
        },
    )
    save_shard(
        folder / "001.tar",
        {
            "__meta__": b"ignored",
            f"train/{long}.b.JPG": encoded((0, 0, 200), "jpeg"),
            f"train/{long}.txt": b"blue",
            "train/x.png": encoded((1, 2, 3), "png"),
            "train/x.txt": b"dark",
        },
    )


def test_webdataset_shards_are_read_in_place(tmp_path: Path) -> None:
    save_shards(tmp_path / "shards")
    before = sorted(tmp_path.rglob("*"))
    for source in (tmp_path / "shards" / "{000..001}.tar", tmp_path / "shards"):
        assert format_of(source) == "webdataset"
        with pytest.raises(ValueError, match=r"001\.tar, train/a+: expected one picture, got none"):
            load_pairs(source)  # "b.JPG" is an extension of its own, as in the webdataset library
    pairs = load_pairs(tmp_path / "shards" / "000.tar")
    assert pairs.texts == [["a red picture"], ["green", "not red"]]
    assert [read_picture(picture).getpixel((4, 4))[1] for picture in pairs.pictures] == [0, 200]
    assert FilePictures(pairs.pictures, ImageSettings(16)).pixels(0, 2).shape == (2, 16, 16, 3)
    assert sorted(tmp_path.rglob("*")) == before
    last = list(samples(tmp_path / "shards" / "001.tar"))[-1]
    assert (last.key, last.texts["txt"]) == ("train/x", b"dark")
    assert read_picture(last.pictures["png"]).getpixel((0, 0))[:3] == (1, 2, 3)


def test_a_range_of_shards_expands_with_its_zeros(tmp_path: Path) -> None:
    for number in (8, 9, 10):
        save_shard(tmp_path / f"d{number:03d}.tar", {})
    assert [path.name for path in shards_of(f"{tmp_path}/d{{008..010}}.tar")] == ["d008.tar", "d009.tar", "d010.tar"]
    with pytest.raises(ValueError, match=r"d011\.tar: no such shard \(of .*d\{008\.\.011\}\.tar\)"):
        load_pairs(f"{tmp_path}/d{{008..011}}.tar")
    with pytest.raises(ValueError, match="a range that rises"):
        load_pairs(f"{tmp_path}/d{{010..008}}.tar")
    (tmp_path / "empty").mkdir()
    with pytest.raises(ValueError, match=r"expected \.tar files in the folder, got none"):
        load_pairs(tmp_path / "empty", "webdataset")


def test_class_numbers_are_named_by_the_file_beside_the_shards(tmp_path: Path) -> None:
    members = {}
    for number, label in enumerate((1, 0, 1)):
        members |= {f"{number}.jpg": encoded((9, 9, 9), "jpeg"), f"{number}.cls": str(label).encode()}
    file = save_shard(tmp_path / "imagenet.tar", members)
    with pytest.raises(
        ValueError, match=r"imagenet\.tar, 0\.cls: expected its class 1 in classes\.txt .* no such file"
    ):
        load_pairs(file)
    write(tmp_path / "classes.txt", "tench\ngreat white shark\n")
    pairs = load_pairs(file)
    assert (pairs.labels, pairs.classes) == ([1, 0, 1], ["tench", "great white shark"])
    assert pairs.texts == [["great white shark"], ["tench"], ["great white shark"]]
    assert pairs.part([1]).labels == [0]


@pytest.mark.parametrize(
    ("members", "message"),
    [
        ({"a.jpg": b"x", "a.png": b"x", "a.txt": b"a"}, "s.tar, a: expected one picture, got jpg, png"),
        ({"a.txt": b"a"}, "s.tar, a: expected one picture, got none"),
        ({"a.jpg": b"x"}, "s.tar, a: expected a caption in .txt, .* got neither"),
        ({"a.jpg": b"x", "a.txt": b" "}, "s.tar, a: expected words, got an empty caption"),
        ({"a.jpg": b"x", "a.txt": b"\xff"}, "s.tar, a.txt: expected UTF-8"),
        ({"a.jpg": b"x", "a.json": b"{"}, "s.tar, a.json: not JSON"),
        ({"a.jpg": b"x", "a.json": b"[]"}, "s.tar, a: expected a caption in .txt, .* got .json"),
        ({"a.jpg": b"x", "a.cls": b"dog"}, "s.tar, a.cls: expected a class number, got 'dog'"),
        ({"a.jpg": b"x", "./a.jpg": b"x"}, "s.tar, a: expected one .jpg, got two"),
        ({"a.jpg": b"x", "a.txt": b"a"}, "s.tar: expected at least two pictures"),
        ({"a.jpg": b"x", "b.txt": b"b", "a.txt": b"a"}, "s.tar, a: expected a caption"),
    ],
)
def test_bad_samples_name_shard_and_key(tmp_path: Path, members: dict[str, bytes], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        load_pairs(save_shard(tmp_path / "s.tar", members))


def test_unreadable_shards_and_pictures_are_named(tmp_path: Path) -> None:
    save_shards(tmp_path)
    whole = (tmp_path / "000.tar").read_bytes()
    (tmp_path / "000.tar").write_bytes(whole[:1100])
    with pytest.raises(ValueError, match=r"000\.tar: not a readable, uncompressed tar"):
        load_pairs(tmp_path / "000.tar")
    zipped = save_shard(tmp_path / "z.tar.gz", {"a.jpg": b"x", "a.txt": b"a"}, "w:gz")
    with pytest.raises(ValueError, match=r"z\.tar\.gz: not a readable, uncompressed tar"):
        load_pairs(zipped)
    bad = save_shard(tmp_path / "bad.tar", {"a.jpg": b"no picture", "a.txt": b"a", "b.png": b"", "b.txt": b"b"})
    for picture, name in zip(load_pairs(bad).pictures, ("a.jpg", "b.png")):
        with pytest.raises(ValueError, match=rf"bad\.tar, {name}: not a readable picture"):
            read_picture(picture)


def test_features_of_a_shard_are_computed_again_when_it_changes(tmp_path: Path) -> None:
    save_shards(tmp_path)
    pictures = load_pairs(tmp_path / "000.tar").pictures
    assert isinstance(pictures[0], TarPicture)
    keys = {FilePictures(part, ImageSettings(16)).key() for part in (pictures, pictures[:1], pictures[1:])}
    assert len(keys) == 3
    (tmp_path / "000.tar").touch()
    with open(tmp_path / "000.tar", "ab") as stream:
        stream.write(bytes(512))
    assert FilePictures(pictures, ImageSettings(16)).key() not in keys


def test_class_folders_are_labelled(tmp_path: Path) -> None:
    for name, color in COLORS.items():
        (tmp_path / f"{name}_disc").mkdir()
        Image.new("RGB", (5, 5), color).save(tmp_path / f"{name}_disc" / "1.png")
    pairs = from_class_folders(tmp_path)
    assert pairs.classes == ["blue disc", "green disc", "grey disc", "red disc"]
    assert [path.parent.name for path in pairs.pictures] == ["blue_disc", "green_disc", "grey_disc", "red_disc"]
    assert pairs.labels == [0, 1, 2, 3]
    names = write(tmp_path.parent / "classes.txt", "red_disc\tcrimson\ngrey_disc\nblue_disc\n")
    with pytest.raises(ValueError, match=r"classes\.txt: .* got none for 'green_disc'"):
        from_class_folders(tmp_path, names)
    write(names, names.read_text() + "green_disc\n")
    ordered = from_class_folders(tmp_path, names)
    assert ordered.classes == ["crimson", "grey disc", "blue disc", "green disc"]
    assert [path.parent.name for path in ordered.pictures] == ["red_disc", "grey_disc", "blue_disc", "green_disc"]
    write(names, names.read_text() + "violet\n")
    with pytest.raises(ValueError, match="got 'violet', which it does not have"):
        from_class_folders(tmp_path, names)
    assert load_pairs(tmp_path, "classes").labels == [0, 1, 2, 3]


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"format": "tar"}, "format: expected one of csv, .* got 'tar'"),
        ({"split": "train"}, "split: expected none, as a folder source has no splits"),
        ({"images": Path("x")}, "images: expected none for a folder source"),
        ({"format": "csv"}, "expected a file for the format csv"),
    ],
)
def test_options_that_do_not_fit_are_refused(pictures: Path, options: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        load_pairs(pictures, **options)


def test_splits_and_image_folders_are_checked(tmp_path: Path) -> None:
    file = save_coco(tmp_path)
    with pytest.raises(ValueError, match=r"split: expected one of train, val, test for .* got 'dev'"):
        load_pairs(file, split="dev")
    with pytest.raises(ValueError, match="images: expected a folder of pictures, got nowhere"):
        load_pairs(file, images=Path("nowhere"))
    with pytest.raises(ValueError, match="at least two pictures with captions of its split val, got 1"):
        load_pairs(file, split="val")
