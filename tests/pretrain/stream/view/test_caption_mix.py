import math
from collections import Counter

import pytest

from pretrain.stream.batch import Sample
from pretrain.stream.order import generator
from pretrain.stream.view.caption_mix import CaptionMix

DRAWS = 20_000
WITH_REWRITES = Sample("key", b"", "alt", ("alt", "one", "two", "three", "four"))


def shares(view: CaptionMix, sample: Sample = WITH_REWRITES) -> Counter[str]:
    return Counter(view(sample, generator(0, "view.text", position)) for position in range(DRAWS))


def within_three_sigma(count: int, probability: float) -> bool:
    return abs(count - DRAWS * probability) <= 3 * math.sqrt(
        DRAWS * probability * (1 - probability)
    )


def test_original_and_rewrites_are_drawn_alike():
    found = shares(CaptionMix())
    assert set(found) == set(WITH_REWRITES.captions)
    assert all(within_three_sigma(count, 1 / 5) for count in found.values())


def test_the_original_may_have_a_share_of_its_own():
    found = shares(CaptionMix(original=0.6))
    assert within_three_sigma(found["alt"], 0.6)
    assert all(within_three_sigma(found[text], 0.1) for text in WITH_REWRITES.captions[1:])


def test_the_ends_of_the_range():
    assert set(shares(CaptionMix(original=1.0))) == {"alt"}
    assert "alt" not in shares(CaptionMix(original=0.0))


@pytest.mark.parametrize("original", [-1.0, 0.0, 0.5])
def test_without_rewrites_it_is_the_alt_text(original):
    assert set(shares(CaptionMix(original=original), Sample("key", b"", "alt", ("alt",)))) == {
        "alt"
    }


@pytest.mark.parametrize("original", [-0.5, 1.5])
def test_impossible_options_have_a_hint(original):
    with pytest.raises(ValueError, match="hint:"):
        CaptionMix(original=original)
