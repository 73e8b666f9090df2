"""The table of tests/test_accelerate.py: every kind of model that stair.accelerate takes, how it is asked for rows."""

from __future__ import annotations

import functools
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any

import published
import torch
from published import CLS, PAD, SEP, batch
from stair import STAIRConfig, STAIRModel
from torch import Tensor, nn
from torch.utils._python_dispatch import TorchDispatchMode

B, L, V, D = 4, 24, 700, 64  # B * L > D: the logits are the largest tensor of a step
VALID = [entry for entry in range(V) if entry % 8]


@dataclass(frozen=True)
class Kind:
    """make() a model, rows(model) [B, .]; `heads` are the modules that must not run once it is accelerated."""

    make: Callable[[], nn.Module]
    rows: Callable[[Any], Tensor]
    heads: Callable[[Any], list[nn.Module]] = lambda model: []
    settings: dict[str, Any] = field(default_factory=dict)
    # The rows as one may write them afterwards, where the code as it was makes [B, L, V] for its mask, or slices.
    lean: Callable[[Any], Tensor] | None = None
    unchanged: bool = True  # the code as it was is right for an accelerated model
    logits: int = B * L * V  # elements of what must not be made; 0 where there is no sequence

    def accelerated_rows(self, model: Any) -> Tensor:
        return (self.rows if self.unchanged or self.lean is None else self.lean)(model)


torch.manual_seed(1)
INPUTS = batch(B, L, V)


def packed() -> dict[str, Tensor]:
    """The same texts as one row, as DataCollatorWithFlattening gives them (attention is across texts on a CPU)."""
    lengths = INPUTS["attention_mask"].sum(1)
    ids = INPUTS["input_ids"][INPUTS["attention_mask"].bool()][None]
    bounds = nn.functional.pad(lengths.cumsum(0), (1, 0)).int()
    place = torch.cat([torch.arange(length) for length in lengths.tolist()])[None]
    longest = int(lengths.max())
    flat = {"input_ids": ids, "position_ids": place, "cu_seq_lens_q": bounds, "cu_seq_lens_k": bounds}
    return {**flat, "max_length_q": longest, "max_length_k": longest}


def _naver_rows(model: Any) -> Tensor:
    return published.splade_naver(model(**INPUTS).logits, INPUTS)


def _lean(model: Any) -> Tensor:
    return model(**INPUTS).logits.relu().log1p().amax(dim=1)


def _decoder(model: Any) -> list[nn.Module]:
    return [model.get_output_embeddings()]


def _variant(rows: Callable[..., Tensor]) -> Callable[[Any], Tensor]:
    return lambda model: rows(model(**INPUTS).logits, INPUTS)


def _splade() -> nn.Module:
    return published.Splade(published.masked_lm("bert", V, D), published.masked_lm("distilbert", V, D)).eval()


def _splade_rows(model: Any) -> Tensor:
    out = model(INPUTS, INPUTS)
    return torch.cat([out["q_rep"], out["d_rep"], out["score"]], dim=1)


def _image_rows(model: Any) -> Tensor:
    torch.manual_seed(2)
    return model.embed(torch.randn(B, 3, 16, 24), training=True)  # 24 patches


def _dense(model: Any, with_tokens: bool) -> Tensor:
    torch.manual_seed(2)
    dense = torch.randn(B, 32).to(model.proj.weight.dtype)
    return model(dense, **INPUTS) if with_tokens else model(dense)


def _d2s() -> nn.Module:
    return published.D2SModel(32, published.masked_lm("distilbert", V, D)).eval()


def _stair() -> nn.Module:
    torch.manual_seed(1)  # two positions that tie but for bfloat16's rounding decide where a gradient goes: none here
    text = {"vocab_size": V, "hidden_size": D, "num_hidden_layers": 1, "intermediate_size": D}
    sizes = {"num_hidden_layers": 1, "num_attention_heads": 2, "intermediate_size": 16}
    vision = {"image_size": 96, "pool": 1, **sizes}
    model = STAIRModel(STAIRConfig(text, vision, head="reference", text_k=16, image_k=24)).eval()
    for head in (model.text_head, model.image_head):
        nn.init.normal_(head.weight, std=D**-0.5)
    model.image_tower.register_forward_pre_hook(_as_parameters)
    return model


def _as_parameters(tower: Any, given: tuple[Tensor]) -> Tensor:
    """The features, which the model makes float32, in the tower's dtype."""
    return given[0].to(tower.norm.weight.dtype)


def _stair_inputs(model: Any) -> dict[str, Tensor]:
    torch.manual_seed(2)
    features = torch.randn(B, model.config.vision_config.side**2, 432)
    return {**INPUTS, "image_features": features}


def _stair_rows(model: Any) -> Tensor:
    """Both towers' rows and the loss, in units of its addends: cosines times the model's scale."""
    given = _stair_inputs(model)
    text = model.encode_text(given["input_ids"], given["attention_mask"]).to_dense()
    image = model.encode_image(image_features=given["image_features"]).to_dense()
    return torch.cat([text, image, (model(**given).loss / model.logit_scale).expand(B, 1)], dim=1)


KINDS: dict[str, Kind] = {
    name: Kind(functools.partial(published.masked_lm, name, V, D), _naver_rows, _decoder, lean=_lean)
    for name in ("bert", "distilbert", "roberta", "modernbert")
}
KINDS |= {
    "lsr": Kind(
        KINDS["bert"].make,
        _variant(published.splade_lsr),
        _decoder,
        {"special_tokens": "drop", "special_ids": [PAD, CLS, SEP]},
        _lean,
    ),
    "vllm": Kind(
        KINDS["bert"].make,
        _variant(published.splade_vllm),
        _decoder,
        {"special_tokens": "ends", "special_ids": [CLS, SEP]},
        _lean,
        unchanged=False,
    ),
    "naver": Kind(
        _splade,
        _splade_rows,
        lambda model: _decoder(model.transformer_rep.transformer) + _decoder(model.transformer_rep_q.transformer),
    ),
    "vdr": Kind(
        lambda: published.VDREncoder(V, D, 1, shift=40).eval(), lambda model: model(**INPUTS), logits=B * L * (V - 40)
    ),
    "vdr-norm-topk": Kind(
        lambda: published.VDREncoder(V, D, 1, shift=40, norm=True).eval(),
        lambda model: model.embed(INPUTS, topk=16),
        logits=B * L * (V - 40),
    ),
    "vdr-text": Kind(
        lambda: published.VDRTextEncoder(V, D, 1, valid=VALID).eval(),
        lambda model: model.embed(INPUTS, topk=16),
        logits=B * L * len(VALID),
    ),
    "vdr-text-own-tokens": Kind(
        lambda: published.VDRTextEncoder(V, D, 1, valid=VALID).eval(),
        lambda model: model.embed(INPUTS, topk=0),
        logits=B * L * len(VALID),
    ),
    "vdr-image": Kind(lambda: published.VDRImageEncoder(V, D, topk=16).eval(), _image_rows),
    "d2s": Kind(_d2s, lambda model: _dense(model, False), lambda model: [model.vocab_projector], logits=0),
    "d2s-own-tokens": Kind(_d2s, lambda model: _dense(model, True), lambda model: [model.vocab_projector], logits=0),
    "stair": Kind(_stair, _stair_rows),
}


def with_gradients(model: nn.Module, rows: Tensor) -> tuple[Tensor, dict[str, Tensor]]:
    """Rows, and all gradients of sum(w * rows^2) / 2: an entry that rounding lifts over 0 counts little."""
    torch.manual_seed(3)
    rows.backward(torch.randn(rows.shape).to(rows.dtype) * rows.detach())
    return rows.detach(), {name: p.grad for name, p in model.named_parameters() if p.grad is not None}


class LargestTensor(TorchDispatchMode):
    """`numel` of the largest tensor that an operator has given."""

    def __init__(self) -> None:
        super().__init__()
        self.numel = 0

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        out = func(*args, **(kwargs or {}))
        for tensor in torch.utils._pytree.tree_leaves(out):
            if isinstance(tensor, Tensor):
                self.numel = max(self.numel, tensor.numel())
        return out


def forbid(heads: list[nn.Module]) -> None:
    """Each of them raises when it is called."""

    def stop(module: nn.Module, given: Any) -> None:
        raise AssertionError(f"{type(module).__name__} ran")

    for head in heads:
        head.register_forward_pre_hook(stop)
