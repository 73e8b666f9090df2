"""SPLADE: masked language models of transformers, sentence-transformers' SpladePooling, naver's Splade."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

import stair_kernels as sk
from stair.adapters.swap import SETTINGS, Swap, defines, kind

SPECIAL_TOKENS = ("keep", "drop", "ends")


@dataclass(frozen=True)
class Positions:
    """Which of a text's positions the maximum is taken over, besides those that the attention mask leaves out."""

    special_tokens: str = "keep"
    special_ids: tuple[int, ...] = ()

    def __post_init__(self) -> None:
        expected = {"keep": "none", "drop": "at least one", "ends": "two, the first's and the last's"}
        if self.special_tokens not in expected:
            raise ValueError(f"special_tokens: expected one of {', '.join(expected)}, got {self.special_tokens!r}")
        count = len(self.special_ids)
        if not {"keep": count == 0, "drop": count > 0, "ends": count == 2}[self.special_tokens]:
            wanted = f"{expected[self.special_tokens]} with special_tokens={self.special_tokens!r}"
            raise ValueError(f"special_ids: expected {wanted}, got {list(self.special_ids)}")

    def mask(self, input_ids: Tensor | None, attention_mask: Tensor | None) -> Tensor | None:  # [B, L] bool
        """The positions to use; None for all."""
        if attention_mask is not None and attention_mask.dim() != 2:
            raise ValueError(f"attention_mask: expected [B, L], got {list(attention_mask.shape)}")
        used = None if attention_mask is None else attention_mask.bool()
        if self.special_tokens == "keep":
            return used
        if input_ids is None:
            raise ValueError(f"input_ids: expected [B, L] with special_tokens={self.special_tokens!r}, got None")
        used = torch.ones_like(input_ids, dtype=torch.bool) if used is None else used
        if self.special_tokens == "drop":
            return used & ~_any_of(input_ids, self.special_ids)
        first, last = self.special_ids
        is_first = used & (used.cumsum(1) == 1)
        is_last = used & (used.flip(1).cumsum(1).flip(1) == 1)
        return used & ~(is_first & (input_ids == first)) & ~(is_last & (input_ids == last))


def _any_of(ids: Tensor, wanted: tuple[int, ...]) -> Tensor:
    found = ids == wanted[0]
    for other in wanted[1:]:  # one comparison an id: a tensor of them would be copied to the device in every call
        found = found | (ids == other)
    return found


def _bert(model: Any, hidden: Tensor) -> tuple[Tensor, nn.Linear]:
    head = model.cls.predictions
    return head.transform(hidden), head.decoder


def _distilbert(model: Any, hidden: Tensor) -> tuple[Tensor, nn.Linear]:
    hidden = model.vocab_layer_norm(model.activation(model.vocab_transform(hidden)))
    return hidden, model.vocab_projector


def _roberta(model: Any, hidden: Tensor) -> tuple[Tensor, nn.Linear]:
    head = model.lm_head
    return head.layer_norm(nn.functional.gelu(head.dense(hidden))), head.decoder


def _modernbert(model: Any, hidden: Tensor) -> tuple[Tensor, nn.Linear]:
    return model.head(hidden), model.decoder


# class -> what its last hidden states become in front of the decoder, and the decoder, which no longer runs
MASKED_LMS = {
    "BertForMaskedLM": _bert,
    "DistilBertForMaskedLM": _distilbert,
    "RobertaForMaskedLM": _roberta,
    "XLMRobertaForMaskedLM": _roberta,
    "CamembertForMaskedLM": _roberta,
    "ModernBertForMaskedLM": _modernbert,
}


def linear_dtype(hidden: Tensor) -> torch.dtype:
    """The dtype that torch.nn.Linear gives for `hidden`: autocast's, where it is on."""
    device = hidden.device.type
    return torch.get_autocast_dtype(device) if torch.is_autocast_enabled(device) else hidden.dtype


def _masked_lm_forward(self: Any, **inputs: Any) -> Any:
    """logits [B, 1, V] = relu(max_l logit[b, l, v]): the text as one token, over the positions of `Positions`.

    What follows in SPLADE code stays right as it is: log(1 + relu(logits)), times the mask, maximum over positions.
    With cu_seq_lens_q [B + 1] the input is one row of packed texts.
    """
    from transformers.modeling_outputs import MaskedLMOutput

    if inputs.pop("labels", None) is not None:
        raise ValueError("labels: expected None: an accelerated model makes no logits [B, L, V]; see stair.restore")
    return_dict = inputs.pop("return_dict", None)
    out = getattr(self, self.base_model_prefix)(**inputs, return_dict=True)
    hidden, decoder = MASKED_LMS[defines(self, "forward")](self, out[0])
    positions, packed = getattr(self, SETTINGS), inputs.get("cu_seq_lens_q")
    if packed is None:
        mask = positions.mask(inputs.get("input_ids"), inputs.get("attention_mask"))
    else:
        if positions.special_tokens != "keep":
            raise ValueError(f"cu_seq_lens_q: expected None with special_tokens={positions.special_tokens!r}")
        hidden, mask, packed = hidden.squeeze(0), None, packed.int()
    rows = sk.vocab_pool(hidden, decoder.weight, decoder.bias, mask, activation="relu", cu_seqlens=packed)
    logits = rows.to(linear_dtype(hidden)).unsqueeze(1)
    result = MaskedLMOutput(logits=logits, hidden_states=out.hidden_states, attentions=out.attentions)
    as_dict = self.config.return_dict if return_dict is None else return_dict
    return result if as_dict else result.to_tuple()


def _splade_pooling_forward(self: Any, features: dict[str, Tensor]) -> dict[str, Tensor]:
    """sentence_embedding [B, V] = log(1 + .), once or twice, of the accelerated model's relu(max) [B, 1, V]."""
    rows = features["token_embeddings"].squeeze(1).log1p()
    if getattr(self, "activation_function", "relu") == "log1p_relu":
        rows = rows.log1p()
    # sentence-transformers 5.4 renamed it
    width = "embedding_dimension" if hasattr(self, "embedding_dimension") else "word_embedding_dimension"
    if getattr(self, width) is None:
        setattr(self, width, rows.shape[1])
    features["sentence_embedding"] = rows
    return features


def _naver_encode(self: Any, tokens: dict[str, Tensor], is_q: bool) -> Tensor:
    """[B, V] = log(1 + relu(max over unmasked positions))."""
    return torch.log1p(self.encode_(tokens, is_q)["logits"].squeeze(1))


kind("masked_lm", forward=_masked_lm_forward)
kind("splade_pooling", forward=_splade_pooling_forward)
kind("naver", encode=_naver_encode)


def is_masked_lm(module: nn.Module) -> bool:
    """One of MASKED_LMS with the library's own forward and a plain decoder."""
    return defines(module, "forward") in MASKED_LMS and type(module.get_output_embeddings()) is nn.Linear  # type: ignore[operator]


def masked_lm(model: nn.Module, positions: Positions) -> list[Swap] | None:
    """The swap of a masked language model of transformers."""
    return [Swap(model, "masked_lm", positions)] if is_masked_lm(model) else None


def sparse_encoder(model: nn.Module, positions: Positions) -> list[Swap] | None:
    """The swaps of a sentence-transformers SparseEncoder: each SpladePooling and the masked LM in front of it.

    A Router has a sequence of modules for each of its routes; one without SpladePooling (static embeddings) stays.
    """
    swaps = {}
    for sequence in (module for module in model.modules() if isinstance(module, nn.Sequential)):
        for before, pooling in zip(sequence, list(sequence)[1:]):
            if defines(pooling, "forward") != "SpladePooling":
                continue
            language_models = [module for module in before.modules() if is_masked_lm(module)]
            if pooling.pooling_strategy != "max" or len(language_models) != 1:
                return None
            swaps[id(pooling)] = Swap(pooling, "splade_pooling")
            swaps[id(language_models[0])] = Swap(language_models[0], "masked_lm", Positions())
    return list(swaps.values()) or None


def naver_splade(model: Any, positions: Positions) -> list[Swap] | None:
    """The swaps of naver's Splade: its encode, and one masked LM or two."""
    towers = [getattr(model, name, None) for name in ("transformer_rep", "transformer_rep_q")]
    language_models = [tower.transformer for tower in towers if tower is not None]
    if getattr(model, "agg", None) != "max" or not language_models or not all(map(is_masked_lm, language_models)):
        return None
    return [Swap(model, "naver"), *(Swap(inner, "masked_lm", Positions()) for inner in language_models)]
