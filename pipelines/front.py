"""What of a recipe runs before anything is paid for: the source and the stages that only read text.

A stage pays if it downloads, looks at pictures or asks a language model. The front has the fingerprints
of the whole recipe, so `clip-pipe curate` finds done what a forecast did.
"""

from __future__ import annotations

import dataclasses
from dataclasses import dataclass

from curate.contract import storage
from pipelines import curation, intake, part
from pipelines.curation import Runner
from pipelines.plan import CurationPlan, Planned, plan_curation
from pipelines.progress import Progress
from pipelines.recipe import Recipe

BALANCE = "filter.metadata_balance"


@dataclass(frozen=True)
class Front:
    """The part of a recipe that needs text only.

    ``plan`` runs it. ``paying`` is the index of the first paying stage in the whole plan, or None.
    ``balance`` is the balance's index in ``plan``, or None. ``moved`` names stages that stand behind
    the paying one in the recipe: then what is told is an upper bound.
    """

    recipe: Recipe
    plan: CurationPlan
    paying: int | None
    balance: int | None
    moved: tuple[str, ...]


def pays(planned: Planned) -> bool:
    """Whether a stage costs more than reading text."""
    room = planned.use.split(".")[0]
    looks = planned.makes_images or "image" in planned.reads
    return looks or room in ("download", "caption")


def front_of(loaded: Recipe, whole: CurationPlan) -> Front:
    """The front of a recipe whose whole plan is ``whole``."""
    paying = next((n for n, planned in enumerate(whole.stages) if pays(planned)), None)
    chosen = list(range(len(whole.stages) if paying is None else paying))
    balance = next((n for n, p in enumerate(whole.stages) if p.use == BALANCE), None)
    moved: list[int] = []
    if paying is not None and balance is not None and balance > paying:
        moved = _text_only(whole, paying, balance)
    # The plan may have put filter.duplicate_pair before the recipe's own stages.
    assert loaded.curate is not None
    added = len(whole.stages) - len(loaded.curate.stage)
    own = tuple(loaded.curate.stage[n - added] for n in [*chosen, *moved] if n >= added)
    short = dataclasses.replace(loaded, curate=dataclasses.replace(loaded.curate, stage=own))
    plan = plan_curation(short, losses=whole.losses)
    at = next((n for n, p in enumerate(plan.stages) if p.use == BALANCE), None)
    return Front(short, plan, paying, at, tuple(whole.stages[n].name for n in moved))


def _text_only(whole: CurationPlan, paying: int, balance: int) -> list[int]:
    """Stages between the first paying one and the balance that could run without any payment.

    Nothing, if the balance itself could not.
    """
    made = {name for planned in whole.stages[paying:] for name in planned.columns}
    found: list[int] = []
    for index in range(paying, balance + 1):
        planned = whole.stages[index]
        if not pays(planned) and not set(planned.reads) & made:
            found.append(index)
            made -= set(planned.columns)
    return found if balance in found else []


def is_done(plan: CurationPlan) -> bool:
    """Whether nothing of the front is left to run."""
    described = intake.check_pool(plan)
    if described is None or described != plan.pool.describe():
        return False
    count = int(described["parts"])
    read_in = all(part.are_read_in(plan, count))
    return read_in and all(curation.parts_done(plan, p, count) == count for p in plan.stages)


def run(plan: CurationPlan, runner: Runner, progress: Progress) -> int:
    """Run what is not done of the front, shards left out. Returns the number of parts."""
    storage.prepare(plan.pool_root)
    return curation.measure(plan, runner, progress)
