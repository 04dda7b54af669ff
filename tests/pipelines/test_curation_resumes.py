"""Runs that stop or are killed: the next one goes on, and ends with the bytes of one that was left alone."""

from __future__ import annotations

import multiprocessing
import os
import signal
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from pipelines.errors import RunFailed
from tests.pipelines.test_curation import SOURCE, STAGES, ledger, run, shard_bytes
from tests.tiny.stages import USE


def test_too_many_errors_stop_the_run_and_say_which(curate_recipe: Callable[..., Any]) -> None:
    recipe = curate_recipe(
        {**SOURCE, "bad_every": 0},
        [{"use": f"{USE}:Length", "fail_on": "word"}],
        max_error_frac=0.3,
    )
    with pytest.raises(RunFailed) as fault:
        run(recipe)
    assert "max_error_frac = 0.3" in str(fault.value)
    assert f"error.{USE}:Length.KeyError" in str(fault.value)
    assert "hint:" in str(fault.value)


def test_a_lost_service_stops_the_run_and_the_next_goes_on(
    curate_recipe: Callable[..., Any], tmp_path: Path
) -> None:
    calls = tmp_path / "calls"
    stages = [
        {"use": f"{USE}:Killer", "flag": str(tmp_path / "flag"), "at": "26", "how": "service"},
        {"use": f"{USE}:Length", "calls_file": str(calls)},
    ]
    recipe = curate_recipe(SOURCE, stages)
    with pytest.raises(RunFailed, match="the service at x is down"):
        run(recipe)
    assert calls.exists()
    run(recipe)
    assert len(ledger(recipe)) == 47
    uids = calls.read_text().split()
    # Only the part that the service was lost in may be measured twice.
    assert len(uids) - len(set(uids)) <= 8


def test_the_same_bytes_after_kill_9_in_every_stage(
    curate_recipe: Callable[..., Any], tmp_path: Path
) -> None:
    """One run that is killed once in each place, against one that is not."""

    def recipe(folder: str, flag: str) -> Any:
        source = {**SOURCE, "use": f"{USE}:DyingNumbers", "flag": flag}
        stages = [
            {"use": f"{USE}:Killer", "flag": flag, "at": "26"},
            {"use": f"{USE}:Common", "most": 10, "flag": flag},
            *STAGES[2:],
        ]
        return curate_recipe(
            source,
            stages,
            folder=folder,
            shard={"use": f"{USE}:DyingWrite", "samples_per_shard": 7, "flag": flag},
        )

    undisturbed = recipe("quiet", "")
    run(undisturbed)
    disturbed = recipe("killed", str(tmp_path / "flag"))
    killed = 0
    while True:
        process = multiprocessing.get_context("fork").Process(target=run, args=(disturbed,))
        process.start()
        process.join(300)
        if process.exitcode == 0:
            break
        assert process.exitcode == -signal.SIGKILL
        killed += 1
        assert killed < 20
    steps = {path.name.removeprefix("flag-") for path in tmp_path.glob("flag-*")}
    assert steps == {
        "source",
        "row",
        "summarize",
        "merge",
        "decide",
        "pack",
        "assemble",
        "assembled",
    }
    assert killed == len(steps)
    assert shard_bytes(disturbed) == shard_bytes(undisturbed)
    assert len(ledger(disturbed)) == 47
    assert not [
        path for path in tmp_path.rglob("*") if ".tmp-" in path.name or "writing" in path.name
    ]


@pytest.mark.parametrize("name", ["00001.tar", "ledger.parquet", "index.parquet"])
def test_a_deleted_file_is_made_again(curate_recipe: Callable[..., Any], name: str) -> None:
    recipe = curate_recipe(SOURCE, STAGES, shard={"samples_per_shard": 7})
    run(recipe)
    before = shard_bytes(recipe)
    Path(recipe.curate.shards, name).unlink()
    assert not run(recipe).already_done
    assert shard_bytes(recipe) == before


def test_a_kill_while_the_first_file_was_written_resumes(curate_recipe: Callable[..., Any]) -> None:
    recipe = curate_recipe(SOURCE, STAGES)
    dead = (
        f"{os.uname().nodename}-{4_194_303}-abcdef01"  # over the greatest process number there is
    )
    for folder, name in (
        (recipe.curate.pool, "pool.json"),
        (recipe.curate.shards, ".clip-pipe-writing.json"),
    ):
        Path(folder).mkdir(parents=True)
        Path(folder, f"{name}.tmp-{dead}").touch()
    run(recipe)
    assert not list(Path(recipe.curate.pool).parent.rglob("*.tmp-*"))


def test_a_service_that_was_down_for_every_row_is_asked_again(
    curate_recipe: Callable[..., Any], tmp_path: Path
) -> None:
    flag = tmp_path / "up"
    stages = [
        {"use": f"{USE}:Service", "flag": str(flag)},
        {"use": f"{USE}:Length"},
        {"use": f"{USE}:Common"},
    ]
    recipe = curate_recipe(SOURCE, stages)
    with pytest.raises(RunFailed, match=r"asks the 33 rows of 6 of the 6 parts seen"):
        run(recipe)
    flag.touch()
    assert run(recipe).manifest["kept"] == 33
