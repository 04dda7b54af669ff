"""Finds the entries of a caption's own language, by MetaCLIP 2's rule.

MetaCLIP 2, arXiv 2507.22062: as in MetaCLIP the marks ``, . ; : ? ! ` `` get spaces around
them and tab, LF and CR become spaces; an entry needs a space beside it only on a side whose outermost
character is neither of a script without spaces between words nor punctuation. At the other sides any
substring counts. Entries with spaces on both sides are found by their tokens (curate/score/matching.py),
the others by a trie over characters.

Differences from the published code: hiragana, katakana and their half-width forms, the iteration marks
of Han and kana, and the later blocks of Han, Burmese and Khmer belong to the scripts without spaces, so
that ``カメラ`` is found in ``新しいカメラ``; punctuation is ASCII's and all of Unicode's categories P*, not
a list of two dozen. A row whose language has no list is matched against the fallback's, or nothing.

Shapes: as in curate/score/matching.py, but S counts places of characters; C characters of all captions.
"""

from __future__ import annotations

import string
import unicodedata
from collections.abc import Mapping, Sequence
from functools import cache

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from curate.score.entry_lists import read_entries
from curate.score.matching import (
    NOTHING,
    SEPARATORS,
    SPACES,
    Matcher,
    Trie,
    in_steps,
    row_of_places,
    running,
)
from curate.stage import StageError

# First and last code point of the blocks of scripts that put no spaces between words.
_NO_SPACES = (
    *((0x0E00, 0x0E7F), (0x0E80, 0x0EFF), (0x0F00, 0x0FFF)),  # Thai, Lao, Tibetan
    *((0x1000, 0x109F), (0xA9E0, 0xA9FF), (0xAA60, 0xAA7F)),  # Burmese
    *((0x1780, 0x17FF), (0x19E0, 0x19FF)),  # Khmer
    *((0x2E80, 0x2FDF), (0x2FF0, 0x2FFF)),  # radicals of Han
    *((0x3005, 0x3007), (0x3021, 0x3029)),  # 々 〆 〇 and numerals
    *((0x3031, 0x3035), (0x3038, 0x303C)),  # 〱 and other marks of repetition
    *((0x3040, 0x30FF), (0x31F0, 0x31FF), (0xFF65, 0xFF9F), (0x1AFF0, 0x1B16F)),  # kana
    *((0x3400, 0x4DBF), (0x4E00, 0x9FFF), (0xF900, 0xFAFF)),  # Han
    *((0x20000, 0x2FA1F), (0x30000, 0x3FFFF)),  # Han's extensions
)


@cache
def needs_no_space(character: str) -> bool:
    """Whether an entry that starts or ends in ``character`` needs no space on that side."""
    if character in string.punctuation or character == "～":  # of category S, in the published list
        return True
    code = ord(character)
    return unicodedata.category(character).startswith("P") or any(
        first <= code <= last for first, last in _NO_SPACES
    )


class Worldwide:
    """The entry lists of all languages, each made ready when its first caption comes."""

    def __init__(self, lists: Mapping[str, str], fallback: str = "") -> None:
        """``lists``: language -> path of its list. ``fallback``: the list of any other language."""
        self._lists = dict(lists)
        self._fallback = fallback
        self._ready: dict[str, LanguageMatcher] = {}

    def match(self, text: str, language: str | None) -> list[int]:
        """Ids of the entries of its language in ``text``, ascending, each once."""
        return self.match_all(pa.array([text]), pa.array([language], pa.string())).to_pylist()[0]

    def match_all(
        self, captions: pa.Array | pa.ChunkedArray, languages: pa.Array | pa.ChunkedArray
    ) -> pa.ListArray:
        """``match`` of each caption and its language, as list<int32> of length R.

        Raises StageError for a list that can't be read.
        """
        names, number = self._lists_of(languages)
        order = np.argsort(number, kind="stable")  # the rows of one list stand together
        ends = np.cumsum(np.bincount(number, minlength=len(names)))
        grouped = captions.take(pa.array(order))
        found = [pa.array([], pa.list_(pa.int32()))]
        for name, first, last in zip(names, [0, *ends], ends):
            if first < last:
                found.append(self._of(name).match_all(grouped.slice(first, last - first)))
        back = np.empty(len(order), np.int64)
        back[order] = np.arange(len(order))
        return pa.concat_arrays(found).take(pa.array(back))

    def _lists_of(self, languages: pa.Array | pa.ChunkedArray) -> tuple[list[str], np.ndarray]:
        """Languages with a list ("" for none), and for each row the place of its own among them."""
        given = languages.cast(pa.string())
        given = given.combine_chunks() if isinstance(given, pa.ChunkedArray) else given
        coded = pc.fill_null(given, "").dictionary_encode()
        named = coded.dictionary.to_pylist()
        used = [name if name in self._lists else self._fallback for name in named]
        place = {name: n for n, name in enumerate(dict.fromkeys(used))}
        places = np.array([place[name] for name in used], np.int64)
        return list(place), places[np.asarray(coded.indices)]

    def _of(self, language: str) -> LanguageMatcher:
        if language not in self._ready:
            try:
                entries = read_entries(self._lists[language]) if language else []
            except ValueError as fault:  # the list has gone since the plan
                raise StageError(str(fault)) from fault
            self._ready[language] = LanguageMatcher(entries)
        return self._ready[language]


class LanguageMatcher:
    """The entry list of one language, ready to be looked for. The first of equal entries counts."""

    def __init__(self, entries: Sequence[str]) -> None:
        open_left = [bool(entry) and needs_no_space(entry[0]) for entry in entries]
        open_right = [bool(entry) and needs_no_space(entry[-1]) for entry in entries]
        inner = [n for n in range(len(entries)) if open_left[n] or open_right[n]]
        spaced = [n for n in range(len(entries)) if not (open_left[n] or open_right[n])]
        self._words = Matcher([entries[n] for n in spaced], spaced)
        patterns = [
            f"{'' if open_left[n] else ' '}{entries[n]}{'' if open_right[n] else ' '}"
            for n in inner
        ]
        self._characters = _Substrings(patterns, inner) if inner else None

    def match_all(self, captions: pa.Array | pa.ChunkedArray) -> pa.ListArray:
        """Ids of the entries in each caption, ascending, each once: list<int32> of length R."""
        return in_steps(captions, self.hits)

    def hits(self, data: np.ndarray, offsets: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        """See ``Matcher.hits``."""
        rows, ids = self._words.hits(data, offsets)
        if self._characters is None:
            return rows, ids
        more_rows, more_ids = self._characters.hits(data, offsets)
        return np.concatenate([rows, more_rows]), np.concatenate([ids, more_ids])


class _Substrings:
    """Patterns looked for at any place of the prepared text, spaces included."""

    def __init__(self, patterns: Sequence[str], ids: Sequence[int]) -> None:
        flat = _code_points("".join(patterns).encode("utf-8", "surrogatepass"))
        lengths = np.fromiter(map(len, patterns), np.int64, len(patterns))
        alphabet = np.union1d(flat, [ord(" ")])
        self._last = int(alphabet[-1]) + 1  # stands for all characters above
        self._symbol = np.full(self._last + 1, NOTHING, np.int32)
        self._symbol[alphabet] = np.arange(len(alphabet))
        self._space = int(self._symbol[ord(" ")])
        symbols = self._symbol[flat]
        starts = np.cumsum(lengths) - lengths
        self._trie = Trie(symbols, starts, lengths, np.asarray(ids), len(alphabet))
        # The patterns have been read with tab, LF and CR as they are; a prepared text has none.
        self._symbol[[ord(c) for c in SPACES if ord(c) <= self._last]] = self._space

    def hits(self, data: np.ndarray, offsets: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        """See ``Matcher.hits``."""
        text, bounds = self._places(data, offsets)
        places, ids = self._trie.walk(text)
        return row_of_places(bounds)[places], ids

    def _places(self, data: np.ndarray, offsets: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        """The prepared captions as symbols, shape (S,), and the first place of each, shape (R + 1,)."""
        points = _code_points(data.tobytes())
        leads = (data & 0xC0) != 0x80  # the first byte of each character
        first = running(leads)[offsets]  # character at each offset, shape (R + 1,)
        is_mark = SEPARATORS[data[leads]] == 2
        marks_before = running(is_mark)
        n_rows = len(offsets) - 1
        # A space before each caption and two after: one of them is the boundary.
        bounds = first + 2 * marks_before[first] + 3 * np.arange(n_rows + 1)
        row = np.repeat(np.arange(n_rows), np.diff(first))
        text = np.full(bounds[-1], self._space, np.int32)
        text[bounds[1:] - 1] = NOTHING
        at = np.arange(len(points)) + 2 * marks_before[:-1] + is_mark + 3 * row + 1
        text[at] = self._symbol[np.minimum(points, self._last)]
        return text, bounds


def _code_points(data: bytes) -> np.ndarray:
    """The code points of UTF-8, shape (C,), int64."""
    text = data.decode("utf-8", "surrogatepass")
    return np.frombuffer(text.encode("utf-32-le", "surrogatepass"), np.uint32).astype(np.int64)
