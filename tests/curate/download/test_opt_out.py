"""Opt-out headers: every directive of every line, per bot, and no false alarm from values."""

from __future__ import annotations

import pytest

from curate.download.opt_out import opted_out, reserved

DIRECTIVES = frozenset({"noai", "noimageai"})


@pytest.mark.parametrize(
    ("lines", "expected"),
    [
        ([], False),
        (["noai"], True),
        (["NoAI"], True),
        (["noarchive", "noimageai"], True),  # the second header line
        (["unavailable_after: 2030-01-01, noai"], True),  # img2dataset takes this for a bot's name
        (["max-image-preview: large, noarchive"], False),
        (["clip-pipe: noai"], True),
        (["Clip-Pipe: noarchive, noai"], True),
        (["otherbot: noai"], False),
        (["otherbot: noarchive, noai"], False),  # the bot's name holds to the end of the line
        (["otherbot: noarchive, clip-pipe: noai"], True),
        (["*: noai"], True),
        (["noindex"], False),  # not among those asked for
        (["unavailable_after: 25 Jun 2030 15:00:00 PST"], False),
        (["", ",,:,", ":noai"], True),
        (["none"], False),
        (["unavailable_after: Sun, 06 Nov 2033 08:49:37 GMT, noai"], True),
        (["unavailable_after: Sunday, 06-Nov-33 08:49:37 GMT, noai"], True),
        (["unavailable_after: Sun, 06 Nov 2033 08:49:37 GMT"], False),
        (["otherbot: unavailable_after: Sun, 06 Nov 2033 08:49:37 GMT, noai"], False),
        (["noarchive;noai"], True),
        (["otherbot: noarchive; noai"], False),
        (["noarchive noai"], True),
        (["otherbot: noarchive noai"], False),
        (["clip-pipe: noarchive noai"], True),
        (["see our page about noai"], False),  # a sentence
    ],
)
def test_directives_are_read_one_by_one(lines: list[str], expected: bool) -> None:
    assert opted_out(lines, "clip-pipe", DIRECTIVES) is expected


def test_no_directive_disallowed_means_no_opt_out() -> None:
    assert not opted_out(["noai, noindex"], "clip-pipe", frozenset())


def test_none_stands_for_noindex() -> None:
    assert opted_out(["none"], "clip-pipe", frozenset({"noindex"}))
    assert not opted_out(["otherbot: none"], "clip-pipe", frozenset({"noindex"}))


def test_tdm_reservation_counts_where_it_is_asked_for() -> None:
    asked = frozenset({"tdm-reservation"})
    assert reserved(["0", " 1 "], asked)
    assert reserved(["0, 1"], asked)
    assert reserved(["1; policy"], asked)
    assert not reserved(["0; 1"], asked)
    assert not reserved(["0"], asked)
    assert not reserved([], asked)
    assert not reserved(["1"], DIRECTIVES)
