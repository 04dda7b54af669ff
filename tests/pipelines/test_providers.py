"""What a stage reads is provided above it, and what it stands on is that and whoever refuses rows."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from pipelines import providers
from pipelines.errors import RecipeError
from pipelines.plan import plan_curation
from tests.tiny.stages import USE

SOURCE = {"use": f"{USE}:Numbers"}


def test_a_stage_stands_on_deciders_and_on_what_it_reads(curate_recipe: Callable[..., Any]) -> None:
    stages = [
        {"use": f"{USE}:Length"},
        {"use": f"{USE}:Length2"},
        {"use": f"{USE}:Common"},
        {"use": "filter.threshold", "column": "length", "at_least": 2},
    ]
    plan = plan_curation(curate_recipe(SOURCE, stages))
    above = (plan.source, *plan.stages)
    names = [planned.name for planned in plan.stages]
    assert names[0] == "filter.duplicate_pair"
    # Length2 is stood on by Common alone, which must see every row that lives.
    assert providers.stands_on(("length",), above[:4], everything=False) == (-1, 0, 1)
    assert plan.stages[3].upstream == (-1, 0, 1, 2)
    assert plan.stages[4].upstream == (-1, 0, 1, 2, 3)


def test_what_values_hang_on_leaves_refusals_out(curate_recipe: Callable[..., Any]) -> None:
    stages = [{"use": f"{USE}:Common"}, {"use": f"{USE}:Picture"}, {"use": f"{USE}:PictureSize"}]
    found = [
        plan_curation(curate_recipe(SOURCE, [{**stages[0], "most": most}, *stages[1:]]))
        for most in (3, 4)
    ]
    for index in (2, 3):
        assert found[0].stages[index].measure == found[1].stages[index].measure
        assert found[0].stages[index].fingerprint != found[1].stages[index].fingerprint
    above = (found[0].source, *found[0].stages[:3])
    measures = providers.measures(("image",), above)
    assert measures == (found[0].source.measure, found[0].stages[2].measure)


def test_a_column_that_nobody_writes_is_said(curate_recipe: Callable[..., Any]) -> None:
    stage = {"use": "filter.threshold", "column": "phash", "equals": "x"}
    with pytest.raises(RecipeError, match=r"(?s)'phash', which nothing above.*score\.phash"):
        plan_curation(curate_recipe(SOURCE, [stage]))


def test_a_file_is_known_by_its_content_and_a_large_one_by_its_ends(tmp_path: Path) -> None:
    small, copy = tmp_path / "a", tmp_path / "b"
    small.write_bytes(b"x" * 1000)
    copy.write_bytes(b"x" * 1000)
    assert providers.identity(str(small), 1000) == providers.identity(str(copy), 1000)
    whole = providers.identity(str(small), 1000)
    copy.write_bytes(b"x" * 999 + b"y")
    assert providers.identity(str(copy), 1000) != whole
    with pytest.raises(ValueError, match="no such file"):
        providers.identity(str(tmp_path / "c"), 1000)
