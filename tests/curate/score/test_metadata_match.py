"""score.metadata_match: MetaCLIP's golden cases, and agreement with a slow, literal reference."""

from __future__ import annotations

import gzip
import json
import time
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from curate.contract import storage
from curate.score.metadata_match import Matcher, MetadataMatch, read_entries
from curate.stage import StageError


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
    *[
        "hot",
        "dog",
        "show",
        "hot dog",
        "dog show",
        "a",
        "b",
        "a b",
        "b a",
        "a b a",
        "?",
        "shirt",
        "New York",
        "dog show",
    ],
    *[
        "hello world",
        "hello , world",
        "hello",
        "world",
        "St. Louis",
        "St",
        "Louis",
        "U.S.",
        "1,0",
        "caf\u00e9",
        "New",
        "York",
        ",",
        ".",
    ],
]


@pytest.mark.parametrize(
    ("text", "matches"),
    [
        ("hot dog show", {"hot", "dog", "show", "hot dog", "dog show"}),
        ("a b a b a", {"a", "b", "a b", "b a", "a b a"}),
        ("dog,hot", {"dog", "hot", ","}),
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
        ("St. Louis", {"St", "Louis", "."}),
        ("U.S.", {"."}),
        ("1,0", {","}),
        ("cafe\u0301", set()),
        ("caf\u00e9", {"caf\u00e9"}),
        ("", set()),
        (" ", set()),
    ],
)
def test_golden_cases(text: str, matches: set[str]) -> None:
    found = Matcher(GOLDEN_ENTRIES).match(text)
    assert found == reference(text, GOLDEN_ENTRIES)
    assert {GOLDEN_ENTRIES[number] for number in found} == matches


WORD = st.text(st.sampled_from("ab.,\u00e9 "), max_size=3)
PHRASE = st.lists(WORD, min_size=1, max_size=4).map(" ".join)
TEXT = st.text(st.sampled_from("ab.,;!`\t\n\r \u00a0\u00e9\u00df"), max_size=30)


@settings(max_examples=300, deadline=None)
@given(
    entries=st.lists(PHRASE, max_size=20),
    text=st.one_of(TEXT, st.lists(PHRASE, max_size=6).map(" ".join)),
)
def test_random_texts_agree_with_the_reference(entries: list[str], text: str) -> None:
    assert Matcher(entries).match(text) == reference(text, entries)


@settings(max_examples=100, deadline=None)
@given(text=st.text(max_size=40), entries=st.lists(st.text(max_size=5), max_size=8))
def test_any_unicode_agrees_with_the_reference(text: str, entries: list[str]) -> None:
    entries += text.split(" ")[:3]
    assert Matcher(entries).match(text) == reference(text, entries)


def test_the_first_of_equal_entries_counts_and_an_empty_one_never_matches() -> None:
    matcher = Matcher(["b", "a", "", "b", "a b", "a", "a b"])
    assert matcher.match("a b") == [0, 1, 4]
    assert matcher.match("a  c") == [1]


def write(folder: Path, entries: list[str], name: str = "entries.json") -> str:
    (folder / name).write_text(json.dumps(entries))
    return str(folder / name)


def test_ids_are_ascending_and_rows_keep_their_order_for_any_batch(tmp_path: Path) -> None:
    stage = MetadataMatch(entries=write(tmp_path, ["show", "dog", "hot dog", "hot"]))
    stage.check()
    batch = pa.table({"uid": ["1", "2", "3"], "caption": ["hot dog show", None, "a dog, a dog"]})
    state = stage.open()
    whole = stage.process(batch, state)
    assert whole.schema == stage.writes()
    assert whole["entries"].to_pylist() == [[0, 1, 2, 3], [], [1]]
    assert pa.concat_tables([stage.process(batch.slice(n, 1), state) for n in range(3)]).equals(
        whole
    )
    assert stage.process(batch.slice(0, 0), state).schema == stage.writes()
    assert stage.inputs() == (stage.entries,)


@pytest.mark.parametrize("packed", [False, True])
@pytest.mark.parametrize(
    "text",
    [
        '["hot dog", "caf\\u00e9", ""]',
        "hot dog\ncaf\u00e9\n\n",
        "hot dog\r\ncaf\u00e9\r\n\r\n",
        "\ufeffhot dog\ncaf\u00e9\n\n",
    ],
)
def test_lists_are_json_or_lines_packed_or_not(tmp_path: Path, text: str, packed: bool) -> None:
    path = tmp_path / ("entries.gz" if packed else "entries.txt")
    path.write_bytes(gzip.compress(text.encode()) if packed else text.encode())
    assert read_entries(str(path)) == ["hot dog", "caf\u00e9", ""]


@pytest.mark.parametrize(
    ("data", "found"),
    [
        (b"", "holds no entry"),
        (b"[]", "holds no entry"),
        (b"\n\n", "holds no entry"),
        (b'["a", 5]', "entry 1 is 5, no text"),
        (b'{"a": 1}', "holds a JSON dict"),
        (b'["a"', "starts like JSON and is none"),
        (b"caf\xe9\n", "can't be read"),
        (b"\x1f\x8b broken", "can't be read"),
        (gzip.compress(b'["a"]')[:-6], "can't be read"),
    ],
)
def test_a_list_that_is_none_is_refused(tmp_path: Path, data: bytes, found: str) -> None:
    path = tmp_path / "entries.json"
    path.write_bytes(data)
    with pytest.raises(ValueError, match=rf"entries\.json: {found}.*hint: `entries` is"):
        MetadataMatch(entries=str(path)).check()


def test_a_missing_list_is_refused(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match=r"no such file\. hint: "):
        MetadataMatch(entries=str(tmp_path / "none.json")).check()
    with pytest.raises(ValueError, match=r"entries is empty\. hint: "):
        MetadataMatch(entries="").check()


def test_a_folder_is_no_list(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match=r"can't be read: .*hint: `entries` is"):
        read_entries(str(tmp_path))


def test_a_list_that_goes_after_the_plan_stops_the_run(tmp_path: Path) -> None:
    stage = MetadataMatch(entries=write(tmp_path, ["dog"]))
    stage.check()
    Path(stage.entries).unlink()
    with pytest.raises(StageError, match=r"entries\.json: no such file\. hint: "):
        stage.open()


def test_a_list_behind_fsspec() -> None:
    with storage.open_file("memory://lists/entries.txt", "wb") as file:
        file.write(b"dog\nhot dog\n")
    stage = MetadataMatch(entries="memory://lists/entries.txt")
    stage.check()
    done = stage.process(pa.table({"caption": ["hot dog"]}), stage.open())
    assert done["entries"].to_pylist() == [[0, 1]]


def test_long_captions_are_no_trap() -> None:
    """A hostile caption costs time in proportion to its length, not to its square."""
    matcher = Matcher(["a " * 40 + "b", "a"])
    began_s = time.process_time()
    assert matcher.match("a " * 50_000) == [1]
    assert time.process_time() - began_s < 5


def test_real_alt_texts_agree_with_the_reference(shared_data: Path) -> None:
    texts = pq.read_table(shared_data / "captions-webalt.parquet", columns=["caption"])[
        "caption"
    ].to_pylist()[::70]
    words = sorted({word for text in texts for word in text.split(" ")})
    pairs = sorted({" ".join(text.split(" ")[n : n + 2]) for text in texts for n in range(3)})
    entries = [*words[::2], *pairs]
    matcher = Matcher(entries)
    found = [matcher.match(text) for text in texts]
    assert found == [reference(text, entries) for text in texts]
    assert sum(map(len, found)) > 5 * len(texts)
