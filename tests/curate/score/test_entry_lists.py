"""Entry lists: JSON or lines, packed or not; one per language in a folder; what is no list is refused."""

from __future__ import annotations

import gzip
import json
from pathlib import Path

import pytest

from curate.contract import storage
from curate.score.entry_lists import by_language, read_entries, texts


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
        read_entries(str(path))


def test_a_missing_list_and_a_folder_are_refused(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match=r"no such file\. hint: "):
        read_entries(str(tmp_path / "none.json"))
    with pytest.raises(ValueError, match=r'it is a folder\. hint: `entries` is.*"worldwide"'):
        read_entries(str(tmp_path))


def lists(folder: Path, names: list[str]) -> str:
    folder.mkdir(parents=True, exist_ok=True)
    for name in names:
        data = json.dumps([name, "dog"]).encode()
        (folder / name).write_bytes(gzip.compress(data) if name.endswith(".gz") else data)
    return str(folder)


def test_a_list_is_named_after_its_language(tmp_path: Path) -> None:
    names = ["zh.json.gz", "en.txt", "de.json", "ja.txt.gz", "README.md", ".txt", "fr.csv"]
    folder = lists(tmp_path / "lists [v2]", names)
    assert by_language(folder) == {
        language: f"{folder}/{name}"
        for language, name in {
            "de": "de.json",
            "en": "en.txt",
            "ja": "ja.txt.gz",
            "zh": "zh.json.gz",
        }.items()
    }
    assert by_language(f"{folder}/") == by_language(folder)


def test_a_pattern_names_some_of_the_lists(tmp_path: Path) -> None:
    folder = lists(tmp_path, ["en.txt", "de.json", "ja.txt.gz"])
    assert list(by_language(f"{folder}/*.txt*")) == ["en", "ja"]


def test_folders_without_lists_or_with_two_for_a_language_are_refused(tmp_path: Path) -> None:
    hint = r"hint: with rule = \"worldwide\", `entries` is a folder"
    with pytest.raises(ValueError, match=rf"no such folder\. {hint}"):
        by_language(str(tmp_path / "none"))
    with pytest.raises(ValueError, match=rf"no list in it\. {hint}"):
        by_language(lists(tmp_path / "bare", ["README.md"]))
    with pytest.raises(ValueError, match=rf"no list in it\. {hint}"):
        by_language(str(tmp_path / "bare" / "*.txt"))
    twice = lists(tmp_path / "twice", ["en.json", "en.txt"])
    with pytest.raises(ValueError, match=rf"two lists for 'en', .*en\.json and .*en\.txt\. {hint}"):
        by_language(twice)


def test_texts_of_ids(tmp_path: Path) -> None:
    folder = lists(tmp_path, ["en.txt", "ja.txt.gz"])
    assert texts(f"{folder}/en.txt") == {"": ["en.txt", "dog"]}
    assert texts(folder, "worldwide") == {"en": ["en.txt", "dog"], "ja": ["ja.txt.gz", "dog"]}


def test_lists_behind_fsspec() -> None:
    with storage.open_file("memory://many/en.txt", "wb") as file:
        file.write(b"dog\nhot dog\n")
    assert read_entries("memory://many/en.txt") == ["dog", "hot dog"]
    assert texts("memory://many", "worldwide") == {"en": ["dog", "hot dog"]}
