"""score.caption_shape: Python's own counts, repetition by hand, and file names without over-matching."""

from __future__ import annotations

import pyarrow as pa
import pytest
from hypothesis import given
from hypothesis import strategies as st

from curate.score.caption_shape import CaptionShape, is_file_name


def measured(captions: list[str | None]) -> dict[str, list[object]]:
    stage = CaptionShape()
    done = stage.process(pa.table({"caption": pa.array(captions, pa.string())}), stage.open())
    assert done.schema == stage.writes()
    return done.to_pydict()


@given(st.lists(st.text(st.characters(codec="utf-8")) | st.none(), max_size=8))
def test_counts_are_pythons(captions: list[str | None]) -> None:
    found = measured(captions)
    assert found["caption_chars"] == [None if text is None else len(text) for text in captions]
    assert found["caption_words"] == [
        None if text is None else len(text.split()) for text in captions
    ]


@given(st.lists(st.lists(st.sampled_from(["a", "A", "b", "c,", "é"])), max_size=6))
def test_repetition_is_the_share_of_words_seen_before(rows: list[list[str]]) -> None:
    expected = [1 - len({word.lower() for word in row}) / len(row) if row else None for row in rows]
    found = measured([" ".join(row) for row in rows])["caption_repetition_frac"]
    assert found == [None if value is None else pytest.approx(value) for value in expected]


def test_repetition_by_hand() -> None:
    found = measured(["Sale sale SALE buy", "a red dog", "  ", None])["caption_repetition_frac"]
    assert found == [0.5, 0.0, None, None]


FILE_NAMES = """IMG_1234.jpg|IMG_1234|img-0042|DSC0001|DSC_0294|DSCN1234|_DSC5678|P1010234|IMG 1234 (2)
image001.png|image001|image (3)|untitled-3|Untitled|photo 5|Screenshot (12)|screenshot
20190312_101500|4589213|4589213-large|red_dress_front|product-2345_large|red dress front (2).JPG
https://example.com/a.jpg|http://example.com|www.example.com/x|uploads/2019/a-b.webp
d41d8cd98f00b204e9800998ecf8427e|123e4567-e89b-12d3-a456-426614174000|blue-shirt-for-men-48213
manchester-united-celebrates-goal-in-front-of-city|  IMG_1.jpeg  """.replace("\n", "|").split("|")

CAPTIONS = """photo.jpg of a dog|a dog|dog|Photo of 5 dogs|Image of the day|2019|2019-03-12|state-of-the-art
1-800-555-1234|WH-1000XM4|iPhone 12|mother-in-law|e-mail|C++17|example.com|Save it as png|jpg
A dog. Source: photo.jpg|How to open IMG_1234.jpg in Photoshop|Screenshot of a game|facade|deadbeef
Route 66|Boeing 747-400|File your taxes|P 51 Mustang|sam 5|Scan here|3 dogs|No. 123456|""".replace(
    "\n", "|"
).split("|")


@pytest.mark.parametrize("text", FILE_NAMES)
def test_a_file_name_is_told(text: str) -> None:
    assert is_file_name(pa.array([text])).to_pylist() == [True]


@pytest.mark.parametrize("text", CAPTIONS)
def test_a_caption_is_no_file_name(text: str) -> None:
    assert is_file_name(pa.array([text])).to_pylist() == [False]


def test_null_stays_null_and_an_empty_table_is_empty() -> None:
    assert measured([None])["caption_is_file_name"] == [None]
    assert measured([]) == {name: [] for name in CaptionShape().writes().names}
    empty = pa.table({"caption": pa.chunked_array([], pa.string())})
    assert len(CaptionShape().process(empty, None)) == 0
