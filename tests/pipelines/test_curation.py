"""The journey of a pool: nothing lost, nothing done twice, the same bytes after kill -9 at any step."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pyarrow.parquet as pq
import pytest

from curate.contract import parts, storage
from pipelines import curation, recipe
from pipelines.errors import RecipeError
from pipelines.plan import plan_curation
from pipelines.progress import Progress
from pipelines.run_local import LocalRunner
from tests.tiny.stages import USE

SOURCE = {
    "use": f"{USE}:Numbers",
    "count": 47,
    "rows_per_part": 8,
    "bad_every": 7,
    "repeat_every": 5,
}
STAGES = [
    {"use": f"{USE}:Length"},
    {"use": f"{USE}:Common", "most": 10},
    {"use": f"{USE}:Picture", "dead": "number 11"},
    {"use": f"{USE}:PictureSize"},
]


class Quiet(Progress):
    def say(self, text: str) -> None:
        """Nothing."""


def run(recipe: Any) -> curation.Outcome:
    return curation.run(plan_curation(recipe), LocalRunner(), Quiet())


def shard_bytes(recipe: Any) -> dict[str, bytes]:
    names = ("*.tar", "index.parquet", "ledger.parquet", "sizes.json")
    return {
        path.name: path.read_bytes()
        for name in names
        for path in sorted(Path(recipe.curate.shards).glob(name))
    }


def ledger(recipe: Any) -> list[dict[str, Any]]:
    return pq.read_table(Path(recipe.curate.shards) / "ledger.parquet").to_pylist()


def test_every_row_is_in_the_ledger_with_its_reason(curate_recipe: Callable[..., Any]) -> None:
    recipe = curate_recipe(SOURCE, STAGES, shard={"samples_per_shard": 7})
    outcome = run(recipe)
    rows = ledger(recipe)
    assert len(rows) == 47 == outcome.manifest["rows_in"]
    reasons = {row["reason"] for row in rows}
    assert reasons == {None, "error.tiny.null_url", "duplicate.pair", "common", "error.tiny.dead"}
    assert all((row["reason"] is None) == (row["stage"] is None) == row["keep"] for row in rows)
    kept = [row["uid"] for row in rows if row["keep"]]
    index = pq.read_table(Path(recipe.curate.shards) / "index.parquet")
    assert sorted(set(index["key"].to_pylist())) == sorted(kept)
    assert (
        sum(json.loads((Path(recipe.curate.shards) / "sizes.json").read_text()).values())
        == len(kept)
        == outcome.manifest["kept"]
    )


def test_the_funnel_adds_up(curate_recipe: Callable[..., Any]) -> None:
    manifest = run(curate_recipe(SOURCE, STAGES)).manifest
    rows_in = manifest["rows_in"]
    for stage in manifest["stages"]:
        assert stage["rows_in"] == rows_in
        assert stage["kept"] == rows_in - sum(stage["refused"].values())
        rows_in = stage["kept"]
    assert rows_in == manifest["kept"]


def test_the_first_of_exact_repeats_stays(curate_recipe: Callable[..., Any]) -> None:
    recipe = curate_recipe(
        {"use": f"{USE}:Numbers", "count": 20, "repeat_every": 5}, [{"use": f"{USE}:Picture"}]
    )
    run(recipe)
    rows = ledger(recipe)
    assert [row["reason"] for row in rows if row["url"] == "u0"] == [None] + ["duplicate.pair"] * 4
    assert (
        len({row["uid"] for row in rows if row["keep"]}) == sum(row["keep"] for row in rows) == 16
    )


@pytest.mark.parametrize("rows_per_part", [1, 5, 1000])
def test_the_same_shards_for_any_parts(
    curate_recipe: Callable[..., Any], rows_per_part: int
) -> None:
    seen = []
    for rows, folder in ((8, "a"), (rows_per_part, "b")):
        recipe = curate_recipe(
            {**SOURCE, "rows_per_part": rows}, STAGES, folder=folder, shard={"samples_per_shard": 7}
        )
        run(recipe)
        seen.append(
            (
                {name: data for name, data in shard_bytes(recipe).items() if name.endswith(".tar")},
                ledger(recipe),
            )
        )
    assert seen[0] == seen[1]


def test_a_second_run_does_nothing(curate_recipe: Callable[..., Any], tmp_path: Path) -> None:
    calls = tmp_path / "calls"
    recipe = curate_recipe(
        SOURCE, [{"use": f"{USE}:Length", "calls_file": str(calls)}, *STAGES[1:]]
    )
    run(recipe)
    once, data = calls.read_text(), shard_bytes(recipe)
    assert run(recipe).already_done
    assert (calls.read_text(), shard_bytes(recipe)) == (once, data)


def test_one_changed_option_runs_that_stage_and_what_follows_only(
    curate_recipe: Callable[..., Any], tmp_path: Path
) -> None:
    first, second = tmp_path / "first", tmp_path / "second"

    def recipe(most: int) -> Any:
        stages = [
            {"use": f"{USE}:Length", "calls_file": str(first)},
            {"use": f"{USE}:Common", "most": most},
            {"use": f"{USE}:Length2", "calls_file": str(second)},
        ]
        return curate_recipe(SOURCE, [*stages, STAGES[2]])

    run(recipe(10))
    calls = len(first.read_text().splitlines()), len(second.read_text().splitlines())
    outcome = run(recipe(11))
    assert not outcome.already_done
    assert len(first.read_text().splitlines()) == calls[0], "a stage above the change ran again"
    assert len(second.read_text().splitlines()) > calls[1], (
        "a stage below the change did not run again"
    )
    # and back: both thresholds' columns coexist in the pool, so only the shards are written again
    calls = len(first.read_text().splitlines()), len(second.read_text().splitlines())
    run(recipe(10))
    assert (len(first.read_text().splitlines()), len(second.read_text().splitlines())) == calls


def test_refused_rows_are_not_measured(curate_recipe: Callable[..., Any], tmp_path: Path) -> None:
    calls = tmp_path / "calls"
    recipe = curate_recipe(
        SOURCE,
        [{"use": f"{USE}:Common", "most": 10}, {"use": f"{USE}:Length", "calls_file": str(calls)}],
    )
    run(recipe)
    refused = {row["uid"] for row in ledger(recipe) if row["reason"] == "common"}
    assert refused
    assert not refused & set(calls.read_text().split())


def test_a_row_that_breaks_a_stage_gets_a_reason(curate_recipe: Callable[..., Any]) -> None:
    recipe = curate_recipe(SOURCE, [{"use": f"{USE}:Length", "fail_on": "number 3"}, *STAGES[2:]])
    run(recipe)
    broken = [row for row in ledger(recipe) if row["reason"] == f"error.{USE}:Length.KeyError"]
    assert broken
    assert all("number 3" in row["caption"] and row["stage"] == f"{USE}:Length" for row in broken)


def test_text_only_runs_end_with_kept_parquet(curate_recipe: Callable[..., Any]) -> None:
    recipe = curate_recipe(SOURCE, STAGES[:2])
    run(recipe)
    kept = pq.read_table(Path(recipe.curate.shards) / "kept.parquet")
    assert kept.column_names == ["uid", "url", "caption"]
    assert kept["uid"].to_pylist() == [row["uid"] for row in ledger(recipe) if row["keep"]]
    assert not list(Path(recipe.curate.shards).glob("*.tar"))


def test_folders_of_something_else_are_refused_before_any_work(
    curate_recipe: Callable[..., Any],
) -> None:
    recipe = curate_recipe(SOURCE, STAGES)
    run(recipe)
    with pytest.raises(RecipeError, match="holds rows of another source"):
        run(curate_recipe({**SOURCE, "count": 48}, STAGES))
    with pytest.raises(RecipeError, match="shards of the recipe 'test', not of 'other'"):
        run(curate_recipe(SOURCE, STAGES, name="other"))
    Path(recipe.curate.shards, "manifest.json").unlink()
    with pytest.raises(RecipeError, match=r"holds no shards of clip-pipe"):
        run(recipe)


def test_fewer_shards_than_before_leave_no_stale_tar(curate_recipe: Callable[..., Any]) -> None:
    run(curate_recipe(SOURCE, STAGES, shard={"samples_per_shard": 3}))
    recipe = curate_recipe(SOURCE, STAGES, shard={"samples_per_shard": 100})
    run(recipe)
    assert [path.name for path in sorted(Path(recipe.curate.shards).glob("*.tar"))] == ["00000.tar"]


def test_everything_refused_is_a_whole_answer_too(curate_recipe: Callable[..., Any]) -> None:
    recipe = curate_recipe(SOURCE, [{"use": f"{USE}:Common", "most": 0}, STAGES[2]])
    assert run(recipe).manifest["kept"] == 0
    assert len(ledger(recipe)) == 47


def test_stage_manifests_say_what_made_them(curate_recipe: Callable[..., Any]) -> None:
    recipe = curate_recipe(SOURCE, STAGES)
    run(recipe)
    planned = plan_curation(recipe)
    stage = planned.stages[2]
    path = (
        Path(parts.Pool(recipe.curate.pool).columns_folder(stage.use, stage.fingerprint))
        / "manifest.json"
    )
    manifest = json.loads(path.read_text())
    assert (manifest["use"], manifest["options"]["most"], manifest["parts"]) == (
        f"{USE}:Common",
        10,
        6,
    )
    assert manifest["rows_in"] - manifest["kept"] == manifest["refused"]["common"]
    assert planned.source.fingerprint in manifest["input_fingerprints"]


def test_pool_and_shards_behind_fsspec(curate_recipe: Callable[..., Any]) -> None:
    on_disk = curate_recipe(SOURCE, STAGES)
    run(on_disk)
    root = "memory://curation"
    remote = recipe.from_data(
        {
            "name": "test",
            "curate": {
                "pool": f"{root}/pool",
                "shards": f"{root}/shards",
                "source": SOURCE,
                "stage": STAGES,
            },
        },
        "x",
    )
    run(remote)
    for name, data in shard_bytes(on_disk).items():
        with storage.open_file(f"{root}/shards/{name}") as file:
            assert file.read() == data, name
    assert run(remote).already_done
    storage.remove(root)


def test_text_only_after_pictures_and_back_leaves_nothing_stale(
    curate_recipe: Callable[..., Any],
) -> None:
    pictures, words = curate_recipe(SOURCE, STAGES), curate_recipe(SOURCE, STAGES[:2])
    folder = Path(pictures.curate.shards)
    run(pictures)
    run(words)
    assert {path.name for path in folder.iterdir()} == {
        "kept.parquet",
        "ledger.parquet",
        "manifest.json",
    }
    run(pictures)
    assert {path.name for path in folder.iterdir()} == {
        "00000.tar",
        "index.parquet",
        "sizes.json",
        "ledger.parquet",
        "manifest.json",
    }


@pytest.mark.parametrize("text", ["[]", "{not json", '{"recipe": "test"}'])
def test_a_manifest_that_is_none_is_said(curate_recipe: Callable[..., Any], text: str) -> None:
    recipe = curate_recipe(SOURCE, STAGES)
    for root, name in ((recipe.curate.shards, "manifest.json"), (recipe.curate.pool, "pool.json")):
        Path(root).mkdir(parents=True, exist_ok=True)
        Path(root, name).write_text(text)
    with pytest.raises(RecipeError):
        run(recipe)


def test_a_pool_that_is_a_file_is_said(curate_recipe: Callable[..., Any], tmp_path: Path) -> None:
    (tmp_path / "file").touch()
    recipe = curate_recipe(SOURCE, STAGES, pool=str(tmp_path / "file"))
    with pytest.raises(RecipeError, match=r"curate\.pool"):
        run(recipe)
