"""What an earlier run measured is taken over row by row, pictures too, and never changes what comes out."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pytest

from curate.contract import parts, storage
from curate.stage import KEEP, REASON, decision
from pipelines import curation, part, reuse
from pipelines.errors import RunFailed
from pipelines.plan import plan_curation
from pipelines.run_local import LocalRunner
from tests.pipelines.test_curation import SOURCE, Quiet, ledger, shard_bytes
from tests.tiny.stages import USE


def stages(most: int, calls: Path, dead: str = "number 11") -> list[dict[str, Any]]:
    return [
        {"use": f"{USE}:Common", "most": most},
        {"use": f"{USE}:Length", "calls_file": str(calls)},
        {"use": f"{USE}:Picture", "dead": dead},
        {"use": f"{USE}:PictureSize"},
    ]


def run(recipe: Any) -> None:
    storage.remove(recipe.curate.shards)
    curation.run(plan_curation(recipe), LocalRunner(), Quiet())


def calls_of(path: Path) -> int:
    return len(path.read_text().split()) if path.exists() else 0


@pytest.mark.parametrize("mosts", [(10, 12), (12, 10), (8, 12, 10)])
def test_another_threshold_above_measures_new_rows_only(
    curate_recipe: Callable[..., Any], tmp_path: Path, mosts: tuple[int, ...]
) -> None:
    calls = tmp_path / "calls"
    taken = []
    for most in mosts:
        recipe = curate_recipe(SOURCE, stages(most, calls))
        run(recipe)
        plan = plan_curation(recipe)
        stats = [parts.read_stats(part.sidecar(plan, plan.stages[2], n)) for n in range(6)]
        taken.append((sum(s["rows_in"] for s in stats), sum(s["taken_over"] for s in stats)))
    fresh = curate_recipe(SOURCE, stages(mosts[-1], tmp_path / "other"), folder="fresh")
    run(fresh)
    assert shard_bytes(recipe) == shard_bytes(fresh)
    assert ledger(recipe) == ledger(fresh)
    assert taken[0][1] == 0
    rows_in, known = taken[-1]
    # Rows are refused by Common beyond a count, so a lower threshold's rows are among a higher one's.
    assert known == min(rows_in, max(rows for rows, _ in taken[:-1]))


def test_pictures_are_taken_over_and_not_fetched_again(
    curate_recipe: Callable[..., Any], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    from tests.tiny.stages import Picture

    run(curate_recipe(SOURCE, stages(12, tmp_path / "calls")))

    def refuse(self: Any, batch: pa.Table, state: Any) -> pa.Table:
        raise AssertionError("fetched again")

    monkeypatch.setattr(Picture, "process", refuse)
    recipe = curate_recipe(SOURCE, stages(10, tmp_path / "calls"))
    run(recipe)
    assert sum(row["keep"] for row in ledger(recipe)) == 9
    assert not [row for row in ledger(recipe) if "AssertionError" in (row["reason"] or "")]


def test_another_option_of_its_own_is_measured_anew(
    curate_recipe: Callable[..., Any], tmp_path: Path
) -> None:
    run(curate_recipe(SOURCE, stages(12, tmp_path / "a")))
    recipe = curate_recipe(SOURCE, stages(12, tmp_path / "a", dead="number 12"))
    plan = plan_curation(recipe)
    assert reuse.find(plan, plan.stages[3], 1) is None
    assert reuse.find(plan, plan.stages[4], 1) is None, "its pictures are others"


def test_a_part_in_which_all_failed_is_asked_again(
    curate_recipe: Callable[..., Any], tmp_path: Path
) -> None:
    with pytest.raises(RunFailed):
        run(curate_recipe(SOURCE, stages(12, tmp_path / "a", dead="number")))
    recipe = curate_recipe(SOURCE, stages(10, tmp_path / "a", dead="number"))
    plan = plan_curation(recipe)
    assert all(reuse.find(plan, plan.stages[3], n) is None for n in range(6))


def test_rows_come_back_in_their_order() -> None:
    def table(names: list[str], reasons: list[str | None]) -> pa.Table:
        schema = pa.schema([("name", pa.string()), KEEP, REASON])
        return pa.table([pa.array(names), *decision(reasons)], schema=schema)

    known = np.array([False, True, True, False, True])
    found = reuse.spliced(
        known, table(["b", "c", "e"], [None, "x", "y"]), table(["a", "d"], ["y", None])
    )
    assert found["name"].to_pylist() == ["a", "b", "c", "d", "e"]
    assert found["reason"].to_pylist() == ["y", None, "x", None, "y"]
