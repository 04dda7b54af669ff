"""Builds an entry list from WordNet, a corpus, a Wikipedia dump and titles with their views.

MetaCLIP, arXiv 2309.16671, section 3.1 and table 1: the numbers 0 to 99, all WordNet synsets, unigrams
seen 100 times or more, bigrams by mutual information, much-viewed titles, 500,000 entries in all. It
differs: the order is fixed (numbers, WordNet in its own order, then by count), so ids are the same in
every build; entries that could never match, bare punctuation and unseen characters are left out; an old
list can be extended with its ids unchanged; and what it was made of is written beside it.
"""

from __future__ import annotations

import json
import math
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import asdict, dataclass, field
from typing import Any

import numpy as np
import pyarrow as pa

from curate.contract import storage
from curate.contract.manifest import package_versions
from curate.entries import corpus, counting, listing, titles, wikipedia, wordnet
from curate.entries.lint import dead_kind, fit_to_emit
from curate.score.entry_lists import read_entries
from curate.score.matching import Matcher

_FORMAT = 1


@dataclass(frozen=True, kw_only=True)
class Sources:
    """What to build from; all but ``extend`` and ``seen_in`` add entries, in this order.

    Options:
        extend: an old list, whose lines come first and keep their ids.
        numbers: "0" to "99".
        wordnet: WordNet's folder, or a list of names; ``lemmas`` takes all words and not only synsets' names.
        corpus, column: files of texts; unigrams seen ``unigram_min_count`` times, and bigrams seen
            ``bigram_min_count`` times with PMI of ``bigram_min_pmi`` bits, are taken.
        wikipedia: dumps, whose articles count into the same corpus.
        titles: pageviews files or tables; titles with ``min_views`` over all files are taken.
        language: the Wikipedia project whose lines of pageviews files count.
        seen_in: files of texts; of what the sources give only entries found in ``seen_at_least`` of these
            texts are taken, the most frequent first.
        size: entries at most.
    """

    extend: str = ""
    numbers: bool = False
    wordnet: str = ""
    lemmas: bool = False
    corpus: tuple[str, ...] = ()
    column: str = "caption"
    wikipedia: tuple[str, ...] = ()
    unigram_min_count: int = 100
    bigram_min_pmi: float = 30.0
    bigram_min_count: int = 1
    titles: tuple[str, ...] = ()
    language: str = "en"
    min_views: int = 70
    seen_in: tuple[str, ...] = ()
    seen_at_least: int = 1
    size: int = 500_000

    def check(self) -> None:
        """Raise ValueError for a build that could give nothing."""
        if not (self.extend or self.numbers or self.wordnet or self.has_corpus or self.titles):
            raise ValueError(
                "no source. hint: give at least one of numbers, wordnet, corpus, wikipedia and titles"
            )
        for name in ("unigram_min_count", "bigram_min_count", "min_views", "seen_at_least", "size"):
            if getattr(self, name) < 1:
                raise ValueError(f"{name} = {getattr(self, name)}. hint: 1 or more")

    @property
    def has_corpus(self) -> bool:
        return bool(self.corpus or self.wikipedia)

    def files(self) -> list[str]:
        """Every file that is read, in order."""
        found = [self.extend] if self.extend else []
        found += wordnet.files(self.wordnet) if self.wordnet else []
        return [*found, *self.corpus, *self.wikipedia, *self.titles, *self.seen_in]


@dataclass
class Tally:
    """What one source gave: ``found`` = ``added`` + ``repeated`` + ``dead`` + ``unfit`` + ``unseen`` + ``over_size``."""

    source: str
    found: int = 0
    added: int = 0
    repeated: int = 0  # in the list already
    dead: int = 0  # could match no caption
    unfit: int = 0  # could, but bare punctuation and the like say nothing
    unseen: int = 0
    over_size: int = 0
    more: dict[str, Any] = field(default_factory=dict)


@dataclass(frozen=True)
class Built:
    """An entry list and what it was made of."""

    entries: list[str]
    tallies: list[Tally]
    notes: list[str]


def build(sources: Sources, tell: Callable[[str], None] = lambda text: None) -> Built:
    """The list. ``tell`` is given a line before each long step. Raises ValueError for unusable sources."""
    sources.check()
    sources.files()  # a folder without WordNet is found out before a corpus is counted
    entries = read_entries(sources.extend) if sources.extend else []
    known = set(entries)
    tallies = [Tally("extend", found=len(entries), added=len(entries))] if sources.extend else []
    notes: list[str] = []
    for name, found, more in _candidates(sources, tell, notes):
        tally = Tally(name, more=more)
        fit = list(_fit(found, known, tally))
        if sources.seen_in and name != "numbers":
            tell(f"{name}: looking for {len(fit):,} entries in {len(sources.seen_in)} files")
            fit = _seen(fit, sources, tally)
        room = max(0, sources.size - len(entries))
        tally.over_size = len(fit) - len(fit[:room])
        tally.added = len(fit) - tally.over_size
        entries += fit[:room]
        tallies.append(tally)
        tell(f"{name}: {tally.added:,} of {tally.found:,} taken")
    return Built(entries, tallies, notes)


def write(path: str, built: Built, sources: Sources) -> str:
    """Write the list and ``<path>.provenance.json`` beside it. Returns the second path.

    Both hold no date and no folder's name, so equal sources give equal bytes.
    """
    files = []
    for file in sources.files():
        digest, size = listing.file_sha256(file)
        files.append({"name": file.rpartition("/")[2], "sha256": digest, "bytes": size})
    options = {
        name: value
        for name, value in asdict(sources).items()
        if name not in ("extend", "wordnet", "corpus", "wikipedia", "titles", "seen_in")
    }
    record = {
        "format": _FORMAT,
        "clip_pipe": package_versions().get("clip-pipe", "unknown"),
        "sha256": listing.write(path, built.entries),
        "entries": len(built.entries),
        "sources": [asdict(tally) for tally in built.tallies],
        "options": options,
        "files": files,
        "notes": built.notes,
    }
    beside = f"{path}.provenance.json"
    storage.write_text(beside, json.dumps(record, indent=2, ensure_ascii=False) + "\n")
    return beside


def _candidates(
    sources: Sources, tell: Callable[[str], None], notes: list[str]
) -> Iterator[tuple[str, Iterable[str], dict[str, Any]]]:
    """(source, its entries in order, what else there is to say), lazily one source after another."""
    if sources.numbers:
        yield "numbers", [str(number) for number in range(100)], {}
    if sources.wordnet:
        yield "wordnet", wordnet.names(sources.wordnet, lemmas=sources.lemmas), {}
    if sources.has_corpus:
        yield from _from_corpus(sources, tell, notes)
    if sources.titles:
        views = counting.Counts(counting.HOLD)
        for file in sources.titles:
            tell(f"reading views of titles in {file}")
            titles.count_views(file, views, language=sources.language)
        yield "titles", _texts(counting.at_least(views, sources.min_views)), {}


def _from_corpus(
    sources: Sources, tell: Callable[[str], None], notes: list[str]
) -> Iterator[tuple[str, Iterable[str], dict[str, Any]]]:
    words, bigrams = counting.Counts(counting.HOLD), counting.Counts(counting.HOLD)
    n_words = 0
    for file in sources.corpus:
        tell(f"counting words in {file}")
        n_words += corpus.count_words(corpus.texts(file, sources.column), words, bigrams)
    for file in sources.wikipedia:
        tell(f"counting words in {file}")
        n_words += corpus.count_words(wikipedia.articles(file), words, bigrams)
    said = {"words": n_words}
    yield "unigrams", _texts(counting.at_least(words, sources.unigram_min_count)), said
    reach = math.log2(n_words) if n_words else 0.0
    if sources.bigram_min_pmi > reach:
        notes.append(
            f"no bigram can have a PMI of {sources.bigram_min_pmi:g} bits in a corpus of {n_words:,} words: "
            f"the most is {reach:.1f}. MetaCLIP's 30 is meant for billions of words; "
            "for a smaller corpus try --bigram-min-pmi 8 --bigram-min-count 20"
        )
        yield "bigrams", [], said
        return
    tell("ranking bigrams")
    found = counting.bigrams_by_pmi(
        words, bigrams, n_words, sources.bigram_min_pmi, sources.bigram_min_count
    )
    yield "bigrams", _texts(found), said


def _fit(found: Iterable[str], known: set[str], tally: Tally) -> Iterator[str]:
    """What can be emitted and is not there yet; all else goes into the tally."""
    for entry in found:
        tally.found += 1
        if entry in known:
            tally.repeated += 1
        elif fit_to_emit(entry):
            known.add(entry)
            yield entry
        elif dead_kind(entry):
            tally.dead += 1
        else:
            tally.unfit += 1


def _seen(entries: Sequence[str], sources: Sources, tally: Tally) -> list[str]:
    """Those that enough texts hold, by the number of texts and then by text."""
    matcher = Matcher(entries)
    counts = np.zeros(len(entries), np.int64)
    for file in sources.seen_in:
        for batch in corpus.batches(corpus.texts(file, sources.column)):
            found = matcher.match_all(pa.array(batch, pa.string())).flatten()
            counts += np.bincount(np.asarray(found), minlength=len(entries))
    enough = zip(entries, counts.tolist(), strict=True)
    chosen = [(entry, count) for entry, count in enough if count >= sources.seen_at_least]
    tally.unseen = len(entries) - len(chosen)
    return _texts(sorted(chosen, key=lambda pair: (-pair[1], pair[0])))


def _texts(counted: Sequence[tuple[str, int]]) -> list[str]:
    return [text for text, _ in counted]
