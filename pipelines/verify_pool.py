"""Whether a pool is what its manifests say: hashes, counts, uids, reasons, pictures; part by part.

Each part is looked at by itself, its rows first and then every stage's sidecar, so nothing grows with the pool.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq

from curate.contract import done, listing, storage, tars
from curate.contract.listing import Entry
from curate.contract.manifest import SCHEMA_VERSION
from pipelines.faults import AGAIN, Fault, Faults, json_fault, mapped, some, spread
from pipelines.part import reason_counts

_UID = r"^[0-9a-f]{32}$"
_BY_HAND = "it was changed by hand or by another tool: put the old file back, or name a new pool"


@dataclass(frozen=True)
class _Folder:
    """A stage's sidecars, and the pictures that belong to them; ``images`` is '' where it makes none."""

    name: str
    path: str
    images: str = ""


@dataclass
class _Seen:
    """What was found of one part. ``sums``: folder -> counts of its manifest."""

    faults: list[Fault] = field(default_factory=list)
    sums: dict[str, dict[str, Any]] = field(default_factory=dict)
    rows: int = 0
    pictures: int = 0
    damaged: list[tuple[str, dict[str, str]]] = field(
        default_factory=list
    )  # path, what is beside it

    def add(self, file: str, part: int, what: str, hint: str = AGAIN) -> None:
        self.faults.append(Fault(file, f"part {part}", what, hint))


def check(root: str, quick: bool, found: Faults) -> list[tuple[str, dict[str, str]]]:
    """Add to ``found`` what is wrong with a pool; the parts that can be made anew, and what is beside each."""
    damaged: list[tuple[str, dict[str, str]]] = []
    described_path = storage.join(root, "pool.json")
    try:
        described = storage.read_json(described_path, "pool")
    except ValueError as fault:
        found.add(described_path, "", json_fault(fault, "pool", described_path), _BY_HAND)
        return damaged
    count, slices = described.get("parts"), described.get("slices")
    slice_count = len(slices) if isinstance(slices, list) else 0
    if not isinstance(count, int) or count != slice_count:
        found.add(described_path, "", f"{count} parts, and {slice_count} slices", _BY_HAND)
        return damaged
    if described.get("schema_version") != SCHEMA_VERSION:
        found.notes.append(f"schema version {described.get('schema_version')}: parts without manifests, which are not looked at; `clip-pipe curate` gives them some")  # fmt: skip
        return damaged
    rows = _Folder("rows", storage.join(root, "rows"))
    folders = [rows, *_folders(root)]
    listed = {folder.name: listing.files(folder.path) for folder in folders}
    todo = _parts(listed, count, found)
    size = sum(entry.bytes for entries in listed.values() for entry in entries)
    size += sum(e.bytes for f in folders if f.images for e in listing.files(f.images))
    sums: dict[str, Counter[str]] = {}
    refused: dict[str, Counter[str]] = {}
    with spread(root, 0 if quick else size) as pool:
        calls = [(rows.path, [f for f in folders if f.name in names], number, quick) for number, names in sorted(todo.items())]  # fmt: skip
        for seen in mapped(pool, check_part, calls):
            found.extend(seen.faults)
            damaged += seen.damaged
            found.saw("rows", seen.rows)
            found.saw("parts of stages", len(seen.sums))
            found.saw("pictures", seen.pictures)
            for name, stats in seen.sums.items():
                told = {key: int(stats.get(key, 0)) for key in ("rows_in", "kept")}
                sums.setdefault(name, Counter()).update({**told, "parts": 1})
                refused.setdefault(name, Counter()).update(stats.get("refused", {}))
    for folder in folders[1:]:
        _check_sums(folder, sums.get(folder.name, Counter()), refused.get(folder.name, Counter()), found)  # fmt: skip
    return damaged


def _folders(root: str) -> list[_Folder]:
    images = listing.folders(storage.join(root, "images"))
    found = []
    for path in listing.folders(storage.join(root, "columns")):
        name = path.rsplit("/", 1)[-1]
        own = next((one for one in images if one.rsplit("/", 1)[-1][:8] == name[-8:]), "")
        found.append(_Folder(name, path, own))
    return found


def _parts(listed: Mapping[str, list[Entry]], count: int, found: Faults) -> dict[int, list[str]]:
    """Part -> the folders that have its manifest."""
    todo: dict[int, list[str]] = {}
    for name, entries in listed.items():
        stems = {entry.name.rpartition(".")[0] for entry in entries if entry.name.endswith(".json")}
        bare = [e.name for e in entries if e.name.endswith(".parquet") and e.name.startswith("part-") and e.name[:-8] not in stems]  # fmt: skip
        if bare:
            found.notes.append(f"{name}: {some(bare)} without a manifest: of an attempt that died or goes on; never read")  # fmt: skip
        aside = [entry.name for entry in entries if entry.name.endswith(done.ASIDE)]
        if aside:
            found.notes.append(f"{name}: {some(aside)} set aside by an earlier run")
        for entry in entries:
            number = entry.name.removeprefix("part-").removesuffix(".json")
            if entry.name != f"part-{number}.json" or not number.isdigit():
                continue
            todo.setdefault(int(number), []).append(name)
            if int(number) >= count:
                found.add(entry.path, f"part {int(number)}", f"the pool has {count} parts", _BY_HAND)  # fmt: skip
    return todo


def check_part(rows_folder: str, folders: list[_Folder], part: int, quick: bool) -> _Seen:
    """Look at one part: its rows and what each folder says of them."""
    seen = _Seen()
    uids: pa.ChunkedArray | None = None
    for folder in folders:
        path = storage.join(folder.path, f"part-{part:05d}.parquet")
        beside = {"images": storage.join(folder.images, f"part-{part:05d}.tar")} if folder.images else {}  # fmt: skip
        before = len(seen.faults)
        stats = _fitting(path, beside, part, quick, seen)
        try:
            if stats is not None and folder.path == rows_folder:
                uids = _check_rows(path, stats, part, quick, seen)
            elif stats is not None:
                seen.sums[folder.name] = stats
                _check_sidecar(path, stats, part, quick, uids, beside, seen)
        except (pa.ArrowException, OSError, KeyError, TypeError) as fault:
            seen.add(path, part, f"can't be read: {str(fault).splitlines()[0]}")
        if any(fault.hint == AGAIN for fault in seen.faults[before:]):
            seen.damaged.append((path, beside))
    if uids is None and seen.sums and not seen.faults:
        seen.add(storage.join(rows_folder, f"part-{part:05d}.json"), part, "is not there, though stages are done for it")  # fmt: skip
    return seen


def _fitting(
    path: str, beside: Mapping[str, str], part: int, quick: bool, seen: _Seen
) -> dict[str, Any] | None:
    """The manifest of a part whose files are those that it names; None where they are not."""
    look = done.look(path, beside)
    if look.fault:
        seen.add(look.path, part, look.fault)
        return None
    if look.stats is None:
        return None  # taken back in this moment
    if look.stats.get("part", part) != part:
        seen.add(done.manifest_path(path), part, f"says it is of part {look.stats['part']}")
        return None
    for words in [] if quick else done.verify(path, beside):
        file, _, what = words.partition(": ")
        seen.add(file, part, what)
        return None
    return look.stats


def _check_rows(
    path: str, stats: Mapping[str, Any], part: int, quick: bool, seen: _Seen
) -> pa.ChunkedArray | None:
    with storage.open_file(path) as file:
        opened = pq.ParquetFile(file)
        count = opened.metadata.num_rows
        seen.rows += count
        if count != stats.get("rows"):
            seen.add(path, part, f"{count:,} rows, and its manifest says {stats.get('rows')}")
        if quick:
            return pa.chunked_array([], pa.string())
        uids = opened.read(["uid"], use_threads=False)["uid"]
    wrong = pc.fill_null(pc.invert(pc.match_substring_regex(uids, _UID)), True)
    if pc.sum(wrong).as_py():
        row = pc.index(wrong, True).as_py()
        seen.add(
            path, part, f"row {row}: {uids[row].as_py()!r} is no uid (32 hex digits)", _BY_HAND
        )
    return uids


def _check_sidecar(
    path: str,
    stats: Mapping[str, Any],
    part: int,
    quick: bool,
    uids: pa.ChunkedArray | None,
    beside: Mapping[str, str],
    seen: _Seen,
) -> None:
    with storage.open_file(path) as file:
        opened = pq.ParquetFile(file)
        count = opened.metadata.num_rows
        if count != stats.get("rows"):
            seen.add(path, part, f"{count:,} rows, and its manifest says {stats.get('rows')}")
            return
        if quick:
            return
        table = opened.read(["uid", "keep", "reason"], use_threads=False)
    if uids is not None and not table["uid"].equals(uids):
        same = min(len(uids), count)
        row = next((n for n in range(same) if table["uid"][n] != uids[n]), same)
        seen.add(path, part, f"row {row}: its uid is not that of the pool's rows ({count:,} of {len(uids):,} rows)")  # fmt: skip
        return
    _check_decisions(path, table, stats, part, seen)
    for file_path in beside.values():
        _check_pictures(file_path, table, part, seen)


def _check_decisions(
    path: str, table: pa.Table, stats: Mapping[str, Any], part: int, seen: _Seen
) -> None:
    """One reason for each refused row and none for others, and the counts that the manifest has."""
    keep, has_reason = table["keep"], pc.is_valid(table["reason"])
    refused = pc.fill_null(pc.invert(keep), False)
    for what, wrong in (
        ("is refused without a reason", pc.and_not(refused, has_reason)),
        ("has a reason and is not refused", pc.and_not(has_reason, refused)),
    ):
        row = pc.index(wrong, True).as_py()
        if row >= 0:
            count = pc.sum(wrong).as_py()
            seen.add(path, part, f"row {row} ({table['uid'][row]}) {what}; {count:,} such rows")
    counted = {
        "rows_in": len(keep) - keep.null_count,
        "kept": pc.sum(keep).as_py() or 0,
        "refused": reason_counts(table["reason"]),
    }
    for name, value in counted.items():
        if name in stats and stats[name] != value:
            seen.add(path, part, f"{name} = {value}, and its manifest says {stats[name]}")


def _check_pictures(path: str, table: pa.Table, part: int, seen: _Seen) -> None:
    """One picture for each row that its stage kept, by uid, up to the end of the tar."""
    try:
        with storage.open_file(path) as file:
            members = [name.split(".", 1)[0] for name, _, _ in tars.places(file, path)]
    except tars.TarDamage as fault:
        seen.add(path, part, str(fault).removeprefix(f"{path}: "))
        return
    seen.pictures += len(members)
    kept = set(table.filter(pc.fill_null(table["keep"], False))["uid"].to_pylist())
    twice = [uid for uid, count in Counter(members).items() if count > 1]
    for what, wrong in (
        ("has pictures of rows that are not kept", sorted(set(members) - kept)),
        ("lacks pictures of kept rows", sorted(kept - set(members))),
        ("has several pictures of one uid", twice),
    ):
        if wrong:
            seen.add(path, part, f"{what}: {some(wrong)}")


def _check_sums(folder: _Folder, sums: Counter[str], refused: Counter[str], found: Faults) -> None:
    """A stage's own manifest is the sum of its parts', where it is of as many."""
    path = storage.join(folder.path, "manifest.json")
    if not storage.exists(path):
        return
    try:
        told = storage.read_json(path, "verify")
    except ValueError as fault:
        found.add(path, "", json_fault(fault, "verify", path), "run `clip-pipe curate` again: it is written anew")  # fmt: skip
        return
    if told.get("parts") != sums["parts"]:
        return  # a stage that goes on, or whose source has grown
    for name, value in (("rows_in", sums["rows_in"]), ("kept", sums["kept"]), ("refused", dict(refused))):  # fmt: skip
        if told.get(name) != value:
            found.add(path, "", f"{name} = {told.get(name)}, and its parts have {value}", "run `clip-pipe curate` again: it is written anew")  # fmt: skip
