"""Plans: columns and needs are checked before work; fingerprints change with what decides the output."""

from __future__ import annotations

import pickle
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from pipelines.errors import RecipeError
from pipelines.plan import Step, plan_curation
from tests.pipelines.test_curation import SOURCE, STAGES
from tests.tiny.stages import USE

LENGTH, COMMON, PICTURE, SIZE = STAGES


def prints(plan: Any) -> dict[str, str]:
    return {
        planned.name: planned.fingerprint for planned in (plan.source, *plan.stages, plan.shard)
    }


def test_row_stages_between_global_ones_are_one_step(curate_recipe: Callable[..., Any]) -> None:
    plan = plan_curation(curate_recipe(SOURCE, [LENGTH, COMMON, PICTURE, SIZE]))
    assert [stage.use.split(":")[-1] for stage in plan.stages] == [
        "filter.duplicate_pair",
        "Length",
        "Common",
        "Picture",
        "PictureSize",
    ]
    assert plan.steps == (
        Step("global", (0,)),
        Step("rows", (1,)),
        Step("global", (2,)),
        Step("rows", (3, 4)),
    )


def test_a_plan_travels(curate_recipe: Callable[..., Any]) -> None:
    plan = plan_curation(curate_recipe(SOURCE, STAGES))
    assert prints(pickle.loads(pickle.dumps(plan))) == prints(plan)


def test_an_option_changes_its_stage_and_what_stands_on_it(
    curate_recipe: Callable[..., Any],
) -> None:
    before = prints(plan_curation(curate_recipe(SOURCE, STAGES)))
    after = prints(
        plan_curation(curate_recipe(SOURCE, [LENGTH, {**COMMON, "most": 99}, PICTURE, SIZE]))
    )
    changed = {name.split(":")[-1] for name in before if before[name] != after[name]}
    assert changed == {"Common", "Picture", "PictureSize", "shard.write"}


def test_a_new_measure_above_changes_nothing_that_does_not_read_it(
    curate_recipe: Callable[..., Any],
) -> None:
    before = prints(plan_curation(curate_recipe(SOURCE, [COMMON, PICTURE, SIZE])))
    after = prints(plan_curation(curate_recipe(SOURCE, [COMMON, LENGTH, PICTURE, SIZE])))
    assert {name for name in before if before[name] != after[name]} == {"shard.write"}


def test_tuning_options_and_recipe_names_change_nothing(
    curate_recipe: Callable[..., Any], tmp_path: Path
) -> None:
    before = prints(plan_curation(curate_recipe(SOURCE, STAGES)))
    tuned = curate_recipe(
        SOURCE, [{**LENGTH, "calls_file": str(tmp_path / "x")}, *STAGES[1:]], name="other"
    )
    assert prints(plan_curation(tuned)) == before


def test_the_content_of_an_entry_list_counts_and_its_name_does_not(
    curate_recipe: Callable[..., Any], tmp_path: Path
) -> None:
    def planned(name: str, text: str) -> str:
        (tmp_path / name).write_text(text)
        recipe = curate_recipe(
            SOURCE, [{"use": "score.metadata_match", "entries": str(tmp_path / name)}]
        )
        return prints(plan_curation(recipe))["score.metadata_match"]

    assert (
        planned("a.txt", "dog\ncat\n")
        == planned("b.txt", "dog\ncat\n")
        != planned("c.txt", "dog\n")
    )


@pytest.mark.parametrize(
    ("stages", "message"),
    [
        ([{"use": "filter.threshold", "column": "text_area_frac", "at_most": 0.1}], "reads the column 'text_area_frac', which nothing above it provides\nhint: put score.text_regions above it"),
        ([{"use": "filter.threshold", "column": "captoin", "at_most": 1}], "reads the column 'captoin', which nothing above it provides\nhint: did you mean 'caption'?"),
        ([SIZE], "reads the column 'image', which nothing above it provides"),
        ([LENGTH, LENGTH], f"writes the column 'length', which is there already (from {USE}:Length)\nhint: no stage overwrites a column"),
        ([{"use": f"{USE}:Numbers"}], "is a SourceStage, which can't stand here"),
        ([{"use": "score.metadata_match", "entries": "/no/such/list.txt"}], "/no/such/list.txt"),
    ],
)  # fmt: skip
def test_what_can_not_work_is_said_before_any_work(
    curate_recipe: Callable[..., Any], stages: list[Any], message: str, tmp_path: Path
) -> None:
    with pytest.raises(RecipeError) as fault:
        plan_curation(curate_recipe(SOURCE, stages))
    assert message in str(fault.value)
    assert not (tmp_path / "run").exists()


@pytest.mark.parametrize(("by", "fine"), [("", False), ("url", False), ("language", True)])
def test_lists_of_several_languages_are_never_balanced_as_one(
    curate_recipe: Callable[..., Any], tmp_path: Path, by: str, fine: bool
) -> None:
    """Ids start at 0 in each language's list: added up, they would be of different entries."""
    for name, text in (("en", "dog\ncat\n"), ("de", "Hund\nKatze\n")):
        (tmp_path / "lists").mkdir(exist_ok=True)
        (tmp_path / "lists" / f"{name}.txt").write_text(text)
    match = {
        "use": "score.metadata_match",
        "entries": str(tmp_path / "lists"),
        "rule": "worldwide",
    }
    balance = {"use": "filter.metadata_balance", "t": 10, "by": by}
    recipe = curate_recipe(SOURCE, [{"use": "score.language"}, match, balance])
    if fine:
        plan_curation(recipe)
        return
    with pytest.raises(RecipeError, match=r"different languages.*\nhint: by = \"language\""):
        plan_curation(recipe)


@pytest.mark.parametrize(
    ("options", "fallback", "fine"),
    [
        ({"t": 10}, "", False),
        ({"keep": 10, "reference": "fr"}, "", False),
        ({"t": 10, "reference": "de"}, "", True),
        ({"t": 10, "reference": ""}, "", True),
        ({"tail_share": 0.1}, "", True),
        ({"t": 10}, "de", True),
    ],
)
def test_the_reference_has_a_list(
    curate_recipe: Callable[..., Any],
    tmp_path: Path,
    options: dict[str, Any],
    fallback: str,
    fine: bool,
) -> None:
    """With a fallback, rows of a language without a list match, too."""
    (tmp_path / "lists").mkdir()
    for name, text in (("de", "Hund\n"), ("nl", "hond\n")):
        (tmp_path / "lists" / f"{name}.txt").write_text(text)
    match = {"use": "score.metadata_match", "entries": str(tmp_path / "lists")}
    match |= {"rule": "worldwide", "fallback": fallback}
    balance = {"use": "filter.metadata_balance", "by": "language", **options}
    recipe = curate_recipe(SOURCE, [{"use": "score.language"}, match, balance])
    if fine:
        plan_curation(recipe)
        return
    with pytest.raises(RecipeError, match=r"are of de, nl\nhint: reference = one of these"):
        plan_curation(recipe)


@pytest.mark.parametrize(
    ("stages", "hint"),
    [
        ([{"use": "score.picture_shape"}], 'of = "stored"'),
        (
            [{"use": "score.phash"}, {"use": "filter.near_duplicate", "prefer": "largest"}],
            'prefer = "largest_stored", below score.picture_shape with of = "stored"',
        ),
        (
            [{"use": "score.phash"}, {"use": "filter.near_duplicate", "prefer": "largest_stored"}],
            "put score.picture_shape above it",
        ),
    ],
)
def test_a_source_that_brings_pictures_has_no_sizes_as_fetched(
    curate_recipe: Callable[..., Any], tmp_path: Path, stages: list[Any], hint: str
) -> None:
    (tmp_path / "photos").mkdir()
    (tmp_path / "photos" / "a.jpg").write_bytes(b"x")
    source = {"use": "source.folder", "path": str(tmp_path / "photos")}
    with pytest.raises(RecipeError) as fault:
        plan_curation(curate_recipe(source, stages))
    assert str(fault.value).endswith(f"hint: {hint}")
    shape = [{"use": "score.picture_shape", "of": "stored"}]
    stored = [one | ({"prefer": "largest_stored"} if "prefer" in one else {}) for one in stages]
    plan_curation(
        curate_recipe(
            source, shape + [one for one in stored if one["use"] != "score.picture_shape"]
        )
    )


def test_a_component_may_stand_twice(curate_recipe: Callable[..., Any]) -> None:
    threshold = {"use": "filter.threshold", "column": "length"}
    plan = plan_curation(
        curate_recipe(SOURCE, [LENGTH, {**threshold, "at_least": 3}, {**threshold, "at_most": 90}])
    )
    assert [stage.name for stage in plan.stages[2:]] == ["filter.threshold", "filter.threshold#2"]


def test_no_curate_table() -> None:
    from pipelines import recipe

    train = {
        "model": "vit_tiny_64",
        "out": "o",
        "shards": "s",
        "phase": [{"samples": 1, "global_batch": 1}],
    }
    with pytest.raises(RecipeError, match=r"no \[curate\] table\nhint: this recipe only trains"):
        plan_curation(recipe.from_data({"name": "x", "train": train}, "x.toml"))
    with pytest.raises(RecipeError, match="there is nothing to do"):
        recipe.from_data({"name": "x"}, "x.toml")


def test_a_global_stage_stands_on_every_stage_above(curate_recipe: Callable[..., Any]) -> None:
    """A row that any stage failed on is no first of its equals: the second must stay."""
    plan = plan_curation(
        curate_recipe(SOURCE, [PICTURE, LENGTH, {"use": "filter.duplicate_image"}])
    )
    assert plan.stages[3].upstream == (-1, 0, 1, 2)


def test_a_threshold_on_a_column_of_another_type_is_said_before_any_work(
    curate_recipe: Callable[..., Any], tmp_path: Path
) -> None:
    (tmp_path / "e.txt").write_text("dog")
    stages = [
        {"use": "score.metadata_match", "entries": str(tmp_path / "e.txt")},
        {"use": "filter.threshold", "column": "entries", "at_most": 3},
    ]
    with pytest.raises(RecipeError, match=r"column 'entries' is list<.*>, not a number"):
        plan_curation(curate_recipe(SOURCE, stages))
