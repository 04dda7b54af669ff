"""The short list of what can become of a URL, and which patterns mean which of it."""

from __future__ import annotations

import pytest

from curate.download.outcomes import (
    KINDS,
    TRANSIENT,
    Outcome,
    Refused,
    is_transient,
    is_tried_at_once,
    matches,
    refusal,
)


@pytest.mark.parametrize(
    ("kind", "pattern", "meant"),
    [
        ("timeout.total", "timeout.total", True),
        ("timeout.total", "timeout", True),
        ("timeout.total", "timeout.connect", False),
        ("timeout", "timeout.total", False),
        ("http.503", "http.503", True),
        ("http.503", "http.5xx", True),
        ("http.503", "http.50x", True),
        ("http.503", "http.4xx", False),
        ("http.503", "http.", True),
        ("http.503", "http", True),
        ("http.5030", "http.5xx", False),
        ("refused", "ref", False),
        ("too_large.bytes", "too_large", True),
        ("too_large.bytes", "too", False),
        ("dnsx", "dns", False),
        ("tls", "t.s", False),
    ],
)
def test_a_pattern_means_a_kind_its_family_or_a_range_of_codes(
    kind: str, pattern: str, meant: bool
) -> None:
    assert matches(kind, pattern) is meant


def test_what_may_pass_is_known() -> None:
    for kind in ("timeout.first_byte", "http.500", "http.599", "http.429", "refused", "connection"):
        assert is_transient(kind)
    for kind in ("http.404", "http.410", "dns", "decode.timeout", "not_an_image", "tls"):
        assert not is_transient(kind)
        assert not is_tried_at_once(kind)
    assert is_tried_at_once("http.503")
    assert is_transient("host_down")
    assert not is_tried_at_once("host_down")  # it is left alone on purpose
    for pattern in TRANSIENT:
        assert pattern in KINDS or pattern.startswith("http.")


def test_status_is_the_word_img2dataset_has_for_it() -> None:
    assert Outcome(image=b"x").status == "success"
    words = {
        kind: Outcome(kind=kind).status for kind in KINDS
    }  # its downloader compares hashes, its resizer judges pictures
    assert {words[kind] for kind in ("dns", "opt_out", "hash", "too_large.bytes", "other")} == {
        "failed_to_download"
    }
    resized = {kind for kind, word in words.items() if word == "failed_to_resize"}
    assert resized == {
        "not_an_image", "too_small", "too_large.pixels", "too_large.aspect", "too_large.frames",
        "decode", "decode.timeout", "decode.crashed",
    }  # fmt: skip


def test_words_of_a_refusal_stay_short() -> None:
    found = refusal(Refused("other", "x" * 1000), wire_bytes=7)
    assert (found.kind, len(found.error_message or ""), found.wire_bytes) == ("other", 500, 7)
    assert Refused("http.503", "busy", retry_after_s=2.0).retry_after_s == 2.0


def test_every_kind_has_a_meaning_in_a_few_words() -> None:
    for kind, meaning in KINDS.items():
        assert meaning.strip(), kind
        assert len(meaning) < 100, kind
        assert kind == kind.lower().strip()
