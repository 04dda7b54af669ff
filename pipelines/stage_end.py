"""The end of a stage: judge its errors, write its manifest, say what came of the rows."""

from __future__ import annotations

from curate.contract import done, storage
from curate.contract.manifest import Manifest
from pipelines import advice, damage, part
from pipelines.errors import TooManyErrors
from pipelines.plan import CurationPlan, Planned
from pipelines.progress import Progress
from pipelines.step_tally import Tally


def told(plan: CurationPlan, planned: Planned, count: int) -> Tally:
    """What a stage that is done says of all parts."""
    seen = Tally()
    for number, found in part.survey(plan, planned, range(count)):
        if found.stats is None:
            path = found.path or part.sidecar(plan, planned, number)
            raise damage.as_failure(done.Damaged(path, found.fault or "it has no manifest"))
        seen.add(found.stats)
    return seen


def end_stage(
    plan: CurationPlan,
    planned: Planned,
    seen: Tally,
    progress: Progress,
    before: bool,
) -> None:
    """Judge the errors, write the stage's manifest, tell what came of the rows.

    ``before``: all of it was committed by an earlier run.
    """
    check_errors(plan, planned, seen, at_least=0)
    manifest = Manifest(
        use=planned.use,
        fingerprint=planned.fingerprint,
        version=planned.stage.version,
        options=planned.options,
        seed=plan.seed,
        input_fingerprints=list(planned.input_fingerprints),
        input_files_sha256=planned.input_files_sha256,
        rows_in=seen.rows_in,
        kept=seen.rows_in - seen.refused.total(),
        refused=dict(sorted(seen.refused.items())),
        seconds=round(seen.seconds, 3),
        parts=seen.parts,
        costs={name: round(spent, 3) for name, spent in sorted(seen.costs.items())},
    )
    folder = plan.pool.columns_folder(planned.use, planned.fingerprint)
    storage.write_text(storage.join(folder, "manifest.json"), manifest.to_json())
    reasons = ", ".join(f"{reason} {count}" for reason, count in seen.refused.most_common(6))
    told = f"{seen.rows_in} rows, {manifest.kept} kept" + (f" ({reasons})" if reasons else "")
    progress.finish_stage(planned.name, told + (", done before" if before else ""))


def check_errors(plan: CurationPlan, planned: Planned, seen: Tally, at_least: int) -> None:
    """Stop where more than ``max_error_frac`` of a stage's rows failed (law 9)."""
    if seen.rows_in < max(at_least, 1) or seen.failed <= plan.max_error_frac * seen.rows_in:
        return
    worst, count = seen.errors.most_common(1)[0]
    given_back = damage.give_back(plan, planned, seen.dead)
    raise TooManyErrors(
        f"{planned.name}: {seen.failed} of {seen.rows_in} rows failed, more than max_error_frac = {plan.max_error_frac}; "
        f"most often {worst} ({count} rows)\nhint: {advice.hint(plan, planned, seen, given_back)}",
        planned.name,
    )
