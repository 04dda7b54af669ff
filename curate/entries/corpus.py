"""The texts of a corpus file, and the words and neighbours in them that an entry could match.

Words are cut so that a caption with the same words would match them as entries: at white space, at the
marks that MetaCLIP's rule (arXiv 2309.16671, section 3.2) puts spaces around, and besides at brackets,
quotes and other signs, so that `(dog)` counts as `dog`. Hyphens and apostrophes inside a word stay. Case
is kept, because matching keeps it. Two words are neighbours only where nothing but white space lies between.
Nothing here cuts scripts that are written without spaces.
"""

from __future__ import annotations

import bz2
import csv
import gzip
import io
import json
import re
from collections.abc import Iterable, Iterator
from itertools import groupby, pairwise
from typing import IO, Any, cast

from curate.contract import storage
from curate.entries.counting import Counts

_BATCH_CHARACTERS = 1 << 20
_LONG_WORD_CHARACTERS = 64  # what is longer is an address or a token, no word
# Signs that end a word and part neighbours; then hyphens and apostrophes at the outside of a word.
_BREAK = re.compile(
    r"[\x00-\x08\x0e-\x1f\x7f,.;:?!`()\[\]{}<>\"/\\|=*#~^_+@$%&…·•–—―«»„“”‹›¡¿、。，；：？！（）「」『』【】《》〈〉\ufffd]"
    r"|(?<!\S)[-'’‘]+|[-'’‘]+(?!\S)"
)


def texts(path: str, column: str = "caption") -> Iterator[str]:
    """The texts of one file: lines of .txt, ``column`` of .parquet, .csv, .tsv and .jsonl; .gz and .bz2 too.

    Raises ValueError (path, what was found, hint) for a file that can't be read as that.
    """
    kind = path.lower().removesuffix(".gz").removesuffix(".bz2").rpartition(".")[2]
    read = {"txt": _lines, "jsonl": _jsonl, "csv": _delimited, "tsv": _delimited}.get(kind)
    hint = "hint: give a .txt of lines, or a .parquet, .csv, .tsv or .jsonl with --column; .gz and .bz2 too"
    if kind != "parquet" and read is None:
        raise ValueError(f"{path}: unknown ending. {hint}")
    try:
        with opened(path) as file:
            if read is None:
                yield from _parquet(path, file, column)
            else:
                text = io.TextIOWrapper(file, encoding="utf-8-sig", errors="replace", newline="")
                yield from read(path, text, column)
    except (OSError, EOFError, csv.Error) as fault:  # a bad gzip or bzip2 is an OSError or EOFError
        what = "no such file" if isinstance(fault, FileNotFoundError) else f"can't be read: {fault}"
        raise ValueError(f"{path}: {what}. {hint}") from fault


def opened(path: str) -> IO[bytes]:
    """A file to read as bytes; .gz and .bz2 (of one or many streams) are uncompressed on the way."""
    file = storage.open_file(path)
    if path.lower().endswith(".gz"):
        return cast(IO[bytes], gzip.GzipFile(fileobj=file))
    return cast(IO[bytes], bz2.BZ2File(file)) if path.lower().endswith(".bz2") else file


def count_words(found: Iterable[str], words: Counts, bigrams: Counts) -> int:
    """Count the words and neighbours of all texts. Returns the number of words."""
    return sum(_count(batch, words, bigrams) for batch in batches(found))


def batches(found: Iterable[str]) -> Iterator[list[str]]:
    """The texts in lists of about a million characters, so that what a list has in common is paid once."""
    batch: list[str] = []
    characters = 0
    for text in found:
        batch.append(text)
        characters += len(text)
        if characters > _BATCH_CHARACTERS:
            yield batch
            batch, characters = [], 0
    if batch:
        yield batch


def runs_of_words(text: str) -> Iterator[list[str]]:
    """The words of a text, in runs with nothing but white space between."""
    for piece in _BREAK.sub("\x00", text).split("\x00"):
        words = piece.split()
        if words and max(map(len, words)) > _LONG_WORD_CHARACTERS:
            runs = groupby(words, key=lambda word: len(word) <= _LONG_WORD_CHARACTERS)
            yield from (list(run) for is_word, run in runs if is_word)
        elif words:
            yield words


def _count(batch: list[str], words: Counts, bigrams: Counts) -> int:
    runs = [run for text in batch for run in runs_of_words(text)]
    words.update(word for run in runs for word in run)
    bigrams.update(" ".join(pair) for run in runs for pair in pairwise(run))
    return sum(map(len, runs))


def _lines(path: str, file: IO[str], column: str) -> Iterator[str]:
    return (line for line in file if line.strip())


def _delimited(path: str, file: IO[str], column: str) -> Iterator[str]:
    is_tsv = ".tsv" in path.lower()
    csv.field_size_limit(1 << 24)
    quoting = csv.QUOTE_NONE if is_tsv else csv.QUOTE_MINIMAL
    rows = csv.reader(file, delimiter="\t" if is_tsv else ",", quoting=cast(Any, quoting))
    header = next(rows, [])
    place = _place(path, header, column)
    for row in rows:
        if place < len(row) and row[place]:
            yield row[place]


def _jsonl(path: str, file: IO[str], column: str) -> Iterator[str]:
    seen = False
    for line in file:
        try:
            row = json.loads(line)
        except ValueError:
            continue  # a broken line costs itself only
        if isinstance(row, dict) and isinstance(row.get(column), str):
            seen = True
            yield row[column]
    if not seen:
        raise ValueError(
            f"{path}: no row with a text under {column!r}. hint: name it with --column"
        )


def _parquet(path: str, file: IO[bytes], column: str) -> Iterator[str]:
    import pyarrow as pa
    import pyarrow.parquet as pq

    try:
        table = pq.ParquetFile(file)
        _place(path, table.schema_arrow.names, column)
        for batch in table.iter_batches(batch_size=1 << 14, columns=[column]):
            for text in batch.column(0).to_pylist():
                if isinstance(text, str) and text:
                    yield text
    except pa.ArrowInvalid as fault:
        raise ValueError(
            f"{path}: no parquet file: {fault}. hint: check the file's ending"
        ) from fault


def _place(path: str, names: list[str], column: str) -> int:
    if column in names:
        return names.index(column)
    raise ValueError(
        f"{path}: no column {column!r}, but {', '.join(map(repr, names))}. hint: name it with --column"
    )
