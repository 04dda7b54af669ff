"""A picture under many URLs is found, counted by different URLs, and shown."""

from __future__ import annotations

from pathlib import Path

import pytest

from pipelines.report import download, placeholders
from pipelines.report.content import Placeholder
from tests.tiny import eval_sets, fetched_run
from tests.tiny.fetched_run import Row


def found(folder: Path, *parts: list[Row]) -> list[Placeholder]:
    (section,) = download.found(*fetched_run.make(folder, parts))
    return list(section.placeholders)


def rows(body: int, urls: int, times: int = 1) -> list[Row]:
    return [(f"http://{body}.example/{n % urls}", None, body) for n in range(urls * times)]


def test_different_urls_count_and_not_rows(tmp_path: Path) -> None:
    """Body 2 comes from one URL with many captions; body 1 from six URLs in two parts."""
    one = rows(1, 6)
    told = found(tmp_path, [*one[:3], *rows(2, 1, 9)], [*rows(3, 4), *one[3:], *one[3:]])
    assert [(entry.urls, entry.rows, entry.more) for entry in told] == [(6, 9, False)]
    assert told[0].thumb.uid == fetched_run.uid(0)
    assert told[0].thumb.note == "http://1.example/0"
    assert told[0].thumb.image == eval_sets.square("red")


def test_one_url_in_many_parts_is_one_url(tmp_path: Path) -> None:
    assert found(tmp_path, *[rows(1, 1) for _ in range(8)]) == []


def test_refused_bodies_are_no_pictures(tmp_path: Path) -> None:
    assert found(tmp_path, [(f"http://x.example/{n}", "not_an_image", 1) for n in range(9)]) == []


def test_the_most_frequent_ten_are_shown(tmp_path: Path) -> None:
    told = found(tmp_path, [row for body in range(12) for row in rows(body, 5 + body)])
    assert [entry.urls for entry in told] == list(range(16, 6, -1))


def test_more_urls_than_are_counted_are_told(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(placeholders, "_MOST_URLS", 5)
    (told,) = found(tmp_path, rows(1, 9))
    assert (told.urls, told.rows, told.more) == (5, 9, True)
