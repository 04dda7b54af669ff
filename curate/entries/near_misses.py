"""Entries that a caption nearly matches, and what stands in the way: case, spaces, punctuation, a dead entry.

MetaCLIP's rule (arXiv 2309.16671, section 3.2) compares texts as they are. Here the caption is read in
some more ways, each with one difference taken away, and looked up again; an entry is told with the
first way that finds it.
"""

from __future__ import annotations

import re
import unicodedata
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass

from curate.entries.lint import KINDS, dead_kind

_MARKS = re.compile(r"[,.;:?!`]")
_UNSEEN = re.compile(r"[\u00ad\u034f\u200b-\u200f\u2060\ufeff]+")
_SIGNS = re.compile(r"[^\w\s]|_")


@dataclass(frozen=True)
class NearMiss:
    """An entry that the caption would match but for ``why``."""

    id: int
    entry: str
    why: str


def near_misses(caption: str, entries: Sequence[str], matched: Iterable[int]) -> list[NearMiss]:
    """The near misses of one caption, by id. ``matched``: ids that do match, which are left out."""
    exact: dict[str, int] = {}
    folded: dict[str, int] = {}
    longest = 1
    for number, entry in enumerate(entries):
        if entry:
            exact.setdefault(entry, number)
            folded.setdefault(entry.lower(), number)
            longest = max(longest, entry.count(" ") + 1)
    told = {entries[number] for number in matched}
    found: dict[int, NearMiss] = {}
    for ways, known in ((_SAME_CASE, exact), (_OTHER_CASE, folded)):
        for why, words in ways:
            for run in _runs(words(caption), longest):
                at = known.get(run if known is exact else run.lower())
                if at is not None and at not in found and entries[at] not in told:
                    found[at] = NearMiss(at, entries[at], _reason(entries[at], why))
    return [found[number] for number in sorted(found)]


def _reason(entry: str, why: str) -> str:
    kind = dead_kind(entry)
    return f"can never match: {KINDS[kind]}" if kind else why


def _runs(words: Sequence[str], longest: int) -> Iterator[str]:
    for start in range(len(words)):
        for end in range(start + 1, min(start + longest, len(words)) + 1):
            yield " ".join(words[start:end])


def _by_rule(text: str) -> list[str]:
    return _MARKS.sub(r" \g<0> ", text).split()


def _seen(text: str) -> str:
    return _UNSEEN.sub("", text)


def _bare(text: str) -> list[str]:
    """Without any sign: `dog-house` and `(dog)` leave words."""
    return _SIGNS.sub(" ", _seen(text)).split()


_Way = tuple[str, Callable[[str], list[str]]]
_SAME_CASE: tuple[_Way, ...] = (
    ("spaces between differ", str.split),
    ("spaces between differ", _by_rule),
    ("an unseen character is in the way", lambda text: _by_rule(_seen(text))),
    ("the Unicode form differs", lambda text: _by_rule(unicodedata.normalize("NFC", text))),
    ("punctuation is in the way", _bare),
)
_OTHER_CASE: tuple[_Way, ...] = (
    ("upper and lower case differ", _by_rule),
    ("punctuation is in the way, and case differs", _bare),
)
