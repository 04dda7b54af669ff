"""Raw cells to rows: every kind of bad cell, what is shown of it, and which files a path names."""

from __future__ import annotations

from pathlib import Path

import pyarrow as pa
import pytest
from fsspec.implementations.memory import MemoryFileSystem
from hypothesis import given
from hypothesis import strategies as st

from curate.contract import storage
from curate.contract.draw import pair_uid
from curate.source.base import (
    BadRow,
    Cell,
    Chunk,
    NotText,
    files_of,
    identity_files,
    judge,
    marks_of,
    missing_column,
    names_and_sizes,
    rows_table,
    text_cell,
)

URL = b"http://host/a.jpg"


@pytest.mark.parametrize(
    ("url", "caption", "kind"),
    [
        (URL, b"a dog", None),
        (URL, "ein H\u00fcndchen".encode(), None),
        (None, b"a dog", "null_url"),
        (b"", None, "null_url"),
        (URL, None, "null_caption"),
        (URL, b" \t\n", "null_caption"),
        (URL, "\u00a0\u3000".encode(), "null_caption"),
        (URL, NotText(b"12"), "not_text"),
        (NotText(b"12"), b"a dog", "not_text"),
        (URL, b"caf\xe9", "not_utf8"),
        (b"http://host/\xff", b"a dog", "not_utf8"),
        (URL, "\ud800".encode("utf-8", "surrogatepass"), "not_utf8"),
        (URL, b"x" * 101, "too_long"),
        (URL, b"x" * 100, None),
        (b"h" * 101, b"a dog", "too_long"),
    ],
)
def test_each_kind_of_bad_cell_has_its_name(url: Cell, caption: Cell, kind: str | None) -> None:
    assert judge(url, caption, 100) == kind


def test_rows_keep_count_order_and_the_uid_of_the_bytes() -> None:
    raw = b"caf\xe9"
    chunk = Chunk(
        [URL, URL, None], [b"ok", raw, None], bad={2: BadRow("bad_row", "f.csv@9", b"junk\xff")}
    )
    rows = rows_table("source.x", chunk, [], 100).to_pylist()
    assert [row["uid"] for row in rows] == [
        pair_uid(URL, b"ok"),
        pair_uid(URL, raw),
        pair_uid("f.csv@9", b"junk\xff"),
    ]
    assert [row["caption"] for row in rows] == ["ok", "caf\ufffd", "junk\ufffd"]
    assert rows[2]["url"] == "f.csv@9"
    assert [row["keep"] for row in rows] == [True, False, False]
    assert [row["reason"] for row in rows] == [
        None,
        "error.source.x.not_utf8",
        "error.source.x.bad_row",
    ]


def test_a_megabyte_is_shown_cut_and_named_whole() -> None:
    long = b"y" * 1_000_000
    row = rows_table("source.x", Chunk([URL], [long]), [], 100).to_pylist()[0]
    assert (row["caption"], row["reason"]) == ("y" * 100, "error.source.x.too_long")
    assert row["uid"] == pair_uid(URL, long)


def test_own_columns_follow() -> None:
    chunk = Chunk([URL], [b"ok"], [pa.array([7], pa.int16())])
    table = rows_table("source.x", chunk, [pa.field("n", pa.int16())], 100)
    assert table.column_names == ["uid", "url", "caption", "keep", "reason", "n"]
    assert table.schema.field("n").type == pa.int16()


@pytest.mark.parametrize("raw", [b"plain", b"caf\xe9", "\u732b".encode(), b"\xed\xa0\x80"])
def test_bytes_survive_a_decoder(raw: bytes) -> None:
    assert text_cell(raw.decode("utf-8", "surrogateescape")) == raw


def test_other_values_become_not_text() -> None:
    assert text_cell(None) is None
    cell = text_cell([1, 2])
    assert isinstance(cell, NotText)
    assert cell == b"[1, 2]"


def test_a_path_is_a_file_a_glob_a_folder_or_a_list(tmp_path: Path) -> None:
    for name in ("b.csv", "a.csv", "note.md", "_SUCCESS.csv", "deep/c.csv"):
        (tmp_path / name).parent.mkdir(exist_ok=True)
        (tmp_path / name).write_text("x")
    here = str(tmp_path)
    assert files_of(f"{here}/note.md", ["csv"]) == [f"{here}/note.md"]
    assert files_of(f"{here}/*.csv", ["csv"]) == [
        f"{here}/_SUCCESS.csv",
        f"{here}/a.csv",
        f"{here}/b.csv",
    ]
    assert files_of(here, ["csv"]) == [f"{here}/a.csv", f"{here}/b.csv", f"{here}/deep/c.csv"]
    assert files_of([f"{here}/b.csv", f"{here}/?.csv"], ["csv"]) == [
        f"{here}/b.csv",
        f"{here}/a.csv",
    ]


@pytest.mark.parametrize(
    ("path", "found"),
    [
        ("nowhere.csv", "no such file or folder"),
        ("*.tsv", "no file matches"),
        (".", "the folder has no .csv file"),
    ],
)
def test_a_path_to_nothing_says_so(tmp_path: Path, path: str, found: str) -> None:
    with pytest.raises(ValueError, match=rf"{found}\. hint: "):
        files_of(str(tmp_path / path), ["csv"])
    with pytest.raises(ValueError, match="hint"):
        files_of([], ["csv"])


def test_remote_files_are_found_too() -> None:
    import fsspec

    fs = fsspec.filesystem("memory")
    fs.pipe("/source_base_test/a.csv", b"x")
    try:
        assert files_of("memory://source_base_test", ["csv"]) == [
            "memory:///source_base_test/a.csv"
        ]
    finally:
        fs.rm("/source_base_test", recursive=True)


def test_very_many_files_are_known_by_an_even_sample() -> None:
    few = [f"f{n}" for n in range(1000)]
    assert identity_files(few) == tuple(few)
    many = [f"f{n:05d}" for n in range(12_345)]
    sample = identity_files(many)
    assert len(sample) == len(set(sample)) == 1000
    assert sample != identity_files(many[:-100])


def test_a_missing_column_names_the_nearest_and_all() -> None:
    message = str(missing_column("a.csv", "caption", ["URL", "Captions"], "caption"))
    assert (
        message
        == "a.csv: no column 'caption'; it has: URL, Captions. hint: did you mean 'Captions'? set the option `caption`"
    )


def test_names_and_sizes_see_growth_and_not_the_folder(tmp_path: Path) -> None:
    (tmp_path / "a").mkdir()
    (tmp_path / "b").mkdir()
    for folder in ("a", "b"):
        (tmp_path / folder / "x.csv").write_text("url,caption\n")
    first, second = (names_and_sizes(marks_of([str(tmp_path / f / "x.csv")])) for f in ("a", "b"))
    assert first == second
    (tmp_path / "b" / "x.csv").write_text("url,caption\nu,c\n")
    assert names_and_sizes(marks_of([str(tmp_path / "b" / "x.csv")])) != first


@given(
    cells=st.lists(
        st.tuples(
            *[st.one_of(st.none(), st.binary(max_size=9), st.text(max_size=9).map(str.encode))] * 2
        ),
        max_size=12,
    ),
    most=st.integers(1, 8),
    cut=st.integers(0, 3),
)
def test_columns_are_judged_as_cells_are(
    cells: list[tuple[bytes | None, bytes | None]], most: int, cut: int
) -> None:
    urls, captions = [list(column) for column in zip(*cells)] or ([], [])
    listed = Chunk(urls[cut:], captions[cut:])
    arrays = [pa.array(cells, pa.large_binary()).slice(cut) for cells in (urls, captions)]
    expected = rows_table("source.x", listed, [], most)
    assert rows_table("source.x", Chunk(*arrays), [], most).to_pylist() == expected.to_pylist()


def test_a_remote_folder_of_many_files_is_listed_and_none_is_asked_for(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    store = MemoryFileSystem()
    names = [f"/marks_of/part-{n:03d}.csv" for n in range(40)]
    store.pipe({name: b"x" * n for n, name in enumerate(names)})
    asked: list[str] = []
    mark = storage.mark
    monkeypatch.setattr(storage, "mark", lambda url: asked.append(url) or mark(url))
    try:
        files = files_of("memory://marks_of", ["csv"])
        found = marks_of(files)
        assert list(found) == files
        assert [size for size, _ in found.values()] == list(range(40))
        assert asked == []
        few = marks_of(files[3:6])
        assert len(asked) == 3  # too few for a listing
        assert few == {name: found[name] for name in files[3:6]}

        def refused(folder: str) -> dict[str, tuple[int, str]]:
            raise NotImplementedError

        monkeypatch.setattr(storage, "marks", refused)  # a web server
        assert marks_of(files) == found
        assert len(asked) == 43
    finally:
        store.rm("/marks_of", recursive=True)
