"""Captions of fewer tokens for this phase: the text tower's context is cut to its first ``tokens``.

CLIPA, arXiv 2305.07017, and FLIP, arXiv 2212.00794 (32 tokens). The model keeps all its positions: those
that a phase does not use get no gradient, and a later phase without this tweak has them again. A checkpoint
notes the length, and evaluations of it cut their texts to it; open_clip reads it with its full context.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from pretrain.model.encoder import DualEncoder
from pretrain.model.tower import text_can_be_short
from pretrain.model.tweak.base import Tweak


@dataclass(frozen=True, kw_only=True)
class TextLength(Tweak):
    """Options: ``tokens`` of a caption, with the start and end tokens; the rest is cut off."""

    tokens: int

    def __post_init__(self) -> None:
        if self.tokens < 3:
            raise ValueError(
                f"text_length: tokens = {self.tokens}. hint: at least 3, for start, one word and end"
            )

    def apply(self, encoder: DualEncoder) -> None:
        clip: Any = encoder.clip
        if not text_can_be_short(clip):
            raise ValueError(
                f"text_length: {encoder.name} has no text transformer of open_clip's own. "
                "hint: use such a model, e.g. ViT-B-16"
            )
        if self.tokens > clip.context_length:
            raise ValueError(
                f"text_length: tokens = {self.tokens}, and {encoder.name} has {clip.context_length}. "
                f"hint: at most {clip.context_length}"
            )
        encoder.text_length = self.tokens
