"""``--set key.path=value``: one value of a recipe's data changed, before anything checks it.

A step into a list of tables is an index, or the name of the component that exactly one of them uses:
``curate.stage.1.t``, ``curate.stage.metadata_balance.t`` and ``curate.stage.filter.metadata_balance.t``;
of code from elsewhere ``curate.stage.Blur.radius`` and ``curate.stage.mylab.filters:Blur.radius``.
"""

from __future__ import annotations

import tomllib
from collections.abc import Sequence
from typing import Any

from pipelines.errors import RecipeError, did_you_mean

_ONLY_WITH = {"filter.metadata_balance": {"oversample": "keep"}}
_ONE_OF = {"filter.metadata_balance": frozenset({"t", "keep", "tail_share"})}


def apply(data: dict[str, Any], text: str) -> None:
    """Apply ``train.phase.0.global_batch=4096``. The value is TOML; a bare word counts as a string."""
    key, equals, raw = text.partition("=")
    if not equals or not key.strip():
        raise RecipeError(
            f"--set {text}", "expected key.path=value", "e.g. --set train.phase.0.global_batch=4096"
        )
    try:
        value = tomllib.loads(f"value = {raw}")["value"]
    except tomllib.TOMLDecodeError:
        value = raw.strip()
    *path, last = _by_index(data, key.strip().split("."), text)
    node: Any = data
    for step in path:
        if isinstance(node, list):
            node = node[_index(node, step, text)]
        elif step in node:
            node = node[step]
        else:
            node = node.setdefault(step, {})
        if not isinstance(node, dict | list):
            raise RecipeError(f"--set {text}", f"{step!r} is a value, not a table")
    if isinstance(node, list):
        node[_index(node, last, text)] = value
    else:
        node[last] = value


def place_of(data: dict[str, Any], override: str) -> tuple[str, ...]:
    """The steps of an override's key, with names of list tables as their indexes. Raises RecipeError."""
    return tuple(_by_index(data, override.partition("=")[0].strip().split("."), override))


def drop_rivals(data: dict[str, Any], changes: Sequence[str]) -> None:
    """Take out what applied changes replace: of options that exclude one another, those not set by them."""
    chosen: dict[int, set[str]] = {}
    for change in changes:
        place = place_of(data, change)
        if place[:2] == ("curate", "stage") and len(place) == 4:
            chosen.setdefault(int(place[2]), set()).add(place[3])
    for index, names in chosen.items():
        table = data["curate"]["stage"][index]
        rivals = _ONE_OF.get(table.get("use"), frozenset())
        for name in rivals - names if rivals & names else ():
            table.pop(name, None)
        for name, other in _ONLY_WITH.get(table.get("use"), {}).items():
            if other not in table and name not in names:
                table.pop(name, None)


def _by_index(data: dict[str, Any], steps: list[str], text: str) -> list[str]:
    """Steps into a list of tables may be a component's name: the whole `use`, or its last word."""
    node: Any = data
    found: list[str] = []
    while steps:
        length = 1
        if isinstance(node, list) and not steps[0].isdigit():
            length = _length_of_name(node, steps)
        step, steps = ".".join(steps[:length]), steps[length:]
        if isinstance(node, list) and not step.isdigit():
            step = _named(node, step, text)
        found.append(step)
        if isinstance(node, list):
            node = node[_index(node, step, text)]
        else:
            node = node.get(step) if isinstance(node, dict) else None
    return found


def _length_of_name(node: list[Any], steps: list[str]) -> int:
    """How many steps are the name of a component that a table uses: its dots cut it as well."""
    lengths = range(len(steps), 0, -1)
    fits = (n for n in lengths if any(_names(table, ".".join(steps[:n])) for table in node))
    return next(fits, 1)


def _named(node: list[Any], name: str, text: str) -> str:
    """The index of the one table of a list that uses the component ``name``."""
    found = [str(index) for index, table in enumerate(node) if _names(table, name)]
    if len(found) == 1:
        return found[0]
    if found:
        raise RecipeError(
            f"--set {text}",
            f"{len(found)} tables use {name!r}",
            f"say which by its index: {' or '.join(found)}",
        )
    uses = [table["use"] for table in node if isinstance(table, dict) and "use" in table]
    near = did_you_mean(name, {_last_word(str(use)) for use in uses}, "or one of")
    raise RecipeError(
        f"--set {text}",
        f"{name!r} is no index of a list of {len(node)}",
        "the first is 0" + (f"; {near}" if uses else ""),
    )


def _names(table: Any, name: str) -> bool:
    use = str(table.get("use", "")) if isinstance(table, dict) else ""
    return bool(name) and name in (use, _last_word(use))


def _last_word(use: str) -> str:
    return use.replace(":", ".").rpartition(".")[2]


def _index(node: list[Any], step: str, text: str) -> int:
    if not step.isdigit() or int(step) >= len(node):
        raise RecipeError(
            f"--set {text}", f"{step!r} is no index of a list of {len(node)}", "the first is 0"
        )
    return int(step)
