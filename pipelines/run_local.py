"""The in-process runner: one part after another, nothing to start. For tests, text and small lists."""

from __future__ import annotations

import inspect
from collections.abc import Callable, Iterator, Sequence
from typing import Any

from curate.contract.done import Damaged
from curate.stage import Resources, StageError
from pipelines import damage
from pipelines.errors import RunFailed
from pipelines.plan import CurationPlan
from pipelines.signs import ALIVE


class LocalRunner:
    """Calls worker functions one by one in this process."""

    workers = 0

    def map(
        self,
        function: Callable[..., Any],
        plan: CurationPlan,
        calls: Sequence[tuple[Any, ...]],
        resources: Resources,
    ) -> Iterator[tuple[int, Any]]:
        for position, arguments in enumerate(calls):
            try:
                result = function(plan, *arguments)
                if not inspect.isgeneratorfunction(function):
                    yield position, result
                    continue
                for one in result:
                    if one != ALIVE:
                        yield position, one
            except Damaged as fault:
                raise damage.as_failure(fault) from fault
            except StageError as fault:
                raise RunFailed(
                    f"{fault}\nnothing that was done is lost: the same command resumes"
                ) from fault
