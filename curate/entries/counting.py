"""Exact counts of words and neighbours in a corpus of any size, and bigrams by mutual information.

MetaCLIP, arXiv 2309.16671, section 3.1 takes unigrams by count and bigrams by pointwise mutual
information. PMI(a b) = log2(n(a b) * N / (n(a) * n(b))), N the number of all words (Church and Hanks,
1990): in bits, and at most log2(N).

Counts are exact. Up to ``hold`` distinct texts are counted in memory; then they go to a sorted file, and
all files are merged at the end. The bigrams that can still reach the bound once their first word's count
is known are the only ones kept beside their words.
"""

from __future__ import annotations

import heapq
import itertools
import math
import tempfile
from collections import Counter
from collections.abc import Iterable, Iterator
from operator import itemgetter
from pathlib import Path

FILES = 200  # sorted files that are merged at once
HOLD = 3_000_000  # distinct texts in memory, of words and of bigrams each: about 400 MB


class Counts:
    """Counts of any number of distinct texts; a text holds no line break."""

    def __init__(self, hold: int = HOLD, files: int = FILES) -> None:
        self._hold, self._files = hold, files
        self._held: Counter[str] = Counter()
        self._folder = tempfile.TemporaryDirectory(prefix="clip-pipe-counts-")
        self._runs: list[Path] = []
        self._made = 0

    def update(self, texts: Iterable[str]) -> None:
        """Count each text once more."""
        self._held.update(texts)
        if len(self._held) > self._hold:
            self._spill()

    def add(self, text: str, count: int) -> None:
        """Count one text ``count`` times more."""
        self._held[text] += count
        if len(self._held) > self._hold:
            self._spill()

    def in_order(self) -> Iterator[tuple[str, int]]:
        """(text, count) of every distinct text, in the order of the texts. May be read again."""
        if self._runs and self._held:
            self._spill()
        return self._merged() if self._runs else iter(sorted(self._held.items()))

    def _spill(self) -> None:
        self._write(sorted(self._held.items()), old=[])
        self._held = Counter()
        if len(self._runs) > self._files:
            self._write(self._merged(), old=self._runs)

    def _merged(self) -> Iterator[tuple[str, int]]:
        rows = heapq.merge(*map(_read_run, self._runs), key=itemgetter(0))
        for text, same in itertools.groupby(rows, key=itemgetter(0)):
            yield text, sum(count for _, count in same)

    def _write(self, rows: Iterable[tuple[str, int]], old: list[Path]) -> None:
        path = Path(self._folder.name) / f"run-{self._made:05d}"
        with path.open("w", encoding="utf-8", errors="surrogatepass", newline="\n") as file:
            file.writelines(f"{text}\n{count}\n" for text, count in rows)
        self._made += 1
        for done in old:
            done.unlink()
        self._runs = [path] if old else [*self._runs, path]


def at_least(counts: Counts, least: int) -> list[tuple[str, int]]:
    """(text, count) of texts counted ``least`` times or more; by count, then by text."""
    return _ranked((text, count) for text, count in counts.in_order() if count >= least)


def bigrams_by_pmi(
    words: Counts, bigrams: Counts, n_words: int, min_pmi: float, min_count: int
) -> list[tuple[str, int]]:
    """(bigram, count) with PMI >= ``min_pmi`` bits and count >= ``min_count``; by count, then by text."""
    likely = list(_likely(words, bigrams, n_words, min_pmi, min_count))
    seconds = {bigram.partition(" ")[2] for bigram, _, _ in likely}
    second_counts = {word: count for word, count in words.in_order() if word in seconds}
    return _ranked(
        (bigram, count)
        for bigram, count, first in likely
        if pmi(count, first, second_counts[bigram.partition(" ")[2]], n_words) >= min_pmi
    )


def pmi(both: int, first: int, second: int, n_words: int) -> float:
    """Pointwise mutual information in bits, from counts of the pair and of either word."""
    return math.log2(both * n_words / (first * second))


def _likely(
    words: Counts, bigrams: Counts, n_words: int, min_pmi: float, min_count: int
) -> Iterator[tuple[str, int, int]]:
    """(bigram, count, first word's count) where PMI may reach the bound: n(b) is at least n(a b).

    A space sorts before every character of a word, so bigrams come in the order of their first words
    and one walk over both finds the counts.
    """
    word, first = "", 0
    ordered = words.in_order()
    for bigram, count in bigrams.in_order():
        head = bigram.partition(" ")[0]
        while word < head:
            word, first = next(ordered)
        if count >= min_count and pmi(1, first, 1, n_words) >= min_pmi:
            yield bigram, count, first


def _ranked(found: Iterable[tuple[str, int]]) -> list[tuple[str, int]]:
    return sorted(found, key=lambda pair: (-pair[1], pair[0]))


def _read_run(path: Path) -> Iterator[tuple[str, int]]:
    with path.open(encoding="utf-8", errors="surrogatepass", newline="\n") as file:
        for text in file:
            yield text.removesuffix("\n"), int(next(file))
