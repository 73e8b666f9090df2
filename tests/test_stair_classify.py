"""Zero-shot classification, the linear probe, and the command that asks for them."""

from __future__ import annotations

import io
import json
import tarfile
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from stair.checkpoint import load
from stair.classify import class_rows, fit_logistic, linear_probe, zero_shot
from stair.cli import app
from stair.datasets import Pairs
from stair.evaluate import encode_texts, unit
from stair.formats.documents import as_csr
from tiny_stair import COLORS, save_checkpoint, save_pictures
from typer.testing import CliRunner, Result

import stair_kernels as sk

CLASSES = ["red", "green", "blue", "grey"]


@pytest.fixture(scope="module")
def place(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """model/, and the discs in a folder of their colour: test/red/red.png and so on."""
    folder = tmp_path_factory.mktemp("classes")
    save_checkpoint(folder / "model")
    pictures = save_pictures(folder / "pictures")
    for part in ("train", "test"):
        for name in COLORS:
            (folder / part / name).mkdir(parents=True)
            for copy in range(2):
                (folder / part / name / f"{copy}.png").write_bytes((pictures / f"{name}.png").read_bytes())
    return folder


def labelled(count: int, classes: int = 4) -> Pairs:
    labels = [number % classes for number in range(count)]
    return Pairs([Path("x.png")] * count, [["x"]] * count, labels, CLASSES[:classes])


def rows_of(dense: Any) -> sk.SparseRows:
    tensor = torch.as_tensor(dense, dtype=torch.float32)
    return sk.SparseRows.from_dense(tensor, tensor.shape[1])


def test_a_class_is_the_mean_of_its_templates(place: Path) -> None:
    model, processor = load(place / "model")
    rows = class_rows(model, processor, ["dog", "red apple"], ["a {}", "the {} and a {}"])
    texts = ["a dog", "the dog and a dog", "a red apple", "the red apple and a red apple"]
    each = torch.nn.functional.normalize(encode_texts(model, processor, texts).to_dense(), dim=1)
    want = torch.nn.functional.normalize(each.unflatten(0, (2, 2)).sum(1), dim=1)
    torch.testing.assert_close(rows.to_dense(), want)


def test_zero_shot_takes_the_most_similar_class(place: Path) -> None:
    model, processor = load(place / "model")
    classes = class_rows(model, processor, CLASSES, ["a {}"])
    good = sk.SparseRows.cat([classes, classes])
    found = zero_shot(model, processor, good, labelled(8), ["a {}"])
    assert (found.count, found.classes, found.top1, found.top5) == (8, 4, 100.0, 100.0)
    shifted = sk.SparseRows.cat([classes[1:], classes[:1]])
    assert zero_shot(model, processor, shifted, labelled(4), ["a {}"]).top1 == 0.0
    empty = rows_of(torch.zeros(4, classes.vocab_size))
    assert zero_shot(model, processor, empty, labelled(4), ["a {}"]).top5 == 0.0
    twins = Pairs([Path("x.png")] * 2, [["x"]] * 2, [0, 1], ["dog", "dog"])  # a tie counts against
    assert zero_shot(model, processor, classes[:2], twins, ["a {}"]).top1 == 0.0


def test_the_probe_is_sklearns_logistic_regression() -> None:
    linear_model = pytest.importorskip("sklearn.linear_model")
    generator = np.random.default_rng(0)
    x = as_csr(unit(rows_of(generator.random((60, 20)) * (generator.random((60, 20)) < 0.3)))).astype(np.float64)
    labels = generator.integers(3, size=60)
    for strength in (0.5, 5.0):
        weight, bias = fit_logistic(x, labels, 3, strength)
        theirs = linear_model.LogisticRegression(C=strength, tol=1e-8, max_iter=5000).fit(x, labels)
        np.testing.assert_allclose(weight.T, theirs.coef_, atol=2e-3)
        np.testing.assert_allclose(bias - bias.mean(), theirs.intercept_ - theirs.intercept_.mean(), atol=2e-3)


def test_the_probe_learns_classes_and_ties_count_against() -> None:
    generator = np.random.default_rng(1)
    labels = np.arange(40) % 4
    dense = 0.1 * generator.random((40, 30))
    dense[np.arange(40), labels] += 1.0
    train, test = (rows_of(dense[:20]), labelled(20)), (rows_of(dense[20:]), labelled(20))
    found = linear_probe(train, test, strength=10.0)
    assert (found.method, found.count, found.top1) == ("linear probe", 20, 100.0)
    assert found.image_active == pytest.approx(30)
    unseen = np.zeros((4, 30))
    unseen[:, 29] = 1.0
    dense[:20, 29] = 0.0  # a term that no training picture has: all classes score the same
    same = linear_probe((rows_of(dense[:20]), labelled(20)), (rows_of(unseen), labelled(4)), strength=10.0)
    assert same.top1 <= 25.0
    with pytest.raises(ValueError, match="classes: expected those of the training pictures"):
        linear_probe(train, (rows_of(dense[:3]), labelled(3, 3)))


@pytest.mark.parametrize(
    ("templates", "message"),
    [([], "templates: expected at least one, got none"), (["a dog"], r"templates: expected \{\} .* got 'a dog'")],
)
def test_bad_templates_are_refused(place: Path, templates: list[str], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        class_rows(*load(place / "model"), ["dog"], templates)


def stair(place: Path, *args: object) -> Result:
    environment = {"STAIR_CACHE": str(place / "cache"), "COLUMNS": "160"}
    return CliRunner().invoke(app, ["eval", *map(str, args), "--model", str(place / "model")], env=environment)


def test_eval_classifies_class_folders(place: Path) -> None:
    (place / "classes.txt").write_text("red\tred apple\ngreen\ngrey\tnight\nblue\n")
    (place / "templates.txt").write_text("a {}\n\nthe {} fruit\n")
    args = ["--zero-shot", place / "classes.txt", "--templates", place / "templates.txt"]
    shown = stair(place, place / "test", *args, "--linear-probe", place / "train", "--strength", 100, "--json")
    assert shown.exit_code == 0, shown.stderr
    found = json.loads(shown.stdout)
    assert found["zero_shot"]["count"] == found["linear_probe"]["count"] == 8
    assert found["zero_shot"]["classes"] == 4
    assert found["linear_probe"]["top1"] == 100.0  # the pictures are those of training
    model, processor = load(place / "model")
    names = ["red apple", "green", "night", "blue"]
    active = class_rows(model, processor, names, ["a {}", "the {} fruit"]).nnz().float().mean()
    assert found["zero_shot"]["text_active"] == pytest.approx(float(active))
    table = stair(place, place / "test", "--linear-probe", place / "train")
    assert "linear probe" in table.stdout
    assert "zero-shot" not in table.stdout


def test_eval_classifies_tars(place: Path) -> None:
    with tarfile.open(place / "c.tar", "w") as tar:
        for number, name in enumerate(COLORS):
            content = (place / "pictures" / f"{name}.png").read_bytes()
            for member, data in ((f"{number}.png", content), (f"{number}.cls", str(number).encode())):
                info = tarfile.TarInfo(member)
                info.size = len(data)
                tar.addfile(info, io.BytesIO(data))
    (place / "names.txt").write_text("\n".join(COLORS) + "\n")
    shown = stair(place, place / "c.tar", "--zero-shot", place / "names.txt", "--json")
    assert shown.exit_code == 0, shown.stderr
    assert json.loads(shown.stdout)["zero_shot"]["count"] == 4


@pytest.mark.parametrize(
    ("args", "phrase"),
    [
        (["test", "--templates", "names.txt"], "--templates: expected --zero-shot with it"),
        (["pictures", "--zero-shot", "none.txt"], "expected a folder for each class, got none"),
        (["test", "--zero-shot", "none.txt"], "none.txt: no such file; expected a class a line"),
        (["test", "--linear-probe", "train", "--split", "test"], "--split, --images: expected neither"),
        (["model/config.json", "--linear-probe", "train"], "expected pictures with classes"),
    ],
)
def test_eval_says_what_does_not_fit(place: Path, args: list[str], phrase: str) -> None:
    failed = stair(place, *[place / word if number == 0 or "/" in word or "." in word or word == "train" else word
                            for number, word in enumerate(args)])  # fmt: skip
    assert failed.exit_code == 2, failed.output
    assert failed.stderr.count("\n") == 1
    assert phrase in failed.stderr
