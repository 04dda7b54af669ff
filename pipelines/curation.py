"""The journey of a pool: ingest, steps, shards. The same for every runner.

A runner is one function, ``map``: it calls a worker function for each tuple of arguments, anywhere
and in any order, and yields (position, result) as they end; of a worker function that is a generator,
each of its results. Nothing here knows Ray.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from contextlib import nullcontext
from dataclasses import dataclass
from typing import Any, Protocol

from curate.contract import parts, storage
from curate.contract.manifest import Manifest
from curate.stage import GlobalStage, Part, Resources
from pipelines import (
    advice,
    allowance,
    fused,
    global_step,
    intake,
    look_ahead,
    part,
    retry,
    reuse,
    sharding,
)
from pipelines.errors import RunFailed, TooManyErrors
from pipelines.plan import CurationPlan, Planned, Step, plan_curation
from pipelines.progress import Progress
from pipelines.recipe import Recipe

_EARLY_STOP_ROWS = (
    1000  # a share of errors over fewer rows than this is judged at a step's end only
)


class Runner(Protocol):
    """Where worker functions run."""

    @property
    def workers(self) -> int:
        """Processes that calls are spread over; 0 where this one runs all of them, in order."""
        ...

    def map(
        self,
        function: Callable[..., Any],
        plan: CurationPlan,
        calls: Sequence[tuple[Any, ...]],
        resources: Resources,
    ) -> Iterator[tuple[int, Any]]: ...


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
    if done is not None:
        progress.say(f"nothing to do: {plan.shards_root} holds this recipe's shards already")
        return Outcome(done, True)
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
    look_ahead.forget_notes(plan)
    return Outcome(manifest, False)


def measure(
    plan: CurationPlan, runner: Runner, progress: Progress, recipe: Recipe | None = None
) -> int:
    """Take in the source and run every stage; everything but the shards. Returns the number of parts."""
    count = _take_in(plan, runner, progress, recipe)
    _run_steps(plan, plan.steps, count, runner, progress)
    return count


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
    return sum(part.is_done(plan, planned, number) for number in range(count))


def _ingest(plan: CurationPlan, runner: Runner, progress: Progress) -> int:
    """Rows come in. pool.json is written first and names the slices, so a re-run takes the same ones."""
    described = intake.begin(plan)
    slices = [Part(number, payload) for number, payload in enumerate(described["slices"])]
    missing = [entry for entry in slices if not storage.exists(plan.pool.rows_path(entry.index))]
    progress.start(f"source {plan.source.use}", len(missing))
    for _ in _call(runner, part.ingest, plan, [(entry,) for entry in missing], Resources()):
        progress.advance()
    stats = [
        parts.read_stats(part.sidecar(plan, plan.source, number)) for number in range(len(slices))
    ]
    _end_stage(plan, plan.source, stats, progress, before=not missing)
    return len(slices)


def _rows_step(
    plan: CurationPlan, step: Step, count: int, runner: Runner, progress: Progress
) -> None:
    stages = [plan.stages[index] for index in step.stages]
    progress.start(" + ".join(planned.name for planned in stages), count)
    todo = [
        n for n in range(count) if not all(part.is_done(plan, planned, n) for planned in stages)
    ]
    fresh = {i for i in step.stages if parts_done(plan, plan.stages[i], count) < count}
    seen: dict[int, list[dict[str, Any]]] = {index: [] for index in step.stages}
    for number in sorted(set(range(count)) - set(todo)):
        progress.advance()
        for index in step.stages:
            seen[index].append(parts.read_stats(part.sidecar(plan, plan.stages[index], number)))
    earlier = {}
    for index in step.stages if todo else ():
        reuse.note_measure(plan, plan.stages[index])
        earlier[index] = reuse.fingerprints(plan, plan.stages[index])
    is_ahead = look_ahead.does(stages[0])
    calls = [
        (step.stages, span, upcoming, earlier)
        for span, upcoming in look_ahead.spans(todo, runner.workers, is_ahead)
    ]
    needs = _joined([planned.stage.resources for planned in stages])
    with progress.counting_rows() if is_ahead else nullcontext():
        for _, result in _call(runner, fused.run_span, plan, calls, needs):
            progress.advance()
            for index in step.stages:
                seen[index].append(result[index])
                _check_errors(plan, plan.stages[index], seen[index], at_least=_EARLY_STOP_ROWS)
    if is_ahead:  # a run that was killed may have left notes of parts it had committed
        storage.remove(look_ahead.notes_root(plan, stages[0]))
    for index in step.stages:
        _end_stage(plan, plan.stages[index], seen[index], progress, before=index not in fresh)


def _global_step(
    plan: CurationPlan, step: Step, count: int, runner: Runner, progress: Progress
) -> None:
    index = step.stages[0]
    planned = plan.stages[index]
    progress.start(planned.name, count)
    before = parts_done(plan, planned, count) == count
    if not before:
        rows = sum(parts.read_stats(plan.pool.rows_path(number))["rows"] for number in range(count))
        buckets = global_step.bucket_count(planned, rows)
        everyone = range(count)

        def each(function: Callable[..., Any], calls: list[tuple[Any, ...]]) -> list[Any]:
            found = _call(runner, function, plan, calls, planned.stage.resources)
            return [result for _, result in found]

        shares = global_step.spans(planned, rows, count)
        each(global_step.summarize, [(index, buckets, *share) for share in shares])
        each(global_step.merge, [(index, buckets, shares, b) for b in range(buckets)])
        if planned.stage.passes() > 1 or global_step.settles(planned):
            each(global_step.settle, [(index, buckets)])
        for done in range(1, planned.stage.passes()):
            if each(global_step.is_enough, [(index, done)]) == [True]:
                break
            each(global_step.look_again, [(index, done, n) for n in everyone])
            each(global_step.adjust, [(index, done, count)])
        global_step.keep_state(plan, planned, buckets)
        todo = [(index, buckets, n) for n in everyone if not part.is_done(plan, planned, n)]
        for _ in _call(runner, global_step.decide, plan, todo, planned.stage.resources):
            progress.advance()
    global_step.forget(plan, planned)
    stats = [parts.read_stats(part.sidecar(plan, planned, number)) for number in range(count)]
    _end_stage(plan, planned, stats, progress, before=before)


def _shard(plan: CurationPlan, count: int, runner: Runner, progress: Progress) -> dict[str, Any]:
    sharding.begin(plan)
    progress.start(plan.shard.use, count)
    part_stats: list[dict[str, Any]] = [{}] * count
    histogram: Counter[int] = Counter()
    for position, stats in _call(
        runner, sharding.pack, plan, [(n,) for n in range(count)], Resources()
    ):
        # JSON made the buckets' numbers text. Summed as they come: one part's counts at a time.
        histogram.update({int(bucket): n for bucket, n in stats.pop("histogram", {}).items()})
        part_stats[position] = stats
        progress.advance()
    kept = sum(stats["kept"] for stats in part_stats)
    sizes: list[int] = []
    if plan.has_images:
        pieces = plan.shard.stage.slices(histogram)
        sizes = [0] * len(pieces)
        calls = [(count, number, piece) for number, piece in enumerate(pieces)]
        for position, stats in _call(runner, sharding.assemble, plan, calls, Resources()):
            sizes[position] = stats["samples"]
    manifest = sharding.finish(plan, part_stats, sizes)
    rows = manifest["rows_in"]
    what = f"{len(sizes)} shards" if plan.has_images else "kept.parquet"
    progress.finish(f"{kept} of {rows} rows kept, {what}; {plan.shards_root}")
    return manifest


def _call(
    runner: Runner,
    function: Callable[..., Any],
    plan: CurationPlan,
    calls: Sequence[tuple[Any, ...]],
    resources: Resources,
) -> Iterator[tuple[int, Any]]:
    return runner.map(function, plan, calls, resources) if calls else iter(())


def _joined(resources: Sequence[Resources]) -> Resources:
    """What a task of fused stages asks for: they take turns, so the largest of each."""
    return Resources(
        cpus=max(r.cpus for r in resources),
        gpus=max(r.gpus for r in resources),
        memory_bytes=max(r.memory_bytes for r in resources),
    )


def _end_stage(
    plan: CurationPlan,
    planned: Planned,
    stats: list[dict[str, Any]],
    progress: Progress,
    before: bool,
) -> None:
    """Judge the errors, write the stage's manifest, tell what came of the rows.

    ``before``: all of it was committed by an earlier run.
    """
    _check_errors(plan, planned, stats, at_least=0)
    refused: Counter[str] = Counter()
    costs: dict[str, float] = {}
    for entry in stats:
        refused.update(entry["refused"])
        for name, spent in entry.get("costs", {}).items():
            costs[name] = costs.get(name, 0.0) + spent
    rows_in = sum(entry["rows_in"] for entry in stats)
    manifest = Manifest(
        use=planned.use,
        fingerprint=planned.fingerprint,
        version=planned.stage.version,
        options=planned.options,
        seed=plan.seed,
        input_fingerprints=list(planned.input_fingerprints),
        input_files_sha256=planned.input_files_sha256,
        rows_in=rows_in,
        kept=rows_in - sum(refused.values()),
        refused=dict(sorted(refused.items())),
        seconds=round(sum(entry["seconds"] for entry in stats), 3),
        parts=len(stats),
        costs={name: round(spent, 3) for name, spent in sorted(costs.items())},
    )
    folder = plan.pool.columns_folder(planned.use, planned.fingerprint)
    storage.write_text(storage.join(folder, "manifest.json"), manifest.to_json())
    reasons = ", ".join(f"{reason} {count}" for reason, count in refused.most_common(6))
    told = f"{rows_in} rows, {manifest.kept} kept" + (f" ({reasons})" if reasons else "")
    progress.finish_stage(planned.name, told + (", done before" if before else ""))


def _check_errors(
    plan: CurationPlan, planned: Planned, stats: list[dict[str, Any]], at_least: int
) -> None:
    """Stop where more than ``max_error_frac`` of a stage's rows failed (law 9)."""
    rows_in = sum(entry["rows_in"] for entry in stats)
    errors: Counter[str] = Counter()
    for entry in stats:
        errors.update(advice.errors_of(entry))
    failed = errors.total()
    if rows_in < max(at_least, 1) or failed <= plan.max_error_frac * rows_in:
        return
    worst, count = errors.most_common(1)[0]
    given_back = _forget_dead_parts(plan, planned, stats)
    raise TooManyErrors(
        f"{planned.name}: {failed} of {rows_in} rows failed, more than max_error_frac = {plan.max_error_frac}; "
        f"most often {worst} ({count} rows)\nhint: {advice.hint(plan, planned, stats, given_back)}",
        planned.name,
    )


def _forget_dead_parts(
    plan: CurationPlan, planned: Planned, stats: list[dict[str, Any]]
) -> list[int]:
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
            storage.remove(part.sidecar(plan, later, number))
    for number in dead:
        storage.remove(part.sidecar(plan, planned, number))
    return dead


def _all_errors(entry: dict[str, Any]) -> bool:
    return all(reason.startswith("error.") for reason in entry["refused"])
