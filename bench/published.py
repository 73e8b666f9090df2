"""Models whose heads stair.accelerate replaces: of the libraries from small configurations, and copies of the others.

A copy holds what the published definition of the head says, under the published names: naver/splade (SPLADE-max, arXiv
2109.10086), jzhoubu/vsearch (VDR, arXiv 2212.07699), lsr-multimodal (D2S, arXiv 2402.17535). Weights are random.
"""

from __future__ import annotations

import importlib
import importlib.util
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F
from transformers import AutoConfig, AutoModel, AutoModelForMaskedLM, PreTrainedTokenizerFast

SPECIAL = ("[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]")
PAD, CLS, SEP = (SPECIAL.index(f"[{name}]") for name in ("PAD", "CLS", "SEP"))
MASKED_LMS = ("bert", "distilbert", "roberta", "xlm-roberta", "camembert", "modernbert")


def config(kind: str, V: int, D: int, layers: int) -> Any:
    """A configuration without dropout."""
    sizes = {"vocab_size": V, "pad_token_id": PAD, "max_position_embeddings": 600}
    if kind == "distilbert":
        names = {"dim": D, "n_layers": layers, "n_heads": max(1, D // 64), "hidden_dim": 4 * D}
        return AutoConfig.for_model(kind, **sizes, **names, dropout=0.0, attention_dropout=0.0)
    names = {"hidden_size": D, "num_hidden_layers": layers, "num_attention_heads": max(1, D // 64)}
    names["intermediate_size"] = 4 * D
    if kind == "modernbert":
        ids = {"cls_token_id": CLS, "bos_token_id": CLS, "sep_token_id": SEP, "eos_token_id": SEP}
        return AutoConfig.for_model(kind, **sizes, **names, **ids)
    return AutoConfig.for_model(kind, **sizes, **names, hidden_dropout_prob=0.0, attention_probs_dropout_prob=0.0)


def masked_lm(kind: str, V: int, D: int, layers: int = 1) -> Any:
    """A masked language model whose logits have a standard deviation of about 1 and are negative more often."""
    model = AutoModelForMaskedLM.from_config(config(kind, V, D, layers)).eval()
    with torch.no_grad():
        decoder = model.get_output_embeddings()
        decoder.weight.normal_(std=D**-0.5)
        if decoder.bias is not None:
            decoder.bias.normal_(mean=-1.0)
    return model


def batch(B: int, L: int, V: int) -> dict[str, Tensor]:
    """Ragged texts [CLS] ... [SEP], padded on the right."""
    lengths = torch.randint(min(3, L), L + 1, (B, 1))
    lengths[0] = L
    place = torch.arange(L)
    ids = torch.randint(len(SPECIAL), V, (B, L)).masked_fill(place == 0, CLS)
    ids = ids.masked_fill(place == lengths - 1, SEP).masked_fill(place >= lengths, PAD)
    return {"input_ids": ids, "attention_mask": (place < lengths).long()}


def tokenizer(V: int) -> PreTrainedTokenizerFast:
    """Whole words: w5, w6 .. are the entries 5, 6 .. of the vocabulary."""
    from tokenizers import Tokenizer, models, pre_tokenizers, processors

    words = [*SPECIAL, *(f"w{number}" for number in range(len(SPECIAL), V))]
    made = Tokenizer(models.WordLevel({word: number for number, word in enumerate(words)}, unk_token="[UNK]"))
    made.pre_tokenizer = pre_tokenizers.WhitespaceSplit()
    ends = [("[CLS]", CLS), ("[SEP]", SEP)]
    made.post_processor = processors.TemplateProcessing(single="[CLS] $A [SEP]", special_tokens=ends)
    names = {f"{name}_token": f"[{name.upper()}]" for name in ("pad", "unk", "cls", "sep", "mask")}
    return PreTrainedTokenizerFast(tokenizer_object=made, model_max_length=512, **names)


def texts(inputs: dict[str, Tensor]) -> list[str]:
    """What the tokenizer turns into the ids of `batch`."""
    rows = zip(inputs["input_ids"].tolist(), inputs["attention_mask"].sum(1).tolist())
    return [" ".join(f"w{token}" for token in ids[1 : length - 1]) for ids, length in rows]


def sparse_encoder_parts() -> Any:
    """The module of sentence-transformers that has SpladePooling: `models` before 5.4, `modules` since."""
    package = "sentence_transformers.sparse_encoder"
    renamed = importlib.util.find_spec(f"{package}.modules") is not None
    return importlib.import_module(f"{package}.{'modules' if renamed else 'models'}")


def sparse_encoder(language_model: Any, folder: Path, activation: str = "relu", **settings: Any) -> Any:
    """The model saved to `folder` and opened as a SparseEncoder with SpladePooling('max')."""
    from sentence_transformers import SparseEncoder

    language_model.save_pretrained(folder)
    tokenizer(language_model.config.vocab_size).save_pretrained(folder)
    parts = sparse_encoder_parts()
    if hasattr(parts, "Transformer"):
        reader = parts.Transformer(str(folder), transformer_task="fill-mask")
    else:
        reader = parts.MLMTransformer(str(folder))
    pooling = parts.SpladePooling(pooling_strategy="max", activation_function=activation)
    return SparseEncoder(modules=[reader, pooling], device="cpu", **settings)


def splade_naver(logits: Tensor, inputs: dict[str, Tensor]) -> Tensor:  # [B, V]
    """max_l log(1 + relu(logit)) * attention_mask: padding counts as zero, [CLS] and [SEP] take part."""
    return (torch.log(1 + torch.relu(logits)) * inputs["attention_mask"][..., None]).max(dim=1).values


def splade_lsr(logits: Tensor, inputs: dict[str, Tensor]) -> Tensor:  # [B, V]
    """log(1 + relu(logit * attention_mask * (1 - special_tokens_mask))), then the maximum."""
    ids, mask = inputs["input_ids"], inputs["attention_mask"]
    special = ((ids == PAD) | (ids == CLS) | (ids == SEP)).long()
    return torch.log1p(torch.relu(logits * mask[..., None] * (1 - special)[..., None])).max(dim=1).values


def splade_vllm(logits: Tensor, inputs: dict[str, Tensor]) -> Tensor:  # [B, V]
    """Text by text: a first [CLS] and a last [SEP] are sliced off; a text without a rest is zero."""
    rows = []
    for row, ids, length in zip(logits, inputs["input_ids"], inputs["attention_mask"].sum(1).tolist()):
        start = int(length > 0 and ids[0] == CLS)
        end = max(start, length - 1) if length > 0 and ids[length - 1] == SEP else length
        rows.append(torch.log1p(torch.relu(row[start:end])).amax(dim=0) if end > start else row.new_zeros(row.shape[1]))
    return torch.stack(rows)


class TransformerRep(nn.Module):
    """naver's wrapper of a masked LM."""

    def __init__(self, transformer: nn.Module) -> None:
        super().__init__()
        self.transformer = transformer

    def forward(self, **tokens: Tensor) -> Any:
        return self.transformer(**tokens)


class Splade(nn.Module):
    """naver's Splade: d_rep, q_rep and their score; one masked LM, or another for the queries."""

    def __init__(self, transformer: nn.Module, transformer_q: nn.Module | None = None, agg: str = "max") -> None:
        super().__init__()
        self.transformer_rep = TransformerRep(transformer)
        self.transformer_rep_q = None if transformer_q is None else TransformerRep(transformer_q)
        self.agg = agg

    def encode_(self, tokens: dict[str, Tensor], is_q: bool = False) -> Any:
        tower = self.transformer_rep_q if is_q and self.transformer_rep_q is not None else self.transformer_rep
        return tower(**tokens)

    def encode(self, tokens: dict[str, Tensor], is_q: bool) -> Tensor:
        logits = self.encode_(tokens, is_q)["logits"]
        weights = torch.log(1 + torch.relu(logits)) * tokens["attention_mask"].unsqueeze(-1)
        return weights.sum(dim=1) if self.agg == "sum" else weights.max(dim=1).values

    def forward(self, q_kwargs: dict[str, Tensor], d_kwargs: dict[str, Tensor]) -> dict[str, Tensor]:
        q_rep, d_rep = self.encode(q_kwargs, is_q=True), self.encode(d_kwargs, is_q=False)
        return {"q_rep": q_rep, "d_rep": d_rep, "score": q_rep @ d_rep.T}


def elu1p(x: Tensor) -> Tensor:
    return F.elu(x) + 1


def own_tokens(ids: Tensor, V: int) -> Tensor:  # [B, V] bool
    return torch.zeros(len(ids), V, dtype=torch.bool, device=ids.device).scatter(1, ids, True)


class _VDRText(nn.Module):
    """Dictionary-lookup embedding of text: the `topk` largest entries and the text's own tokens are kept."""

    def __init__(self, V: int, D: int, layers: int) -> None:
        super().__init__()
        self.ln = nn.LayerNorm(D)
        self.bert_model = AutoModel.from_config(config("bert", V, D, layers), add_pooling_layer=False)
        nn.init.normal_(self.bert_model.embeddings.word_embeddings.weight, std=D**-0.5)

    def table(self) -> Tensor:
        return self.bert_model.embeddings.word_embeddings.weight

    def logits(self, rows: Any, inputs: dict[str, Tensor]) -> Tensor:  # [B, L, V]
        return self.ln(self.bert_model(**inputs).last_hidden_state) @ self.table()[rows].t()

    def embed(self, inputs: dict[str, Tensor], topk: int, columns: Any) -> Tensor:
        rows = self(**inputs)
        kept = own_tokens(inputs["input_ids"], len(self.table()))[:, columns]
        if topk:
            kept = kept | torch.zeros_like(kept).scatter(1, rows.topk(topk, dim=1).indices, True)
        return rows * kept


class VDREncoder(_VDRText):
    """VDR for text retrieval: the vocabulary from entry `shift_vocab_num` on, the activation before the maximum."""

    def __init__(self, V: int, D: int, layers: int, *, shift: int, norm: bool = False, pooling: str = "max") -> None:
        super().__init__(V, D, layers)
        self.config = SimpleNamespace(shift_vocab_num=shift, norm=norm, pooling=pooling)

    def forward(self, input_ids: Tensor, token_type_ids: Tensor | None = None, attention_mask: Any = None) -> Tensor:
        inputs = {"input_ids": input_ids, "token_type_ids": token_type_ids, "attention_mask": attention_mask}
        rows = elu1p(self.logits(slice(self.config.shift_vocab_num, None), inputs)).max(1)[0]
        return F.normalize(rows) if self.config.norm else rows

    def embed(self, inputs: dict[str, Tensor], topk: int) -> Tensor:  # type: ignore[override]
        return super().embed(inputs, topk, slice(self.config.shift_vocab_num, None))


class VDRTextEncoder(_VDRText):
    """Cross-modal VDR's text side: the entries `valid_token_ids`, the activation after the maximum, normalised."""

    def __init__(self, V: int, D: int, layers: int, *, valid: list[int]) -> None:
        super().__init__(V, D, layers)
        self.valid_token_ids = valid

    def forward(self, input_ids: Tensor, token_type_ids: Tensor | None = None, attention_mask: Any = None) -> Tensor:
        inputs = {"input_ids": input_ids, "token_type_ids": token_type_ids, "attention_mask": attention_mask}
        return F.normalize(elu1p(self.logits(self.valid_token_ids, inputs).max(1)[0]))

    def embed(self, inputs: dict[str, Tensor], topk: int) -> Tensor:  # type: ignore[override]
        return super().embed(inputs, topk, self.valid_token_ids)


class VDRImageEncoder(nn.Module):
    """Cross-modal VDR's image side: patches to hidden states; `embed` projects, pools, normalises, keeps `topk`."""

    def __init__(self, V: int, D: int, *, topk: int, patch: int = 4) -> None:
        super().__init__()
        self.config = SimpleNamespace(topk=topk)
        self.conv1 = nn.Conv2d(3, D, patch, stride=patch, bias=False)
        self.ln_post = nn.LayerNorm(D)
        self.proj = nn.Parameter(torch.randn(V, D) / D**0.5)

    @property
    def dtype(self) -> torch.dtype:
        return self.proj.dtype

    @property
    def device(self) -> torch.device:
        return self.proj.device

    def forward(self, x: Tensor) -> Tensor:  # [B, L, D]
        return self.ln_post(self.conv1(x).flatten(2).transpose(1, 2))

    def embed(self, image: Tensor, training: bool = False, topk: int | None = None) -> Tensor:
        with torch.set_grad_enabled(training and torch.is_grad_enabled()):
            logits = self(image.type(self.dtype).to(self.device)) @ self.proj.t()
            rows = F.normalize(elu1p(logits.max(1)[0]))
            return rows * torch.zeros_like(rows).scatter(1, rows.topk(topk or self.config.topk, dim=1).indices, 1)


class D2SModel(nn.Module):
    """A dense vector to the vocabulary by a masked LM's last layers; with a caption's tokens, zero outside of them."""

    def __init__(self, dense_size: int, language_model: Any) -> None:
        super().__init__()
        self.proj = nn.Linear(dense_size, language_model.config.dim)
        self.vocab_layer_norm = language_model.vocab_layer_norm
        self.vocab_projector = language_model.vocab_projector

    def forward(
        self, dense_vec: Tensor, input_ids: Tensor | None = None, attention_mask: Tensor | None = None
    ) -> Tensor:
        rows = torch.log1p(torch.relu(self.vocab_projector(self.vocab_layer_norm(self.proj(dense_vec)))))
        if input_ids is None or attention_mask is None:
            return rows
        own = torch.zeros_like(rows).float()
        own[torch.arange(len(rows))[:, None], input_ids] = attention_mask.float()
        return rows * own
