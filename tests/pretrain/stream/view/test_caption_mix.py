import math
from collections import Counter

import pytest

from pretrain.stream.batch import Sample
from pretrain.stream.draws import Draws
from pretrain.stream.view.caption_mix import CaptionMix

DRAWS = 20_000
WITH_REWRITES = Sample("key", b"", "alt", ("alt", "one", "two", "three", "four"))


def shares(view: CaptionMix, sample: Sample = WITH_REWRITES) -> Counter[str]:
    return Counter(view(sample, Draws(0, "view.text", position)) for position in range(DRAWS))


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


BY_WRITER = Sample(
    "key",
    b"",
    "alt",
    ("alt", "one", "two", "three"),
    {
        "captions": [
            {"text": "one", "writer": "big"},
            {"text": "two", "writer": "small"},
            {"text": "three", "writer": "small"},
        ]
    },
)


def test_captions_of_a_writer_have_its_weight():
    found = shares(CaptionMix(weights={"alt": 4, "big": 2, "small": 0.5}), BY_WRITER)
    expected = {"alt": 4 / 7, "one": 2 / 7, "two": 0.5 / 7, "three": 0.5 / 7}
    assert all(within_three_sigma(found[text], share) for text, share in expected.items())


def test_a_writer_without_a_weight_counts_one_and_of_weight_zero_is_left_out():
    found = shares(CaptionMix(weights={"small": 0}), BY_WRITER)
    assert set(found) == {"alt", "one"}
    assert within_three_sigma(found["one"], 0.5)
    assert set(shares(CaptionMix(weights={"alt": 0, "big": 0, "small": 0}), BY_WRITER)) == {"alt"}


@pytest.mark.parametrize("original", [0.0, 0.4, 1.0])
def test_weights_part_what_the_original_leaves(original):
    found = shares(CaptionMix(original=original, weights={"big": 3, "small": 1}), BY_WRITER)
    assert within_three_sigma(found["alt"], original)
    assert within_three_sigma(found["one"], (1 - original) * 3 / 5)


def test_equal_weights_draw_as_no_weights_do():
    assert shares(CaptionMix(weights={"big": 1}), BY_WRITER) == shares(CaptionMix(), BY_WRITER)


@pytest.mark.parametrize("weights", [{"big": -1}, {"big": "x"}, {"big": float("inf")}, ["big"]])
def test_impossible_weights_have_a_hint(weights):
    with pytest.raises(ValueError, match=r"weights = .* hint:"):
        CaptionMix(weights=weights)
    with pytest.raises(ValueError, match=r"weights.alt .* hint:"):
        CaptionMix(original=0.5, weights={"alt": 1})
