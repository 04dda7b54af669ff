"""Views of titles add up over files of every known form."""

from __future__ import annotations

import gzip
from pathlib import Path

import pytest

from curate.entries.counting import Counts
from curate.entries.titles import count_views

HOUR = b"""de Hund 99 0
en Dog 60 0
en Dog 49 0
en Special:Search 900 0
en.m Cat 500 0
en Hot_dog 50 0
en "quoted 70 0
short line
en Dog many 0
"""
DAY = b"""en.wikipedia Dog 4269567 desktop 12 A12
en.wikipedia Dog null mobile-web 8 B8
de.wikipedia Hund 5 desktop 70 A70
en.wikipedia Talk:Dog 5 desktop 70 A70
"""


def counted(path: Path, data: bytes, **options: object) -> dict[str, int]:
    path.write_bytes(data)
    views = Counts()
    count_views(str(path), views, **options)  # type: ignore[arg-type]
    return dict(views.in_order())


def test_hours_and_days(tmp_path: Path) -> None:
    hour = {"Dog": 60, "Hot dog": 50, '"quoted': 70}
    assert counted(tmp_path / "pageviews-20220101-000000.gz", gzip.compress(HOUR)) == hour
    assert counted(tmp_path / "day", DAY) == {"Dog": 20}
    assert counted(tmp_path / "day", DAY, language="de") == {"Hund": 70}


def test_views_add_up(tmp_path: Path) -> None:
    views = Counts()
    for name, data in (
        ("a", HOUR),
        ("b", DAY),
        ("c", b"Dog\t5\nStar Trek: Picard\t7\nhead\tviews\n"),
    ):
        (tmp_path / name).write_bytes(data)
        count_views(str(tmp_path / name), views)
    assert dict(views.in_order())["Dog"] == 60 + 20 + 5
    assert dict(views.in_order())["Star Trek: Picard"] == 7


def test_hours_below_the_least_views_are_passed_over(tmp_path: Path) -> None:
    assert counted(tmp_path / "h", HOUR, hour_min_views=1)["Dog"] == 109


@pytest.mark.parametrize(("data", "name"), [(b"a text\nand more\n", "x"), (b"en Dog", "x.gz")])
def test_other_files_say_so(tmp_path: Path, data: bytes, name: str) -> None:
    with pytest.raises(ValueError, match=f"{name}: .*hint: give pageviews files"):
        counted(tmp_path / name, data)
