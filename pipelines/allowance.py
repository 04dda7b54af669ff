"""How many more rows a stage asks for, since some are lost in the downloads below it.

A stage that says how many rows it wants (`GlobalStage.rows_wanted`) is first asked for just these. What the
downloads then lose decides how many it is asked for next (`after_losses`), at most twice. Each share of
successes is written to POOL/allowance.json before it is used, under the stage as it is without any
allowance and what the downloads measure: so a resumed run, and whoever only plans, take the same.
"""

from __future__ import annotations

import json
import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from curate.contract import storage
from curate.contract.manifest import fingerprint
from pipelines.errors import RecipeError, split_hint

if TYPE_CHECKING:
    from pipelines.plan import CurationPlan, Planned

_MOST_ROUNDS = 3  # the one without any allowance included
_NEAR_FRAC, _NEAR_SIGMAS = 0.01, 3.0


@dataclass(frozen=True)
class Allowance:
    """What is known of the losses below one stage."""

    index: int  # of the stage
    name: str
    rows_wanted: int
    key: str
    success_fracs: tuple[float, ...]  # observed so far, oldest first
    settled: bool

    @property
    def success_frac(self) -> float:
        """The share that the stage is to make up for."""
        return self.success_fracs[-1] if self.success_fracs else 1.0


def followed(pool: str, stages: Sequence[Planned]) -> tuple[Allowance, ...]:
    """The allowances of a plan whose ``stages`` were made without any. Raises RecipeError for no download."""
    wanting = [index for index, one in enumerate(stages) if one.rows_wanted is not None]
    known = _read(pool) if wanting else {}
    found = []
    for index in wanting:
        makers = [one.measure for one in stages[index + 1 :] if one.makes_images]
        planned = stages[index]
        if not makers:
            raise RecipeError(
                planned.name,
                "it makes up for what a download loses, and no stage below it makes pictures",
                "leave that option out, or put download.fetch below it",
            )
        key = fingerprint(planned.fingerprint, makers)
        entry = known.get(key, {})
        fracs = tuple(float(each["success_frac"]) for each in entry.get("rounds", []))
        settled = bool(entry.get("settled"))
        wanted = planned.rows_wanted or 0
        found.append(Allowance(index, planned.name, wanted, key, fracs, settled))
    return tuple(found)


def losses(allowances: Sequence[Allowance]) -> dict[str, float]:
    """Stage -> share of what it keeps that comes through the downloads below it."""
    return {one.name: one.success_frac for one in allowances if one.success_fracs}


def earlier_rounds(allowances: Sequence[Allowance]) -> list[dict[str, float]]:
    """``losses`` as they were in the rounds before, the newest first."""
    rounds = max((len(one.success_fracs) for one in allowances), default=0)
    found = []
    for back in range(1, rounds + 1):
        fracs = {one.name: one.success_fracs[: len(one.success_fracs) - back] for one in allowances}
        found.append({name: each[-1] for name, each in fracs.items() if each})
    return found


def unsettled(plan: CurationPlan) -> bool:
    """Whether it is still open how much some stage has to ask for."""
    return any(not one.settled for one in plan.allowances)


def first_step(plan: CurationPlan) -> int:
    """The step of the first stage that may ask for more; what stands above it stays as it is."""
    first = min(one.index for one in plan.allowances)
    return next(n for n, step in enumerate(plan.steps) if first in step.stages)


def steps_to_observe(plan: CurationPlan) -> int:
    """How many of the plan's steps end with the last download."""
    last = max(index for index, planned in enumerate(plan.stages) if planned.makes_images)
    return next(n for n, step in enumerate(plan.steps, start=1) if last in step.stages)


def observe(plan: CurationPlan, count: int) -> list[str]:
    """Note what the downloads lost of ``count`` parts; words on every stage that has to ask for more.

    Nothing to say means that all is settled.
    """
    known = _read(plan.pool_root)
    told = []
    for one in plan.allowances:
        if one.settled:
            continue
        entry = known.setdefault(one.key, {"stage": one.name, "rounds": [], "settled": False})
        seen = _seen(plan, one, count)
        if _asks_again(one, seen, entry["rounds"]):
            entry["rounds"].append(seen)
            told.append(
                f"{one.name}: {seen['success_frac']:.1%} of {seen['rows_kept']:,} rows came through the downloads; "
                f"asks for {1 / seen['success_frac']:.3f} times {one.rows_wanted:,}"
            )
        else:
            entry |= {"settled": True, "last": seen}
    storage.write_text(_path(plan.pool_root), json.dumps(known, indent=1) + "\n")
    return told


def _seen(plan: CurationPlan, one: Allowance, count: int) -> dict[str, Any]:
    """Rows that the stage kept, and the share of them that every stage below that makes pictures kept."""
    rows_kept = _counts(plan, plan.stages[one.index], count)[1]
    frac = 1.0
    for planned in plan.stages[one.index + 1 :]:
        if planned.makes_images:
            rows_in, kept = _counts(plan, planned, count)
            frac *= kept / rows_in if rows_in else 1.0
    return {"rows_kept": rows_kept, "success_frac": frac}


def _asks_again(
    one: Allowance, seen: Mapping[str, Any], rounds: Sequence[Mapping[str, Any]]
) -> bool:
    frac = seen["success_frac"]
    if len(rounds) + 1 >= _MOST_ROUNDS or not 0 < frac < one.success_frac:
        return False
    if not rounds:
        return True
    if seen["rows_kept"] <= rounds[-1]["rows_kept"]:
        return False  # there are no more
    short = one.rows_wanted - seen["rows_kept"] * frac
    near = max(_NEAR_FRAC * one.rows_wanted, _NEAR_SIGMAS * math.sqrt(one.rows_wanted))
    return bool(short > near)


def _counts(plan: CurationPlan, planned: Planned, count: int) -> tuple[int, int]:
    """(rows in, rows kept) of a stage over all parts, from their manifests."""
    from pipelines import part  # it needs the plan, which needs this

    found = (seen.stats or {} for _, seen in part.survey(plan, planned, range(count)))
    counts = [(stats.get("rows_in", 0), stats.get("kept", 0)) for stats in found]
    return sum(rows for rows, _ in counts), sum(kept for _, kept in counts)


def _path(pool: str) -> str:
    return storage.join(pool, "allowance.json")


def _read(pool: str) -> dict[str, Any]:
    path = _path(pool)
    if not storage.exists(path):
        return {}
    try:
        return storage.read_json(path, "pool")
    except ValueError as fault:
        what, hint = split_hint(str(fault))
        raise RecipeError(path, what, hint) from fault
