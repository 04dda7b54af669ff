"""Where calls run on a Ray cluster: as tasks, or in an elastic pool of actors. Nothing here imports ray.

Tasks are for what a CPU does: Ray keeps their worker processes, and so the models they opened. What holds
a GPU, or says that it is dear to open (``Resources.keep``), runs in actors: one process each for as long as
the step goes on. The pool grows to what the cluster has, shrinks when a node goes, replaces dead actors, and
always leaves a CPU for the rest, for a pool that has all of them can starve what it waits for.
"""

from __future__ import annotations

import os
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import nullcontext
from dataclasses import dataclass, replace
from typing import Any, NamedTuple

from curate.stage import Resources
from pipelines import careful, events, threads
from pipelines.errors import RunFailed
from pipelines.plan import CurationPlan

_WINDOW_PER_CPU = 2
_FRESH_S = 1.0  # how long what is known of the cluster counts
_MEMORY_LOOK_S = 0.05
_MOST_UNBORN = 5  # actors in a row that died before they could begin
_OUT_OF_MEMORY = 137
OVER_MEMORY = "ended for its memory"


class Began(NamedTuple):
    """What a call says first: where it runs."""

    node: str
    process: int
    log: str


@dataclass(frozen=True)
class Attempt:
    """How a call is tried: ``memory_bytes`` is asked for and held to; 0 asks for nothing."""

    memory_bytes: int = 0
    limits: careful.Limits | None = None  # in careful mode


def work(
    function: Callable[..., Any],
    plan: CurationPlan,
    arguments: tuple[Any, ...],
    attempt: Attempt,
    cpus: float,
) -> Iterator[Any]:
    """A call in its worker: where it runs, then its results."""
    yield Began(os.uname().nodename, os.getpid(), _own_log())
    threads.limit(cpus)
    watched = attempt.memory_bytes and attempt.limits is None
    limits = attempt.limits
    with (
        _memory_watched(attempt.memory_bytes) if watched else nullcontext(),
        careful.mode(limits) if limits is not None else nullcontext(),
    ):
        yield from events.heard(_results(function, plan, arguments))


def _results(function: Callable[..., Any], plan: CurationPlan, arguments: Any) -> Iterator[Any]:
    found = function(plan, *arguments)
    if isinstance(found, Iterator):
        yield from found
    else:
        yield found


def _own_log() -> str:
    try:
        path = os.readlink("/proc/self/fd/2")
    except OSError:
        return ""
    return path if path.startswith("/") and not path.startswith("/dev/") else ""


class _memory_watched:
    """Ends this process where it holds more memory of its own than was asked for: its part is run again."""

    def __init__(self, most_bytes: int) -> None:
        self._most_bytes, self._over = most_bytes, threading.Event()

    def __enter__(self) -> None:
        threading.Thread(target=self._watch, name="memory", daemon=True).start()

    def __exit__(self, *_: object) -> None:
        self._over.set()

    def _watch(self) -> None:
        while not self._over.wait(_MEMORY_LOOK_S):
            held = careful.held_bytes()
            if held > self._most_bytes:
                most = self._most_bytes
                told = f"{OVER_MEMORY}: {held >> 20:,} MiB held, {most >> 20:,} asked for\n"
                os.write(2, told.encode())
                os._exit(_OUT_OF_MEMORY)


class Cluster:
    """What the living nodes have, asked at most once a second."""

    def __init__(self, ray: Any, answers: Callable[[], bool] = lambda: True) -> None:
        self._ray, self._answers = ray, answers  # whether the head does
        self._asked, self._nodes = 0.0, []  # type: ignore[var-annotated]
        self._names: dict[str, str] | None = None  # of the nodes, by their ids

    def nodes(self) -> list[dict[str, float]]:
        """The resources of each living node, used or not."""
        now = time.monotonic()
        if not self._nodes or (now - self._asked > _FRESH_S and self._answers()):
            living = [n for n in self._ray.nodes() if n["Alive"]]
            self._tell({n.get("NodeID", ""): n.get("NodeManagerHostname", "") for n in living})
            self._nodes = [n["Resources"] for n in living]
            self._asked = now
        return self._nodes

    def _tell(self, names: dict[str, str]) -> None:
        """Tell which nodes went or came since."""
        before = names if self._names is None else self._names
        self._names = names
        for number in before.keys() - names.keys():
            told = f"{len(names)} nodes left"
            events.tell("node_lost", "warning", node=before[number], message=told)
        for number in names.keys() - before.keys():
            events.tell("node_joined", node=names[number], message=f"{len(names)} nodes")
        events.gauge("nodes", len(names))

    def total(self, name: str) -> float:
        return sum(node.get(name, 0.0) for node in self.nodes())

    def fits(self, asked: Resources) -> int:
        """How many calls that ask for this could run at once, were nothing else there."""
        return sum(_fit(node, asked) for node in self.nodes())

    def told(self) -> str:
        count = len(self.nodes())
        has = f"{self.total('CPU'):g} CPUs, {self.total('GPU'):g} GPUs, {self.total('memory') / 2**30:.1f} GiB"
        return f"{count} node{'' if count == 1 else 's'} with {has}"


def _fit(node: dict[str, float], asked: Resources) -> int:
    wants = (("CPU", asked.cpus), ("GPU", asked.gpus), ("memory", float(asked.memory_bytes)))
    return min((int(node.get(name, 0.0) / most + 1e-9) for name, most in wants if most), default=0)


def asked_told(asked: Resources) -> str:
    """What a call asks for, in words."""
    told = f"{asked.cpus:g} CPUs"
    told += f", {asked.gpus:g} GPUs" if asked.gpus else ""
    return told + (f", {asked.memory_bytes / 2**30:.1f} GiB" if asked.memory_bytes else "")


class Tasks:
    """Each call is a task; twice as many as can run are given to Ray, so that no worker waits for the driver."""

    def __init__(self, ray: Any, cluster: Cluster, asked: Resources, name: str) -> None:
        self._ray, self._cluster, self._asked = ray, cluster, asked
        self._task = ray.remote(work)
        self._options: dict[str, Any] = {
            "num_cpus": asked.cpus,
            "num_gpus": asked.gpus,
            "max_retries": 0,
            "num_returns": "streaming",
            "name": name,
        }

    def tick(self, calls: int) -> None:
        """``calls``: how many are running or waiting."""

    def room(self, running: int) -> int:
        return max(2, self._cluster.fits(self._asked) * _WINDOW_PER_CPU) - running

    def start(self, function: Any, plan: Any, arguments: tuple[Any, ...], attempt: Attempt) -> Any:
        task = self._task.options(**self._options, memory=attempt.memory_bytes or None)
        return task.remote(function, plan, arguments, attempt, self._asked.cpus)

    def stop(self, reference: Any) -> None:
        self._ray.cancel(reference, force=True)

    def ended(self, reference: Any, *, lost: bool) -> None:
        """A call is over."""

    def close(self) -> None:
        """Nothing is kept."""


class _Worker:
    """An actor's own side. ``opened`` state is kept by `fused` for as long as its process lives."""

    def ready(self) -> int:
        return os.getpid()

    def work(self, *arguments: Any) -> Iterator[Any]:
        yield from work(*arguments)


class Actors:
    """Each call runs in one of the pool's actors, one call at a time."""

    def __init__(self, ray: Any, cluster: Cluster, asked: Resources, name: str) -> None:
        self._ray, self._cluster, self._asked = ray, cluster, asked
        self._actor = ray.remote(_Worker).options(
            num_cpus=asked.cpus,
            num_gpus=asked.gpus,
            memory=asked.memory_bytes or None,
            max_restarts=0,
            max_task_retries=0,
        )
        self._unborn: dict[Any, Any] = {}  # reference of ready() -> actor
        self._idle: list[Any] = []
        self._busy: dict[Any, Any] = {}  # reference of a call -> actor
        self._lost_unborn = 0

    @property
    def size(self) -> int:
        return len(self._unborn) + len(self._idle) + len(self._busy)

    def most(self) -> int:
        """How large the pool may be now: what the cluster fits, and a CPU left for the rest where it can be."""
        fits = self._cluster.fits(self._asked)
        cpus = self._cluster.total("CPU")
        room = int((cpus - 1) / self._asked.cpus + 1e-9) if self._asked.cpus else fits
        return max(1, min(fits, room))

    def tick(self, calls: int) -> None:
        """Take in actors that are ready, make more, and let those go that have no work."""
        self._take_in()
        wanted = min(self.most(), calls)
        while self.size < wanted:
            actor = self._actor.remote()
            self._unborn[actor.ready.remote()] = actor
        while self._unborn and self.size > wanted:  # first what may find no place
            self._ray.kill(self._unborn.popitem()[1])
        while self._idle and self.size > wanted:
            self._ray.kill(self._idle.pop())

    def _take_in(self) -> None:
        ready, _ = self._ray.wait(list(self._unborn), num_returns=len(self._unborn), timeout=0) if self._unborn else ([], [])  # fmt: skip
        for reference in ready:
            actor = self._unborn.pop(reference)
            try:
                self._ray.get(reference)
            except self._ray.exceptions.RayError as fault:
                self._lost_unborn += 1
                if self._lost_unborn >= _MOST_UNBORN:
                    raise RunFailed(
                        f"workers die before they can begin: {fault}\nhint: their logs say why; the same command resumes"
                    ) from fault
            else:
                self._lost_unborn = 0
                self._idle.append(actor)

    def room(self, running: int) -> int:
        return len(self._idle)

    def start(self, function: Any, plan: Any, arguments: tuple[Any, ...], attempt: Attempt) -> Any:
        actor = self._idle.pop()
        call = actor.work.options(num_returns="streaming")
        reference = call.remote(function, plan, arguments, attempt, self._asked.cpus)
        self._busy[reference] = actor
        return reference

    def stop(self, reference: Any) -> None:
        self._ray.kill(self._busy[reference])

    def ended(self, reference: Any, *, lost: bool) -> None:
        """A call is over. ``lost``: so is its actor."""
        actor = self._busy.pop(reference)
        if lost:
            self._ray.kill(actor)
        else:
            self._idle.append(actor)

    def close(self) -> None:
        for actor in (*self._unborn.values(), *self._idle, *self._busy.values()):
            self._ray.kill(actor)
        self._unborn, self._idle, self._busy = {}, [], {}


def slots(ray: Any, cluster: Cluster, asked: Resources, name: str) -> Tasks | Actors:
    """Where calls that ask for this run."""
    asked = replace(asked, cpus=asked.cpus or (0.0 if asked.gpus else 1.0))
    kind = Actors if asked.gpus or asked.keep else Tasks
    return kind(ray, cluster, asked, name)
