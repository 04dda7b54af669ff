"""Overrides: a component's name stands for the index of the one table that uses it."""

from __future__ import annotations

from pathlib import Path

import pytest

from pipelines import overrides, recipe
from pipelines.errors import RecipeError
from tests.pipelines.test_recipe import BASE, write


def test_a_table_of_a_list_goes_by_its_component_s_name(tmp_path: Path) -> None:
    for key in ("threshold", "filter.threshold", "0"):
        loaded = recipe.load(write(tmp_path, BASE), [f"curate.stage.{key}.at_least=2.5"])
        assert loaded.curate is not None
        assert loaded.curate.stage[0].options["at_least"] == 2.5
    assert overrides.place_of(loaded.resolved, "curate.stage.threshold.at_least=1") == (
        "curate",
        "stage",
        "0",
        "at_least",
    )


def test_a_name_that_two_tables_use_is_refused_with_their_indexes(tmp_path: Path) -> None:
    twice = '[[curate.stage]]\nuse = "filter.threshold"\ncolumn = "height"\nat_most = 1\n[train]'
    with pytest.raises(RecipeError) as fault:
        recipe.load(
            write(tmp_path, BASE.replace("[train]", twice)), ["curate.stage.threshold.at_most=2"]
        )
    assert "2 tables use 'threshold'\nhint: say which by its index: 0 or 1" in str(fault.value)


def test_a_misspelt_name_is_answered_with_the_right_one(tmp_path: Path) -> None:
    with pytest.raises(RecipeError) as fault:
        recipe.load(write(tmp_path, BASE), ["curate.stage.treshold.at_most=2"])
    assert (
        "'treshold' is no index of a list of 1\nhint: the first is 0; did you mean 'threshold'?"
        in str(fault.value)
    )


@pytest.mark.parametrize(
    "name", ["Picture", "tests.tiny.stages:Picture", "1", "threshold", "filter.threshold"]
)
def test_code_from_elsewhere_goes_by_its_class_or_its_whole_use(name: str) -> None:
    data = {
        "curate": {"stage": [{"use": "filter.threshold"}, {"use": "tests.tiny.stages:Picture"}]}
    }
    overrides.apply(data, f"curate.stage.{name}.dead=x")
    index = 0 if name.endswith("threshold") else 1
    assert data["curate"]["stage"][index]["dead"] == "x"


def test_the_hint_is_a_name_that_works() -> None:
    data = {"curate": {"stage": [{"use": "tests.tiny.stages:Picture"}]}}
    with pytest.raises(RecipeError, match=r"did you mean 'Picture'\?"):
        overrides.apply(data, "curate.stage.Pictures.dead=x")


def test_a_change_takes_the_place_of_what_it_can_t_stand_beside() -> None:
    stage = [{"use": "filter.metadata_balance", "t": 4, "by": "x"}, {"use": "other", "t": 4}]
    data = {"curate": {"stage": stage}}
    changes = ["curate.stage.metadata_balance.keep=9", "curate.stage.1.keep=9", "seed=1"]
    for change in changes:
        overrides.apply(data, change)
    overrides.drop_rivals(data, changes)
    assert stage[0] == {"use": "filter.metadata_balance", "keep": 9, "by": "x"}
    assert stage[1] == {"use": "other", "t": 4, "keep": 9}


def test_what_goes_with_a_replaced_option_goes_too() -> None:
    stage = [{"use": "filter.metadata_balance", "keep": 9, "oversample": 1.3}]
    data = {"curate": {"stage": stage}}
    change = "curate.stage.metadata_balance.t=5"
    overrides.apply(data, change)
    overrides.drop_rivals(data, [change])
    assert stage[0] == {"use": "filter.metadata_balance", "t": 5}
