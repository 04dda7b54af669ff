"""Results of a step's calls: those that failed are noted and named once all others have ended."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import Any

import pytest

from curate.stage import Resources
from pipelines import calls, failures, fused
from pipelines.errors import RunFailed
from pipelines.failures import Failed
from pipelines.plan import plan_curation
from pipelines.run_local import LocalRunner
from tests.tiny.stages import USE

SOURCE = {"use": f"{USE}:Numbers", "count": 12, "rows_per_part": 2}


class _Failing(LocalRunner):
    """Gives up a call when it comes to part 3."""

    workers = 1

    def map(
        self, function: Any, plan: Any, calls: Any, resources: Any
    ) -> Iterator[tuple[int, Any]]:
        for position, arguments in enumerate(calls):
            if function is not fused.run_span:
                failed = Failed("died", "it died", 4)
                yield position, failed if arguments[0] == 3 else arguments[0]
                continue
            for done, number in enumerate(arguments[1]):
                if number == 3:
                    yield position, Failed("hung", "it hung", 4, results=done)
                    break
                yield position, {arguments[0][0]: {"part": number}}


def test_calls_are_made_when_they_are_asked_for() -> None:
    made: list[int] = []
    lazy = calls.Calls(range(100_000), lambda n: (made.append(n), n))
    assert len(lazy) == 100_000
    assert lazy[7][1] == 7
    assert made == [7]


def test_failed_calls_are_noted_and_named_at_the_end(curate_recipe: Callable[..., Any]) -> None:
    plan = plan_curation(curate_recipe(SOURCE, []))
    found = calls.each(_Failing(), print, plan, [(n,) for n in range(6)], Resources(), "x", range(10, 16))  # fmt: skip
    seen: list[int] = []
    with pytest.raises(RunFailed, match=r"1 of 6 parts could not be done[\s\S]*part 13 of x: its process died"):  # fmt: skip
        seen.extend(position for position, _ in found)
    assert seen == [0, 1, 2, 4, 5]
    assert list(failures.read(plan.pool_root)["x"]["parts"]) == ["13"]


def test_a_span_goes_on_behind_the_part_that_failed(
    curate_recipe: Callable[..., Any], monkeypatch: pytest.MonkeyPatch
) -> None:
    plan = plan_curation(curate_recipe(SOURCE, [{"use": f"{USE}:Length"}]))
    monkeypatch.setattr(calls.look_ahead, "spans", lambda *_: [((0, 1), ()), ((2, 3, 4, 5), ())])
    ended: list[int] = []
    with pytest.raises(RunFailed, match="1 of 6 parts"):
        ended.extend(
            result[1]["part"]
            for result in calls.row_results(plan, plan.steps[1], list(range(6)), {}, _Failing())
        )
    assert ended == [0, 1, 2, 4, 5]
    assert list(failures.read(plan.pool_root)[f"{USE}:Length"]["parts"]) == ["3"]
