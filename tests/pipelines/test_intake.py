"""A pool and its source: files may be added, what is there may not change."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from curate.contract import storage
from curate.filter.metadata_balance import MetadataBalance
from curate.score.metadata_match import MetadataMatch
from pipelines import curation, intake
from pipelines.errors import RecipeError
from pipelines.plan import plan_curation
from pipelines.recipe import load
from pipelines.run_local import LocalRunner
from tests.pipelines.test_curation import Quiet
from tests.tiny.pictures import encoded, quadrants


def write_rows(path: Path, first: int, count: int) -> None:
    numbers = range(first, first + count)
    captions = [f"{'red' if n % 3 else 'blue'} thing {n % 7}" for n in numbers]
    urls = [f"http://h/{n % 50}.jpg" for n in numbers]
    pq.write_table(pa.table({"url": urls, "caption": captions}), path)


@pytest.fixture
def source(tmp_path: Path) -> dict[str, Any]:
    folder = tmp_path / "list"
    folder.mkdir()
    write_rows(folder / "b.parquet", 0, 25)
    write_rows(folder / "d.parquet", 25, 17)
    (tmp_path / "entries.txt").write_text("red\nblue\nthing\n")
    return {"use": "source.url_table", "path": str(folder), "rows_per_part": 10}


def stages(source: dict[str, Any], t: int = 5) -> list[dict[str, Any]]:
    entries = str(Path(source["path"]).parent / "entries.txt")
    return [
        {"use": "score.metadata_match", "entries": entries},
        {"use": "filter.metadata_balance", "t": t},
    ]


def ledger(recipe: Any) -> list[dict[str, Any]]:
    return pq.read_table(Path(recipe.curate.shards) / "ledger.parquet").to_pylist()


def run(recipe: Any) -> None:
    curation.run(plan_curation(recipe), LocalRunner(), Quiet())


def decisions(recipe: Any) -> dict[str, tuple[Any, Any]]:
    """uid -> reason and stage of each pair that is no repeat."""
    rows = [row for row in ledger(recipe) if row["reason"] != "duplicate.pair"]
    return {row["uid"]: (row["reason"], row["stage"]) for row in rows}


def counting(monkeypatch: pytest.MonkeyPatch, cls: Any, name: str) -> list[int]:
    """Rows of every call of a stage's method."""
    seen: list[int] = []
    original = getattr(cls, name)

    def counted(self: Any, table: pa.Table, *rest: Any) -> pa.Table:
        seen.append(len(table))
        return original(self, table, *rest)

    monkeypatch.setattr(cls, name, counted)
    return seen


def test_new_files_are_taken_in_and_counted_alone(
    curate_recipe: Callable[..., Any], source: dict[str, Any], monkeypatch: pytest.MonkeyPatch
) -> None:
    recipe = curate_recipe(source, stages(source))
    run(recipe)
    before = decisions(recipe)
    # Between the two by name: rows of new files still come last.
    write_rows(Path(source["path"]) / "c.parquet", 42, 20)
    matched = counting(monkeypatch, MetadataMatch, "process")
    counted = counting(monkeypatch, MetadataBalance, "summarize")
    run(recipe)
    assert 0 < sum(matched) <= 20, "rows that were matched before were matched again"
    assert 0 < sum(counted) <= 20, "rows that were counted before were counted again"
    assert len(ledger(recipe)) == 62
    description = json.loads(Path(recipe.curate.pool, "pool.json").read_text())
    assert description["parts"] == 7
    assert [entry["parts"] for entry in description["grown"]] == [5]
    fresh = curate_recipe(source, stages(source), folder="fresh")
    run(fresh)
    assert decisions(recipe) == decisions(fresh)
    assert decisions(recipe) != before


def test_a_plan_over_a_grown_source_writes_nothing(
    curate_recipe: Callable[..., Any], source: dict[str, Any]
) -> None:
    recipe = curate_recipe(source, stages(source))
    run(recipe)
    write_rows(Path(source["path"]) / "c.parquet", 42, 20)
    held = Path(recipe.curate.pool, "pool.json").read_text()
    found = intake.check_pool(plan_curation(recipe))
    assert found is not None
    assert found["parts"] == 7
    assert Path(recipe.curate.pool, "pool.json").read_text() == held


@pytest.mark.parametrize("what", ["changed", "gone"])
def test_files_that_are_there_must_stay(
    curate_recipe: Callable[..., Any], source: dict[str, Any], what: str
) -> None:
    recipe = curate_recipe(source, stages(source))
    run(recipe)
    file = Path(source["path"]) / "d.parquet"
    if what == "changed":
        write_rows(file, 26, 17)
    else:
        file.unlink()
    with pytest.raises(RecipeError, match=r"files changed.*d\.parquet"):
        run(recipe)


def test_other_options_make_another_source(
    curate_recipe: Callable[..., Any], source: dict[str, Any]
) -> None:
    run(curate_recipe(source, stages(source)))
    with pytest.raises(RecipeError, match="another source"):
        run(curate_recipe({**source, "caption": "url"}, stages(source)))


def test_another_threshold_counts_nothing_again(
    curate_recipe: Callable[..., Any], source: dict[str, Any], monkeypatch: pytest.MonkeyPatch
) -> None:
    run(curate_recipe(source, stages(source)))
    counted = counting(monkeypatch, MetadataBalance, "summarize")
    recipe = curate_recipe(source, stages(source, t=9))
    storage.remove(recipe.curate.shards)
    run(recipe)
    assert counted == []


def test_the_pool_keeps_its_recipe_for_any_folder(
    curate_recipe: Callable[..., Any],
    source: dict[str, Any],
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    recipe = curate_recipe(source, stages(source))
    plan = plan_curation(recipe)
    curation.run(plan, LocalRunner(), Quiet(), recipe)
    elsewhere = tmp_path / "elsewhere"
    elsewhere.mkdir()
    monkeypatch.chdir(elsewhere)
    kept = load(str(Path(recipe.curate.pool, "recipe.toml")))
    again = plan_curation(kept)
    assert again.shard.fingerprint == plan.shard.fingerprint
    assert [stage.options for stage in again.stages] == [stage.options for stage in plan.stages]
    assert intake.check_pool(again) is not None


def test_a_changed_file_is_seen_among_very_many(
    curate_recipe: Callable[..., Any], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("curate.source.base._IDENTITY_FILES", 2)
    folder = tmp_path / "many"
    folder.mkdir()
    for number in range(6):
        write_rows(folder / f"{number}.parquet", number * 3, 3)
    recipe = curate_recipe({"use": "source.url_table", "path": str(folder)}, [])
    run(recipe)
    write_rows(folder / "4.parquet", 900, 4)
    write_rows(folder / "6.parquet", 30, 3)
    with pytest.raises(RecipeError, match=r"files changed.*4\.parquet"):
        run(recipe)


def test_other_sizes_of_parts_are_for_new_files(
    curate_recipe: Callable[..., Any], source: dict[str, Any]
) -> None:
    recipe = curate_recipe(source, stages(source))
    run(recipe)
    write_rows(Path(source["path"]) / "c.parquet", 42, 20)
    again = curate_recipe({**source, "rows_per_part": 20}, stages(source))
    run(again)
    assert len(ledger(again)) == 62
    assert json.loads(Path(again.curate.pool, "pool.json").read_text())["parts"] == 6


def test_pictures_may_be_added_anywhere_in_a_folder(
    curate_recipe: Callable[..., Any], tmp_path: Path
) -> None:
    folder = tmp_path / "pictures"
    folder.mkdir()

    def add(name: str) -> None:
        (folder / f"{name}.png").write_bytes(encoded(quadrants()))
        (folder / f"{name}.txt").write_text(f"words of {name}")

    for name in ("b", "d", "f"):
        add(name)
    recipe = curate_recipe({"use": "source.folder", "path": str(folder), "rows_per_part": 2}, [])
    run(recipe)
    for name in ("a", "c", "g"):
        add(name)
    run(recipe)
    captions = [row["caption"] for row in ledger(recipe)]
    assert captions[:3] == ["words of b", "words of d", "words of f"]
    assert sorted(captions) == [f"words of {name}" for name in "abcdfg"]
    (folder / "d.png").unlink()
    (folder / "d.txt").unlink()
    with pytest.raises(RecipeError, match="files changed"):
        run(recipe)


def test_counts_are_of_the_rows_that_live_now(
    curate_recipe: Callable[..., Any], source: dict[str, Any]
) -> None:
    """A threshold above the balance changes which rows are counted; kept counts must not outlive it."""
    write_rows(Path(source["path"]) / "e.parquet", 100, 400)
    source = {**source, "rows_per_part": 100}

    def chain(words: int) -> list[dict[str, Any]]:
        shape = {"use": "score.caption_shape"}
        short = {"use": "filter.threshold", "column": "caption_chars", "at_most": words}
        return [shape, short, *stages(source, t=60)]

    for characters in (12, 11, 12, 100):
        pool = curate_recipe(source, chain(characters))
        storage.remove(pool.curate.shards)
        run(pool)
        fresh = curate_recipe(source, chain(characters), folder=f"fresh{characters}")
        run(fresh)
        assert ledger(pool) == ledger(fresh)


def test_counts_by_another_column_are_others(
    curate_recipe: Callable[..., Any], source: dict[str, Any]
) -> None:
    def chain(by: str) -> list[dict[str, Any]]:
        match, balance = stages(source)
        return [match, {**balance, "by": by, "reference": ""} if by else balance]

    for by in ("", "caption", ""):
        pool = curate_recipe(source, chain(by))
        storage.remove(pool.curate.shards)
        run(pool)
        fresh = curate_recipe(source, chain(by), folder=f"fresh-{by}")
        run(fresh)
        assert ledger(pool) == ledger(fresh)


def test_the_order_in_which_files_came_is_in_the_fingerprint(
    curate_recipe: Callable[..., Any], tmp_path: Path
) -> None:
    """Of two near captions of one picture the first stays: another one in a grown pool than in a new one."""
    folder = tmp_path / "copies"
    folder.mkdir()

    def write(name: str, caption: str) -> None:
        table = pa.table({"url": ["http://h/1.jpg"], "caption": [caption]})
        pq.write_table(table, folder / f"{name}.parquet")

    def kept(recipe: Any) -> list[str]:
        return [row["caption"] for row in ledger(recipe) if row["keep"]]

    source = {"use": "source.url_table", "path": str(folder)}
    write("b", "a small red house by the sea")
    grown = curate_recipe(source, [{"use": "filter.near_caption"}])
    run(grown)
    write("a", "a small red house by the sea!")
    planned = plan_curation(grown).shard.fingerprint
    run(grown)
    fresh = curate_recipe(source, [{"use": "filter.near_caption"}], folder="fresh")
    run(fresh)
    assert (kept(grown), kept(fresh)) == (
        ["a small red house by the sea"],
        ["a small red house by the sea!"],
    )
    again = plan_curation(grown)
    assert again.shard.fingerprint == planned, "the plan knew of the growth before it was run"
    assert again.shard.fingerprint != plan_curation(fresh).shard.fingerprint
    assert curation.run(again, LocalRunner(), Quiet()).already_done


def test_what_a_stage_asks_for_is_kept_with_the_recipe(
    curate_recipe: Callable[..., Any], source: dict[str, Any], tmp_path: Path
) -> None:
    stage = {"use": "filter.duplicate_pair", "memory_gb": 1.5, "cpus": 2}
    recipe = curate_recipe({**source, "cpus": 0.5}, [stage])
    curation.run(plan_curation(recipe), LocalRunner(), Quiet(), recipe)
    kept = load(str(Path(recipe.curate.pool, "recipe.toml")))
    assert kept.curate.stage[0].options == {"memory_gb": 1.5, "cpus": 2}
    assert kept.curate.source.options["cpus"] == 0.5
