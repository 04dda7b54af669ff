"""A run that stopped names commands that do what they say: nothing to retry is no advice to retry."""

from __future__ import annotations

import re
from collections.abc import Callable
from typing import Any

import pytest

from pipelines import advice, retry
from pipelines.errors import RunFailed
from pipelines.plan import CurationPlan, Planned, plan_curation
from pipelines.step_tally import Tally
from tests.pipelines.test_curation import SOURCE, run
from tests.tiny.stages import USE

FETCH = "error.download.fetch."


@pytest.fixture
def plan(curate_recipe: Callable[..., Any]) -> CurationPlan:
    return plan_curation(
        curate_recipe(SOURCE, [{"use": "download.fetch"}, {"use": f"{USE}:Common"}])
    )


def told(
    plan: CurationPlan, stage: int | Planned, given_back: list[int], *parts: dict[str, int]
) -> str:
    planned = stage if isinstance(stage, Planned) else plan.stages[stage]
    seen = Tally()
    for n, refused in enumerate(parts):
        rows = sum(refused.values())
        kept = 0 if n in given_back else 1
        seen.add(
            {"part": n, "refused": refused, "rows_in": rows + kept, "kept": kept, "seconds": 1.0}
        )
    return advice.hint(plan, planned, seen, given_back)


def test_parts_that_are_given_back_need_no_retry(plan: CurationPlan) -> None:
    words = told(plan, 1, [0, 2], {FETCH + "refused": 8}, {"too_short": 2}, {FETCH + "refused": 7})
    assert words == (
        "start the server, or raise curate.max_error_frac. The same command asks the 15 rows of 2 of the 3 "
        "parts seen (those in which no row went well) again"
    )


def test_a_retry_is_named_for_what_is_left(plan: CurationPlan) -> None:
    words = told(
        plan, 1, [0], {FETCH + "refused": 8}, {FETCH + "timeout.total": 2, "error.x": 1, "y": 5}
    )
    assert "the 8 rows of 1 of the 2 parts" in words
    assert words.endswith(
        "of the others, with `--retry timeout.total` the same command asks all such rows again"
    )
    assert "The same command asks" not in told(plan, 1, [], {FETCH + "dns": 2})


def test_a_cure_that_begins_the_stage_anew_leaves_nothing_to_retry(plan: CurationPlan) -> None:
    for back in ([], [0]):
        words = told(plan, 1, back, {FETCH + "forbidden_address": 9})
        assert "--retry" not in words
        assert words.endswith("With another `allow_hosts` the stage begins anew")
    # `timeout` and `retries` are in no fingerprint.
    assert "--retry timeout.connect" in told(plan, 1, [], {FETCH + "timeout.connect": 9})
    mixed = told(plan, 1, [0], {FETCH + "dns": 9}, {FETCH + "decode.crashed": 1})
    assert "--retry" not in mixed
    assert "lower `max_image_area`; then the stage begins anew" in mixed


def test_stages_that_cannot_be_retried(plan: CurationPlan) -> None:
    assert "delete " in told(plan, 2, [], {"error.x": 1})
    assert "a new curate.pool" in told(plan, plan.source, [], {"error.x": 1})


@pytest.mark.parametrize("fail_on", ["word1", "number"])
def test_what_is_named_is_there(curate_recipe: Callable[..., Any], fail_on: str) -> None:
    """Of parts in which some rows went well, the kind that is named has rows to ask."""
    recipe = curate_recipe(
        {**SOURCE, "bad_every": 0, "repeat_every": 0},
        [{"use": f"{USE}:Length", "fail_on": fail_on}],
        max_error_frac=0.1,
    )
    with pytest.raises(RunFailed) as fault:
        run(recipe)
    named = re.findall(r"--retry (\S+)`", str(fault.value))
    plan = plan_curation(recipe)
    if fail_on == "number":
        assert not named
        assert retry.begin(plan, ("transient",)).not_run == (f"{USE}:Length",)
        assert "asks the 47 rows of 6 of the 6 parts" in str(fault.value)
    else:
        kind = f"error.{USE}:Length.{named[0]}"
        assert retry.begin(plan, (kind,)).rows == 16
