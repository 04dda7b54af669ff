"""Exact repeats of (url, caption): the first in source order stays, the rest are `duplicate.pair`."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

from curate.filter.base import FirstOfEqual


@dataclass(frozen=True, kw_only=True)
class DuplicatePair(FirstOfEqual):
    """No options. Runs first in every recipe: two rows of one uid may not both go on."""

    column: ClassVar[str] = "uid"
    refusal: ClassVar[str] = "duplicate.pair"
