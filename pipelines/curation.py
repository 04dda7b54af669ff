"""The journey of a pool: ingest, steps, shards. The same for every runner.

What a runner is, `pipelines.calls` says. Nothing here knows Ray.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Sequence
from contextlib import nullcontext
from dataclasses import dataclass
from typing import Any

from curate.contract import storage
from curate.stage import Part
from pipelines import (
    allowance,
    damage,
    failures,
    global_step,
    intake,
    lease,
    look_ahead,
    part,
    retry,
    reuse,
    sharding,
    stage_end,
)
from pipelines.calls import Calls, Runner, each, row_results
from pipelines.errors import RunFailed, TooManyErrors
from pipelines.plan import CurationPlan, Planned, Step, plan_curation
from pipelines.progress import Progress
from pipelines.recipe import Recipe
from pipelines.step_tally import Tally

_EARLY_STOP_ROWS = (
    1000  # a share of errors over fewer rows than this is judged at a step's end only
)


@dataclass(frozen=True)
class Outcome:
    """What a curation run ended with: the shards' manifest, and whether there was anything to do."""

    manifest: dict[str, Any]
    already_done: bool


def run(
    plan: CurationPlan, runner: Runner, progress: Progress, recipe: Recipe | None = None
) -> Outcome:
    """Run what is not done yet. Raises RecipeError before any work, RunFailed in the middle of it.

    ``recipe`` is what the plan was made of; it is kept in the pool where it is given. Without it a stage that
    makes up for losses asks for as many rows as is known now.
    """
    done = sharding.check_folder(plan)
    intake.check_pool(plan)
    if done is None or sharding.is_left_open(plan):
        with lease.held((plan.pool_root, plan.shards_root), progress.say, progress.told):
            done = sharding.check_folder(plan)  # another run may have ended it meanwhile
            if done is not None:
                sharding.close(plan)
            else:
                return damage.mended(
                    lambda plan: _journey(plan, runner, progress, recipe),
                    plan,
                    progress.say,
                    lambda: plan if recipe is None else plan_curation(recipe),
                )
    progress.say(f"nothing to do: {plan.shards_root} holds this recipe's shards already")
    return Outcome(done, True)


def _journey(
    plan: CurationPlan, runner: Runner, progress: Progress, recipe: Recipe | None
) -> Outcome:
    storage.sweep(plan.shards_root)
    plans = [plan]
    try:
        count = _take_in(plan, runner, progress, recipe)
        first = _observe_losses(plans, count, runner, progress, recipe)
        _run_steps(plans[-1], plans[-1].steps[first:], count, runner, progress)
    except TooManyErrors as fault:
        retry.stop(plans[-1], fault.stage)
        raise
    except RunFailed:
        retry.finish_if_asked(plans[-1])
        raise
    retry.note_outcome(plans[-1])
    manifest = _shard(plans[-1], count, runner, progress)
    retry.finish(plans[-1])
    failures.Failures(plan.pool_root).forget()
    look_ahead.forget_notes(plan)
    return Outcome(manifest, False)


def measure(
    plan: CurationPlan, runner: Runner, progress: Progress, recipe: Recipe | None = None
) -> int:
    """Take in the source and run every stage; everything but the shards. Returns the number of parts."""

    def journey(plan: CurationPlan) -> int:
        count = _take_in(plan, runner, progress, recipe)
        _run_steps(plan, plan.steps, count, runner, progress)
        return count

    with lease.held((plan.pool_root,), progress.say, progress.told):
        return damage.mended(journey, plan, progress.say)


def _take_in(plan: CurationPlan, runner: Runner, progress: Progress, recipe: Recipe | None) -> int:
    storage.sweep(plan.pool_root)
    count = _ingest(plan, runner, progress)
    if recipe is not None:
        intake.keep_recipe(recipe)
    return count


def _observe_losses(
    plans: list[CurationPlan],
    count: int,
    runner: Runner,
    progress: Progress,
    recipe: Recipe | None,
) -> int:
    """Run up to the last download, as often as some stage then asks for more. Returns the step to go on with.

    Each plan is added to ``plans``: a runner knows them by their id, so none may go.
    """
    first = 0
    while recipe is not None and allowance.unsettled(plans[-1]):
        plan = plans[-1]
        end = allowance.steps_to_observe(plan)
        _run_steps(plan, plan.steps[first:end], count, runner, progress)
        told = allowance.observe(plan, count)
        for words in told:
            progress.say(words)
        plans.append(plan_curation(recipe))
        first = allowance.first_step(plan) if told else end
    return first


def _run_steps(
    plan: CurationPlan, steps: Sequence[Step], count: int, runner: Runner, progress: Progress
) -> None:
    for step in steps:
        if step.kind == "rows":
            _rows_step(plan, step, count, runner, progress)
        else:
            _global_step(plan, step, count, runner, progress)


def parts_done(plan: CurationPlan, planned: Planned, count: int) -> int:
    """How many parts of a stage are committed."""
    return sum(seen.stats is not None for _, seen in part.survey(plan, planned, range(count)))


def _ingest(plan: CurationPlan, runner: Runner, progress: Progress) -> int:
    """Rows come in. pool.json is written first and names the slices, so a re-run takes the same ones."""
    described = intake.begin(plan, progress.say)
    slices = [Part(number, payload) for number, payload in enumerate(described["slices"])]
    missing = [slices[n] for n in damage.missing_rows(plan, len(slices), progress.say)]
    progress.start(f"source {plan.source.use}", len(missing))
    calls = [(entry,) for entry in missing]
    numbers = [entry.index for entry in missing]
    name, asked = plan.source.name, plan.source.resources
    for _ in each(runner, part.ingest, plan, calls, asked, name, numbers):
        progress.advance()
    stage_end.end_stage(
        plan,
        plan.source,
        stage_end.told(plan, plan.source, len(slices)),
        progress,
        before=not missing,
    )
    return len(slices)


def _rows_step(
    plan: CurationPlan, step: Step, count: int, runner: Runner, progress: Progress
) -> None:
    stages = [plan.stages[index] for index in step.stages]
    progress.start(" + ".join(planned.name for planned in stages), count)
    seen = {index: Tally() for index in step.stages}
    left = {
        i: damage.missing(plan, plan.stages[i], count, progress.say, seen[i]) for i in step.stages
    }
    fresh = {index for index, numbers in left.items() if numbers}
    again = {number for numbers in left.values() for number in numbers}
    todo = sorted(again)
    for _ in range(count - len(todo)):
        progress.advance()
    others = [number for number in range(count) if number not in again]
    for index in step.stages if todo else ():  # parts that are done again are added when they end
        seen[index] = Tally()
        for _, found in part.survey(plan, plan.stages[index], others) if others else ():
            if found.stats is not None:
                seen[index].add(found.stats)
    earlier = {}
    for index in step.stages if todo else ():
        reuse.note_measure(plan, plan.stages[index])
        earlier[index] = reuse.fingerprints(plan, plan.stages[index])
    is_ahead = look_ahead.does(stages[0])
    with progress.counting_rows() if is_ahead else nullcontext():
        for result in row_results(plan, step, todo, earlier, runner):
            progress.advance()
            for index in step.stages:
                seen[index].add(result[index])
                stage_end.check_errors(
                    plan, plan.stages[index], seen[index], at_least=_EARLY_STOP_ROWS
                )
    if is_ahead:  # a run that was killed may have left notes of parts it had committed
        storage.remove(look_ahead.notes_root(plan, stages[0]))
    for index in step.stages:
        stage_end.end_stage(
            plan, plan.stages[index], seen[index], progress, before=index not in fresh
        )


def _global_step(
    plan: CurationPlan, step: Step, count: int, runner: Runner, progress: Progress
) -> None:
    index = step.stages[0]
    planned = plan.stages[index]
    progress.start(planned.name, count)
    left = damage.missing(plan, planned, count, progress.say)
    before = not left
    if left:
        rows = sum(
            (seen.stats or {"rows": 0})["rows"] for _, seen in part.survey_rows(plan, range(count))
        )
        buckets = global_step.bucket_count(planned, rows)
        everyone = range(count)

        def every(function: Callable[..., Any], calls: list[tuple[Any, ...]]) -> list[Any]:
            name = f"{planned.name} ({function.__name__})"
            found = each(runner, function, plan, calls, planned.resources, name)
            return [result for _, result in found]

        shares = global_step.spans(planned, rows, count)
        every(global_step.summarize, [(index, buckets, *share) for share in shares])
        gathered = [several for several in global_step.gatherings(shares) if len(several) > 1]
        every(global_step.gather, [(index, buckets, several) for several in gathered])
        every(global_step.merge, [(index, buckets, shares, b) for b in range(buckets)])
        routed = global_step.routes(planned, rows, count, buckets)
        every(global_step.route, [(index, buckets, share) for share in routed])
        told = {n: share for share in routed for n in range(*share)}
        if planned.stage.passes() > 1 or global_step.settles(planned):
            every(global_step.settle, [(index, buckets)])
        for done in range(1, planned.stage.passes()):
            if every(global_step.is_enough, [(index, done)]) == [True]:
                break
            every(global_step.look_again, [(index, done, n) for n in everyone])
            every(global_step.adjust, [(index, done, count)])
        global_step.keep_state(plan, planned, buckets)
        todo = [(index, buckets, n, told.get(n)) for n in left]
        numbers = [call[2] for call in todo]
        asked, name = planned.resources, planned.name
        for _ in each(runner, global_step.decide, plan, todo, asked, name, numbers):
            progress.advance()
    global_step.forget(plan, planned)
    stage_end.end_stage(
        plan, planned, stage_end.told(plan, planned, count), progress, before=before
    )


def _shard(plan: CurationPlan, count: int, runner: Runner, progress: Progress) -> dict[str, Any]:
    sharding.begin(plan)
    progress.start(plan.shard.use, count)
    part_stats: list[dict[str, Any]] = [{}] * count
    histogram: Counter[int] = Counter()
    asked, name = plan.shard.resources, plan.shard.name
    packed = Calls(range(count), lambda number: (number,))
    for position, stats in each(runner, sharding.pack, plan, packed, asked, name):
        # JSON made the buckets' numbers text. Summed as they come: one part's counts at a time.
        histogram.update({int(bucket): n for bucket, n in stats.pop("histogram", {}).items()})
        part_stats[position] = stats
        progress.advance()
    kept = sum(stats["kept"] for stats in part_stats)
    sizes: list[int] = []
    if plan.has_images:
        pieces = plan.shard.stage.slices(histogram)
        sizes = [0] * len(pieces)
        shares = sharding.gatherings(plan, count) if pieces else []
        cuts = min(len(pieces), sharding.MOST_CUTS) if shares else 0
        orders = [(cuts, *share) for share in shares]
        for _ in each(runner, sharding.gather, plan, orders, asked, name + " (gather)"):
            pass
        tars = [(count, number, piece, cuts) for number, piece in enumerate(pieces)]
        name += " (assemble)"
        for position, stats in each(runner, sharding.assemble, plan, tars, asked, name):
            sizes[position] = stats["samples"]
    manifest = sharding.finish(plan, part_stats, sizes)
    rows = manifest["rows_in"]
    what = f"{len(sizes)} shards" if plan.has_images else "kept.parquet"
    progress.finish(f"{kept} of {rows} rows kept, {what}; {plan.shards_root}")
    return manifest
