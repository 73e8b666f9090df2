"""STAIR, Sparse Text And Image Representation: a thin model on transformers over the operators of `stair_kernels`.

The terms that a text is mapped to:

    from stair import STAIRModel, STAIRProcessor

    model = STAIRModel.from_pretrained("out/demo/model")
    processor = STAIRProcessor.from_pretrained("out/demo/model")
    rows = model.encode_text(**processor(text=["a red fruit"]))      # SparseRows [1, k] over the 30,522 word-pieces
    [(processor.term(v), w) for w, v in zip(rows.values[0].tolist(), rows.indices[0].tolist()) if v >= 0]
"""

from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from stair.adapters import accelerate, restore
    from stair.model import STAIRConfig, STAIRModel
    from stair.processing import STAIRProcessor

_HOME = {
    "STAIRConfig": "stair.model",
    "STAIRModel": "stair.model",
    "STAIRProcessor": "stair.processing",
    "accelerate": "stair.adapters",
    "restore": "stair.adapters",
}

__all__ = ["STAIRConfig", "STAIRModel", "STAIRProcessor", "accelerate", "restore"]


def __getattr__(name: str) -> Any:
    """Loads transformers on first use only: `stair --help` does not need it."""
    if name not in _HOME:
        raise AttributeError(f"module 'stair' has no attribute {name!r}")
    import importlib

    return getattr(importlib.import_module(_HOME[name]), name)
