"""Calls on a cluster, each until it ends: run again where its worker was lost, given up where it always is.

What a call commits is whole or not there, so running one twice changes nothing. A call that says nothing for
longer than its deadline is ended by force. A part of row stages that was lost twice is run in careful mode
(`pipelines.careful`), in which a row is lost and not the part. What can't be done is given as `Failed`, and
the other calls go on. Nothing here imports ray, and nothing grows with the number of calls.
"""

from __future__ import annotations

import errno
import inspect
import time
from collections import deque
from collections.abc import Callable, Iterator, Sequence
from contextlib import suppress
from dataclasses import dataclass, field, replace
from typing import Any

from curate.contract.done import Damaged
from curate.stage import Resources, StageError
from pipelines import careful, damage, events, signs, slots
from pipelines.errors import RecipeError, RunFailed
from pipelines.failures import Failed

_POLL_S = 0.25  # how soon a signal is obeyed
_LOOK_EVERY_S = 1.0
_TELL_EVERY_S = 30.0
_ORDINARY_ATTEMPTS = 2  # of a part of row stages, before it is run in careful mode
_CAREFUL_ATTEMPTS = 2
_ATTEMPTS = 4  # of other calls
_RAISED_ATTEMPTS = 3
_UNBEGUN_ATTEMPTS = 20  # lost before they began, with a node, say
_MOST_IN_ROW = 10  # calls given up one after another, none having ended well
_MOST_IN_ROW_AFTER = 50  # of a step in which some have
_LEAST_DEADLINE_S = 120.0
_TIMES_SLOWEST = 10
_KNOWN_AFTER = 3  # signs, before the time between them says anything
_PATIENCE = 4  # times as long for a call that was late before: it may be large, and not hung
_GONE_S = 60.0  # a worker that was ended by force and does not end is left alone
_AWAY_S = 5.0  # when the driver itself did something else for longer, that is no call's fault
_LOST_UNBEGUN = 3  # losses without a word that count as one attempt
_CAREFUL_TIMES = 50  # a careful call's batches have deadlines of their own
_BATCH_SHARE, _ROW_SHARE = 8, 2
_FIRST_DEADLINE_S = 7200.0  # where nothing is known yet
_FIRST_SIGN_S = 1800.0  # the same of row stages, which give a sign between two batches
_TOLD_AGAIN = 10  # calls that are run again, a line each; the others are in the log
_SERIOUS = (errno.ENOSPC, errno.EDQUOT, errno.EROFS)  # no part's own fault
_WORDS, _SHOWN = 500, 240
_LOG_BYTES = 4000
_RAYS_OWN = (":task_name:", ":actor_name:", ":job_id:")  # lines of a worker's log


@dataclass(frozen=True)
class Settings:
    """What the user can say. ``task_deadline_s`` 0: from the step's own times."""

    task_deadline_s: float = 0.0
    wait_for_resources_s: float = 600.0


@dataclass
class _Call:
    position: int
    arguments: tuple[Any, ...]
    results: int = 0  # given to the caller, by any attempt
    attempts: int = 0  # that began
    unbegun: int = 0
    lost: int = 0
    careful: int = 0
    late: int = 0
    memory_bytes: int = 0


@dataclass
class _Running:
    call: _Call
    attempt: slots.Attempt
    began: slots.Began | None = None
    since_s: float = field(default_factory=time.monotonic)  # it began, or gave its last sign
    results: int = 0
    late_s: float | None = None  # when it was ended by force


class TaskPool:
    """The calls of one function. ``results()`` gives (position, result or Failed) as they come."""

    def __init__(
        self,
        ray: Any,
        signals: Any,
        cluster: slots.Cluster,
        settings: Settings,
        say: Callable[[str], None],
    ) -> None:
        self._ray, self._signals, self._cluster = ray, signals, cluster
        self._settings, self._say = settings, say
        self._running: dict[Any, _Running] = {}
        self._again: deque[_Call] = deque()
        self._slowest_s, self._signs, self._ended, self._failed_in_row = 0.0, 0, 0, 0
        self._again_told = 0
        self._looked_s = self._waiting_since_s = self._told_s = time.monotonic()

    def results(
        self,
        function: Callable[..., Any],
        plan: Any,
        calls: Sequence[tuple[Any, ...]],
        resources: Resources,
        is_careful: bool,
    ) -> Iterator[tuple[int, Any]]:
        """``plan``: a reference to it. ``is_careful``: whether the function can be run in careful mode."""
        self._asked, self._is_careful = resources, is_careful
        self._is_several = inspect.isgeneratorfunction(function)
        self._slots = slots.slots(self._ray, self._cluster, resources, function.__name__)
        begun, count = 0, len(calls)
        try:
            while begun < count or self._again or self._running:
                self._signals.obey()
                self._slots.tick(len(self._running) + len(self._again) + count - begun)
                for _ in range(max(0, self._slots.room(len(self._running)))):
                    if self._again:
                        self._start(function, plan, self._again.popleft())
                    elif begun < count:
                        self._start(function, plan, _Call(begun, calls[begun]))
                        begun += 1
                    else:
                        break
                for reference in self._ready():
                    yield from self._take(reference)
                yield from self._look()
        finally:
            with suppress(Exception):  # a cluster that is gone; what ended the calls is the cause
                for reference in self._running:
                    self._slots.stop(reference)
                self._slots.close()

    def _start(self, function: Any, plan: Any, call: _Call) -> None:
        memory_bytes = call.memory_bytes or self._asked.memory_bytes
        limits = self._limits(memory_bytes) if call.careful else None
        attempt = slots.Attempt(memory_bytes, limits)
        reference = self._slots.start(function, plan, call.arguments, attempt)
        self._running[reference] = _Running(call, attempt)

    def _ready(self) -> list[Any]:
        """The calls that have something to say, waiting for the first a moment."""
        if not self._running:
            time.sleep(_POLL_S / 5)  # an actor is being made
            return []
        everything = list(self._running)
        ready, _ = self._ray.wait(everything, num_returns=1, timeout=_POLL_S)
        if ready and len(everything) > 1:
            ready, _ = self._ray.wait(everything, num_returns=len(everything), timeout=0)
        return list(ready)

    def _take(self, reference: Any) -> Iterator[tuple[int, Any]]:
        """One thing that a call says: that it began, a result, its end, or what became of it."""
        running = self._running[reference]
        try:
            value = self._ray.get(next(reference))
        except StopIteration:
            del self._running[reference]
            self._slots.ended(reference, lost=False)
            return
        except self._ray.exceptions.RayError as fault:
            del self._running[reference]
            is_raised = isinstance(fault, self._ray.exceptions.RayTaskError)
            self._slots.ended(reference, lost=running.late_s is not None or not is_raised)
            yield from self._failed(running, fault)
            return
        if isinstance(value, slots.Began):
            running.began, running.since_s = value, time.monotonic()
            return
        if isinstance(value, events.Heard):
            value.tell()
            return
        now = time.monotonic()
        if running.attempt.limits is None:
            self._slowest_s = max(self._slowest_s, now - running.since_s)
            self._signs += 1
        running.since_s = now
        if isinstance(value, str) and value == signs.ALIVE:
            return
        running.results += 1
        self._ended += 1
        if running.results > running.call.results:  # an attempt before may have given it already
            running.call.results += 1
            call = running.call
            call.lost = call.attempts = call.careful = call.late = 0
            self._failed_in_row = 0
            yield call.position, value

    def _failed(self, running: _Running, fault: Any) -> Iterator[tuple[int, Failed]]:
        """Try a call again, or give it up. Raises RunFailed for what no other attempt can help."""
        call, began = running.call, running.began or slots.Began("", 0, "")
        kind, told = self._kind(running, fault)
        told = _last_words(told, began.log)
        if kind == "died" and slots.OVER_MEMORY in told:
            kind = "memory"
        call.late += kind == "hung"
        is_unbegun = running.began is None and kind != "raised"
        call.unbegun += is_unbegun
        # A worker that dies at once may take along its word that it had begun.
        if is_unbegun and call.unbegun % _LOST_UNBEGUN:
            is_over = call.unbegun >= _UNBEGUN_ATTEMPTS
        else:
            call.attempts += 1
            is_over = self._is_over(call, kind)
        if not is_over:
            self._again.append(call)
            events.tell("part_again", "warning", kind=kind, message=told, node=began.node)
            self._tell_again(call, f"{told}{' on ' * bool(began.node)}{began.node}")
            return
        tried = call.attempts + call.unbegun
        failed = Failed(kind, told, tried, began.node, began.log, call.results)
        yield call.position, failed
        self._failed_in_row += 1
        if self._failed_in_row >= (_MOST_IN_ROW_AFTER if self._ended else _MOST_IN_ROW):
            raise RunFailed(
                f"{self._failed_in_row} parts failed one after another and none went well; the last: {told}"
                + (f" on {began.node}; its log there: {began.log}" if began.log else "")
                + "\nhint: mend the cause; the same command resumes"
            )

    def _tell_again(self, call: _Call, told: str) -> None:
        if self._again_told < _TOLD_AGAIN:
            self._again_told += 1
            how = "carefully, row by row where need be" if call.careful else "again"
            more = "; more of that is in the log" if self._again_told == _TOLD_AGAIN else ""
            self._say(f"note: a task was lost and is run {how}: {told[:_SHOWN]}{more}")

    def _is_over(self, call: _Call, kind: str) -> bool:
        """Whether a call is given up; else it is made ready for another attempt."""
        if kind == "raised":
            return call.attempts >= _RAISED_ATTEMPTS
        # Elsewhere's logs are not read: what died where memory is limited may have died of that.
        is_memory = kind == "memory" or (
            kind == "died" and self._asked.memory_bytes and not self._is_careful
        )
        if is_memory and not call.careful:
            call.memory_bytes = self._more_memory(call)
        if not self._is_careful:
            return call.attempts >= _ATTEMPTS
        call.lost += 1
        if call.careful or call.lost >= _ORDINARY_ATTEMPTS:
            call.careful += 1
        if call.careful and self._asked.memory_bytes and not call.memory_bytes:
            call.memory_bytes = 2 * self._asked.memory_bytes
        return call.careful > _CAREFUL_ATTEMPTS

    def _more_memory(self, call: _Call) -> int:
        """Twice as much as before, or half of the largest node: so that hardly anything runs beside it."""
        before = call.memory_bytes or self._asked.memory_bytes
        largest = int(max((node.get("memory", 0.0) for node in self._cluster.nodes()), default=0))
        return min(2 * before, largest) if before else largest // 2

    def _kind(self, running: _Running, fault: Any) -> tuple[str, str]:
        """What became of a call (one of failures.KINDS), in its own words."""
        exceptions = self._ray.exceptions
        if running.late_s is not None:
            return (
                "hung",
                f"nothing came for {running.late_s - running.since_s:,.0f} s (--task-deadline)",
            )
        if isinstance(fault, exceptions.OutOfMemoryError):
            return "memory", _cut(fault)
        if isinstance(fault, exceptions.RayTaskError):
            cause = fault.cause if isinstance(fault.cause, Exception) else fault
            if isinstance(cause, StageError):
                raise RunFailed(
                    f"{cause}\nnothing that was done is lost: the same command resumes"
                ) from fault
            if isinstance(cause, Damaged):
                raise damage.as_failure(cause) from fault
            if isinstance(cause, RecipeError | RunFailed):
                raise cause from fault
            if isinstance(cause, OSError) and cause.errno in _SERIOUS:
                where = f"{cause.filename}: " if cause.filename else ""
                node = f"{running.began.node}: " if running.began else ""
                raise RunFailed(
                    f"{node}{where}{cause.strerror}\nhint: make room, or name another folder; the same command resumes"
                ) from fault
            kind = "memory" if isinstance(cause, MemoryError) else "raised"
            return kind, _cut(f"{type(cause).__name__}: {cause}")
        if isinstance(fault, exceptions.RuntimeEnvSetupError | exceptions.TaskUnschedulableError | exceptions.ActorUnschedulableError):  # fmt: skip
            raise RunFailed(f"Ray can't run it: {fault}\nhint: the same command resumes") from fault
        if isinstance(fault, getattr(exceptions, "NodeDiedError", ())):
            self._refuse_own_death(fault)
        return "died", _cut(fault)

    def _refuse_own_death(self, fault: Any) -> None:
        """Raise RunFailed where it is this machine's part of Ray that died: soon Ray ends this process without a word."""
        if str(self._ray.get_runtime_context().get_node_id()) in str(fault):
            raise RunFailed(
                "Ray's own process on this machine (raylet) has died\nhint: its log is raylet.out in /tmp/ray/session_*/logs; "
                "often memory ran out. The same command resumes"
            ) from fault

    def _look(self) -> Iterator[tuple[int, Failed]]:
        """End what is late, and say where nothing can begin."""
        now = time.monotonic()
        if now - self._looked_s < _LOOK_EVERY_S:
            return
        away_s = now - self._looked_s
        self._looked_s = now
        events.gauge("running", sum(one.began is not None for one in self._running.values()))
        for reference, running in list(self._running.items()):
            if away_s > _AWAY_S:  # what came meanwhile has not been read
                running.since_s += away_s
            elif running.late_s is not None:
                if now - running.late_s > _GONE_S:
                    yield from self._left_alone(reference, running)
            elif running.began and now - running.since_s > self._deadline_of(running):
                running.late_s = now
                self._slots.stop(reference)
        self._look_for_places(now)

    def _left_alone(self, reference: Any, running: _Running) -> Iterator[tuple[int, Failed]]:
        """Its worker can't even be killed (a disk that does not answer, say): it is run again beside that."""
        del self._running[reference]
        self._slots.ended(reference, lost=True)
        yield from self._failed(running, None)

    def _look_for_places(self, now: float) -> None:
        """Say where nothing can begin. Raises RunFailed where it was waited for long enough."""
        if any(one.began and one.late_s is None for one in self._running.values()):
            self._waiting_since_s = self._told_s = now
            return
        waited_s = now - self._waiting_since_s
        most_bytes = max((one.attempt.memory_bytes for one in self._running.values()), default=0)
        wanted = replace(self._asked, memory_bytes=most_bytes or self._asked.memory_bytes)
        fits = self._cluster.fits(wanted)
        asked, has = slots.asked_told(wanted), self._cluster.told()
        if not fits and waited_s >= self._settings.wait_for_resources_s:
            raise RunFailed(
                f"a task asks for {asked}, and no node has that: the cluster is {has}"
                + (f" (waited {waited_s:,.0f} s)" if waited_s >= _TELL_EVERY_S else "")
                + "\nhint: add a node, or ask for less (cpus, gpus, memory_gb in the stage's table); the same command resumes"
            )
        if now - self._told_s >= _TELL_EVERY_S:
            self._told_s = now
            why = "no node has that" if not fits else "all of it is in use"
            self._say(f"waiting for {waited_s:,.0f} s: a task asks for {asked}; {why}: {has}")

    def _deadline_s(self) -> float:
        """How long a call may say nothing."""
        if self._settings.task_deadline_s:
            return self._settings.task_deadline_s
        if self._signs >= _KNOWN_AFTER:
            return max(_LEAST_DEADLINE_S, _TIMES_SLOWEST * self._slowest_s)
        return _FIRST_SIGN_S if self._is_careful else _FIRST_DEADLINE_S

    def _deadline_of(self, running: _Running) -> float:
        """The same for a call that may have been late before, or is run in careful mode."""
        if running.attempt.limits is not None:
            return self._deadline_s() * _CAREFUL_TIMES
        is_said = self._settings.task_deadline_s > 0
        return self._deadline_s() * (1 if is_said else _PATIENCE**running.call.late)

    def _limits(self, memory_bytes: int) -> careful.Limits:
        whole = self._deadline_s()
        return careful.Limits(whole / _BATCH_SHARE, whole / _ROW_SHARE, memory_bytes=memory_bytes)


def _cut(told: Any) -> str:
    """One line of it, not too long."""
    lines = [line.strip() for line in str(told).splitlines() if line.strip()]
    return " ".join(lines)[:_WORDS]


def _last_words(told: str, log: str) -> str:
    """With the end of the worker's log, where that lies on this machine."""
    try:
        with open(log, "rb") as file:
            start = max(0, file.seek(0, 2) - _LOG_BYTES)
            file.seek(start)
            lines = file.read().decode(errors="replace").splitlines()[start > 0 :]
    except OSError:
        return told
    own = (line.strip() for line in lines if line.strip() and not line.startswith(_RAYS_OWN))
    words = " ".join(own)[-_WORDS:]
    return f"{told} ({words})" if words and words not in told else told
