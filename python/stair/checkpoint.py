"""Opening a checkpoint folder, with errors that name it."""

from __future__ import annotations

import hashlib
import json
from pathlib import Path
from typing import TYPE_CHECKING, Any

from stair.files import sha256

if TYPE_CHECKING:
    from stair import STAIRModel, STAIRProcessor


def require_checkpoint(folder: Path | str) -> Path:
    """`folder`, when it is a STAIR checkpoint.

    Raises:
        ValueError: it is not there, holds no model, or another kind of model.
    """
    folder = Path(folder)
    if not folder.is_dir():
        raise ValueError(
            f"{folder}: no STAIR checkpoint there; make one with `stair demo` or `stair train`, or give --model"
        )
    try:
        kind = json.loads((folder / "config.json").read_text(encoding="utf-8")).get("model_type")
    except (FileNotFoundError, ValueError, AttributeError):
        raise ValueError(
            f"{folder} is not a STAIR checkpoint (no readable config.json); give --model another folder"
        ) from None
    if kind != "stair":
        raise ValueError(
            f"{folder} is not a STAIR checkpoint (its model_type is {kind!r}); give --model another folder"
        )
    if not any(folder.glob("*.safetensors")):
        raise ValueError(f"{folder} is not a whole STAIR checkpoint (no model.safetensors); train it again")
    return folder


def load(folder: Path | str) -> tuple[STAIRModel, STAIRProcessor]:
    """(model in evaluation mode, processor) of a checkpoint; ValueError when it is none or damaged."""
    folder = require_checkpoint(folder)
    from safetensors import SafetensorError

    from stair import STAIRModel, STAIRProcessor

    try:
        read: Any = STAIRModel.from_pretrained(folder, output_loading_info=True, ignore_mismatched_sizes=True)
    except (SafetensorError, RuntimeError) as error:
        first_line = (str(error).strip().splitlines() or [type(error).__name__])[0]
        raise ValueError(f"{folder} is a damaged checkpoint ({first_line}); train it again") from error
    model, found = read
    # transformers would draw such weights at random and go on.
    wrong = sorted({*found["missing_keys"], *(entry[0] for entry in found["mismatched_keys"])})
    if wrong:
        names = ", ".join(wrong[:3]) + (f" and {len(wrong) - 3} more" if len(wrong) > 3 else "")
        raise ValueError(f"{folder} holds weights of another model ({names} are missing or of another shape)")
    try:
        processor = STAIRProcessor.from_pretrained(folder)
    except ValueError:
        raise
    except Exception as error:  # tokenizers raises nothing more specific for a damaged file
        raise ValueError(f"{folder} is a damaged checkpoint (tokenizer: {error}); train it again") from error
    if processor.vocab_size != model.vocab_size:
        raise ValueError(
            f"{folder}: its tokenizer has {processor.vocab_size} entries, its model {model.vocab_size}; train it again"
        )
    return model.eval(), processor


def fingerprint(folder: Path | str) -> str:
    """SHA-256 over a checkpoint's weights: two checkpoints with the same one give the same rows."""
    files = sorted(require_checkpoint(folder).glob("*.safetensors"))
    return hashlib.sha256("".join(sha256(file) for file in files).encode()).hexdigest()
