"""The Ray runner, and Ray Train: the only file that imports ray.

How calls are spread over a cluster, and what becomes of lost ones, is in `task_pool` and `slots`; they are
given ``ray`` by this file.
"""

from __future__ import annotations

import atexit
import logging
import os
import signal
import sys
import threading
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager, suppress
from dataclasses import replace
from pathlib import Path
from typing import Any

from curate.contract import storage
from curate.stage import Resources
from pipelines import events, fused, joining, same_files, stop_file, threads
from pipelines.errors import RecipeError, RunFailed, Stopped
from pipelines.head import HeadWatch
from pipelines.metrics import SECONDS, Metrics
from pipelines.plan import CurationPlan
from pipelines.recipe import Recipe
from pipelines.slots import Cluster
from pipelines.stop_file import StopFile
from pipelines.task_pool import Settings, TaskPool
from pretrain.loop import away

_RETRIES = 3
_STARTS, _SLOW = 3, "timed out during startup"
_ROOT = Path(__file__).resolve().parent.parent
_PACKAGES = ("curate", "pretrain", "pipelines")
_CAREFUL = (fused.run_span, fused.run_rows)  # worker functions that `careful` can save from a row


class RayRunner:
    """Calls worker functions on a cluster, see `pipelines.task_pool`. Made by :func:`connected`."""

    def __init__(
        self,
        ray: Any,
        signals: _Signals,
        settings: Settings | None = None,
        say: Callable[[str], None] | None = None,
    ) -> None:
        self._ray, self._signals, self._say = ray, signals, say or _say
        self._settings = settings or Settings()
        self._cluster = Cluster(ray, signals.head_answers)
        # Each with its plan, so that no other plan is given the id of one that is gone.
        self._plans: dict[int, tuple[CurationPlan, Any]] = {}

    @property
    def workers(self) -> int:
        """The cluster's CPUs, as of now."""
        return max(1, int(self._cluster.total("CPU")))

    def obey(self) -> None:
        """Raise Stopped if a signal came, RunFailed if the cluster's head is gone."""
        self._signals.obey()

    def map(
        self,
        function: Callable[..., Any],
        plan: CurationPlan,
        calls: Sequence[tuple[Any, ...]],
        resources: Resources,
    ) -> Iterator[tuple[int, Any]]:
        if id(plan) not in self._plans:
            self._plans[id(plan)] = (plan, self._ray.put(plan))
        pool = TaskPool(self._ray, self._signals, self._cluster, self._settings, self._say)
        plan_ref = self._plans[id(plan)][1]
        is_careful = function in _CAREFUL
        return pool.results(function, plan_ref, calls, resources, is_careful)


def _say(text: str) -> None:
    print(text, file=sys.stderr, flush=True)


@contextmanager
def connected(
    address: str = "",
    workers: int = 0,
    settings: Settings | None = None,
    *,
    one_thread: bool = True,
    say: Callable[[str], None] | None = None,
    places: Sequence[same_files.Place] = (),
) -> Iterator[RayRunner]:
    """A runner on the cluster at ``address``, or on a local Ray started (and stopped) here.

    ``workers`` is the number of CPUs of a local Ray; 0 means all. Inside a Ray job, "auto". ``one_thread``:
    libraries in worker processes start no threads of their own but what a task asks for. ``places``: what
    all nodes must see. Raises RecipeError before any work.
    """
    os.environ.setdefault("RAY_ACCEL_ENV_VAR_OVERRIDE_ON_ZERO", "0")
    address = joining.address_of(address)
    if address:
        joining.use_token()  # before ray is imported, which reads it then
    import ray

    started = not ray.is_initialized()
    signals = _Signals()
    with _stdout_for_results():
        try:
            if started:
                variables = threads.environment() if one_thread else {}
                if _start(ray, address, workers, variables):
                    # No node will come.
                    settings = replace(settings or Settings(), wait_for_resources_s=0.0)
                else:
                    same_files.check(ray, places, say or _say)
            signals.listen()  # after ray.init, which takes SIGTERM for itself
            if started:
                signals.head = HeadWatch(ray.get_runtime_context().gcs_address)
            with events.listening(Metrics(_meter)):
                yield RayRunner(ray, signals, settings, say)
        finally:
            if started:
                _leave(ray, signals.head)
            signals.restore()


def _leave(ray: Any, head: HeadWatch | None) -> None:
    """End Ray. What asks a head that is gone would wait for it, and then end this process."""
    if head is not None and head.is_lost:
        atexit.unregister(ray.shutdown)
    else:
        ray.shutdown()
    if head is not None:
        head.close()


def _meter(kind: str, name: str, words: str, labels: tuple[str, ...]) -> Any:
    """One of Ray's meters, for `pipelines.metrics`."""
    from ray.util import metrics

    if kind == "histogram":
        return metrics.Histogram(name, words, boundaries=SECONDS, tag_keys=labels)
    made = {"counter": metrics.Counter, "gauge": metrics.Gauge}[kind]
    return made(name, words, tag_keys=labels)


@contextmanager
def _stdout_for_results() -> Iterator[None]:
    """Ray tells of lost workers on file descriptor 1, which is for results: meanwhile that is stderr."""
    sys.stdout.flush()
    try:
        kept = os.dup(1)
        os.dup2(2, 1)
    except OSError:  # no such descriptor: nothing to keep clean
        yield
        return
    try:
        yield
    finally:
        sys.stdout.flush()
        os.dup2(kept, 1)
        os.close(kept)


class _Signals:
    """SIGINT, SIGTERM and the loss of the head as notes that the runner reads between two waits.

    An exception out of a handler would come up inside Ray's own code, which turns it into another.
    """

    def __init__(self) -> None:
        self._is_main = threading.current_thread() is threading.main_thread()
        self._before = {
            number: signal.getsignal(number) for number in (signal.SIGINT, signal.SIGTERM)
        }
        self._noted = 0
        self.head: HeadWatch | None = None

    def head_answers(self) -> bool:
        return self.head is None or self.head.answers()

    def listen(self) -> None:
        for number in self._before if self._is_main else ():
            signal.signal(number, self._note)

    def restore(self) -> None:
        for number, handler in self._before.items() if self._is_main else ():
            signal.signal(number, handler)

    def obey(self) -> None:
        """Raise Stopped if a signal came, RunFailed if the cluster's head is gone."""
        if self._noted:
            raise Stopped(self._noted)
        if self.head is not None:
            self.head.obey()

    def _note(self, number: int, frame: Any) -> None:
        if self._noted:
            raise Stopped(number)  # a second one does not wait
        self._noted = number


def _start(ray: Any, address: str, workers: int, variables: dict[str, str]) -> bool:
    """Connect; whether to a Ray of this process's own. ``variables``: of worker processes."""
    common: dict[str, Any] = {
        "log_to_driver": False,
        "logging_level": logging.ERROR,
        "configure_logging": True,
    }
    if not address:
        path = [str(_ROOT), *filter(None, [os.environ.get("PYTHONPATH")])]
        environment = {**variables, "PYTHONPATH": os.pathsep.join(path)}
        common |= {"num_cpus": workers or None, "runtime_env": {"env_vars": environment}}
        _start_here(ray, common)
        return True
    joining.check(address)
    runtime = joining.runtime(variables, [str(_ROOT / name) for name in _PACKAGES])
    try:
        ray.init(address=address, runtime_env=runtime, **common)
        return False
    except (ConnectionError, ValueError, ray.exceptions.AuthenticationError) as fault:
        raise joining.refused(address, fault) from fault


def _start_here(ray: Any, options: dict[str, Any]) -> None:
    """A Ray of this process's own. Raises RunFailed. Ray gives its first process half a minute, busy machines take more."""
    for left in reversed(range(_STARTS)):
        try:
            # "local", or ray joins whatever cluster this machine had last, also a dead one.
            ray.init(address="local", include_dashboard=False, **options)
            return
        except Exception as fault:  # Ray has no class of its own for any of it
            ray.shutdown()
            if left and _SLOW in str(fault):
                continue
            told = (str(fault).strip() or type(fault).__name__).splitlines()[0]
            raise RunFailed(
                f"Ray can't be started on this machine: {told}\nhint: look at its memory, load, /tmp/ray and /dev/shm; "
                "--local does without Ray"
            ) from fault


def train(loaded: Recipe, workers: int, address: str, allow: Sequence[str] = ()) -> dict[str, Any]:
    """The recipe's training with ``workers`` ranks under Ray Train.

    A lost worker's run starts again from the last whole checkpoint, up to three times. ``allow``:
    settings that may differ from those of the checkpoint that is resumed.
    """
    assert loaded.train is not None
    places = same_files.of_training(loaded.train)
    with connected(
        address, workers + 1 if not address else 0, one_thread=False, places=places
    ) as runner:
        import ray
        from ray.train import FailureConfig, RunConfig, ScalingConfig
        from ray.train.torch import TorchTrainer

        trainer = TorchTrainer(
            _train_worker,
            train_loop_config={"recipe": loaded, "allow": tuple(allow)},
            # The cluster's GPUs, not this machine's: a head often has none.
            scaling_config=ScalingConfig(
                num_workers=workers, use_gpu=ray.cluster_resources().get("GPU", 0) > 0
            ),
            run_config=RunConfig(
                name=loaded.name,
                storage_path=_ray_folder(loaded.train.out),
                failure_config=FailureConfig(max_failures=_RETRIES),
            ),
        )
        with _told_to_stop(loaded.train.out) as told:
            try:
                _fit(trainer, runner.obey)
            except Exception as fault:  # Ray Train has no one base class for what a worker raised
                raise _cause_of(fault) from fault
        if told:
            raise Stopped(told[0])
    from pipelines import launch

    found = launch.newest_checkpoint(loaded)
    return {"checkpoint": found, "metrics": storage.join(loaded.train.out, "metrics.jsonl")}


def _ray_folder(out: str) -> str:
    """For Ray Train's own notes, which we never read; of a run behind a URL they stay on a node's disk."""
    return f"{away.folder(out)}.ray" if storage.is_url(out) else os.path.join(out, "ray")


def _fit(trainer: Any, obey: Callable[[], None]) -> None:
    """``trainer.fit()`` in a thread: in the main one Ray Train takes Ctrl-C for itself and drops the run."""
    faults: list[BaseException] = []

    def fit() -> None:
        try:
            trainer.fit()
        except BaseException as fault:
            faults.append(fault)

    thread = threading.Thread(target=fit, name="ray-train", daemon=True)
    thread.start()
    while thread.is_alive():
        thread.join(timeout=0.5)  # so that signals are handled meanwhile
        obey()
    if faults:
        raise faults[0]


@contextmanager
def _told_to_stop(out: str) -> Iterator[list[int]]:
    """The signals that came. Ranks on other machines see them as a file in the run's folder."""
    word = StopFile(out)
    told: list[int] = []

    def handle(number: int, frame: Any) -> None:
        if told:
            raise Stopped(number)  # a second one does not wait for the checkpoint
        told.append(number)
        word.write()

    word.clear()
    before = {number: signal.signal(number, handle) for number in (signal.SIGINT, signal.SIGTERM)}
    try:
        yield told
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)
        word.clear()


def _cause_of(fault: BaseException) -> RecipeError | RunFailed:
    """What a rank said in its own words, if one of ours is behind what Ray Train raised."""
    seen: list[BaseException] = [fault]
    for one in seen:
        if isinstance(one, RecipeError | RunFailed):
            return one
        behind = [one.__cause__, one.__context__, getattr(one, "cause", None)]
        behind += list((getattr(one, "worker_failures", None) or {}).values())
        seen += [
            other for other in behind if isinstance(other, BaseException) and other not in seen
        ]
    return RunFailed(f"Ray Train: {fault}\nhint: --resume goes on from the last checkpoint")


def _train_worker(config: dict[str, Any]) -> None:
    """One rank. A restarted worker group goes on from the newest checkpoint, or begins again.

    The driver has checked that the folder is new or that --resume was given.
    """
    from pipelines import launch

    loaded = config["recipe"]
    told = stop_file.watched(loaded.train.out)
    # Stopped ends the rank in an orderly way; the driver knows already: it wrote the file.
    with suppress(Stopped):
        launch.run_rank(loaded, resume=True, stop_asked=told, allow=config["allow"])
