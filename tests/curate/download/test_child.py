"""A child's answers are data: whatever is out of form is a dead child, not an outcome."""

from __future__ import annotations

import dataclasses
import json
from typing import Any

import pytest

from curate.download.child import Child, Died, _outcome, _seconds
from curate.download.outcomes import Outcome
from curate.download.pictures import PictureOptions, outcome
from tests.tiny.pictures import encoded, quadrants

WORDS: dict[str, Any] = {
    field.name: None for field in dataclasses.fields(Outcome) if field.name != "image"
}


def test_an_answer_is_an_outcome() -> None:
    assert _outcome(dict(WORDS, width=3, sha256="ab"), b"x") == Outcome(
        image=b"x", width=3, sha256="ab"
    )
    assert _outcome(dict(WORDS, kind="decode"), b"").kind == "decode"


@pytest.mark.parametrize(
    ("words", "image"),
    [
        (dict(WORDS, width="3"), b"x"),
        (dict(WORDS, width=True), b"x"),
        (dict(WORDS, sha256=["a"]), b"x"),
        (dict(WORDS, more=1), b"x"),
        ({}, b"x"),
        (WORDS, b""),
        (dict(WORDS, kind="decode"), b"x"),
        (dict(WORDS, kind="of.its.own"), b""),
    ],
)
def test_other_answers_are_not_taken(words: dict[str, Any], image: bytes) -> None:
    with pytest.raises(Died):
        _outcome(words, image)


@pytest.mark.parametrize("found", [None, [], [1, 2, 3], [1, 2, 3, "4"], {"a": 1}])
def test_costs_out_of_form_are_not_taken(found: object) -> None:
    with pytest.raises(Died):
        _seconds(found)


def test_one_child_answers_many_and_ends_at_once() -> None:
    options = PictureOptions(image_size=32)
    child = Child(json.dumps({"options": dataclasses.asdict(options), "memory_bytes": 1 << 30}))
    try:
        for side in (40, 50):
            body = encoded(quadrants(side, side), "JPEG")
            found, cpu_s = child.ask(body, None, 20.0)
            assert found == outcome(body, options)
            assert cpu_s[3] >= cpu_s[0] > 0
        assert child.well
    finally:
        child.end()
    with pytest.raises((Died, OSError, ValueError)):
        child.ask(b"", None, 1.0)
    assert not child.well
