"""Which entries of an entry list occur in a caption, by MetaCLIP's matching rule; drops nothing.

MetaCLIP, arXiv 2309.16671, section 3.2. The rule: each of ``, . ; : ? ! ` `` gets a space on both
sides, tab, LF and CR become spaces, and an entry matches where it stands between two spaces (the
caption's ends count as spaces). All overlapping and nested entries count, each once per caption. There
is no lower-casing and no Unicode normalisation. The paper searches substrings; an entry that stands
between spaces is a run of whole tokens, so here a trie over tokens finds the same set.
"""

from __future__ import annotations

import gzip
import json
import zlib
from array import array
from collections.abc import Iterable
from dataclasses import dataclass
from typing import Any, ClassVar

import pyarrow as pa

from curate.contract import storage
from curate.contract.columns import field
from curate.stage import RowStage, StageError, path_option

_SPACED = ",.;:?!`"
_SPACES = "\t\n\r"


@dataclass(frozen=True, kw_only=True)
class MetadataMatch(RowStage):
    """Writes ``entries``: ascending ids of the matched entries, empty where nothing matches.

    Options:
        entries: a JSON list of strings, or a text file with one entry per line; `.gz` allowed. An
            entry's id is its place in the list, from 0. Of equal entries the first one's id counts.
            An empty entry matches nothing (by the letter of the paper's code it would match any
            double space).
    """

    batch_rows: ClassVar[int] = 1024

    entries: str = path_option()

    def reads(self) -> tuple[str, ...]:
        return ("caption",)

    def writes(self) -> pa.Schema:
        return pa.schema([field("entries")])

    def inputs(self) -> tuple[str, ...]:
        return (self.entries,)

    def check(self) -> None:
        if not self.entries:
            raise ValueError(
                "entries is empty. hint: name a JSON list of strings, or a file with one entry per line"
            )
        read_entries(self.entries)

    def open(self) -> Matcher:
        """Raises StageError where the list has gone since the plan: no row could be judged."""
        try:
            return Matcher(read_entries(self.entries))
        except ValueError as fault:
            raise StageError(str(fault)) from fault

    def process(self, batch: pa.Table, state: Matcher) -> pa.Table:
        ends, ids = array("i", [0]), array("i")
        for caption in batch["caption"].to_pylist():
            ids.extend(state.match(caption or ""))
            ends.append(len(ids))
        found = pa.ListArray.from_arrays(pa.array(ends, pa.int32()), pa.array(ids, pa.int32()))
        return pa.table([found], schema=self.writes())


class Matcher:
    """The entry list as a trie over tokens.

    A token leads to an id (an entry ends here and none goes on), or to (id or -1, further tokens).
    Most tokens lead to an id, so one lookup per token is nearly all the work.
    """

    def __init__(self, entries: Iterable[str]) -> None:
        self._root: dict[str, Any] = {}
        for number, entry in enumerate(entries):
            if entry:
                _insert(self._root, entry.split(" "), number)

    def match(self, text: str) -> list[int]:
        """Ids of all entries in ``text``, ascending, each once."""
        words = tokens(text)
        found: set[int] = set()
        for start, node in enumerate(map(self._root.get, words)):
            if node is None:
                continue
            at = start
            while type(node) is tuple:
                if node[0] >= 0:
                    found.add(node[0])
                at += 1
                node = node[1].get(words[at]) if at < len(words) else None
            if node is not None:
                found.add(node)
        return sorted(found)


def tokens(text: str) -> list[str]:
    """The text cut as the matching rule has it; neighbouring spaces leave empty tokens."""
    for mark in _SPACED:
        if mark in text:
            text = text.replace(mark, f" {mark} ")
    for space in _SPACES:
        if space in text:
            text = text.replace(space, " ")
    return text.split(" ")


def read_entries(path: str) -> list[str]:
    """The entry list of a JSON or one-per-line file, `.gz` or not; an entry's id is its place.

    Raises ValueError (path, what was found, hint) for a file that is missing, unreadable, not UTF-8,
    not a list of strings, or without any entry.
    """
    hint = "hint: `entries` is a JSON list of strings, or a UTF-8 file with one entry per line"
    try:
        with storage.open_file(path) as file:
            data = file.read()
        text = (gzip.decompress(data) if data[:2] == b"\x1f\x8b" else data).decode("utf-8-sig")
        entries = json.loads(text) if text.lstrip()[:1] in ("[", "{") else _lines(text)
    except (json.JSONDecodeError, RecursionError) as fault:
        raise ValueError(f"{path}: starts like JSON and is none: {fault}. {hint}") from fault
    except FileNotFoundError as fault:
        raise ValueError(f"{path}: no such file. {hint}") from fault
    except (UnicodeDecodeError, EOFError, OSError, zlib.error) as fault:  # a bad gzip is an OSError
        raise ValueError(f"{path}: can't be read: {fault}. {hint}") from fault
    if not isinstance(entries, list):
        raise ValueError(f"{path}: holds a JSON {type(entries).__name__}. {hint}")
    wrong = next(
        ((n, entry) for n, entry in enumerate(entries) if not isinstance(entry, str)), None
    )
    if wrong is not None:
        raise ValueError(f"{path}: entry {wrong[0]} is {wrong[1]!r}, no text. {hint}")
    if not any(entries):
        raise ValueError(f"{path}: holds no entry. {hint}")
    return entries


def _lines(text: str) -> list[str]:
    return [line.removesuffix("\r") for line in text.removesuffix("\n").split("\n")]


def _insert(root: dict[str, Any], words: list[str], number: int) -> None:
    """Add one entry; the first of equal ones stays."""
    here = root
    for word in words[:-1]:
        node = here.get(word)
        if type(node) is not tuple:
            node = here[word] = (-1 if node is None else node, {})
        here = node[1]
    last = here.get(words[-1])
    if last is None:
        here[words[-1]] = number
    elif type(last) is tuple and last[0] < 0:
        here[words[-1]] = (number, last[1])
