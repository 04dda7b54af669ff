"""Rates of building and linting entry lists, per CPU-second of one process, and the memory they take.

A dump is written with articles of words drawn by Zipf's law, with links, templates, references and a
table each. Run:  PYTHONPATH=. python tests/bench/entries.py [--articles 4000] [--hold 200000]
"""

from __future__ import annotations

import argparse
import bz2
import resource
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np

from curate.entries import corpus, counting, lint, wikipedia
from curate.entries.near_misses import near_misses

VOCABULARY = 200_000


def dump(path: Path, articles: int) -> int:
    """Write the dump; returns the bytes of its XML."""
    rng = np.random.default_rng(0)
    size = 0
    with bz2.open(path, "wb", compresslevel=1) as file:
        file.write(b"<mediawiki>")
        for _ in range(articles):
            words = np.char.add("w", (rng.zipf(1.2, 700) % VOCABULARY).astype(str)).tolist()
            for at in range(5, 700, 25):
                words[at] = f"[[{words[at]}|{words[at]}]]"
            for at in range(30, 700, 90):
                words[at] = (
                    f"'''{words[at]}'''&lt;ref name=x&gt;{{{{cite|a=b|c={{{{d}}}}}}}}&lt;/ref&gt;"
                )
            text = "{{Infobox|a=b}}\n{| class=x\n| cell\n|}\n" + " ".join(words)
            page = (
                f"<page><title>T</title><ns>0</ns><revision><text>{text}</text></revision></page>"
            )
            file.write(page.encode())
            size += len(page)
        file.write(b"</mediawiki>")
    return size


def timed(work: Callable[[], Any]) -> tuple[Any, float]:
    start = time.process_time()
    result = work()
    return result, time.process_time() - start


def row(name: str, amount: float, unit: str, seconds: float) -> None:
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss >> 10
    print(
        f"{name:38s} {amount / seconds:14,.1f} {unit:18s} {seconds:7.1f} CPU-s   peak {peak:,} MiB"
    )


def count(texts: list[str], hold: int) -> None:
    """Count words and neighbours, then rank the neighbours."""
    words, bigrams = counting.Counts(hold), counting.Counts(hold)
    n_words, seconds = timed(lambda: corpus.count_words(texts, words, bigrams))
    row(f"count, {hold:,} held", n_words / 1e6, "M words/CPU-s", seconds)
    found, seconds = timed(lambda: counting.bigrams_by_pmi(words, bigrams, n_words, 1.0, 5))
    row(f"bigrams by PMI ({len(found):,} found)", n_words / 1e6, "M words/CPU-s", seconds)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--articles", type=int, default=4000)
    parser.add_argument("--hold", type=int, default=200_000, help="distinct texts in memory")
    options = parser.parse_args()
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "d.xml.bz2"
        megabytes = dump(path, options.articles) / 1e6
        texts, seconds = timed(lambda: list(wikipedia.articles(str(path))))
        row("wikipedia: read and strip", megabytes, "MB of XML/CPU-s", seconds)
        for hold in (options.hold, counting.HOLD):  # the peak only grows: the smaller one first
            count(texts, hold)
    rng = np.random.default_rng(1)
    entries = [f"entry {n}" if n % 3 else f"St. {n}" for n in rng.permutation(500_000).tolist()]
    _, seconds = timed(lambda: sum(1 for _ in lint.lint(entries)))
    row("lint, 500,000 entries", 500_000, "entries/CPU-s", seconds)
    _, seconds = timed(lambda: near_misses("a St. 3 (entry 7) on the beach", entries, []))
    row("explain: near misses, 500,000 entries", 1, "captions/CPU-s", seconds)


if __name__ == "__main__":
    main()
