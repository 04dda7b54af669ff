"""Draws are uniform, keyed by uid and salt only, and the same one by one as together."""

from __future__ import annotations

import hashlib

import numpy as np
from hypothesis import given
from hypothesis import strategies as st

from curate.contract.draw import draw, draws, pair_uid


def test_uid_is_the_contract_s() -> None:
    expected = hashlib.sha256(b"http://a/b.jpg\0a dog").hexdigest()[:32]
    assert pair_uid("http://a/b.jpg", "a dog") == expected == pair_uid(b"http://a/b.jpg", b"a dog")


def test_the_separator_keeps_url_and_caption_apart() -> None:
    assert pair_uid("ab", "c") != pair_uid("a", "bc")
    assert pair_uid(None, "c") == pair_uid("", "c")


def test_invalid_utf8_keeps_its_own_uid() -> None:
    raw = b"caf\xe9"
    assert (
        pair_uid("u", raw)
        == pair_uid("u", raw.decode("utf-8", "surrogateescape"))
        != pair_uid("u", "café")
    )


@given(st.lists(st.text(max_size=20), max_size=20), st.text(max_size=10))
def test_together_as_one_by_one(uids: list[str], salt: str) -> None:
    safe = [uid.encode("utf-8", "ignore").decode() for uid in uids]
    salt = salt.encode("utf-8", "ignore").decode()
    assert draws(safe, salt).tolist() == [draw(uid, salt) for uid in safe]


def test_known_values_never_change() -> None:
    # Frozen: a change here would silently re-decide every pool there is.
    assert draw("0" * 32, "balance:0") == 0.06229571117919719


def test_uniform_within_three_sigma() -> None:
    drawn = draws((f"{n:032x}" for n in range(20_000)), "any")
    assert 0 <= drawn.min() < drawn.max() < 1
    assert abs(drawn.mean() - 0.5) < 3 * np.sqrt(1 / 12 / len(drawn))
    counts, _ = np.histogram(drawn, bins=20, range=(0, 1))
    assert np.abs(counts - 1000).max() < 4.5 * np.sqrt(1000)


def test_salts_are_independent() -> None:
    uids = [f"{n:032x}" for n in range(5000)]
    assert abs(np.corrcoef(draws(uids, "a"), draws(uids, "b"))[0, 1]) < 0.06
