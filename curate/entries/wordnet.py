"""The names in WordNet's own files, or in a list of names made from them.

WordNet (Miller, 1995; file formats in its manual, wndb(5)). MetaCLIP (arXiv 2309.16671, section 3.1)
takes the name of every synset: its first word, in lower case, with `_` as space. ``lemmas`` takes all
words of all synsets with their own upper and lower case.
"""

from __future__ import annotations

import re
from collections.abc import Iterator

from curate.contract import storage
from curate.score.entry_lists import read_entries

DATA_FILES = ("data.noun", "data.verb", "data.adj", "data.adv")
_SYNTACTIC_MARKER = re.compile(r"\((?:a|p|ip)\)$")  # where an adjective may stand, wninput(5)


def files(path: str) -> list[str]:
    """The files that are read: WordNet's four data files in a folder (or its `dict`), or the list itself.

    Raises ValueError where there is neither.
    """
    for folder in (path, storage.join(path, "dict")):
        found = [storage.join(folder, name) for name in DATA_FILES]
        found = [name for name in found if storage.exists(name)]
        if found:
            return found
    if path.endswith((".txt", ".json", ".gz")) and storage.exists(path):
        return [path]
    raise ValueError(
        f"{path}: neither a folder with {', '.join(DATA_FILES)} nor a list of names. "
        "hint: name WordNet's `dict` folder, or a .txt or .json with one name each"
    )


def names(path: str, *, lemmas: bool = False) -> Iterator[str]:
    """Names in the order of the files, repeats included."""
    for file in files(path):
        if file.rpartition("/")[2] in DATA_FILES:
            for words in _synsets(file):
                yield from words if lemmas else [words[0].lower()]
        else:
            yield from (name.replace("_", " ") for name in read_entries(file))


def _synsets(path: str) -> Iterator[list[str]]:
    """The words of each synset. A line: offset, file, type, word count in hex, then word and sense id in turn."""
    with storage.open_file(path) as file:
        for number, line in enumerate(file, start=1):
            text = line.decode("utf-8", "replace")
            if text.startswith("  ") or not text.strip():
                continue  # the licence at the file's head
            fields = text.split(" ")
            try:
                words = fields[4 : 4 + 2 * int(fields[3], 16) : 2]
            except (IndexError, ValueError):
                words = []
            if not words:
                raise ValueError(
                    f"{path}: line {number} is no synset. hint: these are WordNet 3's data files, see wndb(5)"
                )
            yield [_SYNTACTIC_MARKER.sub("", word).replace("_", " ") for word in words]
