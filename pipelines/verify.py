"""``clip-pipe verify``: whether a pool or a shards folder is what its manifests say. Reads only, and takes no lease.

A pool: `verify_pool`. Shards: `verify_shards`. A pool may be looked at while a run goes on: what is not done
yet is no fault. Only ``--set-aside`` writes.
"""

from __future__ import annotations

import json
import sys
from contextlib import nullcontext
from typing import Any

from curate.contract import done, shards, storage
from pipelines import lease, status_training, verify_pool, verify_shards
from pipelines.errors import RecipeError
from pipelines.faults import Faults

SCHEMA = 1
_SHOWN = 50


def told(where: str, *, quick: bool, as_json: bool, set_aside: bool = False) -> tuple[str, bool]:
    """(text or JSON, whether nothing is wrong). Raises RecipeError for a folder of neither kind."""
    record = check(where, quick=quick, set_aside=set_aside)
    if as_json:
        return json.dumps(record, ensure_ascii=False), record["fine"]
    return "\n".join(lines(record)), record["fine"]


def check(where: str, *, quick: bool = False, set_aside: bool = False) -> dict[str, Any]:
    """The record of ``--json``. With ``set_aside`` damaged parts of a pool are taken back, under its lease."""
    kind = _kind(where)
    if set_aside and kind != "pool":
        raise RecipeError(
            "--set-aside", "shards have no parts", "name the pool that they are made of"
        )
    with lease.held((where,), _say) if set_aside else nullcontext():
        return _checked(where, kind, quick, set_aside)


def _say(words: str) -> None:
    print(words, file=sys.stderr, flush=True)


def _checked(where: str, kind: str, quick: bool, set_aside: bool) -> dict[str, Any]:
    found = Faults()
    if not set_aside and lease.read(where) is not None:
        found.notes.append("a run is at work here, or died here: see clip-pipe status")
    if kind == "pool":
        damaged = verify_pool.check(where, quick, found)
        for path, beside in damaged if set_aside else ():
            lease.check()
            done.set_aside(path, beside)
            found.notes.append(
                f"{path}: set aside as *{done.ASIDE}; `clip-pipe curate` makes it anew"
            )
    else:
        verify_shards.check(where, quick, found)
    return {"schema": SCHEMA, "where": where, "kind": kind, "quick": quick, **found.record()}


def lines(record: dict[str, Any]) -> list[str]:
    """The record in words: each fault, what to do about it, then the sums."""
    out = [f"note: {note}" for note in record["notes"]]
    hints: dict[str, int] = {}
    for fault in record["faults"][:_SHOWN]:
        at = f"{fault['at']}: " if fault["at"] else ""
        out.append(f"{fault['file']}: {at}{fault['what']}")
    for fault in record["faults"]:
        hints[fault["hint"]] = hints.get(fault["hint"], 0) + 1
    if record["fault_count"] > _SHOWN:
        out.append(
            f"and {record['fault_count'] - _SHOWN:,} more (--json has {len(record['faults']):,})"
        )
    out += [f"hint ({count:,} of them): {hint}" for hint, count in hints.items()]
    sums = ", ".join(f"{count:,} {name}" for name, count in record["checked"].items())
    how = ", sizes and counts only" if record["quick"] else ""
    verdict = "nothing is wrong" if record["fine"] else f"{record['fault_count']:,} faults"
    return [*out, f"{record['kind']} {record['where']}: {verdict} ({sums or 'nothing there'}{how})"]


def _kind(where: str) -> str:
    if storage.exists(storage.join(where, "pool.json")):
        return "pool"
    names = ("manifest.json", "index.parquet", "sizes.json", shards.UNFINISHED)
    if any(storage.exists(storage.join(where, name)) for name in names):
        return "shards"
    if storage.inside(where, "*.tar"):
        return "shards"
    hint = "name a pool's folder (with pool.json) or a shards folder"
    if where.endswith(".toml"):
        hint = "this is a recipe: name its pool or its shards"
    if status_training.is_training(where):
        hint = f"this is a training: clip-pipe checkpoint verify {where}"
    raise RecipeError(f"verify {where}", "neither a pool nor shards lie there", hint)
