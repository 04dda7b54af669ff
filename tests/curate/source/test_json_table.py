"""JSON files as tables: cut at objects, the same rows for any cut, what is no JSON named before any work."""

from __future__ import annotations

import gzip
import json
from pathlib import Path
from typing import Any

import pyarrow as pa
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from curate.source.json_table import JsonTable


def table_of(folder: Path, data: str | bytes, name: str = "t.json") -> JsonTable:
    path = folder / name
    path.write_bytes(data.encode() if isinstance(data, str) else data)
    return JsonTable(str(path))


def rows_of(table: JsonTable, rows: int, *own: pa.Field) -> list[Any]:
    """(url, caption, extra ...) of good rows, (place, raw bytes) of bad ones, over all slices."""
    found: list[Any] = []
    for piece in table.slices(rows):
        before = len(found)
        for chunk in table.read(json.loads(json.dumps(piece)), "url", "caption", own):
            for n, pair in enumerate(zip(chunk.urls, chunk.captions, strict=True)):
                bad = chunk.bad.get(n)
                extra = (column[n].as_py() for column in chunk.own)
                found.append((*pair, *extra) if bad is None else (bad.place, bad.raw))
        assert len(found) - before == piece["rows"] <= rows
    return found


@pytest.mark.parametrize("rows", [1, 2, 100])
def test_a_list_with_odd_elements_loses_no_row(tmp_path: Path, rows: int) -> None:
    text = '\ufeff [ {"url": "1", "caption": "\u00e9 ]}\\", {"},\n\t{"url":"2"} , 3, [{"url": 4}],{"caption":"c"}]\n'
    assert rows_of(table_of(tmp_path, text), rows) == [
        (b"1", '\u00e9 ]}", {'.encode()),
        (b"2", None),
        ("t.json@60", b"3"),
        ("t.json@63", b'[{"url": 4}]'),
        (None, b"c"),
    ]


@pytest.mark.parametrize("rows", [1, 2, 100])
@pytest.mark.parametrize(
    "columns",
    [
        {"url": ["1", "2", "3"], "caption": ["a", None, "c"]},
        {"url": {"0": "1", "1": "2", "2": "3"}, "caption": {"0": "a", "2": "c"}},
    ],
    ids=["lists", "pandas"],
)
def test_columns_are_rows_too(tmp_path: Path, columns: dict[str, Any], rows: int) -> None:
    table = table_of(tmp_path, json.dumps(columns))
    assert table.schema() == pa.schema([("url", pa.string()), ("caption", pa.string())])
    assert rows_of(table, rows) == [(b"1", b"a"), (b"2", None), (b"3", b"c")]


def test_extra_columns_have_their_types(tmp_path: Path) -> None:
    records = [{"url": "1", "caption": "a", "n": 1}, {"url": "2", "caption": "b", "n": "two"}]
    field = table_of(tmp_path, json.dumps(records[:1])).schema().field("n")
    assert field.type == pa.int64()
    table = table_of(tmp_path, json.dumps(records))
    assert rows_of(table, 9, field)[0] == (b"1", b"a", 1)
    assert rows_of(table, 9, field)[1][1] == b'{"url": "2", "caption": "b", "n": "two"}'


def test_bytes_that_are_not_utf8_come_through(tmp_path: Path) -> None:
    data = b'[{"url": "1", "caption": "caf\xe9"}, {"url": "\xc3\xa9", "caption": "x"}]'
    assert rows_of(table_of(tmp_path, data), 1) == [(b"1", b"caf\xe9"), ("\u00e9".encode(), b"x")]


@pytest.mark.parametrize(
    ("text", "found"),
    [
        ('[{"url": "1"}, {"url": ', "no JSON from byte 15 on"),
        ('[{"url": "1"}', "no JSON from byte 13 on"),
        ('[{"url": "1"} {"url": "2"}]', "no JSON from byte 14 on"),
        ('[{"url": "1"}] more', "no JSON from byte 14 on"),
        ('{"url": "1"}\n{"url": "2"}', "no JSON from byte 13 on"),
        ('{"url": "1"}', "the column 'url' is no list"),
        ('{"url": ["1"], "caption": ["a", "b"]}', "of another length"),
        ('"url"', "no JSON from byte 0 on"),
        ("[" * 100_000, "no JSON from byte 1 on"),
    ],
)
def test_what_is_no_table_is_named_before_any_work(tmp_path: Path, text: str, found: str) -> None:
    with pytest.raises(ValueError, match="hint: ") as caught:
        table_of(tmp_path, text).slices(5)
    assert found in str(caught.value)
    assert "t.json" in str(caught.value)


def test_empty_files_and_lists_have_no_rows(tmp_path: Path) -> None:
    for text in ("", " \n", "[]", " [ ] ", "{}"):
        table = table_of(tmp_path, text)
        assert (table.schema().names, table.slices(5)) == ([], []), text


def test_gz_reads_the_same_and_damage_is_named(tmp_path: Path) -> None:
    records = [{"url": str(n), "caption": f"number {n}"} for n in range(3000)]
    plain = table_of(tmp_path, json.dumps(records))
    packed = table_of(tmp_path, gzip.compress(json.dumps(records).encode()), "t.json.gz")
    assert rows_of(packed, 700) == rows_of(plain, 3000)
    table_of(tmp_path, gzip.compress(json.dumps(records).encode())[:-200], "t.json.gz")
    with pytest.raises(ValueError, match=r"t\.json\.gz: damaged gzip: .*hint: "):
        packed.slices(700)


VALUE = st.none() | st.text(max_size=6) | st.integers(-5, 5)
RECORD = st.fixed_dictionaries(
    {"url": st.text(max_size=6)}, optional={"caption": st.text(), "x": VALUE}
)


@settings(max_examples=80, deadline=None)
@given(
    records=st.lists(RECORD, max_size=9),
    cut=st.integers(1, 4),
    ascii_=st.booleans(),
    indent=st.none() | st.just(1),
)
def test_what_json_writes_is_read_back(
    tmp_path_factory: pytest.TempPathFactory, records: list[dict[str, Any]], cut: int, ascii_: bool, indent: int | None
) -> None:  # fmt: skip
    text = json.dumps(records, ensure_ascii=ascii_, indent=indent)
    table = table_of(tmp_path_factory.mktemp("json"), text.encode("utf-8", "surrogatepass"))
    assert rows_of(table, cut) == [
        tuple(None if (v := r.get(k)) is None else v.encode("utf-8", "surrogatepass") for k in ("url", "caption"))
        for r in records
    ]  # fmt: skip
