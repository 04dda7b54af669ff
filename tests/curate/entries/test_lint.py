"""Dead entries are exactly those that no caption can match; doubtful ones are told by kind."""

from __future__ import annotations

from itertools import product

import pytest
from hypothesis import given
from hypothesis import strategies as st

from curate.entries.lint import (
    DEAD,
    DOUBTFUL,
    Finding,
    dead_kind,
    doubts,
    fit_to_emit,
    lint,
    witness,
)
from curate.score.metadata_match import Matcher

SIGNS = "ab ,.\t"
TEXTS = st.text(alphabet=st.sampled_from("ab ,.;:?!`\t\n\r-'é猫"), max_size=12)


def in_spaces(text: str) -> set[str]:
    """Every text that stands between two spaces of a caption, by the letter of the paper's code."""
    for mark in ",.;:?!`":
        text = text.replace(mark, f" {mark} ")
    for space in "\t\n\r":
        text = text.replace(space, " ")
    text = f" {text} "
    spaces = [at for at, sign in enumerate(text) if sign == " "]
    return {text[i + 1 : j] for i in spaces for j in spaces if i < j}


def test_dead_is_what_no_short_caption_matches() -> None:
    """All entries of up to 4 signs, against all captions of up to 6."""
    captions = ("".join(signs) for n in range(7) for signs in product(SIGNS, repeat=n))
    alive = set().union(*map(in_spaces, captions))
    for n in range(1, 5):
        for signs in product(SIGNS, repeat=n):
            entry = "".join(signs)
            assert (dead_kind(entry) == "") == (entry in alive), entry


@given(TEXTS)
def test_the_witness_matches(entry: str) -> None:
    caption = witness(entry)
    if caption is None:
        assert not entry or dead_kind(entry) in DEAD
    else:
        assert entry in in_spaces(caption)
        assert Matcher([entry]).match(caption) == [0]


@given(TEXTS, TEXTS)
def test_a_dead_entry_matches_nothing(entry: str, caption: str) -> None:
    if dead_kind(entry):
        assert Matcher([entry]).match(caption) == Matcher([entry]).match(entry) == []


@pytest.mark.parametrize(
    ("entry", "kind"),
    [
        ("St.", "glued_punctuation"),
        ("St. Louis", "glued_punctuation"),
        ("1,0", "glued_punctuation"),
        ("?!", "glued_punctuation"),
        ("? !", "adjacent_punctuation"),
        ("hot\tdog", "line_break"),
        ("hot dog", ""),
        ("dog's", ""),
        ("(dog)", ""),
        ("?", ""),
        ("hello , world", ""),
    ],
)
def test_dead_kinds(entry: str, kind: str) -> None:
    assert dead_kind(entry) == kind


@pytest.mark.parametrize(
    ("entry", "kinds"),
    [
        ("dog", []),
        ("!", ["single_punctuation"]),
        ("(", ["single_punctuation"]),
        (" dog", ["stray_space"]),
        ("hot  dog", ["stray_space"]),
        ("hello , world", ["mark_between_words"]),
        ("New\u00a0York", ["invisible"]),
        ("dog\u200b", ["invisible"]),
        ("dog\u200d", ["invisible"]),
        ("می\u200cخواهم", []),
        ("dog\u3000show", ["invisible"]),
        ("cafe\u0301", ["not_nfc"]),
        ("カメラ", ["unspaced_script"]),
        ("ｶﾒﾗ", ["unspaced_script"]),
        ("แมว", ["unspaced_script"]),
        ("한국", []),
        ("a" * 257, ["overlong"]),
    ],
)
def test_doubts(entry: str, kinds: list[str]) -> None:
    assert list(doubts(entry)) == kinds
    assert set(kinds) <= set(DOUBTFUL)


def test_a_list_is_told_by_lines() -> None:
    entries = ["dog", "", "St. Louis", "Dog", "dog", "猫"]
    assert list(lint(entries)) == [
        Finding(2, "blank", ""),
        Finding(3, "glued_punctuation", "St. Louis"),
        Finding(4, "case_twin", "Dog"),
        Finding(5, "duplicate", "dog"),
        Finding(6, "unspaced_script", "猫"),
    ]
    assert [one.kind for one in lint(["猫"], rule="worldwide")] == []


def test_what_may_be_built() -> None:
    fit = ["dog", "hot dog", "カメラ", "42", "dog's"]
    assert [
        entry for entry in [*fit, "", "!", "St.", " x", "a , b", "x\u00a0y"] if fit_to_emit(entry)
    ] == fit
