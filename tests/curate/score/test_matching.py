"""The spaced rule: MetaCLIP's golden cases, and agreement with a slow, literal reference."""

from __future__ import annotations

import time
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from curate.score import matching
from curate.score.matching import NOTHING, Matcher, Trie, tokens


def reference(text: str, entries: list[str]) -> list[int]:
    """The published rule to the letter: each entry between spaces is looked for in the padded text."""
    padded = f" {text} "
    for mark in ",.;:?!`":
        padded = padded.replace(mark, f" {mark} ")
    for space in "\t\n\r":
        padded = padded.replace(space, " ")
    first = {entry: number for number, entry in reversed(list(enumerate(entries)))}
    return sorted(number for entry, number in first.items() if entry and f" {entry} " in padded)


GOLDEN_ENTRIES = [
    *["hot", "dog", "show", "hot dog", "dog show", "a", "b", "a b", "b a", "a b a", "?", "shirt"],
    *["New York", "dog show", "hello world", "hello , world", "hello", "world", "St. Louis", "St"],
    *["Louis", "U.S.", "1,0", "caf\u00e9", "New", "York", ",", ".", "dog , hot", "world  peace"],
]
GOLDEN = [
    ("hot dog show", {"hot", "dog", "show", "hot dog", "dog show"}),
    ("a b a b a", {"a", "b", "a b", "b a", "a b a"}),
    ("dog,hot", {"dog", "hot", ",", "dog , hot"}),
    ("dog, hot", {"dog", "hot", ","}),
    ("dog?!", {"dog", "?"}),
    ("`dog`", {"dog"}),
    ("dog\n", {"dog"}),
    ("hot\tdog", {"hot", "dog", "hot dog"}),
    ("DOG", set()),
    ("dog-house", set()),
    ("(dog)", set()),
    ('"dog"', set()),
    ("dog's", set()),
    ("shirts", set()),
    ("New  York", {"New", "York"}),
    ("New\u00a0York", set()),
    ("dog\u3000show", set()),
    ("dog\u200b", set()),
    ("dog\u0085", set()),
    ("dog\x0b", set()),
    ("hello, world", {"hello", "world", ","}),
    ("hello , world", {"hello", "world", ","}),
    ("hello,world", {"hello", "world", ",", "hello , world"}),
    ("world  peace", {"world", "world  peace"}),
    ("world\r\npeace", {"world", "world  peace"}),
    ("St. Louis", {"St", "Louis", "."}),
    ("U.S.", {"."}),
    ("1,0", {","}),
    ("cafe\u0301", set()),
    ("caf\u00e9", {"caf\u00e9"}),
    ("", set()),
    (" ", set()),
]


@pytest.mark.parametrize(("text", "matches"), GOLDEN)
def test_golden_cases(text: str, matches: set[str]) -> None:
    found = Matcher(GOLDEN_ENTRIES).match(text)
    assert found == reference(text, GOLDEN_ENTRIES)
    assert {GOLDEN_ENTRIES[number] for number in found} == matches


WORD = st.text(st.sampled_from("ab.,\u00e9 "), max_size=3)
PHRASE = st.lists(WORD, min_size=1, max_size=4).map(" ".join)
TEXT = st.text(st.sampled_from("ab.,;!`\t\n\r \u00a0\u00e9\u00df"), max_size=30)
TEXTS = st.lists(st.one_of(TEXT, st.lists(PHRASE, max_size=6).map(" ".join)), max_size=6)


@settings(max_examples=300, deadline=None)
@given(entries=st.lists(PHRASE, max_size=20), texts=TEXTS, step_bytes=st.integers(1, 60))
def test_random_texts_agree_with_the_reference(
    entries: list[str], texts: list[str], step_bytes: int
) -> None:
    """Nested, equal and empty entries, of several tokens and with double spaces; any cut into steps."""
    matcher = Matcher(entries)
    expected = [reference(text, entries) for text in texts]
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(matching, "_STEP_BYTES", step_bytes)
        assert matcher.match_all(pa.array(texts, pa.string())).to_pylist() == expected
    assert [matcher.match(text) for text in texts] == expected


@settings(max_examples=150, deadline=None)
@given(
    texts=st.lists(st.text(max_size=40), max_size=4),
    entries=st.lists(st.text(max_size=5), max_size=8),
)
def test_any_unicode_agrees_with_the_reference(texts: list[str], entries: list[str]) -> None:
    entries += [word for text in texts for word in text.split(" ")[:3]]
    expected = [reference(text, entries) for text in texts]
    assert Matcher(entries).match_all(pa.array(texts, pa.string())).to_pylist() == expected


@given(text=TEXT)
def test_tokens_are_those_of_the_rule(text: str) -> None:
    found = tokens(text)
    assert Matcher([" ".join(found)]).match(text) == ([0] if any(found) or len(found) > 1 else [])
    assert not any(set(token) & set(" \t\n\r") for token in found)


def test_the_first_of_equal_entries_counts_and_an_empty_one_never_matches() -> None:
    matcher = Matcher(["b", "a", "", "b", "a b", "a", "a b"])
    assert matcher.match("a b") == [0, 1, 4]
    assert matcher.match("a  c") == [1]
    assert Matcher(["a", "b", "a"], ids=[7, 8, 9]).match("b a") == [7, 8]
    assert Matcher([]).match("a b") == Matcher([""]).match("a  b") == []


def test_an_entry_that_is_no_utf8_matches_nothing_and_harms_nothing() -> None:
    assert Matcher(["\ud800", "a", "\ud800 a"]).match("a \ufffd") == [1]


def test_captions_may_be_sliced_chunked_null_or_none_at_all() -> None:
    matcher = Matcher(["a", "b", "a b"])
    whole = pa.array(["b", "a b", None, "", "a", "a  b"])
    expected = [[1], [0, 1, 2], [], [], [0], [0, 1]]
    for kind in (pa.string(), pa.large_string(), pa.string_view()):
        given = whole.cast(kind)
        assert matcher.match_all(given).to_pylist() == expected
        assert matcher.match_all(given.slice(1, 4)).to_pylist() == expected[1:5]
        assert matcher.match_all(given.slice(3)).to_pylist() == expected[3:]
    chunks = pa.chunked_array([whole.slice(3, 2), whole.slice(0, 0), whole.slice(1, 3)])
    assert matcher.match_all(chunks).to_pylist() == [*expected[3:5], *expected[1:4]]
    for nothing in (whole.slice(0, 0), pa.chunked_array([], pa.string()), pa.nulls(0)):
        assert matcher.match_all(nothing).equals(pa.array([], pa.list_(pa.int32())))
    assert matcher.match_all(pa.nulls(2)).to_pylist() == [[], []]


def test_no_match_reaches_over_the_end_of_a_caption() -> None:
    entries = ["a b", "b a", "a  b", " a", "a ", "  ", "b"]
    texts = ["a", "b", "", "", "a ", " b", " ", "  "]
    found = Matcher(entries).match_all(pa.array(texts)).to_pylist()
    assert found == [reference(text, entries) for text in texts]


@settings(max_examples=100, deadline=None)
@given(
    sequences=st.lists(st.lists(st.integers(0, 3), min_size=1, max_size=5), max_size=12),
    text=st.lists(st.integers(NOTHING, 3), max_size=20),
)
def test_a_trie_finds_every_sequence_at_every_place(
    sequences: list[list[int]], text: list[int]
) -> None:
    text.append(NOTHING)
    lengths = np.array([len(s) for s in sequences], np.int64)
    flat = np.array([symbol for s in sequences for symbol in s], np.int32)
    ids = np.arange(len(sequences))
    trie = Trie(flat, np.cumsum(lengths) - lengths, lengths, ids, 4)
    places, found = trie.walk(np.array(text, np.int32))
    first = {tuple(s): n for n, s in reversed(list(enumerate(sequences)))}
    assert sorted(zip(places.tolist(), found.tolist())) == sorted(
        (at, number)
        for s, number in first.items()
        for at in range(len(text))
        if tuple(text[at : at + len(s)]) == s
    )


def test_nodes_whose_keys_collide_are_told_apart(monkeypatch: pytest.MonkeyPatch) -> None:
    """The worst hash: every key falls into the same slot."""
    monkeypatch.setattr(matching, "_MIX", np.uint64(0))
    words = [f"{a} {b}" for a in "abcd" for b in "abcd" if a < b]
    text = "b c d a d"
    assert Matcher(words).match(text) == reference(text, words)


def test_long_captions_are_no_trap() -> None:
    """A hostile caption costs time in proportion to its length, not to its square."""
    matcher = Matcher(["a " * 40 + "b", "a"])
    began_s = time.process_time()
    assert matcher.match("a " * 50_000) == [1]
    assert matcher.match(" " * 500_000 + "." * 500_000) == []
    assert time.process_time() - began_s < 5


def test_real_alt_texts_agree_with_the_reference(shared_data: Path) -> None:
    texts = pq.read_table(shared_data / "captions-webalt.parquet", columns=["caption"])[
        "caption"
    ].to_pylist()[::70]
    words = sorted({word for text in texts for word in text.split(" ")})
    pairs = sorted({" ".join(text.split(" ")[n : n + 2]) for text in texts for n in range(3)})
    entries = [*words[::2], *pairs]
    found = Matcher(entries).match_all(pa.array(texts)).to_pylist()
    assert found == [reference(text, entries) for text in texts]
    assert sum(map(len, found)) > 5 * len(texts)
