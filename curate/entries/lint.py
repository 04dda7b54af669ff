"""What is wrong with an entry list: entries that can match no caption, and entries that hardly will.

MetaCLIP's matching rule (arXiv 2309.16671, section 3.2) puts a space on both sides of each of
``, . ; : ? ! ` `` in a caption, turns tab, LF and CR into spaces, and finds an entry between spaces. So an
entry is dead exactly if it holds a tab or line break, a mark that stands against another character, or two
marks with one space between them; every other entry has a caption that it matches, and ``witness`` makes
it. The same holds for MetaCLIP 2's rule, which differs at the entry's ends only. An entry that stands
further up in the list already, and an empty one, match nothing either (see score.metadata_match).
"""

from __future__ import annotations

import re
import unicodedata
from collections.abc import Iterator, Sequence
from dataclasses import dataclass

LONG_CHARACTERS = 256  # MetaCLIP 2 (arXiv 2507.22062) drops longer titles

# Kind -> what it means. The dead kinds come first; none of those can ever match.
DEAD = {
    "glued_punctuation": "one of , . ; : ? ! ` against another character: captions get spaces there",
    "adjacent_punctuation": "two such marks with one space between: captions get two spaces there",
    "line_break": "a tab or line break: captions have spaces in their place",
    "duplicate": "stands further up already, and the first one's id counts",
}
DOUBTFUL = {
    "blank": "an empty line: matches nothing, and keeps the ids below it in place",
    "single_punctuation": "one ASCII punctuation mark: would match much and say nothing",
    "stray_space": "a space at an end or two in a row: matches only beside such a space or a mark",
    "mark_between_words": "a mark between words: matches `a,b`, but not `a, b`",
    "invisible": "a character that is not seen, or a space other than the plain one",
    "not_nfc": "not in Unicode's composed form (NFC), which most captions are in",
    "unspaced_script": "of a script written without spaces: under rule `spaced` it needs some around it",
    "overlong": f"over {LONG_CHARACTERS} characters",
    "case_twin": "differs from another entry in upper and lower case only: each matches its own spelling",
}
KINDS = {**DEAD, **DOUBTFUL}

_MARKS = ",.;:?!`"
_LINE_BREAK = re.compile(r"[\t\n\r]")
_GLUED = re.compile(rf"[^ ][{_MARKS}]|[{_MARKS}][^ ]")
_ADJACENT = re.compile(rf"[{_MARKS}] [{_MARKS}]")
_BETWEEN = re.compile(rf"[^ ] [{_MARKS}] [^ ]")
_BESIDE = re.compile(rf" ?([{_MARKS}]) ?")
_ONE_MARK = re.compile(r"[!-/:-@\[-`{-~]")
# CJK ideographs and radicals, kana (half-width as well), Thai, Lao, Tibetan, Burmese, Khmer.
_UNSPACED = re.compile(
    "[\u0e00-\u0eff\u0f00-\u0fff\u1000-\u109f\u1780-\u17ff\u2e80-\u2fff\u3005-\u3007\u3040-\u30ff"
    "\u31f0-\u31ff\u3400-\u4dbf\u4e00-\u9fff\uf900-\ufaff\uff66-\uff9f\U00020000-\U0003ffff]"
)
_UNSEEN_CATEGORIES = {"Cc", "Cf", "Zs", "Zl", "Zp", "Co", "Cs"}
_JOINERS = "\u200c\u200d"  # Persian and the scripts of India need them
_UNSEEN_LETTERS = (
    "\u034f\u115f\u1160\u2800\u3164\uffa0\ufffd"  # no ink though their category has it
)
_NO_JOINERS = dict.fromkeys(map(ord, _JOINERS))


@dataclass(frozen=True)
class Finding:
    """One thing about one entry. ``line`` counts from 1, an entry's id from 0."""

    line: int
    kind: str
    entry: str

    @property
    def is_dead(self) -> bool:
        return self.kind in DEAD


def lint(entries: Sequence[str], *, rule: str = "spaced") -> Iterator[Finding]:
    """Everything found, in the order of the list; of the dead kinds at most one for each entry.

    ``rule``: under ``worldwide`` a script without spaces is nothing to remark on.
    """
    first: dict[str, int] = {}
    spellings: dict[str, str] = {}
    for line, entry in enumerate(entries, start=1):
        if not entry:
            yield Finding(line, "blank", entry)
            continue
        kind = dead_kind(entry) or ("duplicate" if entry in first else "")
        first.setdefault(entry, line)
        if kind:
            yield Finding(line, kind, entry)
            continue
        for doubt in doubts(entry):
            if doubt != "unspaced_script" or rule == "spaced":
                yield Finding(line, doubt, entry)
        if spellings.setdefault(entry.lower(), entry) != entry:
            yield Finding(line, "case_twin", entry)


def dead_kind(entry: str) -> str:
    """Why an entry can match no caption at all, '' where one exists that it matches."""
    if _LINE_BREAK.search(entry):
        return "line_break"
    if _GLUED.search(entry):
        return "glued_punctuation"
    return "adjacent_punctuation" if _ADJACENT.search(entry) else ""


def witness(entry: str) -> str | None:
    """A caption in which ``entry`` matches; None for a dead or empty one."""
    if not entry or dead_kind(entry):
        return None
    return _BESIDE.sub(r"\1", f" {entry} ")


def doubts(entry: str) -> Iterator[str]:
    """Kinds of DOUBTFUL that can be told from a living entry alone."""
    if _ONE_MARK.fullmatch(entry):
        yield "single_punctuation"
    if entry != entry.strip(" ") or "  " in entry:
        yield "stray_space"
    if _BETWEEN.search(entry):
        yield "mark_between_words"
    if len(entry) > LONG_CHARACTERS:
        yield "overlong"
    if entry.isascii() and entry.isprintable():
        return
    bare = entry.translate(_NO_JOINERS)
    if any(map(_is_unseen, entry if bare.isascii() else bare)):
        yield "invisible"
    if not unicodedata.is_normalized("NFC", entry):
        yield "not_nfc"
    if _UNSPACED.search(entry):
        yield "unspaced_script"


def fit_to_emit(entry: str) -> bool:
    """Whether ``entries build`` may put an entry out: alive, and neither bare punctuation nor unseen."""
    refused = {"single_punctuation", "stray_space", "mark_between_words", "invisible", "overlong"}
    return bool(entry) and not dead_kind(entry) and refused.isdisjoint(doubts(entry))


def _is_unseen(character: str) -> bool:
    if character == " ":
        return False
    return unicodedata.category(character) in _UNSEEN_CATEGORIES or character in _UNSEEN_LETTERS
