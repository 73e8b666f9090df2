"""The cases of stair.accelerate: whole models, `eager` as published, `ours` accelerated, both asked by the same code.

`_grad` is a training step without the optimizer. The truth is the published model in float32.
"""

from __future__ import annotations

import copy
import functools
import tempfile
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from statistics import NormalDist
from typing import Any

import published
import stair
import torch
from stair import STAIRConfig, STAIRModel
from torch import Tensor, nn
from variants import Variant, Work, size
from work_head import ACTIVE

DENSE = 512  # width of D2S' dense vectors


@dataclass(frozen=True)
class Setup:
    """A published model and the code that asks it for its rows."""

    model: Any
    rows: Callable[[Any], Tensor]
    table: str  # the parameter [V, D]
    tokens: int  # that take part
    encode: Callable[[Any], Tensor] | None = None  # for inference, where that is another call


def bert(device: torch.device, inputs: str, B: int, L: int, D: int, V: int, layers: int) -> Setup:
    """A masked LM and the SPLADE lines of the model cards behind it."""
    batch = _batch(device, B, L, V)
    model = _language_model("bert", inputs, L, D, V, layers)

    def rows(model: Any) -> Tensor:
        return published.splade_naver(model(**batch).logits, batch)

    return Setup(model, rows, "bert.embeddings.word_embeddings.weight", _tokens(batch))


def splade(device: torch.device, inputs: str, B: int, L: int, D: int, V: int, layers: int) -> Setup:
    """naver's Splade on DistilBERT; documents."""
    batch = _batch(device, B, L, V)
    model = published.Splade(_language_model("distilbert", inputs, L, D, V, layers))
    table = "transformer_rep.transformer.vocab_projector.weight"
    return Setup(model, lambda model: model.encode(batch, is_q=False), _own_name(model, table), _tokens(batch))


def sparse_encoder(device: torch.device, inputs: str, B: int, L: int, D: int, V: int, layers: int) -> Setup:
    """sentence-transformers: encode_document of texts, or the training forward of their features."""
    batch = _batch(device, B, L, V)
    texts = published.texts({name: tensor.cpu() for name, tensor in batch.items()})
    with tempfile.TemporaryDirectory() as folder:
        model = published.sparse_encoder(_language_model("distilbert", inputs, L, D, V, layers), Path(folder))
    (table,) = [name for name, p in model.named_parameters() if p.shape == (V, D)]

    def rows(model: Any) -> Tensor:
        return model(dict(batch))["sentence_embedding"]

    return Setup(model, rows, table, _tokens(batch), lambda model: model.encode_document(texts, batch_size=B))


def vdr(device: torch.device, inputs: str, B: int, L: int, D: int, V: int, layers: int) -> Setup:
    """VDR's text encoder for text retrieval: every position counts, padding too; the ACTIVE largest entries are kept.

    A gradient of all B * V entries would not do: two positions that tie but for rounding decide where an entry's goes.
    """
    batch = _batch(device, B, L, V)
    model = published.VDREncoder(V, D, layers, shift=V // 30)
    table = "bert_model.embeddings.word_embeddings.weight"
    return Setup(model, lambda model: model.embed(batch, topk=min(ACTIVE, V // 2)), table, B * L)


def d2s(device: torch.device, inputs: str, B: int, D: int, V: int) -> Setup:
    """D2S on the vectors of B images or texts."""
    model = published.D2SModel(DENSE, _language_model("distilbert", inputs, 1, D, V, 1))
    dense = torch.randn(B, DENSE).to(device)
    return Setup(model, lambda model: model(dense.to(model.proj.weight.dtype)), "vocab_projector.weight", B)


def stair_reference(device: torch.device, inputs: str, B: int, L: int, D: int, V: int, layers: int) -> Setup:
    """STAIRModel with head="reference": a text's rows, or the loss of B texts and B images of 49 positions."""
    text = {"vocab_size": V, "hidden_size": D, "num_hidden_layers": layers, "intermediate_size": 4 * D}
    model = STAIRModel(STAIRConfig(text, {"pool": 1, "dropout": 0.0}, head="reference"))
    features = torch.randn(B, model.config.positions, 432).to(device)
    for head, positions in ((model.text_head, L), (model.image_head, model.config.positions)):
        nn.init.normal_(head.weight, std=D**-0.5)
        _quieten(head.bias, inputs, positions)
    batch = _batch(device, B, L, V)
    tokens = _tokens(batch) + B * model.config.positions

    def loss(model: Any) -> Tensor:
        return model(**batch, image_features=features).loss

    return Setup(model, loss, "text_head.weight", tokens, lambda model: model.encode_text(**batch).to_dense())


def _batch(device: torch.device, B: int, L: int, V: int) -> dict[str, Tensor]:
    return {name: tensor.to(device) for name, tensor in published.batch(B, L, V).items()}


def _tokens(batch: dict[str, Tensor]) -> int:
    return int(batch["attention_mask"].sum())


def _quieten(bias: Tensor, inputs: str, L: int) -> None:
    """A bias under which about ACTIVE entries a row of standard normal logits are active; half of them if untrained."""
    quiet = 1 - min(ACTIVE / len(bias), 0.5) if inputs == "trained" else 0.5
    with torch.no_grad():
        bias.fill_(-NormalDist().inv_cdf(quiet ** (1 / L)))


def _language_model(kind: str, inputs: str, L: int, D: int, V: int, layers: int) -> Any:
    model = published.masked_lm(kind, V, D, layers)
    _quieten(model.get_output_embeddings().bias, inputs, L)
    return model


def _own_name(model: nn.Module, name: str) -> str:
    """Under which named_parameters has the parameter: a tied one has two names."""
    wanted = model.get_parameter(name)
    return next(own for own, parameter in model.named_parameters() if parameter is wanted)


def _flops(setup: Setup, passes: int) -> float:
    """A product of each token with every matrix: once with the vocabulary's, `passes` times with the others."""
    matrices = {id(p): p.numel() for p in setup.model.parameters() if p.dim() == 2}
    table = setup.model.get_parameter(setup.table)
    vocabulary = sum(p.numel() for p in setup.model.parameters() if p.shape == table.shape)
    return 2.0 * setup.tokens * (table.numel() + passes * (sum(matrices.values()) - vocabulary))


def _forward(make: Callable[..., Setup], device: torch.device, dtype: torch.dtype, inputs: str, **sizes: int) -> Work:
    setup = make(device, inputs, **sizes)
    model = setup.model.to(device, dtype).eval()
    ours, wide = stair.accelerate(copy.deepcopy(model)), copy.deepcopy(model).float()

    @torch.no_grad()
    def encode(model: Any) -> Tensor:
        return (setup.encode or setup.rows)(model)

    truth = encode(wide).to_dense()
    variants = {"ours": Variant(lambda: encode(ours), ("vocab_pool",)), "eager": Variant(lambda: encode(model))}
    weights = size(*model.parameters())
    return Work(variants, lambda rows: (rows.to_dense(),), (truth,), _flops(setup, 1), weights, size(truth))


def _step(make: Callable[..., Setup], device: torch.device, dtype: torch.dtype, inputs: str, **sizes: int) -> Work:
    """Forward and backward of sum(rows^2) / 2; the rows and the vocabulary's gradient are compared."""
    setup = make(device, inputs, **sizes)
    model = setup.model.to(device, dtype).train()
    ours, wide = stair.accelerate(copy.deepcopy(model)), copy.deepcopy(model).float()

    def step(model: Any) -> tuple[Tensor, Tensor]:
        model.zero_grad()
        rows = setup.rows(model)
        rows.backward(rows.detach())
        gradient = model.get_parameter(setup.table).grad
        return rows.detach(), gradient

    truth = step(wide)
    operators = ("vocab_pool", "vocab_pool_backward")
    variants = {"ours": Variant(lambda: step(ours), operators), "eager": Variant(lambda: step(model))}
    weights = size(*model.parameters())
    return Work(variants, lambda result: result, truth, _flops(setup, 3), weights, weights + size(truth[0]))


SETUPS = (bert, splade, sparse_encoder, vdr, d2s, stair_reference)
MAKERS: dict[str, Callable[..., Work]] = {
    f"accelerate_{setup.__name__}{suffix}": functools.partial(maker, setup)
    for setup in SETUPS
    for suffix, maker in (("", _forward), ("_grad", _step))
}
