"""Which entries of an entry list occur in a caption, by MetaCLIP's matching rules; drops nothing.

MetaCLIP, arXiv 2309.16671, section 3.2 (rule ``spaced``), and MetaCLIP 2, arXiv 2507.22062 (rule
``worldwide``: a list per language). The rules, and how they are kept for many captions at once, are in
curate/score/matching.py and curate/score/worldwide.py.
"""

from __future__ import annotations

from dataclasses import dataclass
from functools import cached_property
from typing import ClassVar, Literal

import pyarrow as pa

from curate.contract.columns import field
from curate.score.entry_lists import by_language, read_entries
from curate.score.matching import Matcher, tokens
from curate.score.worldwide import Worldwide
from curate.stage import RowStage, StageError, path_option

__all__ = ["Matcher", "MetadataMatch", "read_entries", "tokens"]


@dataclass(frozen=True, kw_only=True)
class MetadataMatch(RowStage):
    """Writes ``entries``: ascending ids of the matched entries, empty where nothing matches.

    Options:
        entries: a JSON list of strings, or a text file with one entry per line; `.gz` allowed. An
            entry's id is its place in the list, from 0. Of equal entries the first one's id counts.
            An empty entry matches nothing (by the letter of the paper's code it would match any
            double space). With the rule `worldwide`, a folder (or a pattern with `*`) that has such a
            list for each language, named after it: `en.txt`, `de.json`, `ja.txt.gz`.
        rule: `spaced` has an entry between two spaces; `worldwide` matches a row against the list
            of its column `language` and asks for no spaces beside punctuation and beside scripts that
            are written without them. Its ids count in each language's own list.
        fallback: with `worldwide`, the language whose list is used for rows of a language that has
            no list, or of none; left empty, such rows match nothing.
    """

    batch_rows: ClassVar[int] = 16_384  # what the batch has in common is paid once

    entries: str = path_option()
    rule: Literal["spaced", "worldwide"] = "spaced"
    fallback: str = ""

    def reads(self) -> tuple[str, ...]:
        return ("caption",) if self.rule == "spaced" else ("caption", "language")

    def writes(self) -> pa.Schema:
        return pa.schema([field("entries")])

    def inputs(self) -> tuple[str, ...]:
        return (self.entries,) if self.rule == "spaced" else tuple(self._lists.values())

    def identity(self) -> str:
        """The languages of the lists, in the order of ``inputs``: they count by content alone."""
        return "" if self.rule == "spaced" else " ".join(self._lists)

    def check(self) -> None:
        if not self.entries:
            raise ValueError(
                "entries is empty. hint: name a JSON list of strings, or a file with one entry per line"
            )
        if self.rule == "spaced":
            if self.fallback:
                raise ValueError(
                    f'fallback = {self.fallback!r} without languages. hint: it belongs to rule = "worldwide"'
                )
            read_entries(self.entries)
            return
        if self.fallback and self.fallback not in self._lists:
            raise ValueError(
                f"fallback = {self.fallback!r}, and {self.entries} has no such list. hint: it has {', '.join(self._lists)}"
            )
        for path in self._lists.values():
            read_entries(path)

    def languages(self) -> tuple[str, ...]:
        """Languages whose rows can match; empty where rows of any language can."""
        return () if self.rule == "spaced" or self.fallback else tuple(self._lists)

    def open(self) -> Matcher | Worldwide:
        """Raises StageError where the list has gone since the plan: no row could be judged."""
        try:
            if self.rule == "worldwide":
                return Worldwide(by_language(self.entries), self.fallback)
            return Matcher(read_entries(self.entries))
        except ValueError as fault:
            raise StageError(str(fault)) from fault

    def process(self, batch: pa.Table, state: Matcher | Worldwide) -> pa.Table:
        if isinstance(state, Matcher):
            found = state.match_all(batch["caption"])
        else:
            found = state.match_all(batch["caption"], batch["language"])
        return pa.table([found], schema=self.writes())

    @cached_property
    def _lists(self) -> dict[str, str]:
        return by_language(self.entries)
