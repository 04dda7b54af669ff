"""Global steps: the same decisions for one bucket and many, and a part is told only what is its own."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest

from curate.contract import parts, storage
from curate.stage import GlobalStage
from pipelines import curation, global_step, part
from pipelines.plan import plan_curation
from pipelines.run_local import LocalRunner
from tests.pipelines.test_curation import SOURCE, Quiet, ledger
from tests.tiny.stages import USE

STAGES = [{"use": f"{USE}:Picture"}, {"use": "filter.duplicate_image"}]


@pytest.mark.parametrize("rows_per_bucket", [2_000_000, 10, 3])
def test_the_same_decisions_for_any_number_of_buckets(
    curate_recipe: Callable[..., Any], monkeypatch: pytest.MonkeyPatch, rows_per_bucket: int
) -> None:
    monkeypatch.setattr(GlobalStage, "bucket_rows", rows_per_bucket)
    plan = plan_curation(curate_recipe(SOURCE, STAGES))
    curation.run(plan, LocalRunner(), Quiet())
    refused = [
        (number, row)
        for number in range(6)
        for row, reason in enumerate(
            parts.read_table(part.sidecar(plan, plan.stages[0], number))["reason"].to_pylist()
        )
        if reason == "duplicate.pair"
    ]
    # rows 4, 9, 14 ... repeat row 0, but for those that have no url (6, 13, 20, 27, 34, 41)
    assert [number * 8 + row for number, row in refused] == [
        n for n in range(4, 47, 5) if n % 7 != 6
    ]
    assert not storage.exists(plan.pool.work_folder(plan.stages[0].fingerprint))


def test_buckets_grow_with_the_pool(curate_recipe: Callable[..., Any]) -> None:
    plan = plan_curation(curate_recipe(SOURCE, [*STAGES, {"use": f"{USE}:Common"}]))
    assert global_step.bucket_count(plan.stages[0], 1_000_000_000) == 2000
    assert global_step.bucket_count(plan.stages[0], 0) == 1
    assert global_step.bucket_count(plan.stages[3], 1_000_000_000) == 1


def test_parts_of_a_large_pool_share_partials(
    curate_recipe: Callable[..., Any], monkeypatch: pytest.MonkeyPatch
) -> None:
    pair = plan_curation(curate_recipe(SOURCE, STAGES)).stages[0]
    assert global_step.spans(pair, 1_000_000_000, 10_000)[:2] == [(0, 5), (5, 10)]
    assert global_step.spans(pair, 47, 6) == [(n, n + 1) for n in range(6)]
    assert global_step.spans(pair, 0, 1) == [(0, 1)]
    recipes = [curate_recipe(SOURCE, STAGES, folder=folder) for folder in ("one", "many")]
    ledgers = []
    for recipe, at_least in zip(recipes, (64, 2), strict=True):
        monkeypatch.setattr(global_step, "_SPANS_AT_LEAST", at_least)
        curation.run(plan_curation(recipe), LocalRunner(), Quiet())
        ledgers.append(ledger(recipe))
    assert ledgers[0] == ledgers[1]
