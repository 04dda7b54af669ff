"""The demo's raw pool: (url, alt-text) rows over rendered pictures, with planted faults.

A pure function of (seed, rows). Every row has at most one planted fault, the shares are in
``PLANTED_SHARES``, and what was planted where is known row by row. Curation sees url and caption
only; the truth lies in a table of its own. A row's uid holds its URL and so the server's port: the
same port gives the same uids.
"""

from __future__ import annotations

import hashlib
from collections.abc import Callable
from dataclasses import dataclass, replace

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq

from curate.contract import storage
from curate.contract.draw import pair_uid
from pipelines.demo import grammar, lettering
from pipelines.demo.render import Picture
from pipelines.demo.scene import Scene, dice, raw_scene

DEFAULT_ROWS = 6_000
MIN_ROWS = 100
# Share of all rows per fault; each is planted at least once. The rest is clean.
PLANTED_SHARES = {
    "text-parrot": 0.18,
    "text-unrelated": 0.09,
    "dead-link": 0.05,
    "slow-link": 0.0005,  # each costs a whole time-out
    "html-as-jpeg": 0.02,
    "truncated-jpeg": 0.02,
    "duplicate-pair": 0.03,
    "duplicate-image": 0.04,
    "junk-caption": 0.05,
    "wrong-caption": 0.02,  # describes another scene; nothing in the first recipe looks for it
    "null-url": 0.0004,
    "null-caption": 0.0004,
    "huge-caption": 0.0,
    "not-utf8-caption": 0.0,
}
HUGE_CAPTION_BYTES = 1_000_000
_POSTER_SHARE = 0.3  # of the parroting pictures: text on a background, nothing else to see
_LINK_ANSWERS = {
    "dead-link": "missing",
    "slow-link": "slow",
    "html-as-jpeg": "html",
    "truncated-jpeg": "truncated",
}
_DUPLICATES = ("duplicate-pair", "duplicate-image")
_ROW_GROUP_ROWS = 1_000


@dataclass(frozen=True)
class Asset:
    """What the server has under one path. ``answer``: image, missing, slow, html or truncated."""

    picture: Picture
    answer: str = "image"


@dataclass(frozen=True)
class Row:
    """One row of the source and the truth about it. ``first_row`` is the row that a duplicate repeats."""

    path: str | None
    caption: bytes | None
    scene: Scene
    fault: str = ""
    first_row: int = -1


@dataclass(frozen=True)
class World:
    """All rows in source order, and the pictures by URL path."""

    seed: int
    rows: tuple[Row, ...]
    assets: dict[str, Asset]


def planted_counts(rows: int) -> dict[str, int]:
    """How many rows of a world of this size carry each fault."""
    return {fault: max(1, round(share * rows)) for fault, share in PLANTED_SHARES.items()}


def build(seed: int = 0, rows: int = DEFAULT_ROWS) -> World:
    """The world of ``seed``. Raises ValueError under 100 rows: each fault needs its place."""
    if rows < MIN_ROWS:
        raise ValueError(
            f"demo world: {rows} rows asked for. hint: the smallest world has {MIN_ROWS}"
        )
    counts = planted_counts(rows)
    originals = rows - sum(counts[fault] for fault in _DUPLICATES)
    faults = [
        fault for fault, count in counts.items() if fault not in _DUPLICATES for _ in range(count)
    ]
    faults += [""] * (originals - len(faults))
    assets: dict[str, Asset] = {}
    found = [_original(seed, index, fault, assets) for index, fault in enumerate(faults)]
    groups = list(range(originals))  # rows of one group repeat each other
    repeated = _to_repeat(seed, found, counts)
    for group, fault in repeated.items():
        groups.append(group)
        found.append(_copy(seed, len(found), found[group], fault, assets))
    return World(seed, _in_source_order(seed, found, groups, repeated), assets)


def _to_repeat(seed: int, originals: list[Row], counts: dict[str, int]) -> dict[int, str]:
    """Which clean rows get a copy, and which kind of duplicate it is."""
    clean = [index for index, row in enumerate(originals) if not row.fault]
    kinds = [fault for fault in _DUPLICATES for _ in range(counts[fault])]
    return dict(zip((int(index) for index in dice(seed, "duplicates").permutation(clean)), kinds))


def _original(seed: int, index: int, fault: str, assets: dict[str, Asset]) -> Row:
    """A row with its own picture, and with ``fault`` planted if there is one."""
    scene = raw_scene(dice(seed, "scene", index))
    rng = dice(seed, "row", index)
    path = _path(seed, index)
    assets[path] = Asset(
        _picture(scene, seed, index, fault, rng), _LINK_ANSWERS.get(fault, "image")
    )
    caption = _CAPTION_MAKERS.get(fault, _plain_caption)(scene, rng)
    return Row(None if fault == "null-url" else path, caption, scene, fault)


def _path(seed: int, index: int) -> str:
    """A URL path that says nothing of the row."""
    return f"/photos/{hashlib.sha256(f'{seed} {index}'.encode()).hexdigest()[:16]}.jpg"


def _picture(scene: Scene, seed: int, index: int, fault: str, rng: np.random.Generator) -> Picture:
    picture = Picture(scene, int(dice(seed, "picture seed", index).integers(1 << 40)))
    if fault == "text-parrot":
        return replace(
            picture,
            lettering=lettering.parroting(scene, rng),
            poster=bool(rng.random() < _POSTER_SHARE),
        )
    if fault == "text-unrelated":
        return replace(picture, lettering=lettering.unrelated(rng))
    return picture


def _plain_caption(scene: Scene, rng: np.random.Generator) -> bytes | None:
    return grammar.alt_text(scene, rng).encode()


def _junk(scene: Scene, rng: np.random.Generator) -> bytes | None:
    return grammar.junk_text(rng).encode()


def _wrong(scene: Scene, rng: np.random.Generator) -> bytes | None:
    """An alt-text of another scene: neither colour nor shape of its main thing is right."""
    while True:
        other = raw_scene(rng)
        if (
            other.things[0].shape != scene.things[0].shape
            and other.things[0].colour != scene.things[0].colour
        ):
            return grammar.alt_text(other, rng).encode()


def _huge(scene: Scene, rng: np.random.Generator) -> bytes | None:
    text = grammar.alt_text(scene, rng).encode() + b" "
    return (text * (HUGE_CAPTION_BYTES // len(text) + 1))[:HUGE_CAPTION_BYTES]


def _not_utf8(scene: Scene, rng: np.random.Generator) -> bytes | None:
    return b"caf\xe9 sign, " + grammar.alt_text(scene, rng).encode()  # Latin-1


def _no_caption(scene: Scene, rng: np.random.Generator) -> bytes | None:
    return None


_CAPTION_MAKERS: dict[str, Callable[[Scene, np.random.Generator], bytes | None]] = {
    "junk-caption": _junk,
    "wrong-caption": _wrong,
    "null-caption": _no_caption,
    "huge-caption": _huge,
    "not-utf8-caption": _not_utf8,
}


def _copy(seed: int, index: int, row: Row, fault: str, assets: dict[str, Asset]) -> Row:
    """A repeat of ``row``: the same pair, or the same picture under another URL and alt-text."""
    if fault == "duplicate-pair" or row.path is None:
        return row
    path = _path(seed, index)
    assets[path] = assets[row.path]
    return Row(path, _plain_caption(row.scene, dice(seed, "row", index)), row.scene)


def _in_source_order(
    seed: int, found: list[Row], groups: list[int], repeated: dict[int, str]
) -> tuple[Row, ...]:
    """The rows shuffled; of two equal ones the later is the duplicate."""
    first_at: dict[int, int] = {}
    ordered: list[Row] = []
    for position, index in enumerate(dice(seed, "order").permutation(len(found))):
        row, group = found[int(index)], groups[int(index)]
        if group in first_at:
            row = replace(row, fault=repeated[group], first_row=first_at[group])
        first_at.setdefault(group, position)
        ordered.append(row)
    return tuple(ordered)


def url_of(row: Row, base_url: str) -> str | None:
    return None if row.path is None else base_url + row.path


def source_table(world: World, base_url: str) -> pa.Table:
    """What curation is given: url (string) and caption (binary, since one is not UTF-8)."""
    return pa.table(
        {
            "url": pa.array([url_of(row, base_url) for row in world.rows], pa.string()),
            "caption": pa.array([row.caption for row in world.rows], pa.binary()),
        }
    )


def truth_table(world: World, base_url: str) -> pa.Table:
    """What was planted: row, uid, url, fault (null if none), first_row (null if no duplicate), label."""
    rows = world.rows
    return pa.table(
        {
            "row": pa.array(range(len(rows)), pa.int64()),
            "uid": pa.array(
                [pair_uid(url_of(row, base_url), row.caption) for row in rows], pa.string()
            ),
            "url": pa.array([url_of(row, base_url) for row in rows], pa.string()),
            "fault": pa.array([row.fault or None for row in rows], pa.string()),
            "first_row": pa.array(
                [row.first_row if row.first_row >= 0 else None for row in rows], pa.int64()
            ),
            "label": pa.array([row.scene.label for row in rows], pa.string()),
        }
    )


def write(world: World, base_url: str, folder: str) -> None:
    """FOLDER/source.parquet, FOLDER/truth.parquet and FOLDER/entries.txt (one entry a line)."""
    for name, table in (
        ("source", source_table(world, base_url)),
        ("truth", truth_table(world, base_url)),
    ):
        with storage.committed(storage.join(folder, f"{name}.parquet")) as file:
            pq.write_table(table, file, row_group_size=_ROW_GROUP_ROWS, compression="zstd")
    storage.write_text(storage.join(folder, "entries.txt"), "\n".join(grammar.entry_list()) + "\n")
