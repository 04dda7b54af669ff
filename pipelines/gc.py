"""``clip-pipe gc``: what a pool holds that no recipe refers to any more; listed, and removed when it is told to.

Referred to is what the recipe kept in the pool, and those named by --keep, would read or take over: the folders
of their stages, and, while a stage is not done for every part, whatever measured the same. Rows and pool.json are
never touched. Pictures are dear: they stay, and the sidecars that say what they are, unless they are asked for.
A folder's manifests go first, so that a crash leaves nothing that looks done.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Iterable, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import nullcontext
from dataclasses import asdict, dataclass
from typing import Any

from curate.contract import done, listing, storage
from curate.contract.listing import Entry
from curate.contract.parts import stage_folder
from curate.stage import GlobalStage
from pipelines import held, lease, recipe, status
from pipelines.errors import RecipeError, RunFailed
from pipelines.live import duration
from pipelines.part import summary_fingerprint
from pipelines.plan import CurationPlan

SCHEMA = 1
_NOTES = "-notes"  # see look_ahead
_AT_ONCE = 16
_LAST = ("manifest.json", "measure.json")


@dataclass(frozen=True)
class Leftover:
    """One thing that could go. ``frees_bytes``: less than ``bytes`` where files have a second name elsewhere."""

    kind: str  # "columns", "pictures", "work" or "damaged"
    name: str
    folders: tuple[str, ...]  # with all they hold
    paths: tuple[str, ...]  # files of folders that stay
    recipe: str  # that made it, '' where that is not noted
    files: int
    bytes: int
    frees_bytes: int
    rows: int
    seconds: float  # that it took to make


@dataclass(frozen=True)
class _Used:
    """What recipes refer to: names of sidecar folders, fingerprints of pictures, names in work/, measures."""

    folders: frozenset[str]
    images: frozenset[str]
    work: frozenset[str]
    measures: frozenset[str]  # of stages that are not done for every part


def run(
    root: str,
    keep: Sequence[str],
    *,
    pictures: bool,
    dry_run: bool,
    ask: Callable[[str], bool],
    say: Callable[[str], None],
    show: Callable[[Sequence[Leftover]], None],
) -> tuple[list[Leftover], bool]:
    """(what no recipe refers to and would go, whether it went). ``ask`` is asked once, by a sentence.

    Raises RecipeError for no pool and for a recipe that is not of this pool, RunFailed while a run is at work.
    """
    if not storage.exists(storage.join(root, "pool.json")):
        hint = (
            "this is a recipe: name its pool" if root.endswith(".toml") else "name a pool's folder"
        )
        raise RecipeError(f"gc {root}", "no pool is there (no pool.json)", hint)
    _recipes(root, keep)
    _refuse_living(root)
    with nullcontext() if dry_run else lease.held((root,), say):
        recipes = _recipes(root, keep)  # again: a run may have ended before the lease was ours
        found = find(root, [held.plan_of_pool(one) for one in recipes])
        gone = [one for one in found if pictures or one.kind != "pictures"]
        show(found)
        if dry_run or not gone or not ask(question(gone)):
            return gone, False
        for one in gone:
            lease.check()
            remove(one)
    return gone, True


def find(root: str, plans: Sequence[CurationPlan]) -> list[Leftover]:
    """Everything that could go, the largest first."""
    used = _used(root, plans)
    images = {
        path.rsplit("/", 1)[-1]: path for path in listing.folders(storage.join(root, "images"))
    }
    found: list[Leftover] = []
    for folder in listing.folders(storage.join(root, "columns")):
        name = folder.rsplit("/", 1)[-1]
        own = next((path for number, path in images.items() if number[:8] == name[-8:]), "")
        is_shared = own.rsplit("/", 1)[-1] in used.images and name not in used.folders
        own = "" if is_shared else own
        note = _note(folder)
        if name in used.folders or note.get("measure") in used.measures:
            found += _damaged(folder, "columns") + (_damaged(own, "pictures") if own else [])
        else:
            folders = (folder, own) if own else (folder,)
            found.append(_leftover("pictures" if own else "columns", name, folders, note.get("recipe", "")))  # fmt: skip
    named = {path.rsplit("-", 1)[-1] for path in listing.folders(storage.join(root, "columns"))}
    for number, path in images.items():
        if number not in used.images and number[:8] not in named:
            found.append(_leftover("pictures", f"images/{number}", (path,), ""))
    for folder in listing.folders(storage.join(root, "work")):
        name = folder.rsplit("/", 1)[-1]
        if name not in used.work:
            found.append(_leftover("work", f"work/{name}", (folder,), ""))
    return sorted(found, key=lambda one: -one.bytes)


def remove(one: Leftover) -> None:
    """Delete it: manifests, then what they say is done, then the folder."""
    for folder in one.folders:
        entries = listing.tree(folder)
        listing.remove_files(entry.path for entry in entries if _says_done(entry))
    for folder in one.folders:
        listing.remove_files(entry.path for entry in listing.tree(folder))
        storage.remove(folder)
    listing.remove_files(one.paths)


def question(gone: Sequence[Leftover]) -> str:
    """What is asked before anything goes."""
    size = sum(one.frees_bytes for one in gone)
    seconds = sum(one.seconds for one in gone)
    cost = f"; to make it again took {duration(seconds)} of work" if seconds else ""
    return f"Delete these {len(gone)} ({told_bytes(size)}{cost})?"


def lines(found: Sequence[Leftover], pictures: bool) -> list[str]:
    """The list in words."""
    if not found:
        return ["nothing to remove: recipes refer to all that is there"]
    out = []
    for one in found:
        kept = "" if pictures or one.kind != "pictures" else "  (stays without --pictures)"
        made = f"  made by {one.recipe}" if one.recipe else ""
        cost = f"  {duration(one.seconds)} to make" if one.seconds else ""
        rows = f"  {one.rows:,} rows" if one.rows else ""
        out.append(f"{told_bytes(one.bytes):>10}  {one.kind:8}  {one.name}{rows}{cost}{made}{kept}")
    gone = [one for one in found if pictures or one.kind != "pictures"]
    frees = sum(one.frees_bytes for one in gone)
    return [*out, f"{len(gone)} of {len(found)} would go: {told_bytes(frees)}"]


def record(root: str, found: Sequence[Leftover], pictures: bool, removed: bool) -> str:
    """The list as JSON."""
    entries = [{**asdict(one), "goes": pictures or one.kind != "pictures"} for one in found]
    told = {"schema": SCHEMA, "pool": root, "removed": removed, "leftovers": entries}
    return json.dumps(told, ensure_ascii=False)


def told_bytes(count: float) -> str:
    for unit in ("B", "KiB", "MiB", "GiB"):
        if count < 1024:
            return f"{count:.0f} {unit}" if unit == "B" else f"{count:.1f} {unit}"
        count /= 1024
    return f"{count:,.1f} TiB"


def _recipes(root: str, keep: Sequence[str]) -> list[recipe.Recipe]:
    """The pool's own recipe and those that are named. Raises RecipeError for one of another pool."""
    own = status.kept_recipe(root)
    found = [own] if own is not None else []
    for name in keep:
        loaded = recipe.load(name, ())
        pool = "" if loaded.curate is None else loaded.curate.pool
        if storage.absolute(pool).rstrip("/") != storage.absolute(root).rstrip("/"):
            what = f"its pool is {pool!r}" if pool else "it has no [curate] table"
            raise RecipeError(f"--keep {name}", what, f"name recipes of {root}")
        found.append(loaded)
    if not found:
        raise RecipeError(f"gc {root}", "the pool keeps no recipe.toml, so all of it would be left over",
                          "name the recipes that use it: --keep RECIPE")  # fmt: skip
    return found


def _refuse_living(root: str) -> None:
    """Raise RunFailed where a run is known to be at work."""
    holder = status.who(root)
    if holder is not None and holder["alive"] is not False:
        raise RunFailed(
            f"{root}: a run is at work: process {holder.get('pid')} on {holder.get('host')}, last beat {holder.get('beat')}\n"
            "hint: wait for its end; clip-pipe status shows how far it is"
        )


def _used(root: str, plans: Iterable[CurationPlan]) -> _Used:
    folders, images, work, measures = set(), set(), {"failures.json"}, set()
    for plan in plans:
        for planned in (plan.source, *plan.stages):
            folder = plan.pool.columns_folder(planned.use, planned.fingerprint)
            folders.add(folder.rsplit("/", 1)[-1])
            images.add(planned.fingerprint)
            work |= {planned.fingerprint[:8], planned.measure[:8] + _NOTES}
            if isinstance(planned.stage, GlobalStage):
                work.add(summary_fingerprint(planned)[:8])
            parts = int((plan.pool.describe() or {}).get("parts", 0))
            if len(status.manifests(listing.files(folder, ".json"))) < parts:
                measures.add(planned.measure)
                folders |= {stage_folder(planned.use, other) for other, _ in planned.follows}
                images |= {other for other, _ in planned.follows}
        work.add(plan.shard.fingerprint[:8])
    return _Used(frozenset(folders), frozenset(images), frozenset(work), frozenset(measures))


def _damaged(folder: str, kind: str) -> list[Leftover]:
    """Files that were set aside, of parts that are done again."""
    entries = listing.files(folder)
    names = {entry.name for entry in entries}
    aside = [entry for entry in entries if entry.name.endswith(done.ASIDE)]
    again = [e for e in aside if e.name.removesuffix(done.ASIDE) in names]
    if not again:
        return []
    kind = "pictures" if kind == "pictures" else "damaged"
    name = "/".join(folder.rsplit("/", 2)[-2:]) + f"/*{done.ASIDE}"
    size = sum(entry.bytes for entry in again)
    paths = tuple(entry.path for entry in again)
    return [Leftover(kind, name, (), paths, "", len(again), size, size, 0, 0.0)]


def _leftover(kind: str, name: str, folders: tuple[str, ...], made_by: str) -> Leftover:
    entries = [entry for folder in folders for entry in listing.tree(folder)]
    told = _cost(folders[0], entries) if kind != "work" else {}
    return Leftover(
        kind=kind,
        name=name,
        folders=folders,
        paths=(),
        recipe=str(made_by),
        files=len(entries),
        bytes=sum(entry.bytes for entry in entries),
        frees_bytes=sum(entry.bytes for entry in entries if entry.links == 1),
        rows=int(told.get("rows_in", 0)),
        seconds=round(float(told.get("seconds", 0.0)), 1),
    )


def _cost(folder: str, entries: Sequence[Entry]) -> dict[str, Any]:
    """Rows and seconds of a stage, by its parts' manifests."""
    place = status.Place(folder, folder)
    made = [entry for entry in status.manifests(entries) if entry.path.startswith(folder + "/")]
    with ThreadPoolExecutor(_AT_ONCE) as pool:
        return status.added(place, made, pool)


def _note(folder: str) -> dict[str, Any]:
    """What a row stage noted of its folder: its measure, and the recipe that made it."""
    path = storage.join(folder, "measure.json")
    try:
        return storage.read_json(path, "gc") if storage.exists(path) else {}
    except ValueError:
        return {}


def _says_done(entry: Entry) -> bool:
    return entry.name in _LAST or (entry.name.startswith("part-") and entry.name.endswith(".json"))
