"""The calls of a step, and what came of them: results part by part, and parts that could not be done.

A runner is one function, ``map``: it calls a worker function for each tuple of arguments, anywhere
and in any order, and yields (position, result) as they end; of a worker function that is a generator,
each of its results. A result may be a `Failed`: then the call is over, and all others go on.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from typing import Any, Protocol

from curate.stage import Resources
from pipelines import events, failures, fused, lease, look_ahead, part
from pipelines.failures import Failed
from pipelines.plan import CurationPlan, Step
from pipelines.resources import joined


class Runner(Protocol):
    """Where worker functions run."""

    @property
    def workers(self) -> int:
        """Processes that calls are spread over; 0 where this one runs all of them, in order."""
        ...

    def map(
        self,
        function: Callable[..., Any],
        plan: CurationPlan,
        calls: Sequence[tuple[Any, ...]],
        resources: Resources,
    ) -> Iterator[tuple[int, Any]]: ...


def row_results(
    plan: CurationPlan,
    step: Step,
    todo: list[int],
    earlier: fused.Earlier,
    runner: Runner,
) -> Iterator[fused.Stats]:
    """What fused stages say of each part, as parts end. Raises RunFailed for those that never do."""
    stages = [plan.stages[index] for index in step.stages]
    needs = joined([planned.resources for planned in stages])
    noted = failures.Failures(plan.pool_root)
    failed: dict[int, Failed] = {}
    spans = look_ahead.spans(todo, runner.workers, look_ahead.does(stages[0]))
    while spans:
        calls = Calls(spans, lambda span: (step.stages, *span, earlier))
        left: list[int] = []
        for position, result in call(runner, fused.run_span, plan, calls, needs):
            if not isinstance(result, Failed):
                for planned in stages:
                    noted.ended(planned.name, [result[step.stages[0]]["part"]])
                yield result
                continue
            span = spans[position][0]
            number = span[result.results]
            left += span[result.results + 1 :]
            failed[number] = result
            at = next((p for p in stages if not part.is_done(plan, p, number)), stages[0])
            noted.note(at.name, number, result)
        spans = [((number,), ()) for number in left]
    if failed:
        raise failures.raised(stages[0].name, failed, len(todo), noted.path)


class Calls(Sequence[tuple[Any, ...]]):
    """The arguments of a step's calls, each made when it is asked for: a pool may have very many parts."""

    def __init__(self, of: Sequence[Any], make: Callable[[Any], tuple[Any, ...]]) -> None:
        self._of, self._make = of, make

    def __len__(self) -> int:
        return len(self._of)

    def __getitem__(self, position: Any) -> Any:
        if isinstance(position, slice):
            return Calls(self._of[position], self._make)
        return self._make(self._of[position])


def each(
    runner: Runner,
    function: Callable[..., Any],
    plan: CurationPlan,
    calls: Sequence[tuple[Any, ...]],
    resources: Resources,
    name: str,
    numbers: Sequence[int] | None = None,
) -> Iterator[tuple[int, Any]]:
    """The results of calls with one each. Those that failed are noted, under the ``numbers`` of their parts.

    Raises RunFailed once all others have ended.
    """
    noted = failures.Failures(plan.pool_root)
    failed: dict[int, Failed] = {}
    for position, result in call(runner, function, plan, calls, resources):
        number = numbers[position] if numbers is not None else position
        if isinstance(result, Failed):
            failed[number] = result
            noted.note(name, number, result)
        else:
            noted.ended(name, [number])
            yield position, result
    if failed:
        raise failures.raised(name, failed, len(calls), noted.path)


def call(
    runner: Runner,
    function: Callable[..., Any],
    plan: CurationPlan,
    calls: Sequence[tuple[Any, ...]],
    resources: Resources,
) -> Iterator[tuple[int, Any]]:
    """A runner's results; none is taken once the lease is gone."""
    lease.check()
    for found in runner.map(function, plan, calls, resources) if calls else ():
        lease.check()
        events.results(plan, function.__name__, found[1])
        yield found
