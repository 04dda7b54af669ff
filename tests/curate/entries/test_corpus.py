"""Texts of every kind of file; words that the matching rule would find as well."""

from __future__ import annotations

import bz2
import gzip
import json
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from hypothesis import given
from hypothesis import strategies as st

from curate.entries.corpus import count_words, runs_of_words, texts
from curate.entries.counting import Counts
from curate.entries.lint import dead_kind
from curate.score.metadata_match import Matcher

ROWS = ["a red dog", "café, 1", "two\tlines"]


def files(folder: Path) -> dict[str, bytes]:
    lines = "\n".join(ROWS).encode()
    quoted = "id,caption\n" + "".join(f'{n},"{row}"\n' for n, row in enumerate(ROWS)) + "broken\n"
    jsonl = "".join(json.dumps({"caption": row}) + "\n" for row in ROWS) + "no json\n{}\n[1]\n"
    pq.write_table(pa.table({"caption": [*ROWS, None]}), folder / "t.parquet")
    return {
        "t.txt": lines,
        "t.txt.gz": gzip.compress(lines),
        "t.txt.bz2": bz2.compress(lines[:9]) + bz2.compress(lines[9:]),
        "t.csv": quoted.encode("utf-8-sig"),
        "t.csv.gz": gzip.compress(quoted.encode()),
        "t.jsonl": jsonl.encode(),
        "t.parquet": (folder / "t.parquet").read_bytes(),
    }


def test_every_kind_of_file(tmp_path: Path) -> None:
    for name, data in files(tmp_path).items():
        (tmp_path / name).write_bytes(data)
        assert [text.strip() for text in texts(str(tmp_path / name))] == ROWS, name


def test_a_tsv_has_no_quotes(tmp_path: Path) -> None:
    (tmp_path / "t.tsv").write_text('url\ttitle\nx\t"half a quote\ny\tb\n')
    assert list(texts(str(tmp_path / "t.tsv"), "title")) == ['"half a quote', "b"]


@pytest.mark.parametrize(
    ("name", "data", "message"),
    [
        ("t.csv", b"url,title\nx,y\n", "no column 'caption', but 'url', 'title'"),
        ("t.jsonl", b'{"title": "x"}\n', "no row with a text under 'caption'"),
        ("t.parquet", b"PAR1 and no more", "no parquet file"),
        ("t.txt.gz", gzip.compress(b"x" * 4000)[:-9], "can't be read"),
        ("t.txt.bz2", b"no bzip2", "can't be read"),
        ("t.doc", b"", "unknown ending"),
        ("absent.txt", None, "no such file"),
    ],
)
def test_unusable_files_say_so(tmp_path: Path, name: str, data: bytes | None, message: str) -> None:
    path = tmp_path / name
    if data is not None:
        path.write_bytes(data)
    with pytest.raises(ValueError, match=rf"(?s){name}: .*hint: ") as fault:
        list(texts(str(path)))
    assert message in str(fault.value)


@pytest.mark.parametrize(
    ("text", "runs"),
    [
        ("a red dog", [["a", "red", "dog"]]),
        ("dog, cat", [["dog"], ["cat"]]),
        ("(big dog) show", [["big", "dog"], ["show"]]),
        ("dog's well-known 'house'", [["dog's", "well-known"], ["house"]]),
        ("dogs' tails - two", [["dogs"], ["tails"], ["two"]]),
        ("http://x.com/a_b", [["http"], ["x"], ["com"], ["a"], ["b"]]),
        ("New\u00a0York\x00x", [["New", "York"], ["x"]]),
        ("a " + "x" * 65 + " b", [["a"], ["b"]]),
        ("Straße «Москва» 東京", [["Straße"], ["Москва"], ["東京"]]),
        ("...", []),
    ],
)
def test_words_and_their_neighbours(text: str, runs: list[list[str]]) -> None:
    assert list(runs_of_words(text)) == runs


@given(st.text(alphabet=st.sampled_from("ab -'’(),.\"\t é/"), max_size=30))
def test_every_word_can_match_in_a_caption_of_plain_words(text: str) -> None:
    for run in runs_of_words(text):
        assert not any(map(dead_kind, run))
        assert set(Matcher(run).match(" ".join(run))) == {run.index(word) for word in run}


def test_counting() -> None:
    words, bigrams = Counts(), Counts()
    assert count_words(["a b a", "b. a b"] * 5000, words, bigrams) == 30_000
    assert dict(words.in_order()) == {"a": 15_000, "b": 15_000}
    assert dict(bigrams.in_order()) == {"a b": 10_000, "b a": 5_000}
