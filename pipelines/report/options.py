"""What a stage was told to do: its options as a recipe would have them, without those left at their defaults.

Read from the manifest that every stage leaves in the pool.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from typing import Any

from curate.contract import storage
from curate.contract.parts import Pool
from pipelines import components
from pipelines.errors import RecipeError

_VALUE_CHARACTERS = 60


def use_of(stage: Mapping[str, Any]) -> str:
    """A stage's ``use``: a second one of the same in a recipe is named ``use#2``."""
    return str(stage["use"]).partition("#")[0]


def resolved(pool: Pool | None, stage: Mapping[str, Any]) -> dict[str, Any]:
    """All options of a stage of a shards' manifest; {} where the pool or its note of them is gone."""
    if pool is None:
        return {}
    path = storage.join(pool.columns_folder(use_of(stage), stage["fingerprint"]), "manifest.json")
    if not storage.exists(path):
        return {}
    found: dict[str, Any] = storage.read_json(path, "pool").get("options", {})
    return found


def told(use: str, options: Mapping[str, Any], seed: int | None = None) -> str:
    """``column = "clip_score", at_least = 0.3``: what is required or differs from its default.

    Paths are cut to their last component. Options that change no output, and a seed that is the
    recipe's, are left out.
    """
    known = _known(use)
    shown = []
    for name in [*(name for name in known if name in options), *sorted(options.keys() - known)]:
        value, option = options[name], known.get(name)
        if name == "seed" and value == seed:
            continue
        if option is not None and (option.is_tuning or _plain(option.default) == value):
            continue
        if option is None and value in ("", [], None):
            continue
        if option is not None and option.is_path:
            value = _last(value)
        shown.append(f"{name} = {_text(value)}")
    return ", ".join(shown)


def _known(use: str) -> dict[str, components.Option]:
    """The component's options in their order; {} for a component that is not there any more."""
    kind = "source" if use.startswith("source.") else "stage"
    try:
        return {option.name: option for option in components.describe(kind, use).options}
    except RecipeError:
        return {}


def _plain(value: Any) -> Any:
    """As JSON gives it back."""
    return [_plain(item) for item in value] if isinstance(value, list | tuple) else value


def _last(path: Any) -> Any:
    """The last component of a path, without a URL's query, which may hold a key."""
    if isinstance(path, list):
        return [_last(item) for item in path]
    return str(path).partition("?")[0].rstrip("/").rpartition("/")[2]


def _text(value: Any) -> str:
    text = json.dumps(value, ensure_ascii=False)
    return text if len(text) <= _VALUE_CHARACTERS else f"{text[: _VALUE_CHARACTERS - 1]}…"
