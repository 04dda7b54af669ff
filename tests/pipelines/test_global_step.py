"""Global steps: the same decisions for one bucket and many, and a part is told only what is its own."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest

from curate.contract import parts, storage
from curate.filter.base import FirstOfEqual
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


@pytest.mark.parametrize("parts_of_a_route", [1, 3])
def test_gathered_partials_and_routed_states_decide_the_same(
    curate_recipe: Callable[..., Any], monkeypatch: pytest.MonkeyPatch, parts_of_a_route: int
) -> None:
    plain = curate_recipe(SOURCE, STAGES, folder="plain")
    curation.run(plan_curation(plain), LocalRunner(), Quiet())
    monkeypatch.setattr(GlobalStage, "bucket_rows", 3)
    monkeypatch.setattr(FirstOfEqual, "bucket_rows", 3)
    monkeypatch.setattr(global_step, "_GATHER_AT_LEAST", 2)
    monkeypatch.setattr(global_step, "_ROUTED_FROM", 2)
    monkeypatch.setattr(global_step, "_ROUTE_ROWS", 8 * parts_of_a_route)
    gathered = curate_recipe(SOURCE, [*STAGES, {"use": f"{USE}:Common"}], folder="gathered")
    plan = plan_curation(gathered)
    made: list[str] = []
    for name in ("_gathered", "_route"):
        paths = getattr(global_step, name)

        def noted(*given: Any, paths: Any = paths) -> str:
            made.append(paths(*given))
            return made[-1]

        monkeypatch.setattr(global_step, name, noted)
    curation.run(plan, LocalRunner(), Quiet())
    kept = [{"uid": row["uid"], "stage": row["stage"]} for row in ledger(gathered)]
    common = plan.stages[-1].name
    expected = [{"uid": row["uid"], "stage": row["stage"]} for row in ledger(plain)]
    assert [k for k in kept if k["stage"] != common] == [
        e for k, e in zip(kept, expected, strict=True) if k["stage"] != common
    ]
    names = {path.rsplit("/", 2)[-2] for path in made}
    assert {"gathered-of-0016", "gathered-of-0001", "routed"} <= names


def test_what_a_thousand_million_rows_write_and_read(curate_recipe: Callable[..., Any]) -> None:
    rows, count = 1_000_000_000, 100_000
    for planned in plan_curation(curate_recipe(SOURCE, STAGES)).stages[::2]:
        buckets = global_step.bucket_count(planned, rows)
        shares = global_step.spans(planned, rows, count)
        groups = global_step.gatherings(shares)
        routes = global_step.routes(planned, rows, count, buckets)
        assert len(shares) == buckets == 2000  # one file each
        assert len(groups) == 32
        assert sum(map(len, groups)) == len(shares)
        assert len(groups) * buckets == 64_000  # tables that merging reads
        assert len(routes) == 250
        assert routes[0] == (0, 400)
        assert routes[-1][1] == count
    assert global_step.gatherings([(n, n + 1) for n in range(64)]) == [
        [(n, n + 1)] for n in range(64)
    ]
    assert len(global_step.gatherings([(n, n + 1) for n in range(100_000)])) == 317
