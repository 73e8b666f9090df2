"""A STAIR model out of two encoders of transformers: their weights, and where its vocabulary heads start."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import torch
from torch import nn
from transformers import AutoConfig, AutoModelForMaskedLM, AutoTokenizer, PretrainedConfig, PreTrainedModel

from stair.configuration import STAIRConfig
from stair.model import STAIRModel
from stair.pictures import ImageSettings
from stair.processing import STAIRProcessor
from stair.towers import encoder_class, encoder_options

NEVER = -1e4  # the bias of an entry that means nothing to a reader: no logit lifts it above zero


def load_encoders(
    text: Path | str, image: Path | str, *, max_length: int = 64, **config: Any
) -> tuple[STAIRModel, STAIRProcessor]:
    """(model, processor) on published encoders, by folder or by name; special tokens are left out of the pooling.

    Args:
        text, image: of an encoder, of a masked language model, or of a model with two towers such as CLIP.
        max_length: longest text in tokens; never more than the encoder has positions.
        config: as for STAIRModel.from_encoders.

    Raises:
        ValueError: nothing loadable is there, or it does not fit.
    """
    try:
        text_encoder, image_encoder = _load(text, "text_config"), _load(image, "vision_config")
        tokenizer = AutoTokenizer.from_pretrained(text)
        settings = ImageSettings.of_encoder(image)
    except OSError as error:
        lines = str(error).strip().splitlines()
        raise ValueError(f"text, image: expected encoders, got {text} and {image} ({lines[0]})") from error
    longest = getattr(text_encoder.config, "max_position_embeddings", max_length)
    processor = STAIRProcessor.from_tokenizer(tokenizer, settings, min(max_length, longest))
    given = {"special_token_ids": processor.special_token_ids, **config}
    model = STAIRModel.from_encoders(text_encoder, image_encoder, **given)
    size = model.config.image_size
    if settings.size != size:
        raise ValueError(f"image: expected pictures of {size} x {size} for {image}, its settings say {settings.size}")
    return model, processor


def assemble(text: Any, image: Any, **config: Any) -> STAIRModel:
    """STAIRModel.from_encoders."""
    language_model = text if _is_masked_lm(text) else None
    text = text if language_model is None else language_model.base_model
    configs = [part.config if isinstance(part, PreTrainedModel) else part for part in (text, image)]
    for name, part in zip(("text", "image"), configs):
        if not isinstance(part, PretrainedConfig):
            raise ValueError(f"{name}: expected an encoder of transformers or its configuration, got {type(part)}")
    model = STAIRModel(STAIRConfig(configs[0], configs[1], **{"pool_special_tokens": False, **config}))
    for name, part, tower in (
        ("text", text, model.text_tower),
        ("image", image, getattr(model.image_tower, "encoder", None)),
    ):
        if isinstance(part, PreTrainedModel):
            _take_over(name, part, tower)
    if isinstance(text, PreTrainedModel):
        _start_heads(model, language_model)
    return model


def _load(source: Path | str, part: str) -> Any:
    """The encoder at `source`; of a model with two towers, the one with the configuration `part`."""
    config = AutoConfig.from_pretrained(source)
    inner = getattr(config, part, None)
    if isinstance(inner, PretrainedConfig):
        return encoder_class(inner).from_pretrained(source, config=inner, **encoder_options(inner))
    if any(name.endswith("ForMaskedLM") for name in config.architectures or ()):
        return AutoModelForMaskedLM.from_pretrained(source)
    return encoder_class(config).from_pretrained(source, config=config, **encoder_options(config))


def _is_masked_lm(text: Any) -> bool:
    return (
        isinstance(text, PreTrainedModel) and text.base_model is not text and text.get_output_embeddings() is not None
    )


def _take_over(name: str, encoder: PreTrainedModel, tower: Any) -> None:
    """The encoder's weights; a pooler that it has and the tower has not is left behind."""
    if tower is None:
        raise ValueError(f"{name}: expected an encoder of transformers, got {type(encoder).__name__}")
    missing = tower.load_state_dict(encoder.state_dict(), strict=False).missing_keys
    if missing:
        raise ValueError(f"{name}: expected the weights of {type(tower).__name__}, but there is no {missing[0]}")


@torch.no_grad()
def _start_heads(model: STAIRModel, language_model: Any) -> None:
    """Both matrices from the word embeddings; the rest of the text head and both biases from a masked LM's head."""
    words = model.text_tower.get_input_embeddings().weight
    dense, norm, decoder = (None, None, None) if language_model is None else _mlm_head(language_model)
    for head in (model.text_head, model.image_head):
        if head.weight.shape == words.shape:
            head.weight.copy_(words)
        if decoder is not None and decoder.bias is not None:
            head.bias.copy_(decoder.bias)
        head.bias[model.config.special_token_ids] = NEVER
    if dense is not None and norm is not None:
        model.text_head.dense.load_state_dict(_with_bias(dense))
        model.text_head.norm.load_state_dict(_with_bias(norm))


def _mlm_head(model: Any) -> tuple[nn.Linear, nn.LayerNorm, nn.Linear]:
    """(dense, norm, decoder) of a masked language model: what stands between its encoder and the logits."""
    inside = {id(module) for module in model.base_model.modules()}
    decoder = model.get_output_embeddings()
    rest = [module for module in model.modules() if id(module) not in inside and module is not decoder]
    dense = [module for module in rest if isinstance(module, nn.Linear)]
    norm = [module for module in rest if isinstance(module, nn.LayerNorm)]
    if len(dense) != 1 or len(norm) != 1:
        raise ValueError(f"text: expected a head Linear, LayerNorm, decoder; {type(model).__name__} has another")
    return dense[0], norm[0], decoder


def _with_bias(module: Any) -> dict[str, torch.Tensor]:
    """A state with a bias of zeros where the module has none."""
    bias = module.bias if module.bias is not None else torch.zeros(module.weight.shape[0])
    return {"weight": module.weight, "bias": bias}
