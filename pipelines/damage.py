"""Parts that are not what their manifests say: found, set aside under ``.damaged``, said, and done again.

A run looks at the sizes of each part's files before it counts it as done. Damage that only a worker meets (a
file cut while the run goes on, bytes that are no parquet) ends the step; the part is taken back and the journey
goes on from where it was. What a damaged part still holds is taken over (see reuse).
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any, TypeVar

from curate.contract import done, storage
from curate.stage import GlobalStage
from pipelines import global_step, intake, part
from pipelines.errors import PartDamaged
from pipelines.plan import CurationPlan, Planned
from pipelines.step_tally import Tally

_MOST = 20  # parts that are taken back one by one, before the disk itself is the suspect
Found = TypeVar("Found")


def missing(
    plan: CurationPlan,
    planned: Planned,
    count: int,
    say: Callable[[str], None],
    tally: Tally | None = None,
) -> list[int]:
    """The parts that a stage is not done for; what is damaged is set aside. The others are added to ``tally``."""
    found = []
    for number, seen in part.survey(plan, planned, range(count)):
        if seen.stats is None:
            found.append(number)
            _set_aside(plan, planned, number, seen, say)
        elif tally is not None:
            tally.add(seen.stats)
    return found


def missing_rows(plan: CurationPlan, count: int, say: Callable[[str], None]) -> list[int]:
    """The source's parts that are not read in; of what is damaged rows, decisions, pictures are set aside."""
    found = []
    for number, rows, decided in part.survey_source(plan, count):
        if rows.stats is not None and decided.stats is not None:
            continue
        found.append(number)
        if rows.fault:
            _say(say, f"source {plan.source.use}", number, rows.path, rows.fault)
            done.set_aside(plan.pool.rows_path(number))
        _set_aside(plan, plan.source, number, decided, say)
    return found


def _set_aside(
    plan: CurationPlan, planned: Planned, number: int, seen: done.Seen, say: Callable[[str], None]
) -> None:
    if seen.fault:
        _say(say, planned.name, number, seen.path, seen.fault)
        done.set_aside(part.sidecar(plan, planned, number), part.beside(plan, planned, number))


def mended(
    journey: Callable[[CurationPlan], Found],
    plan: CurationPlan,
    say: Callable[[str], None],
    planned_anew: Callable[[], CurationPlan] | None = None,
) -> Found:
    """What ``journey`` returns; where it meets a damaged part that is taken back and the journey goes on.

    ``planned_anew``: the plan from what the pool says by then.
    """
    for _ in range(_MOST):
        try:
            return journey(plan)
        except PartDamaged as fault:
            if not take_back(plan, fault.path, fault.what, say):
                raise
        plan = planned_anew() if planned_anew is not None else plan
    return journey(plan)


def take_back(plan: CurationPlan, path: str, what: str, say: Callable[[str], None]) -> bool:
    """Have the part that a file belongs to done again. False where nothing is wrong with that file."""
    work = storage.join(plan.pool_root, "work") + "/"
    if path.startswith(work):
        folder = path.removeprefix(work).partition("/")[0]
        say(f"{path}: {what}; what was counted there is counted again")
        storage.remove(work + folder)
        return True
    found = _owner(plan, path)
    if found is None:
        return False
    name, number, own, beside = found
    seen = done.look(own, beside)
    if seen.stats is not None:
        told = done.faults(own, seen.stats, beside)
        if not told:
            return False  # it is as it was written; the disk, say, could not be read
        what = told[0].removeprefix(f"{path}: ")
    elif not seen.fault and not storage.exists(path):
        return True  # nobody's any more: it is to do
    _say(say, name, number, path, what)
    done.set_aside(own, beside)
    return True


def as_failure(fault: done.Damaged) -> PartDamaged:
    """What a runner raises for damage that a worker met."""
    return PartDamaged(
        f"{fault}\nhint: the same command sets that part aside and does it again; if it comes again, the disk may be failing",
        fault.path,
        fault.what,
    )


def _owner(plan: CurationPlan, path: str) -> tuple[str, int, str, dict[str, str]] | None:
    """(stage's name, part, its parquet file, what belongs to it) of a file of the pool."""
    stem = path.rsplit("/", 1)[-1].partition(".")[0].removeprefix("part-")
    if not stem.isdigit():
        return None
    number = int(stem)
    rows = plan.pool.rows_path(number)
    if path in (rows, done.manifest_path(rows)):
        return f"source {plan.source.use}", number, rows, {}
    for planned in (plan.source, *plan.stages):
        own, beside = part.sidecar(plan, planned, number), part.beside(plan, planned, number)
        if path in (own, done.manifest_path(own), *beside.values()):
            return planned.name, number, own, beside
    return None


def _say(say: Callable[[str], None], name: str, number: int, path: str, what: str) -> None:
    say(
        f"{name}: part {number} is damaged and done again: {path}: {what}; set aside as *{done.ASIDE}"
    )


def give_back(plan: CurationPlan, planned: Planned, stats: list[dict[str, Any]]) -> list[int]:
    """Take back the parts of a failed stage in which every row failed: a server was down, say.

    What stands on them goes too: that part of a row stage, all of a global one.
    """
    if planned is plan.source:
        return []
    index = plan.stages.index(planned)
    dead = [
        entry["part"]
        for entry in stats
        if entry["rows_in"] and not entry["kept"] and _all_errors(entry)
    ]
    for later in (
        (p for n, p in enumerate(plan.stages) if n > index and index in p.upstream) if dead else ()
    ):
        gone: Sequence[int] = dead
        if isinstance(later.stage, GlobalStage):
            gone = range(intake.part_count(plan))
            global_step.forget(plan, later)  # a state may hold what those rows were
        for number in gone:
            done.withdraw(part.sidecar(plan, later, number))
    for number in dead:
        done.withdraw(part.sidecar(plan, planned, number))
    return dead


def _all_errors(entry: dict[str, Any]) -> bool:
    return all(reason.startswith("error.") for reason in entry["refused"])
