"""Counts stay exact when they go to files; bigrams are those of the definition, for any number held."""

from __future__ import annotations

import math
from collections import Counter
from itertools import pairwise

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from curate.entries.counting import Counts, at_least, bigrams_by_pmi, pmi

WORDS = st.sampled_from(["a", "b", "ab", "a-b", "é", "カ", "A", "b'", "𝒳", "\uffee"])


@settings(max_examples=60)
@given(st.lists(WORDS, max_size=80), st.integers(1, 5), st.integers(1, 3))
def test_counts_are_exact_however_few_are_held(texts: list[str], hold: int, files: int) -> None:
    counts = Counts(hold=hold, files=files)
    for start in range(0, len(texts), 3):
        counts.update(texts[start : start + 3])
    counts.add("more", 7)
    wanted = sorted((Counter(texts) + Counter(more=7)).items())
    assert list(counts.in_order()) == wanted
    assert list(counts.in_order()) == wanted
    assert at_least(counts, 2) == sorted(
        [pair for pair in wanted if pair[1] >= 2], key=lambda pair: (-pair[1], pair[0])
    )


@settings(max_examples=60)
@given(
    st.lists(WORDS, min_size=2, max_size=60),
    st.floats(-1, 4),
    st.integers(1, 3),
    st.integers(2, 60),
)
def test_bigrams_are_those_of_the_definition(
    texts: list[str], bound: float, least: int, hold: int
) -> None:
    pairs = list(pairwise(texts))
    words, bigrams = Counts(hold, files=2), Counts(hold, files=2)
    for word in texts:
        words.update([word])
    for first, second in pairs:
        bigrams.update([f"{first} {second}"])
    one, two = Counter(texts), Counter(pairs)
    wanted = {
        (f"{a} {b}", n)
        for (a, b), n in two.items()
        if n >= least and math.log2(n * len(texts) / (one[a] * one[b])) >= bound
    }
    found = bigrams_by_pmi(words, bigrams, len(texts), bound, least)
    assert set(found) == wanted
    assert found == sorted(found, key=lambda pair: (-pair[1], pair[0]))


def test_pmi_is_in_bits() -> None:
    assert pmi(both=4, first=4, second=8, n_words=64) == pytest.approx(3.0)
    assert pmi(both=1, first=1, second=1, n_words=1 << 20) == 20.0
