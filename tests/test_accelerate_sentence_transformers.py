"""stair.accelerate of a sentence-transformers SparseEncoder: encoding, every return form, training, saving."""

from __future__ import annotations

import copy
import importlib
from collections.abc import Callable
from pathlib import Path
from typing import Any

import published
import pytest
import stair
import torch
from accelerated import INPUTS, V, forbid, packed, with_gradients
from published import masked_lm
from tolerance import assert_close
from torch import Tensor, nn

import stair_kernels as sk

pytest.importorskip("sentence_transformers", reason="pip install 'stair-kernels[test]'")

from sentence_transformers import SparseEncoder, SparseEncoderTrainer, SparseEncoderTrainingArguments
from sentence_transformers.sparse_encoder import losses

pytestmark = pytest.mark.usefixtures("one_thread")
TEXTS = published.texts(INPUTS)
D = 32


@pytest.fixture(scope="module")
def made(tmp_path_factory: pytest.TempPathFactory) -> Callable[..., SparseEncoder]:
    """made(kind, activation): a new SparseEncoder, the same whenever it is asked for."""

    def make(kind: str = "bert", activation: str = "relu") -> SparseEncoder:
        torch.manual_seed(0)
        return published.sparse_encoder(masked_lm(kind, V, D), tmp_path_factory.mktemp(kind), activation)

    return make


def accelerated(model: SparseEncoder) -> SparseEncoder:
    """A copy whose decoder must not run."""
    fast = stair.accelerate(copy.deepcopy(model))
    forbid([decoder(fast)])
    return fast


def language_model(model: SparseEncoder) -> Any:
    return next(module for module in model.modules() if type(module).__name__.endswith("ForMaskedLM"))


def decoder(model: SparseEncoder) -> nn.Module:
    return language_model(model).get_output_embeddings()


def trained(model: SparseEncoder, features: dict[str, Any]) -> tuple[Tensor, dict[str, Tensor]]:
    model.train()
    rows = model(dict(features))["sentence_embedding"]
    return with_gradients(model, rows)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize("activation", ["relu", "log1p_relu"])
@pytest.mark.parametrize("layout", ["padded", "flattened"])
def test_rows_and_gradients(
    made: Callable[..., SparseEncoder], layout: str, activation: str, dtype: torch.dtype
) -> None:
    features: dict[str, Any] = INPUTS if layout == "padded" else packed()
    model = made("bert", activation).to(dtype)
    if layout == "flattened" and not hasattr(model[1], "_forward_flattened"):
        pytest.skip("this sentence-transformers pads every batch")
    truth, gradients_truth = trained(copy.deepcopy(model).double(), features)
    fast = accelerated(model)
    eager, gradients_eager = trained(model, features)
    rows, gradients = trained(fast, features)
    assert (rows.dtype, rows.shape) == (eager.dtype, eager.shape)
    assert_close(rows, truth, eager, "rows")
    assert gradients.keys() == gradients_eager.keys()
    for name, gradient in gradients.items():
        assert_close(gradient, gradients_truth[name], gradients_eager[name], name)


@pytest.mark.parametrize("kind", ["bert", "distilbert", "modernbert"])
def test_encoding_gives_what_the_library_gives(made: Callable[..., SparseEncoder], kind: str) -> None:
    model = made(kind)
    fast = accelerated(model)
    width = (
        "get_embedding_dimension" if hasattr(model, "get_embedding_dimension") else "get_sentence_embedding_dimension"
    )
    for encode in ("encode", "encode_query", "encode_document"):
        for options in ({}, {"max_active_dims": 8}, {"convert_to_sparse_tensor": False}, {"convert_to_tensor": False}):
            expected = getattr(model, encode)(TEXTS, batch_size=3, **options)
            got = getattr(fast, encode)(TEXTS, batch_size=3, **options)
            assert type(got) is type(expected)
            if isinstance(got, list):
                got, expected = torch.stack(got), torch.stack(expected)
            assert (got.layout, got.dtype, got.shape) == (expected.layout, expected.dtype, expected.shape)
            assert got.is_sparse == options.get("convert_to_sparse_tensor", True)
            torch.testing.assert_close(got.to_dense(), expected.to_dense(), rtol=1e-4, atol=1e-5)
    assert getattr(fast, width)() == getattr(model, width)() == V
    queries, documents = fast.encode_query(TEXTS[:2]), fast.encode_document(TEXTS)
    expected = model.similarity(model.encode_query(TEXTS[:2]), model.encode_document(TEXTS))
    torch.testing.assert_close(fast.similarity(queries, documents), expected, rtol=1e-4, atol=1e-4)
    assert fast.encode(TEXTS[0]).shape == (V,)
    assert fast.decode(queries[0], top_k=3) == model.decode(model.encode_query(TEXTS[0]), top_k=3)


@pytest.mark.parametrize("options", [{}, {"convert_to_sparse_tensor": False}, {"convert_to_tensor": False}])
def test_what_an_encoder_returns_is_searched(made: Callable[..., SparseEncoder], options: dict[str, bool]) -> None:
    """semantic_search_stair finds the documents that the library's own similarity ranks first."""
    model = made()
    queries, corpus = model.encode_query(TEXTS[:2], **options), model.encode_document(TEXTS, **options)
    similarity = model.similarity(model.encode_query(TEXTS[:2]), model.encode_document(TEXTS))
    hits, _ = sk.semantic_search_stair(queries, corpus, top_k=2)
    scores = torch.tensor([[hit["score"] for hit in of_query] for of_query in hits])
    torch.testing.assert_close(scores, similarity.topk(2).values, rtol=1e-5, atol=1e-6)
    found = torch.tensor([[hit["corpus_id"] for hit in of_query] for of_query in hits])
    torch.testing.assert_close(similarity.gather(1, found), scores, rtol=1e-5, atol=1e-6)
    one, _ = sk.semantic_search_stair(model.encode_query(TEXTS[0], **options), corpus, top_k=2)
    assert [hit["corpus_id"] for hit in one[0]] == [hit["corpus_id"] for hit in hits[0]]


def splade(cached: bool) -> Callable[[SparseEncoder], nn.Module]:
    def make(model: SparseEncoder) -> nn.Module:
        weights = {"document_regularizer_weight": 0.01, "query_regularizer_weight": 0.02}
        inner = losses.SparseMultipleNegativesRankingLoss(model)
        if cached:
            return losses.CachedSpladeLoss(model, inner, **weights, mini_batch_size=3)
        return losses.SpladeLoss(model, inner, **weights)

    return make


@pytest.mark.parametrize("name", ["SpladeLoss", "CachedSpladeLoss", "SparseMultipleNegativesRankingLoss", "FlopsLoss"])
def test_losses(made: Callable[..., SparseEncoder], name: str) -> None:
    """A loss and its gradients, by queries and documents of the batch."""
    if not hasattr(losses, name):
        pytest.skip(f"this sentence-transformers has no {name}")
    results = {}
    model = made()
    for fast in (False, True):
        one = accelerated(model) if fast else copy.deepcopy(model)
        one.train()
        features = [dict(INPUTS), dict(INPUTS)]
        if name in ("SpladeLoss", "CachedSpladeLoss"):
            value = sum(splade(name == "CachedSpladeLoss")(one)(features, labels=None).values())
        else:  # parts of the others, which the library does not let stand alone
            rows = [one(side)["sentence_embedding"] for side in features]
            loss = getattr(losses, name)(one)
            value = loss.compute_loss_from_embeddings(*([rows[0]] if name == "FlopsLoss" else [rows, None]))
        value.backward()
        results[fast] = value.detach(), {key: p.grad for key, p in one.named_parameters() if p.grad is not None}
    torch.testing.assert_close(results[True][0], results[False][0], rtol=1e-5, atol=1e-6)
    assert results[True][1].keys() == results[False][1].keys()
    largest = max(float(gradient.abs().max()) for gradient in results[False][1].values())
    for key, gradient in results[True][1].items():
        torch.testing.assert_close(gradient, results[False][1][key], rtol=1e-3, atol=1e-5 * largest)


def test_the_trainer(made: Callable[..., SparseEncoder], tmp_path: Path) -> None:
    """Three steps of the library's trainer end at the same weights; the checkpoint is one of the original classes."""
    datasets = pytest.importorskip("datasets", reason="pip install 'stair-kernels[test]'")
    pytest.importorskip("accelerate", reason="pip install 'stair-kernels[test]'")
    model, ends = made(), {}
    start = copy.deepcopy(model.state_dict())
    for fast in (False, True):
        one = accelerated(model) if fast else copy.deepcopy(model)
        arguments = SparseEncoderTrainingArguments(
            output_dir=str(tmp_path / str(fast)),
            max_steps=3,
            per_device_train_batch_size=2,
            learning_rate=1e-3,
            report_to="none",
            use_cpu=True,
            disable_tqdm=True,
            save_strategy="no",
            seed=5,
            optim="sgd",
        )
        pairs = datasets.Dataset.from_dict({"anchor": TEXTS, "positive": TEXTS[::-1]})
        trainer = SparseEncoderTrainer(model=one, args=arguments, train_dataset=pairs, loss=splade(False)(one))
        trainer.train()
        ends[fast] = one.state_dict()
        one.save_pretrained(str(tmp_path / f"saved-{fast}"))
    moved = 0.0
    for name, end in ends[False].items():
        moved = max(moved, float((end - start[name]).abs().max()))
        torch.testing.assert_close(ends[True][name], end, rtol=1e-4, atol=1e-6)
    assert moved > 1e-4
    for file in ("modules.json", "config.json"):
        assert (tmp_path / "saved-True" / file).read_text() == (tmp_path / "saved-False" / file).read_text()
    again = SparseEncoder(str(tmp_path / "saved-True"), device="cpu")
    assert not any(stair.adapters.swap.is_swapped(module) for module in again.modules())
    torch.testing.assert_close(again.encode(TEXTS).to_dense(), one.encode(TEXTS).to_dense(), rtol=1e-4, atol=1e-5)


def test_a_router_keeps_its_static_side(made: Callable[..., SparseEncoder]) -> None:
    """The inference-free form: queries by a table of weights, documents by the masked LM."""
    encoder = made()
    parts = published.sparse_encoder_parts()
    router = (
        parts.Router if hasattr(parts, "Router") else importlib.import_module("sentence_transformers.models").Router
    )
    static = parts.SparseStaticEmbedding(tokenizer=encoder.tokenizer, frozen=False)
    nn.init.uniform_(static.weight)
    routes = router.for_query_document(query_modules=[static], document_modules=list(encoder))
    model = SparseEncoder(modules=[routes], device="cpu", similarity_fn_name="dot")
    fast = accelerated(model)
    assert torch.equal(fast.encode_query(TEXTS).to_dense(), model.encode_query(TEXTS).to_dense())
    expected = model.encode_document(TEXTS).to_dense()
    torch.testing.assert_close(fast.encode_document(TEXTS).to_dense(), expected, rtol=1e-4, atol=1e-5)


def test_restore(made: Callable[..., SparseEncoder]) -> None:
    model = made()
    model.encode(TEXTS)  # sets the pooling's width
    classes = [type(module) for module in model.modules()]
    attributes = [dict(vars(module)) for module in model.modules()]
    assert stair.accelerate(model) is model
    assert len([module for module in model.modules() if stair.adapters.swap.is_swapped(module)]) == 2
    assert stair.restore(model) is model
    assert [type(module) for module in model.modules()] == classes
    assert [dict(vars(module)) for module in model.modules()] == attributes


def test_what_is_no_maximum_over_a_known_masked_lm_is_refused(made: Callable[..., SparseEncoder]) -> None:
    model = made()
    model[1].pooling_strategy = "sum"
    with pytest.raises(
        TypeError, match=r"SparseEncoder with one of them and SpladePooling\('max'\).*got SparseEncoder"
    ):
        stair.accelerate(model)
    unknown = made()
    name = next(name for name, module in unknown[0].named_children() if module is language_model(unknown))
    setattr(unknown[0], name, nn.Identity())
    with pytest.raises(TypeError, match="expected BertForMaskedLM"):
        stair.accelerate(unknown)
    with pytest.raises(ValueError, match="special_tokens: expected 'keep' with SparseEncoder"):
        stair.accelerate(made(), special_tokens="drop", special_ids=[0])
