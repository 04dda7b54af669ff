"""``clip-pipe whatif``: what other options of the filters would keep, beside what is kept now.

Everything comes from what the pool holds: no measure runs again, the source is not read, nothing is
written. An option of a measure (a score, the download) can be tried only if some run left its values in
the pool.
"""

from __future__ import annotations

import copy
import json
import os
import sys
import tomllib
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from curate.contract import storage
from pipelines import overrides, recipe
from pipelines.errors import RecipeError
from pipelines.funnel import Funnel, evaluate, has_values, is_deciding, part_count
from pipelines.held import plan_of_pool, unread_files
from pipelines.plan import CurationPlan, Planned
from pipelines.recipe import Recipe
from pipelines.side_by_side import funnel_lines, funnel_record

BALANCE = "filter.metadata_balance"
_STAGE = ("curate", "stage")
_TRIED = ("curate.stage.", "seed")
_SOLVES = frozenset({"t", "keep", "tail_share", "oversample"})
_MOST_ROWS = 1 << 62


@dataclass(frozen=True)
class Scenario:
    """One column: its name, and the plan with the changed options."""

    name: str
    plan: CurationPlan


def compare(where: str, changes: Sequence[str], ts: Sequence[int] = ()) -> list[tuple[str, Funnel]]:
    """(name, funnel) of the pool as it is, then of each scenario. Raises RecipeError before any work.

    ``where`` is a pool, whose recipe was kept in it, or a recipe. ``changes`` are ``key=value`` texts
    and together one scenario; with ``ts``, one for each threshold of the balance.
    """
    base, scenarios = _plans(where, changes, ts)
    found = [("now", evaluate(base))]
    return found + [(one.name, evaluate(one.plan, base)) for one in scenarios]


def told(where: str, changes: Sequence[str], ts: Sequence[int], as_json: bool) -> str:
    """The text or JSON of the command."""
    found = compare(where, changes, ts)
    if as_json:
        record = [{"name": name, **funnel_record(funnel)} for name, funnel in found]
        return json.dumps({"changes": list(changes), "columns": record}, indent=1)
    tried = [f"with {change}" for change in changes if change.startswith(_TRIED)]
    return "\n".join([*tried, *funnel_lines(found)])


def with_t(loaded: Recipe, t: int) -> Recipe:
    """The recipe with another threshold in its balance, in place of whatever solved it."""
    data = copy.deepcopy(loaded.resolved)
    tables = data.get("curate", {}).get("stage", [])
    found = [table for table in tables if table.get("use") == BALANCE]
    if len(found) != 1:
        raise RecipeError(
            f"--t {t}",
            f"the recipe has {len(found)} stages {BALANCE}",
            "--t goes with exactly one"
            + ("; name it by --set curate.stage.N.t=..." if found else ""),
        )
    for key in _SOLVES - {"t"}:
        found[0].pop(key, None)
    found[0]["t"] = t
    return recipe.from_data(data, loaded.path)


def _plans(
    where: str, changes: Sequence[str], ts: Sequence[int]
) -> tuple[CurationPlan, list[Scenario]]:
    """The plan that the pool was made by, and one plan for each scenario."""
    in_pool = storage.exists(storage.join(where, "pool.json"))
    if not in_pool:
        _check_recipe(where)
    changed = kept(where, changes) if in_pool else recipe.load(where, changes)
    plan = plan_of_pool(changed)
    base = plan_of_pool(kept(where) if in_pool else _as_run(changed, plan, where, changes))
    _check_measures(base, plan, changed, changes)
    if ts:
        _check_rivals(changed, changes)
    if unread := unread_files(changed):
        text = f"note: {unread:,} files of the source are not read in yet; these are figures of what the pool holds"
        print(text, file=sys.stderr, flush=True)
    if ts:
        return base, [Scenario(f"t = {t:,}", plan_of_pool(with_t(changed, t))) for t in ts]
    if changes:
        return base, [Scenario("what-if", plan)]
    # A recipe that was edited since the run is a scenario by itself.
    is_edited = [p.fingerprint for p in plan.stages] != [p.fingerprint for p in base.stages]
    return base, [Scenario("as edited", plan)] if is_edited else []


def _check_recipe(where: str) -> None:
    """Raise RecipeError for a folder that is no pool; a recipe's file or name goes on."""
    inside = storage.join(where, "pool")
    is_folder = storage.is_url(where) or os.path.isdir(where)
    if is_folder or ("/" in where and not where.endswith(".toml")):
        found = storage.exists(storage.join(inside, "pool.json"))
        hint = f"did you mean {inside}?" if found else "name a pool's folder, or a recipe"
        raise RecipeError(where, "no pool is there (no pool.json)", hint)


def _as_run(changed: Recipe, plan: CurationPlan, name: str, changes: Sequence[str]) -> Recipe:
    """The recipe that a pool was last run with, where its user names the recipe and not the pool."""
    if storage.exists(storage.join(plan.pool_root, "recipe.toml")):
        found = kept(plan.pool_root)
        if found.name == changed.name:
            return found
    # Else what is not about filters says which run is meant, and the rest is tried.
    return recipe.load(name, [text for text in changes if not _is_tried(changed, plan, text)])


def kept(pool: str, changes: Sequence[str] = ()) -> Recipe:
    """The recipe that a pool was last run with, for the pool where it is now. Raises RecipeError."""
    path = storage.join(pool, "recipe.toml")
    if not storage.exists(path):
        raise RecipeError(
            pool,
            "the pool holds no recipe.toml, so it is unknown which stages made it",
            "name the recipe: clip-pipe whatif RECIPE --set ...",
        )
    try:
        data = tomllib.loads(storage.read_text(path))
    except (tomllib.TOMLDecodeError, UnicodeDecodeError) as fault:
        raise RecipeError(path, f"not valid TOML: {fault}") from fault
    for change in changes:
        overrides.apply(data, change)
    overrides.drop_rivals(data, changes)
    if isinstance(data.get("curate"), dict):
        data["curate"]["pool"] = storage.absolute(pool)
    return recipe.from_data(data, path)


def _stage_of(changed: Recipe, plan: CurationPlan, change: str) -> int | None:
    """The index in the plan of the stage that a change is about."""
    place = overrides.place_of(changed.resolved, change)
    if place[:2] != _STAGE or len(place) < 3 or changed.curate is None:
        return None
    # The plan may have put filter.duplicate_pair before the recipe's own stages.
    return int(place[2]) + len(plan.stages) - len(changed.curate.stage)


def _is_tried(changed: Recipe, plan: CurationPlan, change: str) -> bool:
    """Whether a change belongs to the scenario alone: it is about a filter, or the seed."""
    index = _stage_of(changed, plan, change)
    if index is None:
        return change.partition("=")[0].strip() == "seed"
    return is_deciding(plan.stages[index])


def _check_measures(
    base: CurationPlan, plan: CurationPlan, changed: Recipe, changes: Sequence[str]
) -> None:
    """Raise RecipeError where a scenario asks for a measure that the pool does not hold."""
    part_count(plan)
    if [p.use for p in base.stages] != [p.use for p in plan.stages]:
        raise RecipeError(
            "whatif",
            "the scenario has other stages than the run it is compared with",
            "change options of filters only; for other stages run `clip-pipe curate`",
        )
    asked = {_stage_of(changed, plan, text): f"--set {text}" for text in changes}
    for index, (before, planned) in enumerate(zip(base.stages, plan.stages, strict=True)):
        is_changed = index in asked or _own_options(before) != _own_options(planned)
        if not is_changed or is_deciding(planned) or planned.measure == before.measure:
            continue
        if not has_values(plan, planned):
            raise RecipeError(
                asked.get(index, f"{changed.path}: {planned.name} has other options now"),
                f"{planned.use} measures, and the pool holds no values of it with these options",
                "whatif tries options of filters; to measure anew run `clip-pipe curate` with these options",
            )


def _check_rivals(changed: Recipe, changes: Sequence[str]) -> None:
    """Raise RecipeError for a change that ``--t`` would take out again without a word."""
    for change in changes:
        *_, last = place = overrides.place_of(changed.resolved, change)
        stages = changed.curate.stage if changed.curate is not None else ()
        if tuple(place[:2]) != _STAGE or len(place) != 4 or last not in _SOLVES:
            continue
        if stages[int(place[2])].use == BALANCE:
            raise RecipeError(
                f"--set {change}",
                f"{last} and --t decide the same threshold",
                "compare one with `now` at a time: leave out --t, or this",
            )


def _own_options(planned: Planned) -> tuple[dict[str, Any], list[str]]:
    """What a recipe says of a stage itself: options but for the seed, and the content of files."""
    options = {name: value for name, value in planned.options.items() if name != "seed"}
    return options, list(planned.input_files_sha256.values())


def parse_ts(text: str) -> tuple[int, ...]:
    """``5k,20_000,1M`` as numbers of rows, in this order. Raises RecipeError."""
    words = [word.strip() for word in text.split(",")] if text else []
    if "" in words:
        what = f"item {words.index('') + 1} of {len(words)} is empty"
        raise RecipeError(f"--t {text}", what, "numbers of rows with one comma between two")
    return tuple(map(_number, words))


def _number(word: str) -> int:
    factor: Any = {"k": 1_000, "m": 1_000_000}.get(word[-1:].lower(), 1)
    try:
        value = float((word[:-1] if factor > 1 else word).replace("_", "")) * factor
        if value != int(value) or value < 1:
            raise ValueError
    except (ValueError, OverflowError) as fault:
        raise RecipeError(
            f"--t {word}", "no whole number of rows", "e.g. --t 5k,20_000,1M"
        ) from fault
    if value > _MOST_ROWS:
        raise RecipeError(f"--t {word}", "more rows than any pool has", f"at most {_MOST_ROWS:,}")
    return int(value)
