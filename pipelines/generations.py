"""Retries that a pool has seen: which kinds of failure were asked for again, of which stages.

Each retry is one generation of the stages it asks again. A stage's generation is in its fingerprint, so what
was there before stays as it is, and in no measure, so all other rows are taken over (see reuse). A retry counts
for the recipe that began it and no other: another one over the same pool has failures, and retries, of its own.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from curate.download.outcomes import is_transient, matches

TRANSIENT = "transient"  # stands for every kind that another attempt may end otherwise
_ERROR = "error."


@dataclass(frozen=True)
class Retry:
    """Failures of these kinds were asked again, in the stages of these names."""

    kinds: tuple[str, ...]
    stages: tuple[str, ...]


def entries_of(described: Mapping[str, Any] | None, recipe: str) -> list[dict[str, Any]]:
    """The retries of a recipe in pool.json, oldest first; the very objects."""
    entries = (described or {}).get("retries", [])
    return [entry for entry in entries if entry.get("recipe", recipe) == recipe]


def noted(described: Mapping[str, Any] | None, recipe: str) -> tuple[Retry, ...]:
    """The retries that pool.json names for a recipe, oldest first."""
    entries = entries_of(described, recipe)
    return tuple(Retry(tuple(entry["kinds"]), tuple(entry["before"])) for entry in entries)


def generation(retries: Sequence[Retry], name: str) -> int:
    """How often a stage was asked again."""
    return sum(name in retry.stages for retry in retries)


def asked_since(retries: Sequence[Retry], name: str, since: int) -> tuple[str, ...]:
    """The kinds that a stage was asked again for after its generation ``since``."""
    own = [retry.kinds for retry in retries if name in retry.stages]
    return tuple(dict.fromkeys(kind for kinds in own[since:] for kind in kinds))


def kind_of(use: str, reason: str) -> str:
    """The end of ``error.<use>.<kind>``; a stage may name its errors otherwise, then all but ``error.``."""
    own = f"{_ERROR}{use}."
    return reason.removeprefix(own if reason.startswith(own) else _ERROR)


def is_meant(use: str, reason: str, kinds: Sequence[str]) -> bool:
    """Whether a failed row of a stage is among the kinds, each a kind, a family or a whole reason."""
    if not reason.startswith(_ERROR):
        return False
    kind = kind_of(use, reason)
    for wanted in kinds:
        if wanted == TRANSIENT:
            found = is_transient(kind)
        elif wanted.startswith(_ERROR) and not wanted.startswith(f"{_ERROR}{use}."):
            found = matches(reason, wanted)
        else:
            found = matches(kind, kind_of(use, wanted) if wanted.startswith(_ERROR) else wanted)
        if found:
            return True
    return False
