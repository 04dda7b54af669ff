"""Reads entry lists: one file, or a folder with one list per language.

An entry's id is its place in its list, from 0. The lists of MetaCLIP (arXiv 2309.16671) and MetaCLIP 2
(arXiv 2507.22062) are JSON lists of strings; a text file with one entry per line is read too.
"""

from __future__ import annotations

import glob
import gzip
import json
import zlib

from curate.contract import storage

_HINT = "hint: `entries` is a JSON list of strings, or a UTF-8 file with one entry per line"
_SUFFIXES = (".json", ".txt", ".json.gz", ".txt.gz")


def read_entries(path: str) -> list[str]:
    """The entry list of a JSON or one-per-line file, `.gz` or not; an entry's id is its place.

    Raises ValueError (path, what was found, hint) for a file that is missing, unreadable, not UTF-8,
    not a list of strings, or without any entry.
    """
    try:
        with storage.open_file(path) as file:
            data = file.read()
        text = (gzip.decompress(data) if data[:2] == b"\x1f\x8b" else data).decode("utf-8-sig")
        entries = json.loads(text) if text.lstrip()[:1] in ("[", "{") else _lines(text)
    except (json.JSONDecodeError, RecursionError) as fault:
        raise ValueError(f"{path}: starts like JSON and is none: {fault}. {_HINT}") from fault
    except FileNotFoundError as fault:
        raise ValueError(f"{path}: no such file. {_HINT}") from fault
    except IsADirectoryError as fault:
        raise ValueError(
            f'{path}: can\'t be read: it is a folder. {_HINT}; a folder with a list per language needs rule = "worldwide"'
        ) from fault
    except (UnicodeDecodeError, EOFError, OSError, zlib.error) as fault:  # a bad gzip is an OSError
        raise ValueError(f"{path}: can't be read: {fault}. {_HINT}") from fault
    if not isinstance(entries, list):
        raise ValueError(f"{path}: holds a JSON {type(entries).__name__}. {_HINT}")
    wrong = next(
        ((n, entry) for n, entry in enumerate(entries) if not isinstance(entry, str)), None
    )
    if wrong is not None:
        raise ValueError(f"{path}: entry {wrong[0]} is {wrong[1]!r}, no text. {_HINT}")
    if not any(entries):
        raise ValueError(f"{path}: holds no entry. {_HINT}")
    return entries


def by_language(path: str) -> dict[str, str]:
    """Language code -> path of its list, sorted, from a folder or a glob pattern of lists.

    A list is named after its language: ``en.txt``, ``de.json``, ``ja.txt.gz``. Other files are left
    alone. Raises ValueError where no list is found, or two for one language.
    """
    hint = 'hint: with rule = "worldwide", `entries` is a folder with a list per language, such as en.txt, de.json or ja.txt.gz'
    pattern = path if "*" in path else storage.join(glob.escape(path), "*")
    found: dict[str, str] = {}
    for file in storage.glob(pattern):
        language, _, suffix = file.rpartition("/")[2].partition(".")
        if f".{suffix}" not in _SUFFIXES or not language:
            continue
        if language in found:
            raise ValueError(
                f"{path}: two lists for {language!r}, {found[language]} and {file}. {hint}"
            )
        found[language] = file
    if not found:
        what = "no list in it" if "*" in path or storage.exists(path) else "no such folder"
        raise ValueError(f"{path}: {what}. {hint}")
    return dict(sorted(found.items()))


def texts(path: str, rule: str = "spaced") -> dict[str, list[str]]:
    """The entries that ids stand for, by language; under the key "" where ``path`` is one list.

    ``path`` and ``rule``: as in ``score.metadata_match``. Raises ValueError as ``read_entries`` and
    ``by_language`` do.
    """
    if rule == "spaced":
        return {"": read_entries(path)}
    return {language: read_entries(file) for language, file in by_language(path).items()}


def _lines(text: str) -> list[str]:
    return [line.removesuffix("\r") for line in text.removesuffix("\n").split("\n")]
