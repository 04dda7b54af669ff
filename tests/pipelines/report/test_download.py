"""Outcomes by reason and by host, what may come on another try, in whatever parts the rows lie."""

from __future__ import annotations

from pathlib import Path

import pyarrow as pa
import pytest

from curate.download import outcomes
from pipelines.generations import TRANSIENT, is_meant
from pipelines.report import download
from pipelines.report.content import HostRow, OutcomeRow
from pipelines.report.tally import Tally
from tests.tiny import fetched_run
from tests.tiny.fetched_run import Row

ROWS: list[Row] = [
    ("http://A.example/1.jpg", None, 1),
    ("https://a.example:8443/2.jpg", "http.404", 2),
    None,
    ("http://a.example/3.jpg", "http.503", 3),
    ("http://user@b.example/4.jpg", None, 4),
    ("http://b.example/5.jpg", "timeout.total", 5),
    ("http://b.example/6.jpg", "timeout.total", 6),
    ("nothing", "bad_url", 7),
    ("http://[::1]/7.jpg", "forbidden_address", 8),
    ("http://a.example/8.jpg", "ValueError", 9),
]
NAME = "error.download.fetch."


def test_outcomes_with_their_meaning_and_an_example(tmp_path: Path) -> None:
    (found,) = download.found(*fetched_run.make(tmp_path, [ROWS[:5], ROWS[5:]]))
    assert (found.name, found.rows, found.again) == ("download.fetch", 9, 3)
    assert found.outcomes[0] == OutcomeRow("", 2)
    assert found.outcomes[1] == OutcomeRow(
        NAME + "timeout.total",
        2,
        outcomes.KINDS["timeout.total"],
        "words of timeout.total",
        "http://b.example/5.jpg",
    )
    meanings = {row.reason.removeprefix(NAME): row.meaning for row in found.outcomes}
    assert meanings["http.404"] == meanings["http.503"] == outcomes.KINDS["http."]
    assert meanings["ValueError"] == ""
    assert sum(row.rows for row in found.outcomes) == found.rows


def test_rows_by_host(tmp_path: Path) -> None:
    (found,) = download.found(*fetched_run.make(tmp_path, [ROWS]))
    assert found.hosts.found == 4
    assert found.hosts.most[:2] == [
        HostRow("a.example", 4, 1, NAME + "ValueError", 1),
        HostRow("b.example", 3, 1, NAME + "timeout.total", 2),
    ]
    assert found.hosts.failed == [], "one table has them all"


def test_more_hosts_than_a_table_holds_are_two_tables(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(download, "_SHOWN_HOSTS", 3)
    rows: list[Row] = [*ROWS, *(("http://fine.example/", None, 20 + n) for n in range(9))]
    (found,) = download.found(*fetched_run.make(tmp_path, [rows]))
    assert [row.host for row in found.hosts.most] == ["fine.example", "a.example", "b.example"]
    assert [row.host for row in found.hosts.failed] == ["a.example", "b.example", ""]


def test_as_many_rows_may_come_as_a_retry_would_ask(tmp_path: Path) -> None:
    """The page names a command, so both must mean the same rows."""
    kinds = [kind + "503" if kind.endswith(".") else kind for kind in outcomes.KINDS]
    rows: list[Row] = [("http://a.example/", kind, n) for n, kind in enumerate(kinds)]
    (found,) = download.found(*fetched_run.make(tmp_path, [rows]))
    meant = [is_meant("download.fetch", NAME + kind, [TRANSIENT]) for kind in kinds]
    assert 0 < found.again == sum(meant) < len(rows)


@pytest.mark.parametrize("cut", [1, 3, 7])
def test_any_parts_tell_the_same(tmp_path: Path, cut: int) -> None:
    whole = download.found(*fetched_run.make(tmp_path / "whole", [ROWS]))
    pieces = [ROWS[:cut], [], ROWS[cut:]]
    assert download.found(*fetched_run.make(tmp_path / "cut", pieces)) == whole


def test_only_stages_that_fetch_have_a_section(tmp_path: Path) -> None:
    pool, manifest = fetched_run.make(tmp_path, [ROWS])
    assert download.found(pool, {**manifest, "images": []}) == []
    pool, manifest = fetched_run.make(tmp_path / "none", [[None, None]])
    assert download.found(pool, manifest) == []


def test_hosts_beyond_what_is_held_are_told(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    real = download._Seen
    monkeypatch.setattr(download, "_Seen", lambda: real(hosts=Tally(2)))
    (found,) = download.found(*fetched_run.make(tmp_path, [ROWS]))
    assert [row.host for row in found.hosts.most] == ["a.example"]
    assert (found.hosts.dropped_rows, found.hosts.uncertain) == (5, 3)


def test_hosts_of_odd_urls() -> None:
    urls = ["HTTP://X.Example:80/a", " http:\\\\y.example\\b", "//z.example", "http://", "", None,
            "http://u:p@h.example?q", "http://[2001:db8::1]:8080/x", "ftp://f.example"]  # fmt: skip
    assert download.host_of(pa.array(urls)).to_pylist() == [
        "x.example", "y.example", "", "", "", "", "h.example", "[2001:db8::1]", "f.example",
    ]  # fmt: skip
