"""The Ray runner: the same bytes as in process, a killed worker's task runs again, causes come back."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from pipelines import curation, run_ray
from pipelines.errors import RunFailed
from pipelines.plan import plan_curation
from pipelines.run_local import LocalRunner
from tests.pipelines.test_curation import SOURCE, STAGES, Quiet, ledger, shard_bytes
from tests.tiny.stages import USE

pytestmark = pytest.mark.ray


def test_the_same_bytes_as_in_process(curate_recipe: Callable[..., Any], ray_address: str) -> None:
    here, there = (
        curate_recipe(SOURCE, STAGES, folder="here"),
        curate_recipe(SOURCE, STAGES, folder="there"),
    )
    curation.run(plan_curation(here), LocalRunner(), Quiet())
    with run_ray.connected() as runner:
        curation.run(plan_curation(there), runner, Quiet())
    assert shard_bytes(here) == shard_bytes(there)


def test_a_killed_worker_s_task_runs_again(
    curate_recipe: Callable[..., Any], ray_address: str, tmp_path: Path
) -> None:
    stages = [{"use": f"{USE}:Killer", "flag": str(tmp_path / "flag"), "at": "26"}, *STAGES]
    recipe = curate_recipe(SOURCE, stages)
    with run_ray.connected() as runner:
        curation.run(plan_curation(recipe), runner, Quiet())
    assert (tmp_path / "flag-row").exists()
    assert len(ledger(recipe)) == 47


def test_a_lost_service_is_told_in_its_own_words(
    curate_recipe: Callable[..., Any], ray_address: str, tmp_path: Path
) -> None:
    recipe = curate_recipe(
        SOURCE,
        [{"use": f"{USE}:Killer", "flag": str(tmp_path / "flag"), "at": "26", "how": "service"}],
    )
    with (
        run_ray.connected() as runner,
        pytest.raises(RunFailed, match=r"the service at x is down\. hint: start it"),
    ):
        curation.run(plan_curation(recipe), runner, Quiet())


def test_the_session_s_cluster_is_left_running(ray_address: str) -> None:
    import ray

    with run_ray.connected():
        pass
    assert ray.is_initialized()
