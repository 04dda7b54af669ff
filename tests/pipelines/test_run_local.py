"""The in-process runner: calls in order, and a StageError becomes a RunFailed that says how to go on."""

from __future__ import annotations

from collections.abc import Iterator

import pytest

from curate.stage import Resources, StageError
from pipelines.errors import RunFailed
from pipelines.run_local import LocalRunner
from pipelines.signs import ALIVE


def test_calls_in_order() -> None:
    found = list(
        LocalRunner().map(lambda plan, a, b: (plan, a + b), "plan", [(1, 2), (3, 4)], Resources())
    )  # type: ignore[arg-type]
    assert found == [(0, ("plan", 3)), (1, ("plan", 7))]


def test_a_generator_gives_several_results() -> None:
    def counted(plan: object, count: int) -> Iterator[int | str]:
        for number in range(count):
            yield ALIVE
            yield number

    found = list(LocalRunner().map(counted, None, [(2,), (0,), (1,)], Resources()))  # type: ignore[arg-type]
    assert found == [(0, 0), (0, 1), (2, 0)]


def test_a_stage_error_is_a_failed_run() -> None:
    def broken(plan: object) -> None:
        raise StageError("no model. hint: give one")

    with pytest.raises(
        RunFailed, match=r"no model\. hint: give one\nnothing that was done is lost"
    ):
        list(LocalRunner().map(broken, None, [()], Resources()))  # type: ignore[arg-type]
