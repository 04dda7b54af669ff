"""A job's picture is in memory or in the journal of one of its rows; notes are written once for each row."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

from curate.download.job import Job, Part, Row, note, whole
from curate.download.journal import Journal
from curate.download.outcomes import Outcome

SUCCESS = Outcome(image=b"picture", width=3)


def row_of(job: Job, folder: Path | None, uid: str = "u") -> Row:
    part = None if folder is None else Part(str(folder), Journal(str(folder)))
    row = Row((uid, job.url, None), job, part, None)
    job.rows.append(row)
    return row


def test_a_note_is_written_once_and_into_the_rows_own_part(tmp_path: Path) -> None:
    job = Job("http://a/", None)
    first, second, none = (
        row_of(job, tmp_path / "0", "u0"),
        row_of(job, tmp_path / "1", "u1"),
        row_of(job, None),
    )
    for row in (first, second, none, first):
        note(row, SUCCESS)
    note(second, None)
    assert none.place is None
    assert first.place is not None
    assert second.place is not None
    assert [list(Journal(str(tmp_path / name)).read()) for name in "01"] == [["u0"], ["u1"]]
    assert first.place.length == Path(first.place.path).stat().st_size - first.place.offset


def test_a_picture_is_read_back_from_any_row_that_still_has_it(tmp_path: Path) -> None:
    job = Job("http://a/", None)
    rows = [row_of(job, tmp_path / name) for name in "01"]
    assert whole(job) is None
    job.outcome = SUCCESS
    assert whole(job) is SUCCESS
    for row in rows:
        note(row, SUCCESS)
    job.outcome = replace(SUCCESS, image=None)
    assert whole(job) == SUCCESS
    for gone, row in enumerate(rows):
        assert row.place is not None
        Path(row.place.path).unlink()
        assert whole(job) == (SUCCESS if gone == 0 else None)
    job.outcome = Outcome(kind="dns")
    assert whole(job) is job.outcome
