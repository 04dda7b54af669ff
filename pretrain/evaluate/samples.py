"""What belongs to each picture of an evaluation set: its class, or its captions.

Understood: `labels.csv` (filepath,label,classname) and `captions.tsv` (filepath, caption; several
rows a picture) beside the pictures; webdataset samples with `.cls`, `.txt` or `.json`; and class
folders. A picture without a class or caption is counted as bad.
"""

from __future__ import annotations

import csv
import json
from collections.abc import Iterator
from dataclasses import dataclass, field
from typing import Any

from curate.contract import shards, tars
from pretrain.evaluate.store import IMAGE_EXTENSIONS, Store, lower_extension

_CLASS_KEYS = ("classname", "class", "label", "cls")

Group = dict[str, str]  # extension -> file name, of one webdataset sample


@dataclass
class Labelled:
    """Pictures by name with their class as the set writes it (a name, or a number as text)."""

    names: list[str] = field(default_factory=list)
    labels: list[str] = field(default_factory=list)
    n_bad: int = 0

    def add(self, name: str | None, label: str | None) -> None:
        if not name or not label:
            self.n_bad += 1
            return
        self.names.append(name)
        self.labels.append(label)


@dataclass
class Captioned:
    """Pictures by name with their captions, at least one each."""

    names: list[str] = field(default_factory=list)
    captions: list[list[str]] = field(default_factory=list)
    n_bad: int = 0

    def add(self, name: str | None, captions: list[str]) -> None:
        captions = [text for text in captions if text.strip()]
        if not name or not captions:
            self.n_bad += 1
            return
        self.names.append(name)
        self.captions.append(captions)


def labelled(store: Store) -> Labelled:
    """Every picture with its class. Raises ValueError where no picture has one."""
    found = Labelled()
    table = _table_name(store, "labels.csv")
    groups = _groups(store) if table is None else {}
    if table is not None:
        for name, row in _labels_table(store, table):
            found.add(name, row.get("classname") or row.get("label"))
    elif any("cls" in group or "json" in group for _, group in _pictures(groups)):
        for name, group in _pictures(groups):
            found.add(name, _label_of(store, group))
    else:
        for name, _ in _pictures(groups):
            found.add(name, name.split("/")[-2] if "/" in name else None)
    _refuse_empty(store, found.names, "a class", "labels.csv, .cls members, or one folder a class")
    return found


def captioned(store: Store, all_captions: bool = False) -> Captioned:
    """Every picture with its captions; with those of its ``json`` member too if ``all_captions``.

    Raises ValueError where no picture has a caption.
    """
    found = Captioned()
    table = _table_name(store, "captions.tsv")
    if table is not None:
        by_name: dict[str | None, list[str]] = {}
        for name, caption in _captions_table(store, table):
            by_name.setdefault(name, []).append(caption)
        found.n_bad += len(by_name.pop(None, []))
        for name, captions in by_name.items():
            found.add(name, captions)
    else:
        for name, group in _pictures(_groups(store)):
            found.add(name, _captions_of(store, group, all_captions))
    _refuse_empty(
        store, found.names, "a caption", "captions.tsv, or .txt files beside the pictures"
    )
    return found


def _refuse_empty(store: Store, names: list[str], what: str, needed: str) -> None:
    if not names:
        raise ValueError(
            f"{store.path}: {len(store.names):,} files, none of them a picture with {what}. hint: needed is {needed}"
        )


def _table_name(store: Store, file_name: str) -> str | None:
    return next((name for name in store.names if name.rpartition("/")[2] == file_name), None)


def _named(store: Store, table: str) -> dict[str, str]:
    """Names as written in the table -> names of the store, for files beside or below the table."""
    folder = table[: -len(table.rpartition("/")[2])]
    return {name[len(folder) :]: name for name in store.names if name.startswith(folder)}


def _labels_table(store: Store, table: str) -> Iterator[tuple[str | None, dict[str, str]]]:
    """(picture or None where it is not there, row) for each row of a labels.csv."""
    named = _named(store, table)
    reader = csv.DictReader(_text(store, table).splitlines())
    _refuse_columns(store, table, reader.fieldnames or (), "filepath", "label or classname")
    for row in reader:
        yield named.get(lower_extension(row["filepath"] or "")), row


def _captions_table(store: Store, table: str) -> Iterator[tuple[str | None, str]]:
    """(picture or None where it is not there, caption) for each row. Tabs only, no quoting."""
    named = _named(store, table)
    header, *lines = _text(store, table).split("\n")
    columns = header.rstrip("\r").split("\t")
    _refuse_columns(store, table, columns, "filepath", "caption")
    filepath_at, caption_at = columns.index("filepath"), columns.index("caption")
    for line in filter(None, (line.rstrip("\r") for line in lines)):
        cells = line.split("\t") + [""] * len(columns)
        yield named.get(lower_extension(cells[filepath_at])), cells[caption_at]


def _refuse_columns(store: Store, table: str, columns: Any, *needed: str) -> None:
    for names in needed:
        if not set(names.split(" or ")) & set(columns):
            raise ValueError(
                f"{store.path}: {table} has columns {list(columns)}, no {names}. "
                f"hint: its first line names the columns, {', '.join(needed)}"
            )


def _text(store: Store, name: str) -> str:
    return store.read(name).decode("utf-8", "replace")


def _text_if_whole(store: Store, name: str) -> str | None:
    """None for a damaged member: its sample then counts as one without class or captions."""
    try:
        return _text(store, name)
    except tars.TarDamage:
        return None


def _groups(store: Store) -> dict[str, Group]:
    """Files of the same name but for what follows its first dot, as webdataset groups them."""
    groups: dict[str, Group] = {}
    for name in store.names:
        folder, slash, last = name.rpartition("/")
        stem, _, extension = last.partition(".")
        groups.setdefault(folder + slash + stem, {})[extension] = name
    return groups


def _pictures(groups: dict[str, Group]) -> Iterator[tuple[str, Group]]:
    """Each picture's name with its group; a dotted picture name stands for itself."""
    for group in groups.values():
        for extension, name in group.items():
            if extension.rpartition(".")[2] in IMAGE_EXTENSIONS:
                yield name, group


def _label_of(store: Store, group: Group) -> str | None:
    if "cls" in group:
        return (_text_if_whole(store, group["cls"]) or "").strip() or None
    record = _record(store, group)
    return next((str(record[key]) for key in _CLASS_KEYS if record.get(key) is not None), None)


def _captions_of(store: Store, group: Group, all_captions: bool) -> list[str]:
    caption = (_text_if_whole(store, group["txt"]) or "") if "txt" in group else ""
    return shards.captions_of(caption, _record(store, group)) if all_captions else [caption]


def _record(store: Store, group: Group) -> dict[str, Any]:
    """The ``json`` member; {} where there is none or it is not a JSON object."""
    if "json" not in group:
        return {}
    try:
        record = json.loads(store.read(group["json"]))
    except (ValueError, tars.TarDamage):  # the sample then counts as one without class or captions
        return {}
    return record if isinstance(record, dict) else {}
