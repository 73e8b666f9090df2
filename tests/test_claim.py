"""bench/claim.py: every variant trains and is measured, and the report adds up what they found."""

from __future__ import annotations

import json
import statistics
from pathlib import Path
from typing import Any

import claim
import claim_report
import claim_why
import numpy as np
import pytest
import torch
from stair import STAIRModel, STAIRProcessor
from stair.baseline import DenseCLIP
from stair.data import EmojiSplit
from stair.demo import Material
from stair.emoji import Concept
from stair.head import TokenHead
from stair.pretrained import start_linear
from tiny_stair import save_checkpoint

import stair_kernels as sk

NAMES = ("red", "green", "blue", "fruit", "apple", "dog", "cat", "round", "sky", "night")
RECIPE = {"steps": 6, "batch": 4, "warmup": 1, "precision": "float32"}
SHARES = {"stages": "three", "warm": 0.2, "masked": 0.3, "expand": 0.2, "start_active": 20.0}


def start(folder: Path) -> tuple[STAIRModel, STAIRProcessor]:
    return STAIRModel.from_pretrained(folder), STAIRProcessor.from_pretrained(folder)


def ten_concepts() -> Material:
    concepts = [
        Concept(str(n), "", name, tuple(f"w{n + 10 * more}" for more in range(5))) for n, name in enumerate(NAMES)
    ]
    styles = ["openmoji", "twemoji", "noto-mono"]
    generator = np.random.default_rng(0)
    pictures = {style: np.ones((10, 1, 1, 3), np.uint8) for style in styles}
    features = {style: generator.normal(size=(10, 1, 4, 432)).astype(np.float16) for style in styles}
    return Material(concepts, EmojiSplit.draw(concepts), styles, pictures, features)


def test_all_variants_are_trained_measured_and_reported(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    save_checkpoint(tmp_path / "start")
    runs: dict[str, list[dict[str, Any]]] = {}
    for variant, more in (("clip", {"width": 8}), ("single", {}), ("three", SHARES)):
        for seed in (0, 1):
            recipe = {**RECIPE, **more, "seed": seed}
            result = claim.run_one(variant, ten_concepts(), recipe, lambda: start(tmp_path / "start"))
            (tmp_path / f"{variant}-{seed}.json").write_text(json.dumps(result))
            runs.setdefault(variant, []).append(result)
    assert {line["stage"] for line in runs["three"][0]["loss"]} == {0, 1, 2, 3}
    assert (
        runs["three"][0]["curve"]["256"]["seen"]["text to image"] == runs["three"][0]["recall"]["seen"]["text to image"]
    )
    assert max(runs["single"][0]["curve"]["4"]["seen"]["active"]) <= 4
    monkeypatch.setattr(claim_report, "RECORD", tmp_path / "claim.json")
    monkeypatch.setattr(claim_report, "PLOT", tmp_path / "claim.svg")
    page = tmp_path / "claim.md"
    page.write_text("".join(f"<!-- {t} -->\n<!-- end of {t} -->\n" for t in ("recall", "differences", "terms")))
    monkeypatch.setattr(claim_report, "PAGE", page)
    claim_report.report(tmp_path)
    printed = capsys.readouterr().out
    for variant in ("clip", "single", "three"):
        found = [run["recall"]["seen"]["text to image"][0] for run in runs[variant]]
        assert f"{statistics.fmean(found):.1f} ± {statistics.stdev(found) / 2**0.5:.1f}" in printed
    assert "<svg" in (tmp_path / "claim.svg").read_text()
    for line in page.read_text().splitlines():
        assert line.startswith("<!-- ") or line in printed
    assert page.read_text().count("\n|") > 12
    record = json.loads((tmp_path / "claim.json").read_text())
    assert [run["recipe"]["seed"] for run in record["single"]] == [0, 1]
    (tmp_path / "three-1.json").unlink()  # a seed counts once all variants have it
    claim_report.report(tmp_path)
    assert [run["recipe"]["seed"] for run in json.loads((tmp_path / "claim.json").read_text())["single"]] == [0]
    (tmp_path / "three-0.json").unlink()
    with pytest.raises(SystemExit, match="expected a seed with a run of each of clip, single, three"):
        claim_report.report(tmp_path)


def test_finished_runs_are_skipped(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    asked: list[tuple[str, int, float]] = []

    def fake(variant: str, material: Material, recipe: dict[str, Any]) -> dict[str, Any]:
        asked.append((variant, recipe["seed"], recipe["masked"]))
        recall = {name: {direction: [1.0, 2.0, 3.0] for direction in claim.DIRECTIONS} for name in claim.SETS}
        return {"variant": variant, "recipe": recipe, "recall": recall, "step_ms": 1.0}

    monkeypatch.setattr(claim, "run_one", fake)
    monkeypatch.setattr(claim, "initial_model", lambda: (None, None))
    monkeypatch.setattr(claim, "prepare", lambda *_, **__: ten_concepts())
    threads = str(torch.get_num_threads())
    arguments = ["run", "--out", str(tmp_path), "--seeds", "3", "4", "--threads", threads, "--set", "masked=0.5"]
    (tmp_path / "single-3.json").write_text("{}")
    assert claim.main(arguments) == 0
    assert claim.main(arguments) == 0
    assert asked == [(v, s, 0.5) for s in (3, 4) for v in ("clip", "single", "three") if (v, s) != ("single", 3)]


def test_naming_counts_the_word_pieces_of_name_and_keywords(tmp_path: Path) -> None:
    processor = start(save_checkpoint(tmp_path / "start"))[1]
    concept = Concept("1", "", "red apple", ("fruit", "red", "w70"))
    entries = [[processor.tokenizer.token_to_id(word) for word in ("fruit", "dog", "red", "[CLS]", "w3")] + [-1] * 5]
    indices = sk.SparseRows(torch.zeros(1, 10), torch.tensor(entries, dtype=torch.int32), None, 80).indices
    assert claim.naming(indices, [concept], processor) == [20.0, 40.0]


def test_the_parts_of_the_head_lead_from_clip_to_its_formula(tmp_path: Path) -> None:
    model, processor = start(save_checkpoint(tmp_path / "start"))
    texts, features = processor.encode(["red apple", "dog"]), torch.randn(2, 4, 432)
    plain, whole = claim_why.Parts(), claim_why.Parts(True, True, "transform")
    torch.manual_seed(0)
    clip = DenseCLIP(model, 8).eval()
    torch.manual_seed(0)
    same = claim_why.Between(model, plain, 8).eval()
    assert torch.equal(clip.encode_text(**texts), same.encode_text(**texts))
    assert torch.equal(clip.encode_image(image_features=features), same.encode_image(image_features=features))
    other = claim_why.Between(model, whole, 8).eval()
    head = model.image_head
    transformed = head.norm(torch.nn.functional.gelu(head.dense(other.image_tower(features))))
    row = torch.log1p(torch.relu(other.image_projection(transformed).amax(1)))
    expected = torch.nn.functional.normalize(row, dim=1)
    torch.testing.assert_close(other.encode_image(image_features=features), expected)
    fronts = {id(p) for front in (other.text_front, other.image_front) for p in front.parameters()}
    groups = claim_why.BetweenObjective(other).groups()
    assert len(fronts) == 8
    assert fronts <= {id(p) for group in groups for p in group["params"]}


def test_a_linear_start_is_the_layer_norm_alone() -> None:
    torch.manual_seed(0)
    head, hidden = TokenHead(64, 10), torch.randn(3, 5, 64)
    start_linear(head)
    found, wanted = head.inputs(hidden).hidden, torch.nn.functional.layer_norm(hidden, (64,))
    assert (found - wanted).abs().mean() < 0.1  # of values around 1
    with pytest.raises(ValueError, match=r"head: expected the same width before and after, got \[64, 32\]"):
        start_linear(TokenHead(32, 10, width=64))
