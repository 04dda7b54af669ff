"""Few words of a caption, in its order: the first, a run of neighbours, or a random choice."""

from collections import Counter

import pytest

from pretrain.stream.batch import Sample
from pretrain.stream.draws import Draws
from pretrain.stream.view.short_text import ShortText

WORDS = [f"w{n}" for n in range(10)]
LONG = Sample("key", b"", " ".join(WORDS), (" ".join(WORDS),))


def made(view: ShortText, sample: Sample = LONG, draws: int = 3_000) -> list[str]:
    return [view(sample, Draws(0, "view.text", position)) for position in range(draws)]


@pytest.mark.parametrize("how", ["truncate", "block", "random"])
def test_captions_that_are_short_enough_stay_to_the_letter(how):
    sample = Sample("key", b"", "a  dog", ("a  dog",))
    assert set(made(ShortText(words=2, how=how), sample, 5)) == {"a  dog"}


def test_truncation_takes_the_first():
    assert set(made(ShortText(words=4, how="truncate"), draws=5)) == {"w0 w1 w2 w3"}


def test_a_block_is_a_run_that_begins_anywhere_equally_often():
    found = Counter(made(ShortText(words=4, how="block")))
    assert set(found) == {" ".join(WORDS[n : n + 4]) for n in range(7)}
    assert all(abs(count - 3_000 / 7) < 4 * (3_000 / 7) ** 0.5 for count in found.values())


def test_a_random_choice_keeps_the_order_and_every_word_equally_often():
    found = [text.split() for text in made(ShortText(words=4, how="random"))]
    assert all(len(words) == 4 and words == sorted(words) for words in found)
    counts = Counter(word for words in found for word in words)
    assert all(abs(counts[word] - 1_200) < 4 * (3_000 * 0.24) ** 0.5 for word in WORDS)


def test_the_caption_is_drawn_as_in_the_mix():
    sample = Sample("key", b"", "one two three", ("one two three", "four five six"))
    found = Counter(made(ShortText(words=1, how="truncate", original=0.25), sample))
    assert set(found) == {"one", "four"}
    assert abs(found["one"] - 750) < 4 * (3_000 * 0.1875) ** 0.5
    assert set(made(ShortText(words=1, how="truncate", original=1.0), sample, 9)) == {"one"}


@pytest.mark.parametrize("options", [{"words": 0}, {"how": "syntax"}, {"original": 2.0}])
def test_impossible_options_have_a_hint(options):
    with pytest.raises(ValueError, match="hint:"):
        ShortText(**options)
