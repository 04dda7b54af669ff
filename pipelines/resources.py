"""What a task of a stage asks of the scheduler: what the stage says, or `cpus`, `gpus`, `memory_gb` in its table.

Any table of a [curate] component may have these. They change no output and are in no fingerprint.
"""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Sequence
from typing import Any

from curate.stage import Resources
from pipelines import components
from pipelines.components import Component
from pipelines.errors import RecipeError

_UNSAID_BYTES = 1 << 30
_LEAST = {"cpus": 0.01, "gpus": 0.0, "memory_gb": 0.0}


def asked(kind: str, component: Component, own: Resources) -> Resources:
    """What a task of a component asks for: its ``own``, where the recipe's table does not say.

    Raises RecipeError. An option of the component under one of these names is the component's.
    """
    if kind not in components.ASKING or not _LEAST.keys() & component.options.keys():
        return own
    taken = {option.name for option in components.describe(kind, component.use).options}
    found: dict[str, Any] = {}
    for name, least in _LEAST.items():
        if name in component.options and name not in taken:
            where = f"{component.where or component.use}.{name}"
            value = components.coerce(component.options[name], float, where)
            if not least <= value < math.inf:
                raise RecipeError(where, f"found {value:g}", f"at least {least:g}")
            found[name] = value
    if "memory_gb" in found:
        found["memory_bytes"] = int(found.pop("memory_gb") * 2**30)
    return dataclasses.replace(own, **found)


def joined(resources: Sequence[Resources]) -> Resources:
    """What a task of fused stages asks for: they take turns, so the largest of each.

    But what they opened they hold side by side, so memory is a sum; one that does not say counts as 1 GiB
    where another does.
    """
    asks = any(r.memory_bytes for r in resources)
    return Resources(
        cpus=max(r.cpus for r in resources),
        gpus=max(r.gpus for r in resources),
        memory_bytes=sum(r.memory_bytes or _UNSAID_BYTES for r in resources) if asks else 0,
        keep=any(r.keep for r in resources),
    )


def told(asked: Resources) -> str:
    """In words; "" for what a task asks for anyway."""
    if asked == Resources():
        return ""
    words = f"{asked.cpus:g} CPUs" + (f", {asked.gpus:g} GPUs" if asked.gpus else "")
    return words + (f", {asked.memory_bytes / 2**30:.1f} GiB" if asked.memory_bytes else "")
