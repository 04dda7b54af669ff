"""Many tables in one file: each is read alone, all of several files side by side, and damage is named."""

from __future__ import annotations

from pathlib import Path

import pyarrow as pa
import pytest

from curate.contract import done, tables

TABLES = [pa.table({"value": pa.array([f"{n}"] * n, pa.string())}) for n in (3, 0, 5, 1)]


def written(path: Path, found: list[pa.Table]) -> str:
    with tables.writing(str(path)) as file:
        for table in found:
            file.add(table)
    done.commit(str(path), {"rows": file.rows}, file.written, {})
    return str(path)


def test_each_table_is_read_alone_and_several_that_follow_each_other(tmp_path: Path) -> None:
    path = written(tmp_path / "part-00000.tables", TABLES)
    assert done.verify(path) == []
    assert (done.read(path) or {})["rows"] == 9
    for number, table in enumerate(TABLES):
        assert tables.read(path, number, len(TABLES)) == [table]
    assert tables.read(path, 1, len(TABLES), several=3) == TABLES[1:]


def test_files_are_read_side_by_side(tmp_path: Path) -> None:
    paths = [
        written(tmp_path / "a.tables", TABLES),
        written(tmp_path / "b.tables", TABLES[::-1]),
    ]
    assert list(tables.read_all(paths, len(TABLES))) == [
        [one, other] for one, other in zip(TABLES, TABLES[::-1], strict=True)
    ]


def test_a_file_that_is_cut_or_was_never_committed_is_damaged(tmp_path: Path) -> None:
    path = written(tmp_path / "a.tables", TABLES)
    whole = Path(path).read_bytes()
    Path(path).write_bytes(whole[:-5])
    with pytest.raises(done.Damaged, match="bytes"):
        tables.read(path, 0, len(TABLES))
    Path(path).write_bytes(
        whole[-8:] + whole[8:]
    )  # the same size, and no table where one should begin
    with pytest.raises(done.Damaged, match="holds no table at byte 0"):
        tables.read(path, 0, len(TABLES))
    with pytest.raises(done.Damaged, match="never committed"):
        tables.read(str(tmp_path / "b.tables"), 0, 1)
    with pytest.raises(done.Damaged, match="shorter"):
        tables.read(path, 0, len(whole))


def test_tables_in_a_bucket(bucket: str) -> None:
    paths = []
    for name in ("a", "b"):
        path = f"{bucket}/{name}.tables"
        with tables.writing(path) as file:
            for table in TABLES:
                file.add(table)
        done.commit(path, {"rows": file.rows}, file.written, {})
        paths.append(path)
    assert tables.read(paths[0], 2, len(TABLES), several=2) == TABLES[2:]
    assert list(tables.read_all(paths, len(TABLES))) == [[table, table] for table in TABLES]
