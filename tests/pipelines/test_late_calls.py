"""When a call is late, and what becomes of it: by a clock of the test's own, and as much of Ray as that takes."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from types import SimpleNamespace
from typing import Any

import pytest

from curate.stage import Resources
from pipelines import signs, slots, task_pool
from pipelines.errors import RunFailed
from pipelines.failures import Failed
from pipelines.task_pool import Settings, TaskPool

BEGAN = slots.Began("node", 1, "")
Script = list[
    tuple[float, Any]
]  # (seconds after it was asked for, what it says), END being its end
END = object()


class _RayError(Exception):
    pass


class _Said:
    """A call's stream of results, by its script."""

    def __init__(self, ray: _Ray, script: Script) -> None:
        self._ray = ray
        self.left = [(ray.now + after, value) for after, value in script]

    def is_ready(self) -> bool:
        return bool(self.left) and self.left[0][0] <= self._ray.now

    def __next__(self) -> Any:
        value = self.left.pop(0)[1]
        if value is END:
            raise StopIteration
        return value


class _Ray:
    """Ray, and the time. ``script(number, attempt, memory_bytes)``: what a call will say."""

    exceptions = SimpleNamespace(
        RayError=_RayError, RayTaskError=type("Raised", (_RayError,), {}),
        OutOfMemoryError=type("Memory", (_RayError,), {}), RuntimeEnvSetupError=type("Env", (_RayError,), {}),
        TaskUnschedulableError=type("Task", (_RayError,), {}), ActorUnschedulableError=type("Actor", (_RayError,), {}),
    )  # fmt: skip

    def __init__(self, script: Callable[..., Script], *, ends_killed: bool = True) -> None:
        self.now, self._script, self._ends_killed = 0.0, script, ends_killed
        self.tries: dict[int, int] = {}
        self.killed_s: list[float] = []
        self.node = {"CPU": 2.0, "memory": 64e9}

    def nodes(self) -> list[dict[str, Any]]:
        return [{"Alive": True, "Resources": self.node}]

    def remote(self, _: Any) -> Any:
        def call(_: Any, __: Any, arguments: Any, attempt: slots.Attempt, *___: Any) -> _Said:
            number = arguments[0]
            self.tries[number] = self.tries.get(number, 0) + 1
            return _Said(self, self._script(number, self.tries[number], attempt))

        return SimpleNamespace(options=lambda **_: SimpleNamespace(remote=call))

    def wait(self, references: list[_Said], *, timeout: float, **_: Any) -> tuple[Any, Any]:
        ready = [one for one in references if one.is_ready()]
        if not ready:
            self.now += timeout
        return ready, []

    def get(self, value: Any) -> Any:
        if isinstance(value, Exception):
            raise value
        return value

    def cancel(self, reference: _Said, **_: Any) -> None:
        self.killed_s.append(self.now)
        if self._ends_killed:
            reference.left = [(self.now, _RayError("killed"))]


@pytest.fixture
def results(monkeypatch: pytest.MonkeyPatch) -> Callable[..., Iterator[tuple[int, Any]]]:
    said: list[str] = []

    def make(
        ray: _Ray, count: int, *, careful: bool = False, settings: Settings | None = None,
        asked: Resources | None = None,
    ) -> Iterator[tuple[int, Any]]:  # fmt: skip
        clock = SimpleNamespace(
            monotonic=lambda: ray.now, sleep=lambda s: setattr(ray, "now", ray.now + s)
        )
        monkeypatch.setattr(task_pool, "time", clock)
        monkeypatch.setattr(slots, "time", clock)
        signals = SimpleNamespace(obey=lambda: None)
        pool = TaskPool(ray, signals, slots.Cluster(ray), settings or Settings(), said.append)
        calls = [(number,) for number in range(count)]
        return pool.results(print, "plan", calls, asked or Resources(), careful)

    return make


def fast(*more: tuple[float, Any]) -> Script:
    return [(0.0, BEGAN), *(more or [(1.0, "done")]), (10_000.0 if more else 1.0, END)]


def test_a_sign_of_life_is_no_result_and_puts_the_deadline_off(results: Any) -> None:
    """A part of an hour among parts of a second: it says that it goes on, and is let be."""
    beats = [(100.0 * n, signs.ALIVE) for n in range(1, 36)]
    slow: Script = [(0.0, BEGAN), *beats, (3600.0, "slow"), (3600.0, END)]
    ray = _Ray(lambda number, *_: slow if number == 3 else fast())
    found = list(results(ray, 8, careful=True))
    assert sorted(found) == [(n, "slow" if n == 3 else "done") for n in range(8)]
    assert not ray.killed_s


def test_signs_are_not_counted_among_results(results: Any) -> None:
    """A call that is lost behind its first result goes on with the second."""

    def script(number: int, tried: int, _: Any) -> Script:
        last = _RayError("crashed") if tried == 1 else "b"
        said = [BEGAN, signs.ALIVE, "a", signs.ALIVE, last, END]
        return [(float(n), value) for n, value in enumerate(said)]

    assert list(results(_Ray(script), 1, careful=True)) == [(0, "a"), (0, "b")]


def test_a_hang_in_the_first_parts_waits_half_an_hour_at_most(results: Any) -> None:
    """Row stages give signs, so silence says something before any part has ended."""
    hangs: Script = [(0.0, BEGAN), (1e9, END)]
    ray = _Ray(lambda number, tried, _: hangs if tried == 1 else fast())
    assert len(list(results(ray, 2, careful=True))) == 2
    assert 1800 <= ray.killed_s[0] < 1805
    ray = _Ray(lambda number, tried, _: hangs if tried == 1 and number == 0 else
               [(0.0, BEGAN), *((5.0 * n, signs.ALIVE) for n in range(1, 100)), (500.0, "x"), (500.0, END)])  # fmt: skip
    assert len(list(results(ray, 2, careful=True))) == 2
    assert 120 <= ray.killed_s[0] < 125  # the other part's signs say how long a batch takes


def test_who_was_late_is_given_more_time(results: Any) -> None:
    """A large part behind small ones, of a function that gives no signs."""
    slow: Script = [(0.0, BEGAN), (1000.0, "large"), (1000.0, END)]
    ray = _Ray(lambda number, *_: slow if number == 7 else fast())
    found = dict(results(ray, 8))
    assert found[7] == "large"
    assert ray.tries[7] == 3  # 120 s, 480 s, 1,920 s
    ray = _Ray(lambda number, *_: slow if number == 7 else fast())
    found = dict(results(ray, 8, settings=Settings(task_deadline_s=300.0)))  # who says it means it
    assert isinstance(found[7], Failed)
    assert (found[7].kind, found[7].attempts) == ("hung", 4)
    assert "nothing came for 30" in found[7].told


def test_a_worker_that_can_t_be_killed_is_left_alone(results: Any) -> None:
    hangs: Script = [(0.0, BEGAN), (1e9, END)]
    ray = _Ray(lambda number, tried, _: hangs if number == 3 and tried == 1 else fast(), ends_killed=False)  # fmt: skip
    assert len(dict(results(ray, 8))) == 8
    assert ray.tries[3] == 2
    assert ray.now < 200


def test_what_came_while_the_driver_was_away_is_read_first(results: Any) -> None:
    """A driver that waited an hour for its storage has not heard anything meanwhile: nobody hung."""
    ray = _Ray(lambda number, *_: [(0.0, BEGAN), (2.0 + number, "done"), (2.0 + number, END)])
    found = []
    for position, _ in results(ray, 6):
        found.append(position)
        ray.now += 10_000
    assert sorted(found) == list(range(6))
    assert not ray.killed_s


def test_who_dies_before_its_word_is_run_carefully_soon(results: Any) -> None:
    dies: Script = [(0.0, _RayError("crashed"))]
    ray = _Ray(lambda number, tried, attempt: fast() if attempt.limits else dies)
    assert dict(results(ray, 1, careful=True)) == {0: "done"}
    assert ray.tries[0] == 7


def test_many_failures_in_a_row_end_a_step_that_went_well_before(results: Any) -> None:
    fault = _RayError("the file system is gone")
    ray = _Ray(lambda number, *_: fast() if number < 20 else [(0.0, BEGAN), (0.0, fault)])
    seen: list[Any] = []
    with pytest.raises(RunFailed, match="50 parts failed one after another"):
        seen.extend(results(ray, 1000))
    assert sum(isinstance(one, Failed) for _, one in seen) == 50


def test_memory_that_no_node_has_any_more_is_waited_for_and_given_up(results: Any) -> None:
    """A call that is to have twice its memory, on a node that has gone meanwhile."""

    def script(number: int, tried: int, attempt: slots.Attempt) -> Script:
        if attempt.memory_bytes > 2 << 30:
            ray.node = {"CPU": 2.0, "memory": float(3 << 30)}
            return [(1e9, END)]
        return [(0.0, BEGAN), (0.0, _Ray.exceptions.OutOfMemoryError("too much"))]

    ray = _Ray(script)
    with pytest.raises(RunFailed, match=r"a task asks for 1 CPUs, 4.0 GiB, and no node has that"):
        list(results(ray, 1, asked=Resources(memory_bytes=2 << 30)))
    assert 600 <= ray.now < 700
