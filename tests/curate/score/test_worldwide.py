"""The worldwide rule: agreement with a slow, literal reference, also where scripts use no spaces."""

from __future__ import annotations

import json
from pathlib import Path

import pyarrow as pa
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from curate.score.worldwide import LanguageMatcher, Worldwide, needs_no_space
from curate.stage import StageError


def reference(text: str, entries: list[str]) -> list[int]:
    """The rule to the letter: an entry with its spaces is a substring of the prepared text."""
    padded = f" {text} "
    for mark in ",.;:?!`":
        padded = padded.replace(mark, f" {mark} ")
    for space in "\t\n\r":
        padded = padded.replace(space, " ")
    first = {entry: number for number, entry in reversed(list(enumerate(entries))) if entry}
    return sorted(
        number
        for entry, number in first.items()
        if ("" if needs_no_space(entry[0]) else " ")
        + entry
        + ("" if needs_no_space(entry[-1]) else " ")
        in padded
    )


@pytest.mark.parametrize(
    ("text", "matches"),
    [
        ("新しいカメラ", {"カメラ", "カメ", "新"}),  # missed by the published code
        ("新しいｶﾒﾗです", {"ｶﾒﾗ", "新"}),
        ("カ メラ", set()),
        ("東京タワー", {"東京", "タワー", "東京タワー"}),
        ("人々の写真", {"人々"}),
        ("แมวดำ", {"แมว"}),
        ("រូបភាពឆ្មា", {"ឆ្មា"}),
        ("a dog", {"dog"}),
        ("dogs", set()),
        ("dog写真", set()),  # a word asks for spaces on both sides
        ("Tシャツ", {"シャツ", "Tシャツ"}),
        ("赤Tシャツ", {"シャツ"}),  # the side of T asks for a space
        ("赤 Tシャツ", {"シャツ", "Tシャツ"}),
        ("C++17", {"C++"}),  # as in the published code
        ("C++", {"C++"}),
        ("MC++", set()),
        ("사진 강아지", {"강아지"}),
        ("강아지가", set()),  # Korean has spaces
        ("東京、大阪", {"東京", "、"}),
        ("東京,大阪", {"東京", ","}),
        ("𠮷野家", {"𠮷野"}),
        ("dog", {"dog"}),
        ("", set()),
    ],
)
def test_golden_cases(text: str, matches: set[str]) -> None:
    entries = [
        *[
            "カメラ",
            "カメ",
            "新",
            "ｶﾒﾗ",
            "東京",
            "タワー",
            "東京タワー",
            "人々",
            "แมว",
            "ឆ្មា",
            "dog",
        ],
        *["シャツ", "Tシャツ", "C++", "강아지", "、", ",", "𠮷野", "", "dog"],
    ]
    found = LanguageMatcher(entries).match_all(pa.array([text])).to_pylist()[0]
    assert found == reference(text, entries)
    assert {entries[number] for number in found} == matches


def test_the_sides_that_need_no_space() -> None:
    free = "漢𠮷々〇あアーｱㇷ𛀁กກကខ\u0f40\uaa60\u19e0.,+$～、。（»—…"
    assert [c for c in free if not needs_no_space(c)] == []
    assert [c for c in "aéß9Ωж한ㄅＡ €©\u3000\u00a0א" if needs_no_space(c)] == []


LETTERS = "ab 漢カｶก한.,+、»\t\n𠮷é"
PIECE = st.text(st.sampled_from(LETTERS), max_size=5)


@settings(max_examples=300, deadline=None)
@given(
    entries=st.lists(PIECE, max_size=16),
    texts=st.lists(st.text(st.sampled_from(LETTERS), max_size=25), max_size=5),
)
def test_random_texts_agree_with_the_reference(entries: list[str], texts: list[str]) -> None:
    entries += [text[n : n + 3] for text in texts for n in range(0, 12, 2)]
    found = LanguageMatcher(entries).match_all(pa.array(texts, pa.string())).to_pylist()
    assert found == [reference(text, entries) for text in texts]


@settings(max_examples=150, deadline=None)
@given(
    entries=st.lists(st.text(max_size=4), max_size=8),
    texts=st.lists(st.text(max_size=30), max_size=4),
)
def test_any_unicode_agrees_with_the_reference(entries: list[str], texts: list[str]) -> None:
    entries += [text[n : n + 2] for text in texts for n in range(0, 9, 3)]
    found = LanguageMatcher(entries).match_all(pa.array(texts, pa.string())).to_pylist()
    assert found == [reference(text, entries) for text in texts]


LISTS = {"en": ["dog", "cat"], "ja": ["犬", "カメラ"], "de": ["Hund", "dog"]}


def write(folder: Path) -> dict[str, str]:
    for language, entries in LISTS.items():
        (folder / f"{language}.json").write_text(json.dumps(entries))
    return {language: str(folder / f"{language}.json") for language in LISTS}


ROWS = st.lists(
    st.tuples(
        st.sampled_from(["a dog", "犬とカメラ", "Hund , cat", "", None]),
        st.sampled_from(["en", "ja", "de", "xx", "", None]),
    ),
    max_size=12,
)


@pytest.mark.parametrize("fallback", ["", "en", "ja"])
def test_a_row_is_matched_against_its_own_language(tmp_path: Path, fallback: str) -> None:
    matcher = Worldwide(write(tmp_path), fallback)

    @settings(max_examples=60, deadline=None)
    @given(rows=ROWS)
    def check(rows: list[tuple[str | None, str | None]]) -> None:
        captions = pa.array([caption for caption, _ in rows], pa.string())
        languages = pa.array([language for _, language in rows], pa.string())
        found = matcher.match_all(pa.chunked_array([captions]), languages.dictionary_encode())
        expected = [
            reference(caption or "", LISTS.get(language or "", LISTS.get(fallback, [])))
            for caption, language in rows
        ]
        assert found.type == pa.list_(pa.int32())
        assert found.to_pylist() == expected

    check()
    assert matcher.match("a dog, a cat", "en") == [0, 1]


def test_only_lists_that_rows_ask_for_are_read_and_each_once(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    from curate.score import worldwide

    read: list[str] = []
    real = worldwide.read_entries
    monkeypatch.setattr(worldwide, "read_entries", lambda path: read.append(path) or real(path))
    paths = write(tmp_path)
    matcher = Worldwide(paths)
    for _ in range(3):
        matcher.match_all(pa.array(["a", "犬", "x"]), pa.array(["ja", "ja", "xx"]))
    assert read == [paths["ja"]]


def test_a_list_that_has_gone_stops_the_run(tmp_path: Path) -> None:
    matcher = Worldwide({"en": str(tmp_path / "en.txt")})
    assert matcher.match("a dog", "de") == []
    with pytest.raises(StageError, match=r"en\.txt: no such file\. hint: "):
        matcher.match("a dog", "en")
