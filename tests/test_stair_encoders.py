"""STAIR on encoders of transformers, with small random configurations: towers, heads, ties, checkpoints, processors."""

from __future__ import annotations

import copy
import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image
from safetensors.torch import load_file, save_file
from stair import STAIRConfig, STAIRModel, STAIRProcessor
from stair.checkpoint import load
from stair.data import TrainingSet
from stair.datasets import Pairs
from stair.encoders import NEVER, load_encoders
from stair.evaluate import evaluate_pairs
from stair.explain import explain
from stair.features import FilePictures, PixelValues, features_of
from stair.loop import TrainConfig
from stair.losses import StairObjective, joint_loss
from stair.pictures import ImageSettings
from stair.train import train_pairs
from tiny_stair import save_checkpoint, save_pictures, tokenizer
from transformers import (
    AutoModel,
    AutoProcessor,
    BertConfig,
    BertForMaskedLM,
    BertModel,
    CLIPConfig,
    CLIPModel,
    CLIPTextConfig,
    CLIPVisionConfig,
    Dinov2Config,
    Dinov2WithRegistersConfig,
    DistilBertConfig,
    DistilBertForMaskedLM,
    PreTrainedTokenizerFast,
    RobertaConfig,
    SiglipVisionConfig,
    ViTConfig,
)

V, S = 80, 24
SPECIAL = [0, 2, 3, 4]  # [PAD], [CLS], [SEP], [MASK] of the tiny tokenizer
SIZES = {"num_hidden_layers": 2, "num_attention_heads": 2}
BERT = {"vocab_size": V, "hidden_size": 16, "intermediate_size": 24, **SIZES}
CLIP_TEXT = {**BERT, "max_position_embeddings": 20, "bos_token_id": 2, "eos_token_id": 3, "pad_token_id": 0}
DISTIL = {"vocab_size": V, "dim": 16, "hidden_dim": 24, "n_layers": 2, "n_heads": 2}
TEXT = {
    "bert": lambda: BertConfig(**BERT),
    "roberta": lambda: RobertaConfig(**BERT, pad_token_id=0),
    "distilbert": lambda: DistilBertConfig(**DISTIL),
    "clip": lambda: CLIPTextConfig(**CLIP_TEXT),
}
PICTURE = {"image_size": S, "patch_size": 8, "hidden_size": 20, **SIZES}
VISION = {
    "clip": lambda: CLIPVisionConfig(**PICTURE, intermediate_size=24),
    "vit": lambda: ViTConfig(**PICTURE, intermediate_size=24),
    "siglip": lambda: SiglipVisionConfig(**PICTURE, intermediate_size=24),
    "dinov2": lambda: Dinov2Config(**PICTURE, mlp_ratio=2),
    "registers": lambda: Dinov2WithRegistersConfig(**PICTURE, mlp_ratio=2, num_register_tokens=3),
}
FRONT = {"clip": 1, "vit": 1, "siglip": 0, "dinov2": 1, "registers": 4}  # CLS and register tokens
TEXTS = ["a red apple", "the blue night sky", "dog"]


def fast_tokenizer() -> PreTrainedTokenizerFast:
    names = {"cls": "[CLS]", "sep": "[SEP]", "pad": "[PAD]", "mask": "[MASK]", "unk": "[UNK]"}
    tokens = {f"{name}_token": token for name, token in names.items()}
    return PreTrainedTokenizerFast(tokenizer_object=tokenizer(), **tokens)


def make(text: str = "bert", vision: str = "vit", **config: Any) -> STAIRModel:
    given = {"special_token_ids": SPECIAL, **config}
    model = STAIRModel.from_encoders(TEXT[text](), VISION[vision](), **given)
    for head in (model.text_head, model.image_head):
        torch.nn.init.normal_(head.weight, std=0.5)
    return model.eval()


def inputs(count: int = 3) -> dict[str, torch.Tensor]:
    encoded = STAIRProcessor(tokenizer(), max_length=16).encode(TEXTS[:count])
    return {**encoded, "pixel_values": torch.randn(count, 3, S, S)}


def loss_of(model: STAIRModel, batch: dict[str, torch.Tensor], head: str) -> torch.Tensor:
    text = model.text_head_inputs(batch["input_ids"], batch["attention_mask"])
    image = model.image_head_inputs(batch["pixel_values"])
    return joint_loss(text, image, model.logit_scale, text_flops=0.1, image_flops=0.2, head=head).loss


def settings_of(config: Any) -> dict[str, Any]:
    """Without what from_pretrained adds."""
    return {key: value for key, value in config.to_dict().items() if key not in ("dtype", "_name_or_path")}


PAIRS = [("bert", "vit"), ("clip", "clip"), ("roberta", "siglip"), ("distilbert", "dinov2"), ("bert", "registers")]


@pytest.mark.parametrize(("text", "vision"), PAIRS)
def test_every_encoder_makes_rows_learns_and_survives_saving(tmp_path: Path, text: str, vision: str) -> None:
    model, batch = make(text, vision), inputs()
    with torch.no_grad():
        rows = model.encode_text(batch["input_ids"], batch["attention_mask"]), model.encode_image(batch["pixel_values"])
    assert [(row.shape, row.k) for row in rows] == [((3, V), 64), ((3, V), 128)]
    assert all(int(row.nnz().min()) > 0 for row in rows)
    assert int(rows[1].positions.max()) < model.config.positions == 9
    hidden = model.image_head_inputs(batch["pixel_values"]).hidden
    assert hidden.shape == (3, 9, 16)

    loss_of(model, batch, "fused").backward()
    grads = {name: p.grad.clone() for name, p in model.named_parameters() if p.grad is not None}
    unused = {name for name, _ in model.named_parameters()} - grads.keys()
    assert all("mask_token" in name or "post_layernorm" in name for name in unused), unused  # what no rows depend on
    model.zero_grad()
    loss_of(model, batch, "reference").backward()
    for name, p in model.named_parameters():
        if p.grad is not None:
            torch.testing.assert_close(grads[name], p.grad, atol=1e-5, rtol=1e-3, msg=name)

    model.save_pretrained(tmp_path)
    STAIRProcessor(tokenizer(), images=ImageSettings(S, "stretch"), special_token_ids=SPECIAL).save_pretrained(tmp_path)
    again, processor = load(tmp_path)
    assert type(again.text_tower) is type(model.text_tower)
    for part in ("text_config", "vision_config"):
        one, other = (settings_of(getattr(stair.config, part)) for stair in (model, again))
        assert one == other
    assert again.config.special_token_ids == processor.special_token_ids == SPECIAL
    with torch.no_grad():
        others = (
            again.encode_text(batch["input_ids"], batch["attention_mask"]),
            again.encode_image(batch["pixel_values"]),
        )
    for one, other in zip(rows, others):
        assert torch.equal(one.values, other.values)
        assert torch.equal(one.indices, other.indices)


@pytest.mark.parametrize("vision", VISION)
def test_special_tokens_of_pictures_are_left_out_or_come_last(vision: str) -> None:
    model, pixels = make(vision=vision), torch.randn(2, 3, S, S)
    encoder = model.image_tower.encoder
    with torch.no_grad():
        whole = encoder(pixel_values=pixels).last_hidden_state
        assert whole.shape[1] == 9 + FRONT[vision]
        assert torch.equal(model.image_tower(pixels), whole[:, FRONT[vision] :])
        model.image_tower.keep_special = True
        kept = model.image_tower(pixels)
    assert torch.equal(kept, torch.cat([whole[:, FRONT[vision] :], whole[:, : FRONT[vision]]], dim=1))


def test_special_tokens_of_texts_are_left_out_by_a_setting() -> None:
    batch = inputs()
    ids, mask = batch["input_ids"], batch["attention_mask"]
    without, with_them = make(), make(pool_special_tokens=True)
    want = mask & ~torch.isin(ids, torch.tensor(SPECIAL))
    assert torch.equal(without.text_mask(ids, mask), want)
    assert want.sum(1).tolist() == [3, 4, 1]
    assert torch.equal(with_them.text_mask(ids, mask), mask)
    rows = without.encode_text(ids, mask)
    assert not torch.isin(rows.positions[2], torch.tensor([0, 2])).any()
    nothing = without.encode_text(ids[:, :1], mask[:, :1])  # [CLS] alone
    assert nothing.nnz().tolist() == [0, 0, 0]


@pytest.mark.parametrize("tie", ["none", "text", "both"])
def test_vocabulary_matrices_are_tied_to_the_word_embeddings(tmp_path: Path, tie: str) -> None:
    model = STAIRModel.from_encoders(TEXT["bert"](), VISION["clip"](), special_token_ids=SPECIAL, tie_vocabulary=tie)
    words = model.text_tower.get_input_embeddings().weight
    assert (model.text_head.weight is words) == (tie != "none")
    assert (model.image_head.weight is words) == (tie == "both")
    groups = StairObjective(model).groups()
    listed = [id(p) for group in groups for p in group["params"]]
    assert len(listed) == len(set(listed)) == len(list(model.parameters()))
    with torch.no_grad():
        words.normal_()
    model.save_pretrained(tmp_path)
    saved = load_file(tmp_path / "model.safetensors")
    assert ("image_head.weight" in saved) == (tie != "both")
    again = STAIRModel.from_pretrained(tmp_path)
    assert (again.image_head.weight is again.text_tower.get_input_embeddings().weight) == (tie == "both")
    assert torch.equal(again.text_head.weight, model.text_head.weight)
    copied = copy.deepcopy(model)
    assert (copied.text_head.weight is copied.text_tower.get_input_embeddings().weight) == (tie != "none")


@pytest.mark.parametrize("vision", ["vit", "siglip"])
def test_a_frozen_image_tower_does_not_learn_and_its_output_can_be_kept(tmp_path: Path, vision: str) -> None:
    made = STAIRModel.from_encoders(TEXT["bert"](), VISION[vision](), special_token_ids=SPECIAL, freeze_image=True)
    assert not made.image_tower.training  # or its dropout would be in the features that are kept
    model, batch = make(vision=vision, freeze_image=True).train(), inputs()
    assert not model.image_tower.training
    assert model.text_tower.training
    loss_of(model, batch, "fused").backward()
    assert all(p.grad is None for p in model.image_tower.parameters())
    assert model.image_head.dense.weight.grad.abs().sum() > 0
    assert not {id(p) for p in model.image_tower.parameters()} & {
        id(p) for group in StairObjective(model).groups() for p in group["params"]
    }
    kept = model.image_features(batch["pixel_values"])
    assert (kept.shape, kept.dtype, kept.requires_grad) == ((3, 9, 20), torch.float32, False)
    model.eval()
    with torch.no_grad():
        direct, from_kept = model.encode_image(batch["pixel_values"]), model.encode_image(image_features=kept)
    assert torch.equal(direct.values, from_kept.values)
    with pytest.raises(ValueError, match=r"image_features: expected \[B, L, 20\], got \[3, 9, 21\]"):
        model.encode_image(image_features=torch.zeros(3, 9, 21))
    paths = sorted(save_pictures(tmp_path / "pictures").glob("*.png"))
    cached = features_of(model.backbone, FilePictures(paths, ImageSettings(S, "crop")), 1, cache=tmp_path / "cache")
    assert cached.shape == (4, 2, 9, 20)


def test_without_a_frozen_part_pixels_are_the_features() -> None:
    model, batch = make(), inputs()
    assert model.backbone is None
    assert model.image_features(batch["pixel_values"]) is batch["pixel_values"]
    rows = model.encode_image(image_features=batch["pixel_values"])
    assert torch.equal(rows.values, model.encode_image(batch["pixel_values"]).values)
    with pytest.raises(ValueError, match=r"pixel_values: expected \[B, 3, 24, 24\], got \[1, 3, 32, 32\]"):
        model.encode_image(torch.zeros(1, 3, 32, 32))


def save_clip(folder: Path) -> CLIPModel:
    torch.manual_seed(1)
    model = CLIPModel(
        CLIPConfig(text_config=CLIP_TEXT, vision_config={**PICTURE, "intermediate_size": 24}, projection_dim=8)
    )
    model.save_pretrained(folder)
    fast_tokenizer().save_pretrained(folder)
    clip = {"size": {"shortest_edge": S}, "crop_size": {"height": S, "width": S}, "do_center_crop": True}
    mean, spread = [0.48145466, 0.4578275, 0.40821073], [0.26862954, 0.26130258, 0.27577711]
    settings = {"image_processor_type": "CLIPImageProcessor", **clip, "image_mean": mean, "image_std": spread}
    (folder / "preprocessor_config.json").write_text(json.dumps(settings))
    return model


def test_published_towers_keep_their_weights(tmp_path: Path) -> None:
    published = save_clip(tmp_path / "clip").eval()
    model, processor = load_encoders(tmp_path / "clip", tmp_path / "clip")
    batch = inputs()
    with torch.no_grad():
        want = published.vision_model(pixel_values=batch["pixel_values"]).last_hidden_state[:, 1:]
        got = model.eval().image_tower(batch["pixel_values"])
        ids = {name: batch[name] for name in ("input_ids", "attention_mask")}
        words = published.text_model(**ids).last_hidden_state
    torch.testing.assert_close(got, want)
    torch.testing.assert_close(model.text_hidden(**ids), words)
    assert torch.equal(model.image_head.weight, published.text_model.get_input_embeddings().weight)
    assert (processor.max_length, processor.special_token_ids) == (20, SPECIAL)
    assert model.image_head.bias[SPECIAL].tolist() == [NEVER] * 4
    assert model.config.special_token_ids == SPECIAL
    model.save_pretrained(tmp_path / "stair")
    processor.save_pretrained(tmp_path / "stair")
    again = AutoProcessor.from_pretrained(tmp_path / "stair")
    assert isinstance(again, STAIRProcessor)
    assert (again.images, again.special_token_ids) == (processor.images, SPECIAL)
    assert isinstance(AutoModel.from_pretrained(tmp_path / "stair"), STAIRModel)


@pytest.mark.parametrize(
    ("kind", "config"), [(BertForMaskedLM, BertConfig(**BERT)), (DistilBertForMaskedLM, DistilBertConfig(**DISTIL))]
)
def test_the_text_head_starts_as_the_masked_lm_head(kind: Any, config: Any) -> None:
    language_model = kind(config).eval()
    with torch.no_grad():
        language_model.get_output_embeddings().bias.normal_()
    model = STAIRModel.from_encoders(language_model, VISION["vit"](), pool_special_tokens=True).eval()
    batch = inputs()
    ids = {name: batch[name] for name in ("input_ids", "attention_mask")}
    with torch.no_grad():
        want = torch.log1p(torch.relu(language_model(**ids).logits))
        want = want.masked_fill(~batch["attention_mask"][..., None], 0).amax(1)
        got = model.encode_text(**ids, k=V).to_dense()
    torch.testing.assert_close(got, want, atol=1e-5, rtol=1e-4)
    assert torch.equal(model.image_head.bias, model.text_head.bias)


def test_an_encoder_with_a_pooler_leaves_it_behind() -> None:
    text = BertModel(BertConfig(**BERT))
    assert text.pooler is not None
    model = STAIRModel.from_encoders(text, VISION["vit"](), special_token_ids=SPECIAL)
    assert torch.equal(model.text_tower.embeddings.word_embeddings.weight, text.embeddings.word_embeddings.weight)
    assert not any("pooler" in name for name in model.state_dict())


def test_image_settings_are_those_of_the_image_processor() -> None:
    from transformers.models.clip.image_processing_pil_clip import CLIPImageProcessorPil
    from transformers.models.siglip.image_processing_pil_siglip import SiglipImageProcessorPil

    drawn = np.random.default_rng(0).integers(0, 255, (41, 57, 3), dtype=np.uint8)
    for theirs in (
        CLIPImageProcessorPil(size={"shortest_edge": 30}, crop_size={"height": 24, "width": 24}),
        SiglipImageProcessorPil(size={"height": 24, "width": 24}),
    ):
        settings = ImageSettings.of_dict(theirs.to_dict())
        for picture in (Image.fromarray(drawn), Image.fromarray(drawn.transpose(1, 0, 2).copy())):
            want = torch.as_tensor(np.asarray(theirs(picture)["pixel_values"][0]))
            got = settings.normalize([settings.fitted(picture)])[0]
            torch.testing.assert_close(got, want.float(), atol=2e-2, rtol=0)  # a pixel value's step is 0.008 .. 0.015
    assert ImageSettings.of_dict({"size": 30, "do_center_crop": False, "do_normalize": False}).spread == (255.0,) * 3
    with pytest.raises(ValueError, match="size: expected a square image processor"):
        ImageSettings.of_dict({"size": {"height": 4, "width": 5}})
    with pytest.raises(ValueError, match="fit: expected one of pad, crop, stretch, got 'cover'"):
        ImageSettings(fit="cover")


def test_a_checkpoint_of_before_means_the_same(tmp_path: Path) -> None:
    """Flat names of the light tower's settings, the backbone beside the tower, a processor without settings."""
    model, processor = load(save_checkpoint(tmp_path / "now"))
    state = {name.replace("image_tower.backbone", "backbone"): p for name, p in model.state_dict().items()}
    (tmp_path / "before").mkdir()
    save_file(state, tmp_path / "before" / "model.safetensors", metadata={"format": "pt"})
    text = {key: value for key, value in BERT.items() if key != "intermediate_size"}
    config = {
        "architectures": ["STAIRModel"], "model_type": "stair", "dtype": "float32",
        "head": "fused", "text_k": 16, "image_k": 24,
        "image_size": 32, "image_pool": 1, "image_layers": 1, "image_heads": 2, "image_mlp": 16, "image_dropout": 0.1,
        "text_config": {**text, "intermediate_size": 16, "num_hidden_layers": 1}, "logit_scale": 20.0,
    }  # fmt: skip
    (tmp_path / "before" / "config.json").write_text(json.dumps(config))
    (tmp_path / "before" / "processor_config.json").write_text('{"image_size": 32, "max_length": 16}')
    (tmp_path / "before" / "tokenizer.json").write_text(tokenizer().to_str())
    older, its_processor = load(tmp_path / "before")
    assert older.config.pool_special_tokens
    batch = inputs()
    picture = Image.new("RGB", (9, 5), (200, 10, 10))
    with torch.no_grad():
        for left, right in (
            (model.encode_text(**processor(text=TEXTS)), older.encode_text(**its_processor(text=TEXTS))),
            (model.encode_image(**processor(images=picture)), older.encode_image(**its_processor(images=picture))),
        ):
            assert torch.equal(left.values, right.values)
    assert batch["input_ids"].shape == its_processor(text=TEXTS)["input_ids"].shape


@pytest.mark.parametrize("freeze", [False, True])
def test_encoders_are_trained_on_pictures_and_captions(tmp_path: Path, freeze: bool) -> None:
    save_clip(tmp_path / "clip")
    before = load_encoders(tmp_path / "clip", tmp_path / "clip")[0].state_dict()
    paths = sorted(save_pictures(tmp_path / "pictures").glob("*.png"))
    pairs = Pairs(paths, [[path.stem] for path in paths])
    config = TrainConfig(
        steps=3,
        batch=4,
        precision="float32",
        text_encoder=str(tmp_path / "clip"),
        image_encoder=str(tmp_path / "clip"),
        freeze_image=freeze,
        tie_vocabulary="both",
    )
    assert train_pairs(config, pairs, tmp_path / "out", cache=tmp_path / "cache").steps == 3
    assert (tmp_path / "cache").exists() == freeze  # pixels are read again, a frozen tower's output is kept
    model, processor = load(tmp_path / "out")
    assert all(p.requires_grad != freeze for p in model.image_tower.parameters())
    after = model.state_dict()
    changed = {name for name in after if not torch.equal(after[name], before[name])}
    assert {"text_head.dense.weight", "image_head.dense.weight"} <= changed
    assert any(name.startswith("image_tower") for name in changed) != freeze
    assert any(name.startswith("text_tower") for name in changed)
    found = evaluate_pairs(model, processor, pairs, cache=tmp_path / "cache")
    assert [recall.count for recall in found.recalls] == [4, 4]


def test_pixel_values_are_altered_the_same_way_every_time(tmp_path: Path) -> None:
    paths = sorted(save_pictures(tmp_path).glob("*.png"))
    settings = ImageSettings(S, "stretch")
    values, again = (PixelValues(FilePictures(paths, settings), 2) for _ in range(2))
    assert values.shape == (4, 3, 3, S, S)
    plain = settings.normalize([settings.fitted(Image.open(paths[1]))])[0].numpy()
    assert np.array_equal(values[1, 0], plain)
    assert np.array_equal(values[1, 2], again[1, 2])
    assert len({values[1, copy].tobytes() for copy in range(3)}) == 3
    drawn = TrainingSet([values], np.arange(4), lambda item, _: "a").pictures
    whole = drawn([0, 1, 2, 3], np.random.default_rng(0))
    part = drawn([0, 1, 2, 3], np.random.default_rng(0), slice(2, 4))
    assert np.array_equal(whole[2:], part)


def test_explanations_name_the_special_tokens_of_a_picture() -> None:
    model = make(vision="registers", pool_special_tokens=True)
    processor = STAIRProcessor(tokenizer(), images=ImageSettings(S, "stretch"), special_token_ids=SPECIAL)
    found = explain(model, processor, text="a red apple", image=Image.new("RGB", (30, 30), (250, 0, 0)), k=V)
    assert found.grid == 3
    assert "whole picture" in {term.where for term in found.image_terms}
    assert {term.where for term in found.image_terms if term.position < 9} <= {
        f"{words} ({row + 1}, {column + 1})"
        for row, down in enumerate(("top", "", "bottom"))
        for column, across in enumerate(("left", "", "right"))
        for words in [" ".join(part for part in (down, across) if part) or "centre"]
    }


@pytest.mark.parametrize(
    ("make_it", "message"),
    [
        (lambda: STAIRModel.from_encoders("bert", VISION["vit"](), special_token_ids=[0]), "text: expected an encoder"),
        (lambda: make(vision="vit", special_token_ids=[]), "special_token_ids: expected the tokenizer's"),
        (lambda: load_encoders("/nowhere", "/nowhere"), "text, image: expected encoders, got /nowhere and /nowhere"),
        (
            lambda: STAIRConfig(vision_config=ViTConfig(image_size=[24, 32])).image_size,
            r"vision_config: expected a square image_size, got \[24, 32\]",
        ),
    ],
)
def test_what_does_not_fit_is_named(make_it: Any, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        make_it()
