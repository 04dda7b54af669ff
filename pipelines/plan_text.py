"""The steps of a recipe in words, for `clip-pipe plan`: what is done, what is to do, and what it costs."""

from __future__ import annotations

import json
import re
from typing import Any

from curate.contract import shards, storage
from pipelines import resources, sharding, training_plan
from pipelines.errors import split_hint
from pipelines.plan import CurationPlan, Planned
from pipelines.recipe import Recipe
from pretrain.loop import settings
from pretrain.stream import order


def curation(planned: CurationPlan, count: int) -> list[str]:
    """Pool, source and its ``count`` parts, retries, and every step: done, to do, and its cost."""
    from pipelines import costs, generations, intake
    from pipelines import curation as journey

    described = intake.check_pool(planned)
    done_shards = sharding.check_folder(planned) is not None
    known = costs.rows_known(planned, count)
    lines = [
        f"pool      {planned.pool_root}",
        f"shards    {planned.shards_root}" + ("  (done)" if done_shards else ""),
    ]
    lines.append(
        f"source    {planned.source.use}  {count} parts" + ("" if described else "  (new pool)")
    )
    lines += _asks(planned.source)
    for number, entry in enumerate(generations.entries_of(described, planned.recipe), start=1):
        is_done = entry.get("finished") or done_shards
        state = "done" if is_done else "stopped" if entry.get("stopped") else "to do"
        lines.append(
            f"retry {number:<3d} {state:5s} {', '.join(entry['kinds'])}  {entry['rows']:,} rows"
        )
    for number, step in enumerate(planned.steps, start=1):
        how = "whole pool" if step.kind == "global" else "one pass"
        lines.append(f"step {number:<4d} {how}")
        for index in step.stages:
            stage = planned.stages[index]
            done = journey.parts_done(planned, stage, count) if described else 0
            state = (
                "done" if done == count else f"{done} of {count} parts done" if done else "to do"
            )
            lines.append(
                f"          {stage.name:28s} {stage.fingerprint[:8]}  {state:18s} {options(stage.options)}"
            )
            lines += _asks(stage)
            cost = "" if done == count else costs.plan_cost(planned, index, known)
            lines += [f"          {'':28s} cost {cost}"] if cost else []
    lines.append(
        f"shard     {'done ' if done_shards else 'to do'} {planned.shard.use}  {planned.shard.fingerprint[:8]}  {options(planned.shard.options)}"
    )
    return lines + _asks(planned.shard)


def _asks(planned: Planned) -> list[str]:
    """What a task of a stage asks for, where that is not one CPU."""
    asked = resources.told(planned.resources)
    return [f"          {'':28s} asks {asked}"] if asked else []


def training(loaded: Recipe, gpu: str = "", gpus: int = 1) -> list[str]:
    """Model, shards and phases."""
    assert loaded.train is not None
    lines = [f"train     {loaded.train.model} -> {loaded.train.out}"]
    lines += _shard_lines(loaded)
    for number, phase in enumerate(loaded.train.phase):
        terms = ", ".join(component.use for component in phase.objective) or "infonce"
        steps = -(-phase.samples // phase.global_batch)
        lines.append(
            f"phase {number:<3d} {phase.samples:,} samples, {steps:,} steps of {phase.global_batch:,}, lr {phase.lr}, objective {terms}"
        )
    lines += [f"warning   {doubt}" for doubt in settings.doubts(loaded.train)]
    return lines + training_plan.words(loaded.train, gpu, gpus).splitlines()


def _shard_lines(loaded: Recipe) -> list[str]:
    """Every shard set: is it there, and where that is cheap to know its pairs and how often they are seen."""
    assert loaded.train is not None
    samples = sum(phase.samples for phase in loaded.train.phase)
    whole = sum(source.weight for source in loaded.train.shards)
    own = loaded.curate.shards if loaded.curate else None
    lines: list[str] = []
    sets: list[tuple[str, int, float]] = []
    for source in loaded.train.shards:
        line = f"shards    {source.path}  weight {source.weight}"
        pairs = _pairs(source.path)
        sets.append((source.path, pairs, source.weight))
        if pairs:
            line += f"  {pairs:,} pairs, {samples * source.weight / whole / pairs:,.1f} epochs"
        missing = "" if pairs else _missing(source.path)
        if missing:
            line += "  not there yet" if source.path == own else f"  NOT THERE: {missing}"
        lines.append(line)
    largest = max((phase.global_batch for phase in loaded.train.phase), default=0)
    return lines + [f"warning   {line}" for line in order.repeats(sets, largest)]


def _pairs(path: str) -> int:
    """Those that a folder's sizes.json counts; 0 where there is none, and for what lies elsewhere."""
    sizes = storage.join(path, "sizes.json")
    if storage.is_url(path) or not storage.exists(sizes):
        return 0
    try:
        counted = json.loads(storage.read_text(sizes)).values()
        return sum(int(count) for count in counted)
    except (ValueError, TypeError, AttributeError, OSError):
        return 0  # another tool's file of that name


def _missing(path: str) -> str:
    """Why no tars are there, or ""; nothing that lies elsewhere is asked for."""
    try:
        if not storage.is_url(path):
            shards.list_tars(path)
    except ValueError as fault:
        what, _ = split_hint(str(fault))
        return re.sub(rf"^{re.escape(path)}: ", "", what)
    return ""


def options(given: dict[str, Any]) -> str:
    """Options that are set, in one line of 120 characters at most."""
    shown = {key: value for key, value in given.items() if value not in ("", (), None)}
    text = " ".join(f"{key}={value}" for key, value in shown.items())
    return text if len(text) <= 120 else text[:117] + "..."
