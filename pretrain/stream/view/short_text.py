"""A caption of few words: the first ones, a run of neighbours, or a random choice in their order.

CLIPA, arXiv 2305.07017, section 3.2 ("truncation", "block" and "random masking"). There tokens are counted, here
words, since a view knows no tokenizer: the tweak `text_length` cuts what a long word has too many. Its
fourth way, syntax masking (nouns before adjectives before verbs), needs a tagger of word classes and is
not here; the paper finds it ahead at 4 and 8 tokens and all but truncation close at 16.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar, Literal

import numpy as np

from pretrain.stream.batch import Sample
from pretrain.stream.view.base import View
from pretrain.stream.view.caption_mix import CaptionMix


@dataclass(frozen=True, kw_only=True)
class ShortText(View):
    """Options: ``words`` at most, chosen by ``how``; captions that are no longer stay as they are.

    ``original`` is the alt-text's probability among its rewrites, as in `caption_mix`.
    """

    tower: ClassVar[Literal["image", "text"]] = "text"
    name: str = "text"
    words: int = 14  # 16 tokens have room for 14, besides start and end
    how: Literal["truncate", "block", "random"] = "random"
    original: float = -1.0

    def __post_init__(self) -> None:
        if self.words < 1:
            raise ValueError(f"short_text: words = {self.words}. hint: at least 1")
        if self.how not in ("truncate", "block", "random"):
            raise ValueError(
                f'short_text: how = {self.how!r}. hint: "truncate", "block" or "random"'
            )
        CaptionMix(original=self.original)  # refuses what is no probability

    def __call__(self, sample: Sample, rng: np.random.Generator) -> str:
        """The words left, parted by single spaces; not yet tokenised."""
        caption = CaptionMix(original=self.original)(sample, rng)
        words = caption.split()
        spare = len(words) - self.words
        if spare <= 0:
            return caption
        if self.how == "truncate":
            return " ".join(words[: self.words])
        if self.how == "block":
            first = int(rng.random() * (spare + 1))
            return " ".join(words[first : first + self.words])
        # The words with the smallest draws, in the order of the caption.
        draws = [rng.random() for _ in words]
        kept = sorted(sorted(range(len(words)), key=draws.__getitem__)[: self.words])
        return " ".join(words[number] for number in kept)
