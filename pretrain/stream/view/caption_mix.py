"""One caption drawn among the alt-text and its rewrites, anew each time a sample is seen.

LaCLIP, arXiv 2305.20088, equation 3: uniform over {original, M rewrites}. With ``original`` set,
the alt-text is drawn with that probability instead and the rewrites share the rest. ``weights`` make
captions of some writers likelier than others'. A sample without rewrites gives its alt-text.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar, Literal

import numpy as np

from pretrain.stream.batch import Sample
from pretrain.stream.view.base import View

ALT = "alt"  # the alt-text's name among writers


@dataclass(frozen=True, kw_only=True)
class CaptionMix(View):
    """Options: ``original`` is the alt-text's probability; -1 draws uniformly, 1 never rewrites.

    ``weights``, writer -> relative weight of each of its captions: 1 for a writer that is not named;
    "alt" is the alt-text. E.g. ``{ alt = 4, "my-model" = 1 }``: 4 rewrites are as likely as the alt-text.
    """

    tower: ClassVar[Literal["image", "text"]] = "text"
    name: str = "text"
    original: float = -1.0
    weights: dict[str, float] | None = None

    def __post_init__(self) -> None:
        if self.original != -1 and not 0 <= self.original <= 1:
            raise ValueError(
                f"caption_mix: original = {self.original}. hint: a probability in [0, 1], or -1 for uniform"
            )
        given = self.weights or {}
        if not isinstance(given, dict) or not all(
            isinstance(w, int | float) and not isinstance(w, bool) and 0 <= w < float("inf")
            for w in given.values()
        ):
            raise ValueError(
                f'caption_mix: weights = {given!r}. hint: numbers of at least 0 by writer, e.g. {{ alt = 4, "my-model" = 1 }}'
            )
        if self.original != -1 and ALT in given:
            raise ValueError(
                "caption_mix: both original and weights.alt say how likely the alt-text is. hint: take one out"
            )

    def __call__(self, sample: Sample, rng: np.random.Generator) -> str:
        """The words, not yet tokenised."""
        rewrites = sample.captions[1:]
        if not rewrites:
            return sample.caption
        point = rng.random()
        if self.weights:
            return self._weighted(sample, self.weights, point)
        share = 1 / (1 + len(rewrites)) if self.original == -1 else self.original
        if point < share:
            return sample.caption
        return rewrites[min(int((point - share) / (1 - share) * len(rewrites)), len(rewrites) - 1)]

    def _weighted(self, sample: Sample, weights: dict[str, float], point: float) -> str:
        """The caption at ``point`` in [0, 1) of all weights laid end to end; the alt-text if all are 0."""
        writers = _writers(sample)
        each = [weights.get(ALT, 1.0)]
        each += [weights.get(writers.get(text, ""), 1.0) for text in sample.captions[1:]]
        if self.original != -1:
            rest = sum(each[1:])
            each[0] = rest * self.original / (1 - self.original) if self.original < 1 else 1.0
            each[1:] = each[1:] if self.original < 1 else [0.0] * len(each[1:])
        place = point * sum(each)
        for text, weight in zip(sample.captions, each, strict=True):
            if place < weight:
                return text
            place -= weight
        return sample.caption


def _writers(sample: Sample) -> dict[str, str]:
    """Caption -> who wrote it, of those that the sample's record names."""
    added = sample.record.get("captions")
    entries = added if isinstance(added, list) else []
    return {
        str(entry.get("text")): str(entry.get("writer", ""))
        for entry in entries
        if isinstance(entry, dict)
    }
