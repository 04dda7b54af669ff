"""Plain lines off a terminal, bars on one, everything on the given stream."""

from __future__ import annotations

import io

from pipelines import progress


class Terminal(io.StringIO):
    def isatty(self) -> bool:
        return True


def test_plain_lines_off_a_terminal() -> None:
    stream = io.StringIO()
    shown = progress.for_stream(stream)
    shown.start("score.x", 3)
    shown.advance()
    shown.finish("3 rows, 2 kept")
    shown.finish_stage("filter.y", "2 rows")
    shown.close()
    assert stream.getvalue() == "score.x: 3 rows, 2 kept\nfilter.y: 2 rows\n"


def test_a_long_step_tells_how_much_is_left(monkeypatch: object) -> None:
    stream = io.StringIO()
    shown = progress.Progress(stream)
    shown.start("score.x", 4)
    shown._started -= 20
    shown._told -= 20
    shown.advance()
    assert stream.getvalue().startswith("score.x: 1 of 4, about 6")


def test_bars_on_a_terminal() -> None:
    stream = Terminal()
    shown = progress.for_stream(stream)
    shown.start("score.x", 2)
    shown.advance()
    shown.finish("2 rows")
    shown.close()
    assert isinstance(shown, progress.BarProgress)
    assert "score.x: 2 rows" in stream.getvalue()


def test_rows_are_told_within_a_part_of_a_step_that_counts_them() -> None:
    stream = io.StringIO()
    shown = progress.Progress(stream)
    shown.start("download.fetch", 3)
    progress.rows_done(5)  # nobody listens
    with shown.counting_rows():
        progress.rows_done(64)
        assert stream.getvalue() == ""
        shown._started -= 20
        shown._told -= 20
        progress.rows_done(936)
    progress.rows_done(7)
    assert stream.getvalue() == "download.fetch: 0 of 3, 1,000 rows, 50 rows/s\n"


def test_rows_on_a_terminal() -> None:
    stream = Terminal()
    shown = progress.BarProgress(stream)
    shown.start("download.fetch", 3)
    with shown.counting_rows():
        progress.rows_done(64)
        shown.advance()
    assert "64 rows" in str(shown._rich.tasks[0].fields["note"])
    shown.close()
