"""The training recipe from a YAML file and flags, checked by name and type."""

from __future__ import annotations

import re
import typing
from dataclasses import fields
from pathlib import Path
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from stair.train import TrainConfig

NUMBER = re.compile(r"[+-]?\d+(\.\d*)?([eE][+-]?\d+)?")


def read_recipe(file: Path | None, flags: dict[str, Any]) -> TrainConfig:
    """TrainConfig's defaults, overridden by `file`, overridden by the flags that are not None.

    Raises:
        ValueError: the file is not a YAML mapping, or a name, a type or a value in it is wrong.
    """
    from stair.train import TrainConfig

    given: dict[str, Any] = {}
    if file is not None:
        given = _read_yaml(file)
        types = typing.get_type_hints(TrainConfig)
        known = [field.name for field in fields(TrainConfig)]
        for name, value in given.items():
            if name not in known:
                raise ValueError(f"{file}: unknown name {name!r}; expected some of {', '.join(known)}")
            given[name] = _typed(value, types[name], f"{file}: {name}")
    given.update({name: value for name, value in flags.items() if value is not None})
    return TrainConfig(**given)


def _read_yaml(file: Path) -> dict[str, Any]:
    import yaml

    try:
        loaded = yaml.safe_load(file.read_text(encoding="utf-8"))
    except yaml.YAMLError as error:
        raise ValueError(f"{file}: not YAML ({error})") from error
    if loaded is None:
        return {}
    if not isinstance(loaded, dict):
        raise ValueError(f"{file}: expected lines such as 'steps: 300', got a {type(loaded).__name__}")
    return loaded


def _typed(value: Any, hint: Any, what: str) -> Any:
    """`value` in the type of its field: an int or 1e-3, which YAML reads as a string, where a float is due."""
    allowed = typing.get_args(hint) or (hint,)
    if float in allowed and (type(value) is int or (isinstance(value, str) and NUMBER.fullmatch(value))):
        return float(value)
    if not (bool in allowed if isinstance(value, bool) else isinstance(value, allowed)):
        names = " or ".join(getattr(kind, "__name__", str(kind)) for kind in allowed)
        raise ValueError(f"{what}: expected {names}, got {value!r}")
    return value
