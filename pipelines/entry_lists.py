"""`clip-pipe entries build` and `clip-pipe entries lint`: what is built or found, as text for stdout."""

from __future__ import annotations

import json
import os
import sys
from collections.abc import Mapping, Sequence
from dataclasses import fields
from typing import Any

from curate.contract import storage
from curate.entries import build as building
from curate.entries import lint as linting
from curate.entries import listing
from curate.score.entry_lists import by_language, read_entries
from pipelines.errors import RecipeError, split_hint

_PATHS = ("extend", "wordnet", "corpus", "wikipedia", "titles", "seen_in")
_EXAMPLES = 3
_SHOWN_CHARACTERS = 40


def build(out: str, options: Mapping[str, Any]) -> str:
    """Build a list and its provenance; one JSON line with what each source gave. Raises RecipeError."""
    known = {item.name for item in fields(building.Sources)}
    chosen = {name: value for name, value in options.items() if name in known}
    path = storage.absolute(out)
    try:
        _check_place(path)
        sources = building.Sources(
            **{n: _absolute(value) if n in _PATHS else value for n, value in chosen.items()}
        )
        built = building.build(sources, _say)
        for note in built.notes:
            _say(f"note: {note}")
        if not built.entries:
            raise ValueError("no entry came of these sources. hint: lower the least counts")
        beside = building.write(path, built, sources)
    except (ValueError, FileNotFoundError) as fault:
        raise _refused("entries build", fault) from fault
    added = {tally.source: tally.added for tally in built.tallies}
    told = {"entries": len(built.entries), "added": added, "list": path, "provenance": beside}
    return json.dumps(told, ensure_ascii=False)


def lint(path: str, *, rule: str, as_json: bool, fix: str, renumber: bool) -> tuple[str, bool]:
    """(what was found, whether the list is fine). Fine: no dead entry, or a fixed list was written.

    A folder is linted list by list, as rule ``worldwide`` matches them.
    """
    if os.path.isdir(storage.absolute(path)):
        return _lint_folder(path, as_json, fix)
    try:
        if fix:
            _check_place(storage.absolute(fix))
        entries = read_entries(storage.absolute(path))
        found = list(linting.lint(entries, rule=rule))
        if fix:
            fixed = _fixed(entries, found, renumber)
            listing.write(storage.absolute(fix), fixed)
            _say(f"{fix}: {len(fixed):,} lines, {sum(map(bool, fixed)):,} entries")
            if renumber:
                _say(
                    "note: ids have changed; a pool that was matched with the old list must be matched again"
                )
    except (ValueError, FileNotFoundError) as fault:
        raise _refused("entries lint", fault) from fault
    dead = sum(one.is_dead for one in found)
    by_kind = {
        kind: [one for one in found if one.kind == kind]
        for kind in linting.KINDS
        if any(one.kind == kind for one in found)
    }
    text = _json(entries, dead, by_kind) if as_json else _table(path, entries, dead, by_kind)
    return text, bool(fix) or not dead


def _lint_folder(folder: str, as_json: bool, fix: str) -> tuple[str, bool]:
    """The same over a folder with a list per language."""
    try:
        lists = by_language(storage.absolute(folder))
    except ValueError as fault:
        raise _refused("entries lint", fault) from fault
    if fix:
        first = next(iter(lists.values()))
        raise RecipeError(
            "entries lint --fix",
            f"{folder} is a folder of {len(lists)} lists",
            f"fix one file at a time, such as {first} with --rule worldwide",
        )
    found = {
        language: lint(file, rule="worldwide", as_json=as_json, fix="", renumber=False)
        for language, file in lists.items()
    }
    told = {language: json.loads(text) for language, (text, _) in found.items()} if as_json else {}
    text = "\n".join(text for text, _ in found.values())
    is_fine = all(fine for _, fine in found.values())
    return json.dumps(told, ensure_ascii=False) if as_json else text, is_fine


def _fixed(entries: Sequence[str], found: Sequence[linting.Finding], renumber: bool) -> list[str]:
    """Without dead entries: an empty line in the place of each keeps the other ids."""
    dead = {one.line for one in found if one.is_dead}
    if renumber:
        return [entry for line, entry in enumerate(entries, 1) if entry and line not in dead]
    return ["" if line in dead else entry for line, entry in enumerate(entries, 1)]


def _json(
    entries: Sequence[str], dead: int, by_kind: Mapping[str, Sequence[linting.Finding]]
) -> str:
    kinds = {
        kind: [{"line": one.line, "entry": one.entry} for one in some]
        for kind, some in by_kind.items()
    }
    return json.dumps({"entries": len(entries), "dead": dead, "found": kinds}, ensure_ascii=False)


def _table(
    path: str, entries: Sequence[str], dead: int, by_kind: Mapping[str, Sequence[linting.Finding]]
) -> str:
    lines = [f"{path}: {len(entries):,} lines, {dead:,} dead"]
    for kind, some in by_kind.items():
        word = "dead" if kind in linting.DEAD else "doubtful"
        lines.append(f"{word:8s}  {kind:20s}  {len(some):>8,}  {linting.KINDS[kind]}")
        lines += [f"{'':10s}line {one.line}: {_short(one.entry)}" for one in some[:_EXAMPLES]]
    return "\n".join(lines)


def _short(entry: str) -> str:
    shown = repr(entry)
    return shown if len(shown) <= _SHOWN_CHARACTERS else shown[: _SHOWN_CHARACTERS - 3] + "..."


def _check_place(path: str) -> None:
    """Raise ValueError, before any work, for a list that can't be written."""
    if not storage.is_url(path) and os.path.isdir(path):
        raise ValueError(f"{path} is a folder. hint: name a file in it, such as {path}/entries.txt")
    storage.prepare(path.rpartition("/")[0] or "/")


def _absolute(value: Any) -> Any:
    if isinstance(value, tuple):
        return tuple(map(storage.absolute, value))
    return storage.absolute(value) if value else value


def _refused(where: str, fault: Exception) -> RecipeError:
    what, hint = split_hint(str(fault))
    return RecipeError(where, what, hint)


def _say(text: str) -> None:
    print(text, file=sys.stderr, flush=True)
