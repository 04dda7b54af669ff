"""Each gate lets good rewrites pass and refuses its own kind of bad one."""

from __future__ import annotations

from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from curate.caption.gates import Gates, cleaned, facts

PROMPT = "Say what this image caption says in other words, as one plain English sentence."
SOURCE = "two red apples on a wooden table"


def judged(
    text: str, source: str = SOURCE, accepted: tuple[str, ...] = (), **limits: Any
) -> str | None:
    return Gates(prompt=PROMPT, **limits).judge(cleaned(text), source, accepted)


@pytest.mark.parametrize(
    ("text", "cause"),
    [
        ("A wooden table holds 2 red apples.", None),
        ("On a table made of wood lie two red apples", None),
        ("", "empty"),
        ('""', "empty"),
        ("I'm sorry, but I can't help with that.", "refusal"),
        ("I’m unable to describe two red apples", "refusal"),
        ("As an AI language model, I see two red apples", "refusal"),
        ("Here is a rewrite: two red apples lie there", "leak"),
        ("Sure! Two red apples lie on the wood", "leak"),
        ("Two red apples lie there.\nNote: I kept the colour.", "leak"),
        ("two red apples => a pair of red apples", "leak"),
        ("<|im_end|> two red apples lie there", "leak"),
        (
            "two red apples, in other words as one plain English sentence",
            "leak",
        ),  # six words of the prompt
        ("two red", "too_short"),
        ("two red apples " * 14, "too_long"),
        ("Two red apples, on a wooden table!", "copy"),
        ("a wooden table with red apples", "facts"),
        ("two green apples lie on a table", "facts"),
        ("two red apples on a table, 2019 photo", "facts"),
    ],
)
def test_each_gate(text: str, cause: str | None) -> None:
    assert judged(text) == cause


def test_near_copies_of_long_sources_are_copies() -> None:
    source = "a small brown dog runs along the beach at sunset while a child throws a ball"
    assert judged(source.replace("child", "kid"), source) == "copy"
    assert (
        judged("while a child throws a ball, a small brown dog runs on the sunset beach", source)
        is None
    )


def test_rewrites_of_one_row_differ() -> None:
    first = "A wooden table holds two red apples."
    assert judged("a wooden table holds two red apples", accepted=(first,)) == "duplicate"
    assert judged("Two red apples lie on wood", accepted=(first,)) is None


def test_limits_are_options() -> None:
    long = "two red apples lie side by side on an old table made of wood in the kitchen of a farm"
    assert judged(long) is None
    assert judged(long, max_ratio=2.0) == "too_long"
    assert judged(long, max_words=10) == "too_long"
    assert judged("two green apples lie on a table", keep_facts=False) is None
    assert judged("red apples, two", min_words=4) == "too_short"


def test_short_sources_leave_room_for_a_sentence() -> None:
    assert judged("a photograph of a dog in the grass", "dog") is None


@pytest.mark.parametrize(
    ("answer", "text"),
    [
        ('  "A dog runs."  ', "A dog runs."),
        ("Rewrite: a dog runs", "a dog runs"),
        ("“a dog runs”", "a dog runs"),
        ("cafe\u0301  au\tlait", "café au lait"),
        ("a dog\nruns", "a dog\nruns"),
    ],
)
def test_answers_are_cleaned(answer: str, text: str) -> None:
    assert cleaned(answer) == text


def test_facts_have_one_spelling() -> None:
    assert (
        facts("Two GRAY cats, 1,000 birds")
        == facts("2 grey cats and 1,000 birds")
        == {"2", "grey", "1,000"}
    )
    assert facts("one cat of a kind") == frozenset()


@given(st.text(max_size=200), st.text(max_size=80))
def test_any_text_is_judged(answer: str, source: str) -> None:
    cause = judged(answer, source)
    assert cause is None or cause in (
        "empty",
        "refusal",
        "leak",
        "too_short",
        "too_long",
        "copy",
        "duplicate",
        "facts",
    )
