"""Recipes: strict keys with hints, one parent, overrides, and the exact words of the messages."""

from __future__ import annotations

import tomllib
from pathlib import Path

import pytest

from pipelines import recipe
from pipelines.errors import RecipeError

BASE = """
name = "base"
seed = 3
[curate]
pool = "pool"
shards = "shards"
[curate.source]
use = "source.url_table"
path = "rows.parquet"
[[curate.stage]]
use = "filter.threshold"
column = "width"
at_least = 10
[train]
model = "vit_tiny_64"
out = "out"
[[train.phase]]
samples = 100
global_batch = 10
"""


def write(folder: Path, text: str, name: str = "r.toml") -> str:
    path = folder / name
    path.write_text(text)
    return str(path)


def test_reads_every_table(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    loaded = recipe.load(write(tmp_path, BASE))
    assert loaded.curate is not None
    assert loaded.curate.pool == str(tmp_path / "pool")
    assert loaded.curate.stage[0].options == {"column": "width", "at_least": 10}
    assert loaded.curate.shard.use == "shard.write"
    assert loaded.train is not None
    assert loaded.train.shards[0].path == loaded.curate.shards
    assert (loaded.train.phase[0].samples, loaded.train.phase[0].lr) == (100, 5e-4)


def test_one_parent_tables_merge_and_lists_replace(tmp_path: Path) -> None:
    write(tmp_path, BASE, "base.toml")
    child = write(
        tmp_path, 'extends = "base.toml"\nname = "child"\n[curate]\npool = "other"\nstage = []\n'
    )
    loaded = recipe.load(child)
    assert loaded.curate is not None
    assert (loaded.name, loaded.seed, loaded.curate.stage) == ("child", 3, ())
    assert loaded.curate.pool.endswith("other")
    assert loaded.curate.source.options["path"] == "rows.parquet"


def test_a_circle_of_parents_is_refused(tmp_path: Path) -> None:
    write(tmp_path, 'extends = "b.toml"', "a.toml")
    with pytest.raises(RecipeError, match="extends itself"):
        recipe.load(write(tmp_path, 'extends = "a.toml"', "b.toml"))


def test_overrides_reach_tables_lists_and_new_keys(tmp_path: Path) -> None:
    loaded = recipe.load(
        write(tmp_path, BASE),
        [
            "train.phase.0.global_batch=50",
            "curate.stage.0.at_least=2.5",
            "train.model=ViT-B-32",
            "curate.shard.samples_per_shard=7",
        ],
    )
    assert loaded.train is not None
    assert loaded.curate is not None
    assert (loaded.train.phase[0].global_batch, loaded.train.model) == (50, "ViT-B-32")
    assert loaded.curate.stage[0].options["at_least"] == 2.5
    assert loaded.curate.shard.options == {"samples_per_shard": 7}


@pytest.mark.parametrize(
    ("override", "message"),
    [
        ("train.phase.3.samples=1", "'3' is no index of a list of 1\nhint: the first is 0"),
        ("train.model.x=1", "'model' is a value, not a table"),
        ("nonsense", "expected key.path=value\nhint: e.g. --set train.phase.0.global_batch=4096"),
    ],
)
def test_bad_overrides(tmp_path: Path, override: str, message: str) -> None:
    with pytest.raises(RecipeError) as fault:
        recipe.load(write(tmp_path, BASE), [override])
    assert message in str(fault.value)


@pytest.mark.parametrize(
    ("old", "new", "message"),
    [
        ("seed = 3", "sed = 3", "unknown key 'sed'\nhint: did you mean 'seed'?"),
        ('shards = "shards"', 'shard_s = "shards"', "unknown key 'shard_s'\nhint: did you mean 'shards'?"),
        ('pool = "pool"', "", "curate: the key 'pool' is missing\nhint: add `pool = ...`"),
        ("source.url_table", "source.url_tabel", "no such source component\nhint: did you mean 'source.url_table'?"),
        ("filter.threshold", "filter.treshold", "no such stage component\nhint: did you mean 'filter.threshold'?"),
        ("at_least", "at_leats", "filter.threshold has no option 'at_leats'\nhint: did you mean 'at_least'?"),
        ('column = "width"', "", "curate.stage.0: filter.threshold needs the option 'column'\nhint: add `column = ...`"),
        ('column = "width"', "column = 3", "curate.stage.0.column: found 3 (int)\nhint: expected a text"),
        ("global_batch = 10", 'global_batch = "ten"', "train.phase.0.global_batch: found 'ten' (str)\nhint: expected a whole number"),
        ("global_batch = 10", "global_batch = true", "found True (bool)\nhint: expected a whole number"),
        ("global_batch = 10", "global_bach = 10", "unknown key 'global_bach'\nhint: did you mean 'global_batch'?"),
        ("samples = 100", "samples = 0", "train.phase.0.samples = 0\nhint: at least 1"),
        ('out = "out"', 'out = "out"\ncompile = true', "train.compile: found True\nhint: it may be: auto, off, on"),
        ("[[train.phase]]", "[train.phase]", "found one table, expected a list of them\nhint: write [[...phase]] with double brackets"),
        ('out = "out"', 'out = "out"\nprecision = "fp8"', "train.precision = 'fp8'\nhint: \"bf16\" or \"fp32\""),
        ('name = "base"', 'name = "base', "not valid TOML"),
    ],
)  # fmt: skip
def test_what_is_wrong_is_said_with_a_hint(
    tmp_path: Path, old: str, new: str, message: str
) -> None:
    assert old in BASE
    with pytest.raises(RecipeError) as fault:
        recipe.load(write(tmp_path, BASE.replace(old, new)))
    assert message in str(fault.value)


def test_a_missing_recipe_names_the_shipped_ones() -> None:
    with pytest.raises(RecipeError, match="no such recipe file\nhint: did you mean"):
        recipe.load("clip_b23")


def test_show_gives_a_recipe_that_loads_again(tmp_path: Path) -> None:
    loaded = recipe.load(write(tmp_path, BASE), ["seed=9"])
    text = recipe.to_toml(loaded)
    assert tomllib.loads(text)["seed"] == 9
    again = recipe.load(write(tmp_path, text, "again.toml"))
    assert again.resolved == loaded.resolved


@pytest.mark.parametrize("path", sorted(recipe.SHIPPED.glob("*.toml")), ids=lambda path: path.stem)
def test_every_shipped_recipe_loads_and_says_command_and_cost(path: Path) -> None:
    loaded = recipe.load(path.stem)
    head = path.read_text().split("\n\n")[0]
    assert loaded.name
    assert "clip-pipe" in head
    assert "cost" in head.lower()
