"""What a task asks for: the stage's own, or what its table says; in no fingerprint."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest

from curate.stage import Resources
from pipelines import resources
from pipelines.errors import RecipeError
from pipelines.plan import plan_curation
from pipelines.plan_text import curation
from tests.tiny.faults import USE
from tests.tiny.stages import USE as STAGES

SOURCE = {"use": f"{STAGES}:Numbers"}
LENGTH = {"use": f"{STAGES}:Length"}


def test_a_table_says_what_its_tasks_ask_for(curate_recipe: Callable[..., Any]) -> None:
    asks = {"cpus": 2, "gpus": 0.5, "memory_gb": 1.5}
    plan = plan_curation(
        curate_recipe({**SOURCE, "cpus": 4}, [{**LENGTH, **asks}], shard={"use": "shard.write", "memory_gb": 3})
    )  # fmt: skip
    plain = plan_curation(curate_recipe(SOURCE, [LENGTH]))
    assert plan.stages[1].resources == Resources(2.0, 0.5, 3 << 29)
    assert plan.source.resources.cpus == 4
    assert plan.shard.resources.memory_bytes == 3 << 30
    for one, other in zip((plan.source, *plan.stages), (plain.source, *plain.stages), strict=True):
        assert one.fingerprint == other.fingerprint
        assert one.options == other.options
    lines = [line.strip() for line in curation(plan, 3)]
    assert lines.count("asks 2 CPUs, 0.5 GPUs, 1.5 GiB") == 1
    assert not [line for line in curation(plain, 3) if "asks" in line]


def test_an_option_of_that_name_is_the_component_s_own(curate_recipe: Callable[..., Any]) -> None:
    table = {"use": f"{USE}:Trap", "gpus": 0.25, "cpus": 2}
    trap = plan_curation(curate_recipe(SOURCE, [table])).stages[1]
    assert trap.options["gpus"] == 0.25
    assert trap.resources == Resources(cpus=2.0, gpus=0.25)


@pytest.mark.parametrize(
    ("table", "told"),
    [
        ({"cpus": 0}, "cpus: found 0"),
        ({"gpus": -1}, "gpus: found -1"),
        ({"memory_gb": "much"}, "memory_gb: found 'much'"),
        ({"cpu": 1}, "has no option 'cpu'"),
    ],
)
def test_what_can_t_be_asked_for(
    curate_recipe: Callable[..., Any], table: dict[str, Any], told: str
) -> None:
    with pytest.raises(RecipeError, match=told):
        plan_curation(curate_recipe(SOURCE, [{**LENGTH, **table}]))


def test_fused_stages_take_turns_but_hold_their_memory_together() -> None:
    joined = resources.joined([Resources(cpus=2), Resources(gpus=1, memory_bytes=5 << 30), Resources(keep=True)])  # fmt: skip
    assert joined == Resources(cpus=2, gpus=1, memory_bytes=7 << 30, keep=True)
    assert resources.joined([Resources(), Resources()]) == Resources()
