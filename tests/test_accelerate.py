"""stair.accelerate: each kind of model gives what it gave, its logits are not made, and restore undoes it exactly."""

from __future__ import annotations

import copy
import inspect
import pickle
import re
from pathlib import Path
from typing import Any

import cases
import published
import pytest
import stair
import torch
import variants
import work
from accelerated import CLS, INPUTS, KINDS, SEP, B, D, Kind, LargestTensor, V, forbid, packed, with_gradients
from published import masked_lm
from tolerance import assert_close
from torch import Tensor, nn
from transformers import AutoModelForMaskedLM, BertConfig, BertForMaskedLM, BertModel, RobertaForMaskedLM

pytestmark = pytest.mark.usefixtures("one_thread")
DOCUMENTATION = (Path(__file__).resolve().parents[1] / "docs" / "accelerate.md").read_text(encoding="utf-8")
HEAVY = ("bert", "naver", "vdr-norm-topk", "vdr-image", "stair")  # one of each mechanism


@pytest.fixture(params=KINDS)
def kind(request: pytest.FixtureRequest) -> Kind:
    return KINDS[request.param]


def is_fast(model: nn.Module) -> bool:
    return any(stair.adapters.swap.is_swapped(module) for module in model.modules())


def trained(kind: Kind, model: nn.Module) -> tuple[Tensor, dict[str, Tensor]]:
    rows = (kind.accelerated_rows if is_fast(model) else kind.rows)(model)
    return with_gradients(model, rows)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_rows_and_gradients_are_as_close_to_float64_as_the_originals(kind: Kind, dtype: torch.dtype) -> None:
    model = kind.make().to(dtype)
    original, fast = copy.deepcopy(model), stair.accelerate(copy.deepcopy(model), **kind.settings)
    forbid(kind.heads(fast))
    truth, gradients_truth = trained(kind, copy.deepcopy(model).double())
    eager, gradients_eager = trained(kind, original)
    rows, gradients = trained(kind, fast)
    assert (rows.dtype, rows.shape) == (eager.dtype, eager.shape)
    assert gradients.keys() == gradients_eager.keys() == gradients_truth.keys()
    assert_close(rows, truth, eager, "rows")
    for name, gradient in gradients.items():
        assert gradient.dtype == gradients_eager[name].dtype
        cancels = 0.1 if gradient.dim() == 0 else 0.0  # log_scale's: a sum over B * B pairs
        assert_close(gradient, gradients_truth[name], gradients_eager[name], name, addend=cancels)


def test_the_logits_are_not_made(kind: Kind) -> None:
    model = kind.make()
    largest = {}
    for name in ("original", "accelerated"):
        with LargestTensor() as seen:
            (kind.lean if kind.lean and is_fast(model) else kind.rows)(model).sum().backward()
        largest[name] = seen.numel
        stair.accelerate(model, **kind.settings)
        forbid(kind.heads(model))
    assert largest["original"] >= kind.logits
    assert not kind.logits or largest["accelerated"] < kind.logits


def snapshot(model: nn.Module) -> list[Any]:
    """Everything of every module but the methods: its class, attributes, parameters by identity."""
    return [(name, type(module), dict(vars(module))) for name, module in model.named_modules()]


def test_names_parameters_and_mode_stay_and_restore_undoes_exactly(kind: Kind) -> None:
    model = kind.make().train()
    before, state, text = snapshot(model), model.state_dict(), repr(model)
    columns = inspect.signature(model.forward)
    assert stair.accelerate(model, **kind.settings) is model
    classes = [type(module) for module in model.modules()]
    assert stair.accelerate(model, **kind.settings) is model
    assert [type(module) for module in model.modules()] == classes
    assert all(isinstance(module, original) for module, (_, original, _) in zip(model.modules(), before))
    assert [name for name, _ in model.named_modules()] == [name for name, _, _ in before]
    assert all(module.training for module in model.modules())
    assert repr(model) == text
    assert inspect.signature(model.forward) == columns
    after = model.state_dict()
    assert after.keys() == state.keys()
    assert all(after[name].data_ptr() == tensor.data_ptr() for name, tensor in state.items())
    assert stair.restore(model) is model
    assert snapshot(model) == before
    assert stair.restore(model) is model


@pytest.mark.parametrize("name", HEAVY)
def test_copies_and_pickles_are_accelerated(name: str) -> None:
    kind = KINDS[name]
    model = stair.accelerate(kind.make())
    with torch.no_grad():
        rows = kind.rows(model)
        for again in (copy.deepcopy(model), pickle.loads(pickle.dumps(model))):
            forbid(kind.heads(again))
            assert torch.equal(kind.rows(again), rows)
            first, other = next(iter(model.parameters())), next(iter(again.parameters()))
            other.add_(1.0)  # the copy's own weights are used
            assert not torch.equal(kind.rows(again), rows)
            assert torch.equal(kind.rows(model), rows)
            assert first.data_ptr() != other.data_ptr()
            assert type(next(stair.restore(again).modules())) is type(kind.make())


def test_a_saved_model_is_the_original(tmp_path: Path) -> None:
    model = masked_lm("bert", V, D)
    model.save_pretrained(tmp_path / "before")
    stair.accelerate(model).save_pretrained(tmp_path / "after")
    for file in (tmp_path / "before").iterdir():
        assert (tmp_path / "after" / file.name).read_bytes() == file.read_bytes()
    again = AutoModelForMaskedLM.from_pretrained(tmp_path / "after")
    assert type(again) is BertForMaskedLM
    assert not is_fast(again)


@pytest.mark.parametrize("name", ["bert", "vdr", "d2s"])
def test_autocast(name: str) -> None:
    kind, results = KINDS[name], {}
    model = kind.make()
    truth, gradients_truth = trained(kind, copy.deepcopy(model).double())
    for fast in (False, True):
        one = copy.deepcopy(model)
        if fast:
            stair.accelerate(one)
        with torch.autocast("cpu", torch.bfloat16):
            results[fast] = trained(kind, one)
    assert results[True][0].dtype == results[False][0].dtype
    assert_close(results[True][0], truth, results[False][0], "rows")
    for parameter, gradient in results[True][1].items():
        assert_close(gradient, gradients_truth[parameter], results[False][1][parameter], parameter)


def test_gradient_checkpointing_changes_nothing() -> None:
    kind = KINDS["bert"]
    model = stair.accelerate(kind.make())
    rows, gradients = trained(kind, model)
    model.zero_grad()
    model.train()
    model.gradient_checkpointing_enable()
    rows_again, gradients_again = trained(kind, model)
    assert torch.equal(rows_again, rows)
    for name, gradient in gradients.items():
        torch.testing.assert_close(gradients_again[name], gradient)


@pytest.mark.parametrize("name", ["bert", "vdr"])
def test_compile(name: str) -> None:
    kind = KINDS[name]
    model = stair.accelerate(kind.make())
    rows = kind.rows(model).detach()
    compiled = torch.compile(kind.lean or kind.rows, backend="aot_eager", fullgraph=True)
    torch.testing.assert_close(compiled(model).detach(), rows)


@pytest.mark.parametrize("name", ["xlm-roberta", "camembert"])
def test_relatives_of_roberta(name: str) -> None:
    model = masked_lm(name, V, D)
    with torch.no_grad():
        expected = KINDS["roberta"].rows(model)
        forbid([stair.accelerate(model).lm_head.decoder])
        torch.testing.assert_close(KINDS["roberta"].rows(model), expected)


def test_packed_texts_are_pooled_one_by_one() -> None:
    model = masked_lm("bert", V, D)
    with torch.no_grad():
        logits = model(**packed()).logits[0]
        bounds = packed()["cu_seq_lens_q"].tolist()
        expected = torch.stack([logits[start:end].relu().amax(0) for start, end in zip(bounds, bounds[1:])])
        rows = stair.accelerate(model)(**packed()).logits
    assert rows.shape == (B, 1, V)
    torch.testing.assert_close(rows[:, 0], expected)


def test_no_mask_means_all_positions_and_an_empty_text_is_zero() -> None:
    model = masked_lm("bert", V, D)
    ids = INPUTS["input_ids"]
    none = torch.zeros_like(ids)
    with torch.no_grad():
        expected = model(ids).logits.relu().amax(1, keepdim=True)
        torch.testing.assert_close(stair.accelerate(model)(ids).logits, expected)
        assert not model(ids, attention_mask=none).logits.any()
        torch.testing.assert_close(model(inputs_embeds=model.get_input_embeddings()(ids)).logits, expected)


def test_the_first_and_the_last_position_are_dropped_only_where_they_are_special() -> None:
    """Left padding, a text without [SEP], one of [CLS] [SEP] only."""
    ids = torch.tensor([[0, CLS, 7, SEP], [CLS, 8, SEP, 9], [CLS, SEP, 0, 0]])
    mask = torch.tensor([[0, 1, 1, 1], [1, 1, 1, 1], [1, 1, 0, 0]])
    positions = stair.adapters.Positions("ends", (CLS, SEP))
    assert positions.mask(ids, mask).int().tolist() == [[0, 0, 1, 0], [0, 1, 1, 1], [0, 0, 0, 0]]
    positions = stair.adapters.Positions("drop", (CLS, SEP))
    assert positions.mask(ids, mask).int().tolist() == [[0, 0, 1, 0], [0, 1, 0, 1], [0, 0, 0, 0]]


def test_a_tuple_and_hidden_states_come_back_as_before() -> None:
    model = masked_lm("bert", V, D)
    before = model(**INPUTS, output_hidden_states=True)
    out = stair.accelerate(model)(**INPUTS, output_hidden_states=True)
    assert type(out) is type(before)
    assert len(out.hidden_states) == len(before.hidden_states)
    assert all(map(torch.equal, out.hidden_states, before.hidden_states))
    (logits,) = model(**INPUTS, return_dict=False)
    assert torch.equal(logits, out.logits)
    positional = model(INPUTS["input_ids"], INPUTS["attention_mask"], torch.zeros_like(INPUTS["input_ids"]))
    assert torch.equal(positional.logits, out.logits)


@pytest.mark.parametrize("op", [f"accelerate_{model}{suffix}" for model in cases.MODELS for suffix in ("", "_grad")])
def test_the_benchmark_compares_what_is_the_same(op: str) -> None:
    if "sparse_encoder" in op:
        pytest.importorskip("sentence_transformers", reason="pip install 'stair-kernels[test]'")
    case = cases.Case(op, (2, D, 80) if "d2s" in op else (2, 5, D, 80, 1))
    made = work.prepare(case, torch.device("cpu"))
    assert made.variants.keys() == {"ours", "eager"}
    for variant in made.variants.values():
        assert variants.relative_error(made.read(variant.run()), made.truth) < variants.TOLERANCE["float32"]


def test_the_programs_of_the_documentation_run() -> None:
    programs = re.findall(r"^```python\n(.*?)^```", DOCUMENTATION, re.MULTILINE | re.DOTALL)
    assert len(programs) == 2
    names: dict[str, Any] = {}
    for number, program in enumerate(programs, 1):
        exec(compile(program, f"accelerate.md, program {number}", "exec"), names)


def test_the_documentation_names_what_is_recognised() -> None:
    table = DOCUMENTATION.partition("## What is recognised")[2].partition("\n## ")[0]
    for adapter in stair.adapters.ADAPTERS:
        assert all(f"`{name}`" in table or f"`stair.{name}`" in table for name in adapter.classes)


class Own(BertForMaskedLM):
    """A subclass with its own forward is another model."""

    def forward(self, input_ids: Tensor) -> Tensor:
        return super().forward(input_ids).logits


def _tied_to_lora() -> nn.Module:
    model = masked_lm("bert", V, D)
    model.cls.predictions.decoder = nn.Sequential(model.cls.predictions.decoder)
    return model


def tiny() -> BertConfig:
    return published.config("bert", V, D, 1)


@pytest.mark.parametrize("function", [stair.accelerate, stair.restore])
@pytest.mark.parametrize(
    "make",
    [
        lambda: nn.Linear(2, 2),
        lambda: BertModel(tiny()),
        lambda: Own(tiny()),
        _tied_to_lora,
        lambda: published.Splade(masked_lm("bert", V, D), agg="sum"),
        lambda: published.VDREncoder(V, D, 1, shift=4, pooling="mean"),
        lambda: "bert-base-uncased",
    ],
    ids=["linear", "encoder", "subclass", "other decoder", "sum", "mean", "name"],
)
def test_another_model_is_a_type_error_that_names_what_is_known(function: Any, make: Any) -> None:
    with pytest.raises(TypeError, match=r"model: expected BertForMaskedLM.*SpladePooling.*VDRTextEncoder.*; got "):
        function(make())


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"special_tokens": "all"}, "special_tokens: expected one of keep, drop, ends, got 'all'"),
        ({"special_ids": [1]}, r"special_ids: expected none with special_tokens='keep', got \[1\]"),
        ({"special_tokens": "drop"}, r"special_ids: expected at least one with special_tokens='drop', got \[\]"),
        ({"special_tokens": "ends", "special_ids": [1]}, r"special_ids: expected two, .*'ends', got \[1\]"),
    ],
)
def test_a_wrong_setting_changes_nothing(settings: dict[str, Any], message: str) -> None:
    model = masked_lm("bert", V, D)
    with pytest.raises(ValueError, match=message):
        stair.accelerate(model, **settings)
    assert type(model) is BertForMaskedLM


def test_settings_belong_to_masked_lms_and_can_be_changed() -> None:
    drop = {"special_tokens": "drop", "special_ids": [CLS]}
    with pytest.raises(ValueError, match="special_tokens: expected 'keep' with VDREncoder"):
        stair.accelerate(published.VDREncoder(V, D, 1, shift=4), **drop)
    model = stair.accelerate(stair.accelerate(masked_lm("bert", V, D)), **drop)
    with pytest.raises(ValueError, match="cu_seq_lens_q: expected None with special_tokens='drop'"):
        model(**packed())
    with pytest.raises(ValueError, match=r"input_ids: expected \[B, L\] with special_tokens='drop', got None"):
        model(inputs_embeds=torch.zeros(1, 2, D))


def test_what_an_accelerated_masked_lm_cannot_do_is_an_error() -> None:
    model = stair.accelerate(masked_lm("roberta", V, D))
    ids = INPUTS["input_ids"]
    with pytest.raises(ValueError, match=r"labels: expected None: an accelerated model makes no logits"):
        model(ids, labels=ids)
    with pytest.raises(ValueError, match=r"attention_mask: expected \[B, L\], got \[4, 1, 1, 24\]"):
        model(ids, attention_mask=torch.ones(B, 1, 1, ids.shape[1]))
    assert isinstance(stair.restore(model), RobertaForMaskedLM)
    assert model(ids, labels=ids).loss > 0


def test_a_forward_that_others_have_replaced_is_an_error() -> None:
    model = masked_lm("bert", V, D)
    model.forward = model.forward
    with pytest.raises(RuntimeError, match=r"BertForMaskedLM.forward has been replaced on this instance"):
        stair.accelerate(model)
    del model.forward
    stair.accelerate(model).forward = model.forward
    with pytest.raises(RuntimeError, match=r"stair.restore after undoing it"):
        stair.restore(model)
