"""What to do about a run that stopped since too many rows of a stage failed: the cure, and which rows are asked again."""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Sequence
from dataclasses import fields

from curate.stage import RowStage
from pipelines import generations
from pipelines.plan import CurationPlan, Planned
from pipelines.step_tally import Tally, errors_of


def hint(
    plan: CurationPlan,
    planned: Planned,
    seen: Tally,
    given_back: Sequence[int],
) -> str:
    """What follows ``hint:``. ``seen``: the parts so far. ``given_back``: parts that any run does anew."""
    anew: Counter[str] = Counter()
    back = set(given_back)
    for entry in seen.dead:
        anew.update(errors_of(entry) if entry["part"] in back else {})
    left = seen.errors - anew
    worst = _most(anew + left)
    told = f"{_cure(planned, worst) or 'mend the cause'}, or raise curate.max_error_frac"
    options = " or ".join(f"`{name}`" for name in _changed_by(planned, worst))
    if options:
        return f"{told}. With another {options} the stage begins anew"
    if not anew:
        return f"{told}; {_again(plan, planned, _most(left))}"
    parts = f"{len(given_back)} of the {seen.parts} parts seen (those in which no row went well)"
    told += f". The same command asks the {anew.total():,} rows of {parts} again"
    return f"{told}; of the others, {_again(plan, planned, _most(left))}" if left else told


def _most(errors: Counter[str]) -> str:
    return errors.most_common(1)[0][0]


def _again(plan: CurationPlan, planned: Planned, reason: str) -> str:
    """How failed rows of parts in which some went well are asked again."""
    if planned is plan.source:
        return "a mended source needs a new curate.pool"
    if not isinstance(planned.stage, RowStage):
        folder = plan.pool.columns_folder(planned.use, planned.fingerprint)
        return f"to try all of them again, delete {folder}"
    if _changed_by(planned, reason):
        return f"{_cure(planned, reason)}; then the stage begins anew"
    kind = generations.kind_of(planned.use, reason)
    return f"with `--retry {kind}` the same command asks all such rows again"


def _cure(planned: Planned, reason: str) -> str:
    """What the stage itself advises for a kind of error; "" where it has nothing to say."""
    return planned.stage.cures.get(generations.kind_of(planned.use, reason), "")


def _changed_by(planned: Planned, reason: str) -> list[str]:
    """The options that the cure names, where all of them are in the stage's fingerprint.

    Then nothing that was fetched before counts any more, and there is nothing to retry.
    """
    tuning = {option.name: bool(option.metadata.get("tuning")) for option in fields(planned.stage)}
    named = [word for word in re.findall(r"`(\w+)`", _cure(planned, reason)) if word in tuning]
    return [] if any(tuning[name] for name in named) else named
