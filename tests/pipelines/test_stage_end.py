"""The end of a stage: its manifest has the sums of all parts, and too many errors end the run."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from pipelines import curation, stage_end
from pipelines.errors import TooManyErrors
from pipelines.plan import plan_curation
from pipelines.run_local import LocalRunner
from pipelines.step_tally import Tally
from tests.pipelines.test_curation import Quiet
from tests.tiny.stages import USE

SOURCE = {"use": f"{USE}:Numbers", "count": 12, "rows_per_part": 4}


def test_sums_of_all_parts_are_told_and_written(curate_recipe: Callable[..., Any]) -> None:
    plan = plan_curation(curate_recipe(SOURCE, [{"use": f"{USE}:Length", "fail_on": "r 7"}]))
    curation.measure(plan, LocalRunner(), Quiet())
    seen = stage_end.told(plan, plan.stages[1], 3)
    assert (seen.parts, seen.rows_in, seen.failed) == (3, 12, 1)
    folder = Path(plan.pool.columns_folder(plan.stages[1].use, plan.stages[1].fingerprint))
    manifest = json.loads((folder / "manifest.json").read_text())
    assert (manifest["rows_in"], manifest["kept"], manifest["parts"]) == (12, 11, 3)
    assert manifest["refused"] == {f"error.{USE}:Length.KeyError": 1}


def test_too_many_errors_end_the_run_from_so_many_rows_on(
    curate_recipe: Callable[..., Any],
) -> None:
    plan = plan_curation(curate_recipe(SOURCE, [{"use": f"{USE}:Length"}], max_error_frac=0.5))
    seen = Tally()
    seen.add({"part": 0, "rows_in": 4, "kept": 1, "refused": {"error.x.y": 3}, "seconds": 1.0})
    stage_end.check_errors(plan, plan.stages[1], seen, at_least=5)
    with pytest.raises(TooManyErrors, match="3 of 4 rows failed"):
        stage_end.check_errors(plan, plan.stages[1], seen, at_least=0)
