"""A child's answers are data: whatever is out of form is a dead child, not an outcome."""

from __future__ import annotations

import dataclasses
import json
import os
import signal
import time
from typing import Any

import pytest

from curate.download import child as module
from curate.download.child import Child, Died, _outcome, _seconds
from curate.download.decoder import ANSWER
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
        (dict(WORDS, kind="other"), b""),
        (dict(WORDS, kind="dns"), b""),
        (dict(WORDS, width=1 << 31), b"x"),
        (dict(WORDS, width=-1), b"x"),
        (dict(WORDS, exif="\ud800"), b"x"),
    ],
)
def test_other_answers_are_not_taken(words: dict[str, Any], image: bytes) -> None:
    with pytest.raises(Died):
        _outcome(words, image)


@pytest.mark.parametrize(
    "found",
    [
        None,
        [],
        [1, 2, 3],
        [1, 2, 3, "4"],
        {"a": 1},
        [1, 1, 1, 10**400],
        [0, 0, 0, float("inf")],
        [-1, 0, 0, 0],
    ],
)
def test_costs_out_of_form_are_not_taken(found: object) -> None:
    with pytest.raises(Died):
        _seconds(found)


def test_one_child_answers_many_and_ends_at_once() -> None:
    options = PictureOptions(image_size=32)
    child = Child(json.dumps({"options": dataclasses.asdict(options), "memory_bytes": 1 << 30}))
    starts_s: list[float] = []
    try:
        for side in (40, 50):
            body = encoded(quadrants(side, side), "JPEG")
            found, cpu_s = child.ask(body, None, 60.0)
            assert found == outcome(body, options)
            assert cpu_s[3] >= cpu_s[0] > 0
            starts_s.append(cpu_s[3])
        assert child.well
        assert starts_s[0] > starts_s[1]  # its start is the first one's cost
    finally:
        child.end()
    with pytest.raises((Died, OSError, ValueError)):
        child.ask(b"", None, 1.0)
    assert not child.well


def test_one_that_is_not_well_is_killed(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(module, "_END_S", 60.0)  # what one that is well may take to end
    argument = json.dumps(
        {"options": dataclasses.asdict(PictureOptions()), "memory_bytes": 1 << 30}
    )
    child = Child(argument)
    child.wait_until_up()
    os.kill(child.pid, signal.SIGSTOP)
    with pytest.raises(TimeoutError):
        child.ask(b"", None, 0.05)
    began_s = time.monotonic()
    child.end()
    assert time.monotonic() - began_s < 30


def test_an_answer_nested_too_deeply_is_a_dead_child() -> None:
    argument = json.dumps(
        {"options": dataclasses.asdict(PictureOptions()), "memory_bytes": 1 << 30}
    )
    child = Child(argument)
    words = b"[" * 200_000
    child._take = lambda *_: ANSWER.pack(len(words), 0) + words  # type: ignore[method-assign]
    with pytest.raises(Died):
        child._receive(0.0)
    child.end()
