"""``clip-pipe status``: how a pool or a training stands, from what lies there; while it runs and after it died.

Nothing is written and no lease is taken. What is done is counted by the part manifests: one listing a stage
folder, and the counts of the stage's own manifest once it is done. Where a stage under way has very many parts
some of their manifests are read, and its rows are told as "about". Who is at work stands in POOL/.lease.
"""

from __future__ import annotations

import time
from collections import Counter
from collections.abc import Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from datetime import UTC, datetime
from typing import Any

from curate.contract import listing, shards, storage
from curate.contract.listing import Entry
from pipelines import events, failures, held, lease, recipe, status_training
from pipelines.errors import RecipeError, split_hint
from pipelines.plan import CurationPlan, Planned
from pipelines.recipe import Recipe

SCHEMA = 1  # of --json; raised where a name changes or goes
_READ_AT_MOST = 2000  # part manifests of one stage
_AT_ONCE = 32
_LATELY_S = 300.0
_SEEMS_DEAD_S = lease.DEAD_S


@dataclass(frozen=True)
class Place:
    """A stage and where its part manifests lie."""

    stage: str
    folder: str
    rows_name: str = "rows_in"  # what its manifests call the rows that came


def of(where: str, overrides: Sequence[str] = ()) -> dict[str, Any]:
    """The record of ``--json`` for a pool, a training's folder, or a recipe. Raises RecipeError for none."""
    told: dict[str, Any] = {
        "schema": SCHEMA,
        "at": _stamp(time.time()),
        "pool": None,
        "train": None,
    }
    if is_pool(where):
        loaded, why = _kept_or_why(where, overrides)
        told["pool"] = of_pool(where, loaded, why)
    elif status_training.is_training(where):
        told["train"] = status_training.of(where)
    else:
        loaded = _loaded(where, overrides)
        if loaded.curate is not None:
            told["pool"] = of_pool(loaded.curate.pool, loaded)
        if loaded.train is not None and status_training.is_training(loaded.train.out):
            told["train"] = status_training.of(loaded.train.out)
    return told


def is_pool(where: str) -> bool:
    """Whether a pool lies there, or somebody has begun to make one."""
    if not storage.is_url(where) and where.endswith(".toml"):
        return False
    return any(storage.exists(storage.join(where, name)) for name in ("pool.json", lease.NAME)) and not (
        status_training.is_training(where)
    )  # fmt: skip


def kept_recipe(root: str, overrides: Sequence[str] = ()) -> Recipe | None:
    """The recipe that a pool was made by last, over the folder as it is named; None where it keeps none."""
    path = storage.join(root, "recipe.toml")
    if not storage.exists(path):
        return None
    from pipelines import whatif

    return whatif.kept(root, overrides)


def _kept_or_why(root: str, overrides: Sequence[str]) -> tuple[Recipe | None, str]:
    """The pool's recipe, or why it can't be read here: status is told even so, by folders."""
    try:
        return kept_recipe(root, overrides), ""
    except RecipeError as fault:
        if overrides:
            raise
        return None, str(fault).replace("\n", "; ")


def of_pool(root: str, loaded: Recipe | None, why: str = "") -> dict[str, Any]:
    """How a pool stands. ``why``: there is no recipe."""
    found = storage.exists(storage.join(root, "pool.json"))
    described = _described(storage.join(root, "pool.json")) if found else {}
    parts = int(described["parts"]) if isinstance(described.get("parts"), int) else 0
    holder = who(root)
    plan, notes = _plan(loaded, bool(found), why)
    failed = failures.read(root)
    places = _places(root, plan) if found else []
    with ThreadPoolExecutor(_AT_ONCE) as pool:
        listed = list(pool.map(lambda place: listing.files(place.folder, ".json"), places))
        stages = [_stage(place, entries, parts, pool) for place, entries in zip(places, listed, strict=True)]  # fmt: skip
    shard = [] if plan is None else [_shard_stage(plan, parts)]
    step = str((holder or {}).get("step", "")) if holder and holder["alive"] is not False else ""
    for one in (*stages, *shard):
        _add_run(one, step, holder, failed, parts)
    finished = bool(shard) and shard[0]["state"] == "done"
    logs = [holder["log"]] if holder and holder.get("log") else events.logs(root)[-1:]
    return {
        "folder": root,
        "recipe": loaded.name if loaded else described.get("recipe"),
        "state": _state(holder, finished, bool(found)),
        "who": holder,
        "parts": parts,
        "stages": [*stages, *shard],
        "left_s": _left_s([*stages, *shard], parts),
        "refused": _refused(stages),
        "failures": [
            {"stage": stage, "part": int(part), **entry, "message": failures.line(stage, int(part), entry)}
            for stage, told in failed.items()
            for part, entry in sorted(told["parts"].items(), key=lambda one: int(one[0]))
        ],
        "log": logs[0] if logs else None,
        "shards": plan.shards_root if plan else None,
        "report": _report(plan),
        "notes": notes,
    }  # fmt: skip


def _described(path: str) -> dict[str, Any]:
    try:
        return storage.read_json(path, "status")
    except ValueError as fault:
        what, hint = split_hint(str(fault))
        raise RecipeError(path, what, hint) from fault


def who(root: str) -> dict[str, Any] | None:
    """The lease of a folder, with ``alive`` (None: another machine's, not known) and the age of its last beat."""
    found = lease.read(root)
    if found is None:
        return None
    gone = lease.is_gone(found)
    age = _age_s(str(found.get("beat", "")))
    alive = None if gone is None else not gone
    if alive is None and age is not None and age > _SEEMS_DEAD_S:
        alive = False
    names = ("host", "pid", "user", "run", "command", "began", "beat", "step", "parts", "done", "running", "log")  # fmt: skip
    told = {name: found[name] for name in names if name in found}
    return {**told, "beat_age_s": age, "alive": alive}


def _state(holder: Mapping[str, Any] | None, finished: bool, found: bool) -> str:
    if holder is not None:
        return {True: "running", None: "running", False: "died"}[holder["alive"]]
    return "finished" if finished else "stopped" if found else "not begun"


def _loaded(where: str, overrides: Sequence[str]) -> Recipe:
    is_folder = storage.is_url(where) or (storage.exists(where) and not where.endswith(".toml"))
    if is_folder:
        raise RecipeError(f"status {where}", "neither a pool (no pool.json) nor a training (no metrics.jsonl)",
                          "name a recipe, its pool, or its train folder")  # fmt: skip
    return recipe.load(where, overrides)


def _plan(loaded: Recipe | None, found: bool, why: str) -> tuple[CurationPlan | None, list[str]]:
    """The plan over what the pool holds; without one, why not."""
    try:
        if loaded is not None and found:
            return held.plan_of_pool(loaded), []
    except (RecipeError, ValueError, OSError) as fault:
        why = str(fault).replace("\n", "; ")
    note = f"the recipe's stages can't be told ({why}); these are the pool's folders"
    return None, [note] if why else []


def _places(root: str, plan: CurationPlan | None) -> list[Place]:
    if plan is None:
        folders = listing.folders(storage.join(root, "columns"))
        return [
            Place("source rows", storage.join(root, "rows"), "rows"),
            *(Place(folder.rsplit("/", 1)[-1], folder) for folder in folders),
        ]
    every = (plan.source, *plan.stages)
    return [Place(one.name, _folder(plan, one)) for one in every]


def _folder(plan: CurationPlan, planned: Planned) -> str:
    return plan.pool.columns_folder(planned.use, planned.fingerprint)


def manifests(entries: Sequence[Entry]) -> list[Entry]:
    """The part manifests of a listing."""
    return [e for e in entries if e.name.startswith("part-") and e.name.endswith(".json")]


def _stage(
    place: Place, entries: Sequence[Entry], parts: int, pool: ThreadPoolExecutor
) -> dict[str, Any]:
    """One stage's figures, by its own manifest where it is done, else by those of its parts."""
    made = manifests(entries)
    told: dict[str, Any] = {}
    if any(entry.name == "manifest.json" for entry in entries) and len(made) == parts:
        told = _read(storage.join(place.folder, "manifest.json")) or {}
    if told.get("parts") != len(made):
        told = added(place, made, pool)
    rows = told.get("rows_in", 0)
    overall, lately = _rates(made, rows / len(made) if made else 0.0)
    return {
        "stage": place.stage,
        "folder": place.folder,
        "done": len(made),
        "rows_in": rows,
        "kept": told.get("kept", 0),
        "refused": dict(told.get("refused", {})),
        "seconds": round(float(told.get("seconds", 0.0)), 1),
        "is_about": bool(told.get("is_about")),
        "rows_per_s": overall,
        "rows_per_s_lately": lately,
        "parts_per_s": _parts_per_s(made),
    }


def added(place: Place, made: Sequence[Entry], pool: ThreadPoolExecutor) -> dict[str, Any]:
    """Sums over part manifests; of very many, over some that lie evenly, scaled."""
    step = max(1, -(-len(made) // _READ_AT_MOST))
    some = made[::step]
    found = [one for one in pool.map(_read, [entry.path for entry in some]) if one]
    scale = len(made) / len(found) if found else 0.0
    refused: Counter[str] = Counter()
    for one in found:
        refused.update(one.get("refused", {}))
    rows, kept, seconds = (
        sum(one.get(name, 0) for one in found) for name in (place.rows_name, "kept", "seconds")
    )
    about = len(found) < len(made)
    return {
        "rows_in": round(rows * scale),
        "kept": round((kept if place.rows_name == "rows_in" else rows) * scale),
        "refused": {reason: round(count * scale) for reason, count in refused.items()},
        "seconds": seconds * scale,
        "is_about": about,
    }


def _read(path: str) -> dict[str, Any] | None:
    """A manifest; None for one that was taken back in this moment, or is damaged (``verify`` says so)."""
    try:
        return storage.read_json(path, "status")
    except (ValueError, OSError):
        return None


def _rates(made: Sequence[Entry], rows: float) -> tuple[float | None, float | None]:
    """Rows per second, overall and of the last minutes, by the times at which parts were committed.

    None where these don't tell: fewer than two parts, all at one time.
    """
    times = sorted(entry.modified_s for entry in made if entry.modified_s)
    if len(times) < 2:
        return None, None
    span_s = times[-1] - times[0]  # 0 where an object store tells whole seconds
    overall = round(rows * (len(times) - 1) / span_s, 1) if span_s else None
    return overall, round(rows * _late(times), 1)


def _parts_per_s(made: Sequence[Entry]) -> float | None:
    times = sorted(entry.modified_s for entry in made if entry.modified_s)
    return _late(times) or None if len(times) > 1 else None


def _late(times: Sequence[float]) -> float:
    """Parts per second over the last minutes, up to now; 0 where none ended in them."""
    now = max(time.time(), times[-1])
    begin = max(now - _LATELY_S, times[0])
    return sum(when > begin for when in times) / max(now - begin, 1e-3)


def _shard_stage(plan: CurationPlan, parts: int) -> dict[str, Any]:
    """The shards: whole, or how many parts of the pool are packed."""
    path = storage.join(plan.shards_root, "manifest.json")
    whole = _read(path) if storage.exists(path) else None
    is_whole = whole is not None and whole.get("fingerprint") == plan.shard.fingerprint
    is_whole = is_whole and not storage.exists(storage.join(plan.shards_root, shards.UNFINISHED))
    told = whole if is_whole and whole else {}
    made: list[Entry] = []
    if not is_whole:
        folder = storage.join(plan.pool.work_folder(plan.shard.fingerprint), "ledger")
        made = manifests(listing.files(folder, ".json"))
    return {
        "stage": plan.shard.name,
        "folder": plan.shards_root,
        "done": parts if is_whole else len(made),
        "rows_in": told.get("kept", 0),
        "kept": told.get("kept", 0),
        "refused": {},
        "seconds": 0.0,
        "is_about": False,
        "rows_per_s": None,
        "rows_per_s_lately": None,
        "parts_per_s": None if is_whole else _parts_per_s(made),
        "shards": told.get("shards"),
        **({"state": "done"} if is_whole else {}),
    }


def _add_run(
    one: dict[str, Any],
    step: str,
    holder: Mapping[str, Any] | None,
    failed: Mapping[str, Any],
    parts: int,
) -> None:
    """What the lease and the failures say of a stage: whether it goes on, parts running, parts failed."""
    names = step.removeprefix("source ").split(" + ")
    goes_on = bool(holder) and one["stage"] in names and one.get("state") != "done"
    of_stage = [told for name, told in failed.items() if name.partition(" (")[0] == one["stage"]]
    one["failed"] = sum(len(told["parts"]) for told in of_stage)
    one["running"] = int((holder or {}).get("running", 0)) if goes_on else 0
    is_done = bool(parts) and one["done"] >= parts and "shards" not in one
    state = "running" if goes_on else "failed" if one["failed"] else "partly" if one["done"] else "waiting"  # fmt: skip
    one["state"] = one.get("state") or ("done" if is_done else state)
    one["parts"] = parts
    if one["state"] != "running":
        one["rows_per_s_lately"] = one["parts_per_s"] = None


def _left_s(stages: Sequence[Mapping[str, Any]], parts: int) -> float | None:
    """Seconds until the step that goes on ends, at the rate of late; None where none does or nothing is known."""
    left = [
        (parts - one["done"]) / one["parts_per_s"] if one["parts_per_s"] else None
        for one in stages
        if one["state"] == "running"
    ]
    known = [seconds for seconds in left if seconds is not None]
    return round(max(known), 1) if known and len(known) == len(left) else None


def _refused(stages: Sequence[Mapping[str, Any]]) -> list[dict[str, Any]]:
    """Reasons with their rows, the most frequent first."""
    found = [
        {"stage": one["stage"], "reason": reason, "rows": rows}
        for one in stages
        for reason, rows in one["refused"].items()
    ]
    return sorted(found, key=lambda entry: -entry["rows"])


def _report(plan: CurationPlan | None) -> str | None:
    if plan is None:
        return None
    path = storage.join(plan.shards_root, "report.html")
    return path if storage.exists(path) else None


def _stamp(seconds: float) -> str:
    return datetime.fromtimestamp(seconds, UTC).strftime("%Y-%m-%dT%H:%M:%SZ")


def _age_s(beat: str) -> float | None:
    try:
        when = datetime.strptime(beat, "%Y-%m-%d %H:%M:%S UTC").replace(tzinfo=UTC)
    except ValueError:
        return None
    return max(0.0, round(time.time() - when.timestamp(), 1))
