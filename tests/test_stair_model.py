"""STAIRModel, its heads, its frozen backbone and its processor."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image
from stair import STAIRConfig, STAIRModel, STAIRProcessor
from stair.head import TokenHead
from stair.losses import joint_loss
from stair.pictures import ImageSettings, fit_square
from stair.vision import FEATURE_WIDTH, EfficientNetLite0, FrozenConv
from tiny_stair import save_checkpoint, save_pictures, tokenizer
from torch import nn
from torch.nn import functional as F
from transformers import AutoConfig, AutoModel

import stair_kernels as sk

TEXTS = ["a red apple", "the blue night sky", "dog"]


@pytest.fixture
def model(tmp_path: Path) -> STAIRModel:
    return STAIRModel.from_pretrained(save_checkpoint(tmp_path / "model")).eval()


@pytest.fixture
def processor() -> STAIRProcessor:
    return STAIRProcessor(tokenizer(), image_size=32, max_length=16)


@pytest.fixture
def pictures(tmp_path: Path) -> list[Image.Image]:
    return [Image.open(file) for file in sorted(save_pictures(tmp_path / "pictures").glob("*.png"))]


def pooled(head: TokenHead, hidden: torch.Tensor, mask: torch.Tensor) -> torch.Tensor:
    """The docstring of TokenHead in float64."""
    double = {name: value.double() for name, value in head.state_dict().items()}
    inner = F.gelu(F.linear(hidden.double(), double["dense.weight"], double["dense.bias"]))
    inner = F.layer_norm(inner, inner.shape[-1:], double["norm.weight"], double["norm.bias"], 1e-12)
    logits = (inner @ double["weight"].T + double["bias"]).masked_fill(~mask[..., None], -torch.inf)
    return torch.log1p(torch.relu(logits.amax(dim=1)))


@pytest.mark.parametrize("kind", ["fused", "reference"])
def test_token_head_is_its_formula(kind: str) -> None:
    head = TokenHead(16, 80, kind)
    nn.init.normal_(head.weight)
    nn.init.normal_(head.bias)
    hidden, mask = torch.randn(3, 5, 16), torch.tensor([[1, 1, 0, 0, 0], [1, 1, 1, 1, 1], [1, 0, 0, 0, 0]]).bool()
    expected = pooled(head, hidden, mask)
    rows = head(hidden, mask, k=80)
    torch.testing.assert_close(rows.to_dense().double(), expected, atol=1e-5, rtol=1e-5)
    few = head(hidden, mask, k=4)
    torch.testing.assert_close(few.values.double(), expected.topk(4).values, atol=1e-5, rtol=1e-5)


def test_fused_and_reference_losses_have_the_same_value_and_gradients(
    model: STAIRModel, processor: STAIRProcessor, pictures: list[Image.Image]
) -> None:
    tensors = processor(text=TEXTS, images=pictures[:3])
    found = {}
    for head in ("fused", "reference"):
        model.zero_grad()
        loss = joint_loss(
            model.text_head_inputs(tensors["input_ids"], tensors["attention_mask"]),
            model.image_head_inputs(tensors["pixel_values"]),
            model.logit_scale,
            text_flops=0.1,
            image_flops=0.2,
            head=head,
        )
        loss.loss.backward()
        grads = {name: p.grad.clone() for name, p in model.named_parameters() if p.grad is not None}
        found[head] = torch.stack([value.detach() for value in loss]), grads
    torch.testing.assert_close(found["fused"][0], found["reference"][0], atol=1e-5, rtol=1e-4)
    assert found["fused"][1].keys() == found["reference"][1].keys()
    assert {"log_scale", "text_head.weight", "image_head.bias", "image_tower.position"} <= found["fused"][1].keys()
    for name, grad in found["fused"][1].items():
        torch.testing.assert_close(grad, found["reference"][1][name], atol=1e-5, rtol=1e-3, msg=name)


def test_a_saved_model_gives_the_same_rows(
    model: STAIRModel, processor: STAIRProcessor, pictures: list[Image.Image], tmp_path: Path
) -> None:
    model.save_pretrained(tmp_path / "copy")
    processor.save_pretrained(tmp_path / "copy")
    copy = AutoModel.from_pretrained(tmp_path / "copy").eval()
    again = STAIRProcessor.from_pretrained(tmp_path / "copy")
    assert isinstance(copy, STAIRModel)
    assert isinstance(AutoConfig.from_pretrained(tmp_path / "copy"), STAIRConfig)
    for name, tensor in model.state_dict().items():
        assert copy.state_dict()[name].dtype == tensor.dtype, name
        assert torch.equal(copy.state_dict()[name], tensor), name
    assert copy.backbone.stem.weight.dtype == torch.bfloat16
    with torch.no_grad():
        for one, other in (
            (model.encode_text(**processor(text=TEXTS)), copy.encode_text(**again(text=TEXTS))),
            (model.encode_image(**processor(images=pictures)), copy.encode_image(**again(images=pictures))),
        ):
            assert torch.equal(one.values, other.values)
            assert torch.equal(one.indices, other.indices)
    assert one.k == model.config.image_k


def test_kept_features_stand_for_pixels(
    model: STAIRModel, processor: STAIRProcessor, pictures: list[Image.Image]
) -> None:
    pixels = processor(images=pictures)["pixel_values"]
    features = model.image_features(pixels)
    assert features.shape == (len(pictures), 4, FEATURE_WIDTH)
    assert features.dtype == torch.float32
    with torch.no_grad():
        direct, kept = model.encode_image(pixels), model.encode_image(image_features=features)
    assert torch.equal(direct.values, kept.values)
    assert int(direct.positions.max()) < model.config.positions


def test_padding_does_not_change_a_text(model: STAIRModel, processor: STAIRProcessor) -> None:
    with torch.no_grad():
        together = model.encode_text(**processor(text=TEXTS))
        alone = model.encode_text(**processor(text=TEXTS[2:]))
    torch.testing.assert_close(together[2:3].to_dense(), alone.to_dense(), atol=1e-5, rtol=1e-5)


def test_pooled_positions_average_what_the_tower_gives() -> None:
    shape = {"image_size": 80, "num_hidden_layers": 0}
    whole = STAIRModel(STAIRConfig(vision_config={"pool": 1, **shape})).eval().image_tower
    halved = STAIRModel(STAIRConfig(vision_config={"pool": 2, **shape})).eval().image_tower
    for tower in (whole, halved):
        tower.final_norm = nn.Identity()
        nn.init.zeros_(tower.position)
    halved.project = whole.project
    features = torch.randn(2, 25, FEATURE_WIDTH)
    square = whole(features).unflatten(1, (5, 5))
    expected = [square[:, i : i + 2, j : j + 2].mean(dim=(1, 2)) for i in (0, 2, 4) for j in (0, 2, 4)]
    torch.testing.assert_close(halved(features), torch.stack(expected, 1), atol=1e-5, rtol=1e-5)
    assert STAIRConfig(vision_config={"pool": 2, **shape}).positions == 9
    assert STAIRConfig(vision_config={"pool": 1, **shape}).positions == 25


def test_the_backbone_is_frozen(model: STAIRModel) -> None:
    assert not any("backbone" in name for name, _ in model.named_parameters())
    assert any(name.startswith("image_tower.backbone") for name in model.state_dict())
    assert not model.image_features(torch.zeros(1, 3, 32, 32)).requires_grad


def test_folding_a_batch_norm_keeps_the_convolution() -> None:
    conv, norm = nn.Conv2d(4, 6, 3, bias=False), nn.BatchNorm2d(6, eps=1e-3).eval()
    for tensor in (norm.weight, norm.bias, norm.running_mean, norm.running_var):
        nn.init.uniform_(tensor, 0.5, 1.5)
    folded = FrozenConv(4, 6, 3).float()
    folded.fold(conv.weight, norm.state_dict())
    x = torch.randn(2, 4, 7, 7)
    torch.testing.assert_close(folded(x)[..., 1:-1, 1:-1], norm(conv(x)), atol=1e-5, rtol=1e-4)


@pytest.mark.parametrize("size", [16, 32, 112])
def test_backbone_maps_every_sixteenth_pixel(size: int) -> None:
    features = EfficientNetLite0()(torch.zeros(2, 3, size, size))
    assert features.shape == (2, (size // 16) ** 2, FEATURE_WIDTH)


def test_pictures_are_put_on_white_in_the_middle() -> None:
    wide = Image.new("RGBA", (40, 20), (255, 0, 0, 255))
    square = fit_square(wide, 40)
    assert square.shape == (40, 40, 3)
    assert (square[:8] == 255).all()
    assert (square[32:] == 255).all()
    assert (square[14:26] == [255, 0, 0]).all()
    assert (fit_square(Image.new("RGBA", (8, 8), (0, 0, 0, 0)), 16) == 255).all()
    assert fit_square(Image.new("L", (3, 9), 0), 16).shape == (16, 16, 3)


def test_pixels_are_scaled_as_the_backbone_expects() -> None:
    values = ImageSettings(1).normalize(np.array([[[[127, 255, 0]]]], np.uint8))
    assert values.flatten().tolist() == [0.0, 1.0, -127 / 128]


def test_processor_names_every_entry(processor: STAIRProcessor) -> None:
    words = processor.vocabulary()
    assert len(words) == processor.vocab_size == 80
    assert words[processor(text="apple")["input_ids"][0, 1]] == "apple"
    with pytest.raises(ValueError, match=r"index: expected .* in \[0, 80\), got 80"):
        processor.term(80)


def test_text_is_padded_masked_and_cut(processor: STAIRProcessor) -> None:
    tensors = processor(text=["dog", "a red apple", "night " * 40])
    assert tensors["input_ids"].shape == (3, 16)
    assert tensors["attention_mask"].dtype == torch.bool
    assert tensors["attention_mask"].sum(1).tolist() == [3, 5, 16]


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({}, "text, images: expected at least one"),
        ({"text": ""}, "text: expected words, got ''"),
        ({"text": ["dog", "  "]}, "number 2 of 2"),
        ({"text": [3]}, "text: expected words, got 3"),
        ({"images": ["dog.png"]}, "images: expected PIL pictures, got str"),
    ],
)
def test_processor_refuses(processor: STAIRProcessor, arguments: dict, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        processor(**arguments)


def test_model_refuses_wrong_shapes(model: STAIRModel) -> None:
    ids, mask = torch.zeros(1, 3, dtype=torch.int64), torch.ones(1, 4, dtype=torch.bool)
    with pytest.raises(ValueError, match=r"input_ids, attention_mask: .* got \[1, 3\] and \[1, 4\]"):
        model.encode_text(ids, mask)
    with pytest.raises(ValueError, match=r"pixel_values: expected \[B, 3, 32, 32\], got \[1, 3, 16, 16\]"):
        model.encode_image(torch.zeros(1, 3, 16, 16))
    with pytest.raises(ValueError, match=r"image_features: expected \[B, 4, 432\], got \[1, 49, 432\]"):
        model.encode_image(image_features=torch.zeros(1, 49, 432))
    with pytest.raises(ValueError, match="expected exactly one"):
        model.encode_image()


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"head": "fast"}, "head: expected one of fused, reference, got 'fast'"),
        ({"vision_config": {"image_size": 100}}, "image_size: expected a positive multiple of 16, got 100"),
        ({"vision_config": {"pool": 0}}, "pool: expected at least 1, got 0"),
        ({"tie_vocabulary": "all"}, "tie_vocabulary: expected one of none, text, both, got 'all'"),
        ({"pool_special_tokens": False}, "special_token_ids: expected the tokenizer's"),
    ],
)
def test_config_refuses(arguments: dict, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        STAIRConfig(**arguments)


def test_a_folder_without_a_processor_is_named(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="expected a STAIR checkpoint, but it has no"):
        STAIRProcessor.from_pretrained(tmp_path)


def test_fused_rows_are_sparse_rows_of_the_vocabulary(model: STAIRModel, processor: STAIRProcessor) -> None:
    with torch.no_grad():
        head = model.text_head_inputs(**processor(text=TEXTS))
        rows = model.encode_text(**processor(text=TEXTS), k=7)
    assert rows.shape == (3, 80)
    assert rows.k == 7
    expected = sk.reference.vocab_topk(*head, k=7)
    assert torch.equal(rows.indices, expected.indices)
    torch.testing.assert_close(rows.values, expected.values, atol=1e-5, rtol=1e-5)
