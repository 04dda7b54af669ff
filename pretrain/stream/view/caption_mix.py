"""One caption drawn among the alt-text and its rewrites, anew each time a sample is seen.

LaCLIP, arXiv 2305.20088, equation 3: uniform over {original, M rewrites}. With ``original`` set,
the alt-text is drawn with that probability instead and the rewrites share the rest. A sample
without rewrites gives its alt-text.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar, Literal

import numpy as np

from pretrain.stream.batch import Sample
from pretrain.stream.view.base import View


@dataclass(frozen=True, kw_only=True)
class CaptionMix(View):
    """Options: ``original`` is the alt-text's probability; -1 draws uniformly, 1 never rewrites."""

    tower: ClassVar[Literal["image", "text"]] = "text"
    name: str = "text"
    original: float = -1.0

    def __post_init__(self) -> None:
        if self.original != -1 and not 0 <= self.original <= 1:
            raise ValueError(
                f"caption_mix: original = {self.original}. hint: a probability in [0, 1], or -1 for uniform"
            )

    def __call__(self, sample: Sample, rng: np.random.Generator) -> str:
        """The words, not yet tokenised."""
        rewrites = sample.captions[1:]
        if not rewrites:
            return sample.caption
        share = 1 / (1 + len(rewrites)) if self.original == -1 else self.original
        point = rng.random()
        if point < share:
            return sample.caption
        return rewrites[min(int((point - share) / (1 - share) * len(rewrites)), len(rewrites) - 1)]
