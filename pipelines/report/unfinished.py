"""The page of a run that has no shards yet: what each stage has done, and which parts could not be done."""

from __future__ import annotations

import os
from dataclasses import dataclass
from typing import Any

from curate.contract import parts, storage
from pipelines import failures, intake, part
from pipelines.plan import CurationPlan, Planned
from pipelines.step_tally import Tally

_REASONS = 4


@dataclass(frozen=True)
class _Stage:
    name: str
    parts: int
    rows_in: int
    kept: int
    reasons: str


def write(plan: CurationPlan) -> str:
    """POOL/work/report.html; returns its path."""
    path = storage.join(plan.pool_root, "work", "report.html")
    storage.write_text(path, render(plan))
    return path


def failed(pool_root: str) -> list[dict[str, Any]]:
    """Every failed part that is noted, as one table."""
    found = failures.read(pool_root)
    return [
        {"stage": stage, "part": int(number), **_words(told)}
        for stage, entry in found.items()
        for number, told in sorted(entry["parts"].items(), key=lambda item: int(item[0]))
    ]


def render(plan: CurationPlan) -> str:
    """The whole page. Words of workers may hold anything, so all of it is escaped."""
    from jinja2 import Environment, FileSystemLoader, StrictUndefined

    environment = Environment(
        loader=FileSystemLoader(os.path.dirname(os.path.abspath(__file__))),
        autoescape=True,
        undefined=StrictUndefined,
        trim_blocks=True,
    )
    count = intake.part_count(plan)
    return environment.get_template("unfinished.html").render(
        recipe=plan.recipe,
        failed=failed(plan.pool_root),
        parts=count,
        stages=[_stage(plan, planned, count) for planned in (plan.source, *plan.stages)],
    )


def _stage(plan: CurationPlan, planned: Planned, count: int) -> _Stage:
    seen = Tally()
    for number in range(count):
        if part.is_done(plan, planned, number):
            seen.add(parts.read_stats(part.sidecar(plan, planned, number)))
    most = seen.refused.most_common(_REASONS)
    reasons = ", ".join(f"{reason} {rows:,}" for reason, rows in most)
    kept = seen.rows_in - seen.refused.total()
    return _Stage(planned.name, seen.parts, seen.rows_in, kept, reasons)


def _words(told: dict[str, Any]) -> dict[str, str]:
    return {name: str(told.get(name, "")) for name in ("kind", "attempts", "told", "node", "log")}
