"""Where training starts: SPLADE-tiny's text tower and head, its words for images too; EfficientNet-lite0's features."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import torch
from safetensors.torch import load_file
from tokenizers import Tokenizer
from torch import Tensor, nn

from stair.emoji import lite0_file, splade_folder
from stair.encoders import NEVER
from stair.head import TokenHead
from stair.model import STAIRConfig, STAIRModel
from stair.processing import STAIRProcessor
from stair.vision import EfficientNetLite0


def initial_model(**config: Any) -> tuple[STAIRModel, STAIRProcessor]:
    """A model to train, from the published weights, and its processor. `config` goes to STAIRConfig.

    Raises:
        DemoDataMissingError: when the packages that hold the weights are not installed.
    """
    lite0 = lite0_file()
    tokenizer = Tokenizer.from_file(str(splade_folder() / "tokenizer.json"))
    model = STAIRModel(STAIRConfig({"vocab_size": tokenizer.get_vocab_size()}, **config))
    state = splade_state()
    load_text_tower(model, state)
    for head in (model.text_head, model.image_head):
        load_head(head, state)
        silence(head, tokenizer)
    start_linear(model.image_head)
    load_backbone(model.backbone, lite0)
    return model, STAIRProcessor(tokenizer, model.config.image_size)


def splade_state() -> dict[str, Tensor]:
    """SPLADE-tiny's tensors."""
    return {_current_name(name): part for name, part in load_file(str(splade_folder() / "model.safetensors")).items()}


def load_text_tower(model: STAIRModel, state: dict[str, Tensor]) -> None:
    """Takes over every tensor of the text tower; a missing one raises ValueError."""
    prefix = "bert."
    tower = {name[len(prefix) :]: tensor for name, tensor in state.items() if name.startswith(prefix)}
    missing, _ = model.text_tower.load_state_dict(tower, strict=False)
    wanted = [name for name in missing if "position_ids" not in name]
    if wanted:
        raise ValueError(f"text tower: expected a BERT checkpoint, but it has no {', '.join(wanted)}")


def load_head(head: TokenHead, state: dict[str, Tensor]) -> None:
    """Takes over a masked-language-model head: its transform, its bias and the word embeddings it shares."""
    transform = "cls.predictions.transform."
    names = {
        "dense.weight": f"{transform}dense.weight",
        "dense.bias": f"{transform}dense.bias",
        "norm.weight": f"{transform}LayerNorm.weight",
        "norm.bias": f"{transform}LayerNorm.bias",
        "weight": "bert.embeddings.word_embeddings.weight",
        "bias": "cls.predictions.bias",
    }
    head.load_state_dict({own: state[name] for own, name in names.items()})


@torch.no_grad()
def start_linear(head: TokenHead) -> None:
    """Makes a head's transform close to the identity, up to its LayerNorm, which takes the shift away again.

    norm(gelu(x + 2)) is nearly norm(x). The words' transform is made for words: on pictures it only slows training
    (docs/claim.md). Raises ValueError for a head that changes the width.
    """
    weight = head.dense.weight
    if weight.shape[0] != weight.shape[1]:
        raise ValueError(f"head: expected the same width before and after, got {list(weight.shape)}")
    nn.init.eye_(weight)
    nn.init.constant_(head.dense.bias, 2.0)
    head.norm.reset_parameters()


@torch.no_grad()
def silence(head: TokenHead, tokenizer: Tokenizer) -> None:
    """Keeps special and reserved word-pieces out of the rows for good."""
    for piece, index in tokenizer.get_vocab().items():
        if piece.startswith("[") and piece.endswith("]") and len(piece) > 2:
            head.bias[index] = NEVER


def load_backbone(backbone: EfficientNetLite0, file: Path) -> None:
    """Takes over the published weights; the file is read as tensors only."""
    backbone.load_published(torch.load(file, map_location="cpu", weights_only=True))


def _current_name(name: str) -> str:
    """LayerNorm's parameters under their names of today."""
    return name.replace("LayerNorm.gamma", "LayerNorm.weight").replace("LayerNorm.beta", "LayerNorm.bias")
