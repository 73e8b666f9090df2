"""stair.accelerate and stair.restore: a published model's vocabulary head by the fused operators, in place.

    model = stair.accelerate(SparseEncoder("naver/splade-v3"))     # the one line that changes

The logits [B, L, V] are not made any more and the module that made them does not run; parameters, names, devices,
state_dict, training mode and what is saved stay as they are. ADAPTERS is the table of what is recognised, by the name
of the class that defines the replaced method; docs/accelerate.md says what each gives.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import TypeVar

from torch import nn

from stair.adapters import swap
from stair.adapters.d2s import d2s
from stair.adapters.reference import reference
from stair.adapters.splade import MASKED_LMS, Positions, masked_lm, naver_splade, sparse_encoder
from stair.adapters.swap import Swap
from stair.adapters.vdr import vdr

Model = TypeVar("Model", bound=nn.Module)


@dataclass(frozen=True)
class Adapter:
    """Models that are recognised, and what is swapped in one of them (None: it lacks what the adapter needs)."""

    method: str | None  # that the class defines itself, so that a subclass with its own is not taken for it
    classes: tuple[str, ...]
    swaps: Callable[[nn.Module, Positions], list[Swap] | None]
    says: str  # in the message of the TypeError

    def recognises(self, model: nn.Module) -> bool:
        if self.method is None:
            return any(base.__name__ in self.classes for base in type(model).__mro__)
        return swap.defines(model, self.method) in self.classes


ADAPTERS = (
    Adapter("forward", tuple(MASKED_LMS), masked_lm, f"{', '.join(MASKED_LMS)} of transformers"),
    Adapter(None, ("SparseEncoder",), sparse_encoder, "SparseEncoder with one of them and SpladePooling('max')"),
    Adapter("encode", ("Splade",), naver_splade, "naver's Splade with agg='max'"),
    Adapter(
        "embed",
        ("VDREncoder", "VDRTextEncoder", "VDRImageEncoder"),
        vdr,
        "VDREncoder with max pooling, VDRTextEncoder, VDRImageEncoder",
    ),
    Adapter("forward", ("D2SModel",), d2s, "D2SModel"),
    Adapter("forward", ("STAIRModel",), reference, "STAIRModel"),
)


def accelerate(model: Model, *, special_tokens: str = "keep", special_ids: Sequence[int] = ()) -> Model:
    """Swaps the vocabulary head of `model` in place and returns it; a second call changes nothing but the settings.

    Args:
        special_tokens: of a masked LM used as SPLADE: "keep", the maximum is over all unmasked positions (naver);
            "drop", those whose token is in `special_ids` are left out (lsr); "ends", each text's first position is left
            out where its token is special_ids[0] and its last where it is special_ids[1] (vLLM).
        special_ids: token ids, e.g. tokenizer.all_special_ids, or [cls_token_id, sep_token_id] with "ends".

    Raises:
        TypeError: the model is not recognised; the message names what is.
        ValueError: a setting is wrong.
        RuntimeError: the method to replace has been replaced on the instance already.
    """
    positions = Positions(special_tokens, tuple(special_ids))
    swaps = _swaps(model, positions)
    if special_tokens != "keep" and any(step.settings != positions for step in swaps):
        raise ValueError(
            f"special_tokens: expected 'keep' with {type(model).__name__}, which decides that itself, "
            f"got {special_tokens!r}"
        )
    for step in swaps:
        swap.check(step.module, step.kind)
    for step in swaps:
        swap.apply(step)
    return model


def restore(model: Model) -> Model:
    """Undoes accelerate exactly and returns `model`; one that is not accelerated stays as it is.

    Raises:
        TypeError, RuntimeError: as accelerate.
    """
    modules = model.modules() if isinstance(model, nn.Module) else []
    swapped = [module for module in modules if swap.is_swapped(module)]
    if not swapped:
        _swaps(model, Positions())
    for module in swapped:
        swap.check(module)
    for module in swapped:
        swap.undo(module)
    return model


def _swaps(model: nn.Module, positions: Positions) -> list[Swap]:
    for adapter in ADAPTERS:
        if isinstance(model, nn.Module) and adapter.recognises(model):
            swaps = adapter.swaps(model, positions)
            if swaps is not None:
                return swaps
    known = "; ".join(adapter.says for adapter in ADAPTERS)
    raise TypeError(f"model: expected {known}; got {type(model).__name__}")
