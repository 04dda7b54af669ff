"""Exact repeats of a picture's bytes as fetched: the first in source order stays, the rest are `duplicate.image`."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

from curate.filter.base import FirstOfEqual


@dataclass(frozen=True, kw_only=True)
class DuplicateImage(FirstOfEqual):
    """No options. Reads `sha256`, which `download.fetch` and the sources of pictures write."""

    column: ClassVar[str] = "sha256"
    refusal: ClassVar[str] = "duplicate.image"
