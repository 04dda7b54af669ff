"""Titles with their view counts, from pageviews files or from a table of one's own.

MetaCLIP, arXiv 2309.16671, section 3.1: titles of Wikipedia with 70 views or more over some days;
its code passes over hours with fewer than 50 views and over titles with a colon. Lines may be

    en Title_of_page 123 0                        an hour: project, title, views, bytes
    en.wikipedia Title_of_page 9228 desktop 123 A3B4      a day: project, title, page, device, views, hours
    Title of page<TAB>123                         title, views; a colon is allowed
"""

from __future__ import annotations

from curate.entries.corpus import opened
from curate.entries.counting import Counts

_HOUR_FIELDS = 4


def count_views(path: str, views: Counts, *, language: str = "en", hour_min_views: int = 50) -> int:
    """Add the views of one file's titles; `_` becomes space. Returns the number of lines that counted.

    Raises ValueError for a file in which no line is of a known form.
    """
    counted, known = 0, False
    try:
        with opened(path) as file:
            for line in file:
                found = _parsed(line, language, hour_min_views)
                known = known or found is not None
                if found is not None and found[1] > 0:
                    views.add(*found)
                    counted += 1
    except (OSError, EOFError) as fault:
        raise ValueError(
            f"{path}: can't be read: {fault}. hint: give pageviews files, or lines of title, tab, views"
        ) from fault
    if not known:
        raise ValueError(
            f"{path}: no line with a title and its views. hint: give pageviews files, or lines of title, tab, views"
        )
    return counted


def _parsed(line: bytes, language: str, hour_min_views: int) -> tuple[str, int] | None:
    """(title, views), with 0 views for a line that doesn't count; None for one of no known form."""
    text = line.decode("utf-8", "replace").rstrip("\r\n")
    if "\t" in text:
        title, _, views = text.rpartition("\t")
        return (title.strip(), int(views)) if views.strip().isdecimal() else None
    fields = text.split(" ")
    hourly = len(fields) == _HOUR_FIELDS
    if not (hourly or len(fields) > _HOUR_FIELDS):
        return None
    views = fields[2] if hourly else fields[-2]
    if not views.isdecimal():
        return None
    title = fields[1].replace("_", " ").strip()
    project = language if hourly else f"{language}.wikipedia"
    enough = int(views) >= (hour_min_views if hourly else 1)
    if fields[0] != project or ":" in title or not title or not enough:
        return title, 0
    return title, int(views)
