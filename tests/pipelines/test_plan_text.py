"""The plan in words: what is done and what is to do, phases with their steps, options in one line."""

from __future__ import annotations

import json
import re
from pathlib import Path

import pytest

from pipelines import plan_text, recipe
from pipelines.errors import RecipeError
from tests.pipelines.test_curation import SOURCE
from tests.pipelines.test_launch import data


def test_phases_in_samples_and_steps_and_what_they_cost(tmp_path: Path) -> None:
    content = data("/shards", tmp_path / "out", samples=50)
    content["train"]["model"] = "ViT-B-32"
    loaded = recipe.from_data(content, "x")
    text = "\n".join(plan_text.training(loaded))
    assert f"train     ViT-B-32 -> {tmp_path}/out" in text
    assert "phase 0   50 samples, 4 steps of 16, lr 0.001, objective infonce" in text
    assert "GFLOP a pair" in text
    assert re.search(
        r"memory [\d.]+ GiB of 139.7 GiB \(state ", "\n".join(plan_text.training(loaded, "h200", 2))
    )
    with pytest.raises(RecipeError):
        plan_text.training(loaded, "no such gpu", 1)


def test_options_that_are_set_in_one_line() -> None:
    assert plan_text.options({"a": 1, "b": "", "c": (), "d": None, "e": False}) == "a=1 e=False"
    long = plan_text.options({"x": "y" * 200})
    assert (len(long), long[-3:]) == (120, "...")


def test_shards_that_are_not_there_are_said_and_those_that_are_counted(tmp_path: Path) -> None:
    here, own = tmp_path / "here", str(tmp_path / "own")
    here.mkdir()
    (here / "00000.tar").touch()
    (here / "sizes.json").write_text('{"00000.tar": 20}')
    content = data("", tmp_path / "out", samples=60, warmup_samples=60)
    content["train"]["shards"] = [
        {"path": str(here), "weight": 2.0}, {"path": own}, {"path": f"{own}2"},
    ]  # fmt: skip
    content["curate"] = {"pool": str(tmp_path / "pool"), "shards": own, "source": SOURCE}
    text = "\n".join(plan_text.training(recipe.from_data(content, "x")))
    assert "weight 2.0  20 pairs, 1.5 epochs" in text
    assert f"{own}  weight 1.0  not there yet\n" in text
    assert f"{own}2  weight 1.0  NOT THERE: no tar files found" in text
    assert (
        "warning   train.phase.0: a warm-up of 60 samples in a phase of 60: lr rises to 0.0008 and never to 0.001. hint:"
        in text
    )


@pytest.mark.parametrize(("pairs", "is_told"), [(15, True), (16, False)])
def test_a_set_smaller_than_a_batch_is_warned_of(tmp_path: Path, pairs: int, is_told: bool) -> None:
    (tmp_path / "00000.tar").touch()
    (tmp_path / "sizes.json").write_text(json.dumps({"00000.tar": pairs}))
    loaded = recipe.from_data(data(str(tmp_path), tmp_path / "out", samples=60), "x")
    told = f"warning   {tmp_path}: {pairs} samples, and of each global batch 16 are drawn from it: "
    assert any(line.startswith(told) for line in plan_text.training(loaded)) == is_told
