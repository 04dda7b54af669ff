"""What a caption nearly matches is told with what stands in the way."""

from __future__ import annotations

import pytest

from curate.entries.lint import dead_kind
from curate.entries.near_misses import near_misses
from curate.score.metadata_match import Matcher


@pytest.mark.parametrize(
    ("caption", "entry", "why"),
    [
        ("a DOG", "dog", "upper and lower case differ"),
        ("a dog.", "Dog", "upper and lower case differ"),
        ("(dog)", "dog", "punctuation is in the way"),
        ("dog-house", "house", "punctuation is in the way"),
        ("hello, world", "hello world", "punctuation is in the way"),
        ('"DOG"', "dog", "punctuation is in the way, and case differs"),
        ("New  York", "New York", "spaces between differ"),
        ("New\u00a0York!", "New York", "spaces between differ"),
        ("hello, world", "hello , world", "spaces between differ"),
        ("dog\u200b", "dog", "an unseen character is in the way"),
        ("cafe\u0301", "caf\u00e9", "the Unicode form differs"),
    ],
)
def test_what_is_in_the_way(caption: str, entry: str, why: str) -> None:
    entries = ["other", entry]
    assert Matcher(entries).match(caption) == []
    assert [(one.id, one.entry, one.why) for one in near_misses(caption, entries, [])] == [
        (1, entry, why)
    ]


def test_a_dead_entry_is_called_dead() -> None:
    (found,) = near_misses("in St. Louis", ["St. Louis"], [])
    assert dead_kind(found.entry)
    assert found.why.startswith("can never match: ")


def test_what_matches_is_no_near_miss() -> None:
    entries = ["a", "dog", "Dog", "dog", ""]
    matched = Matcher(entries).match("a dog")
    assert matched == [0, 1]
    assert near_misses("a dog", entries, matched) == []
