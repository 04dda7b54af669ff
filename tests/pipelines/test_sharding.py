"""Shards as a folder: the ledger may be a file or a folder, fewer shards drop stale ones, markers resume."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pyarrow.parquet as pq
import pytest

from curate.shard.write import Write
from pipelines import curation, sharding
from pipelines.errors import RecipeError
from pipelines.plan import plan_curation
from pipelines.run_local import LocalRunner
from tests.pipelines.test_curation import SOURCE, STAGES, Quiet, shard_bytes


def test_the_ledger_of_many_parts_is_a_folder_that_reads_the_same(
    curate_recipe: Callable[..., Any], monkeypatch: pytest.MonkeyPatch
) -> None:
    tables = []
    for limit, folder in ((256, "file"), (3, "folder")):
        monkeypatch.setattr(sharding, "_LEDGER_FOLDER_PARTS", limit)
        recipe = curate_recipe(SOURCE, STAGES, folder=folder)
        curation.run(plan_curation(recipe), LocalRunner(), Quiet())
        path = Path(recipe.curate.shards) / "ledger.parquet"
        assert path.is_dir() == (folder == "folder")
        tables.append(pq.read_table(path).to_pylist())
    assert tables[0] == tables[1]


def test_a_folder_being_written_for_another_recipe_is_refused(
    curate_recipe: Callable[..., Any],
) -> None:
    sharding.begin(plan_curation(curate_recipe(SOURCE, STAGES)))
    with pytest.raises(RecipeError, match="shards of the recipe 'test', not of 'other'"):
        sharding.check_folder(plan_curation(curate_recipe(SOURCE, STAGES, name="other")))


def test_beginning_again_with_other_options_forgets_half_done_tars(
    curate_recipe: Callable[..., Any],
) -> None:
    first = plan_curation(curate_recipe(SOURCE, STAGES))
    sharding.begin(first)
    assembled = Path(sharding._assembled(first, 0))
    assembled.parent.mkdir(parents=True)
    assembled.touch()
    sharding.begin(first)
    assert assembled.exists(), "the same recipe goes on"
    sharding.begin(plan_curation(curate_recipe(SOURCE, STAGES, shard={"samples_per_shard": 3})))
    sharding.begin(first)
    assert not assembled.exists(), "tars under that name may be another's by now"


def test_the_manifest_names_what_made_the_shards(curate_recipe: Callable[..., Any]) -> None:
    recipe = curate_recipe(SOURCE, STAGES)
    plan = plan_curation(recipe)
    curation.run(plan, LocalRunner(), Quiet())
    manifest = json.loads((Path(recipe.curate.shards) / "manifest.json").read_text())
    assert manifest["fingerprint"] == plan.shard.fingerprint
    assert manifest["images"] == [plan.stages[3].fingerprint]
    assert [stage["use"] for stage in manifest["stages"]] == [
        plan.source.name,
        *(stage.name for stage in plan.stages),
    ]


def test_gathered_indexes_give_the_same_bytes(
    curate_recipe: Callable[..., Any], monkeypatch: pytest.MonkeyPatch
) -> None:
    plain, gathered = (
        curate_recipe(SOURCE, STAGES, shard={"samples_per_shard": 3}, folder=folder)
        for folder in ("plain", "gathered")
    )
    curation.run(plan_curation(plain), LocalRunner(), Quiet())
    monkeypatch.setattr(sharding, "_GATHER_AT_LEAST", 2)
    plan = plan_curation(gathered)
    assert sharding.gatherings(plan, 6) == [(0, 2), (2, 4), (4, 6)]
    monkeypatch.setattr(Write, "assemble", None)  # nobody looks into every part
    curation.run(plan, LocalRunner(), Quiet())
    assert shard_bytes(gathered) == shard_bytes(plain)
    assert len([name for name in shard_bytes(plain) if name.endswith(".tar")]) == 3


def test_a_tar_looks_into_few_files_however_many_parts(curate_recipe: Callable[..., Any]) -> None:
    plan = plan_curation(curate_recipe(SOURCE, STAGES))
    assert sharding.gatherings(plan, 64) == []
    assert len(sharding.gatherings(plan, 100_000)) == 317
