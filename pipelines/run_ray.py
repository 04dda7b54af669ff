"""The Ray runner, and Ray Train: the only file that imports ray.

Parts are plain tasks in a bounded window; each keeps its stages' models open in its worker process.
A lost worker's tasks run again on another; what a task commits is whole or not there, so running
one twice changes nothing.
"""

from __future__ import annotations

import inspect
import logging
import os
import signal
import socket
import sys
import threading
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any

from curate.stage import Resources, StageError
from pipelines.errors import RecipeError, RunFailed, Stopped
from pipelines.plan import CurationPlan
from pipelines.recipe import Recipe

_RETRIES = 3
_WINDOW_PER_CPU = 2
_ROOT = Path(__file__).resolve().parent.parent
_POLL_S = 0.25  # how soon a signal is obeyed
_ANSWER_S = 10.0  # how long a cluster may take to accept a connection
_STOP_FILE = ".stop"
_TOKEN_FILE = Path.home() / ".ray" / "auth_token"
_PACKAGES = ("curate", "pretrain", "pipelines")


class RayRunner:
    """Calls worker functions as Ray tasks. Made by :func:`connected`."""

    def __init__(self, ray: Any, signals: _Signals) -> None:
        self._ray = ray
        self._signals = signals
        # Each with its plan, so that no other plan is given the id of one that is gone.
        self._plans: dict[int, tuple[CurationPlan, Any]] = {}

    @property
    def workers(self) -> int:
        """The cluster's CPUs, as of now."""
        return max(1, int(self._ray.cluster_resources().get("CPU", 1)))

    def map(
        self,
        function: Callable[..., Any],
        plan: CurationPlan,
        calls: Sequence[tuple[Any, ...]],
        resources: Resources,
    ) -> Iterator[tuple[int, Any]]:
        ray = self._ray
        is_several = inspect.isgeneratorfunction(function)
        task = ray.remote(_tasks if is_several else _task).options(
            num_cpus=resources.cpus,
            num_gpus=resources.gpus,
            memory=resources.memory_bytes or None,
            max_retries=_RETRIES,
            name=function.__name__,
            **({"num_returns": "streaming"} if is_several else {}),
        )
        if id(plan) not in self._plans:
            self._plans[id(plan)] = (plan, ray.put(plan))
        plan_ref = self._plans[id(plan)][1]
        running: dict[Any, int] = {}
        waiting = iter(enumerate(calls))
        window = max(2, self.workers * _WINDOW_PER_CPU)
        try:
            while True:
                while len(running) < window and (call := next(waiting, None)) is not None:
                    running[task.remote(function, plan_ref, call[1])] = call[0]
                if not running:
                    return
                self._signals.obey()
                done, _ = ray.wait(list(running), num_returns=1, timeout=_POLL_S)
                for reference in done:
                    if not is_several:
                        yield running.pop(reference), self._result(reference)
                        continue
                    try:
                        one = next(reference)
                    except StopIteration:
                        del running[reference]
                    else:
                        yield running[reference], self._result(one)
        finally:
            for reference in running:
                ray.cancel(reference, force=True)

    def _result(self, reference: Any) -> Any:
        exceptions = self._ray.exceptions
        try:
            return self._ray.get(reference)
        except exceptions.RayTaskError as fault:
            cause = fault.cause if isinstance(fault.cause, Exception) else fault
            if isinstance(cause, StageError):
                raise RunFailed(
                    f"{cause}\nnothing that was done is lost: the same command resumes"
                ) from fault
            raise RunFailed(f"a worker failed: {fault}") from fault
        except exceptions.RayError as fault:
            raise RunFailed(
                f"Ray gave a task up after {_RETRIES} retries: {fault}\nhint: the same command resumes"
            ) from fault


def _task(function: Callable[..., Any], plan: CurationPlan, arguments: tuple[Any, ...]) -> Any:
    return function(plan, *arguments)


def _tasks(
    function: Callable[..., Iterator[Any]], plan: CurationPlan, arguments: tuple[Any, ...]
) -> Iterator[Any]:
    yield from function(plan, *arguments)


@contextmanager
def connected(address: str = "", workers: int = 0) -> Iterator[RayRunner]:
    """A runner on the cluster at ``address``, or on a local Ray started (and stopped) here.

    ``workers`` is the number of CPUs of a local Ray; 0 means all. Inside a Ray job, "auto".
    """
    os.environ.setdefault("RAY_ACCEL_ENV_VAR_OVERRIDE_ON_ZERO", "0")
    if address:
        _use_token()
    import ray

    started = not ray.is_initialized()
    signals = _Signals()
    with _stdout_for_results():
        try:
            if started:
                _start(ray, address, workers)
            signals.listen()  # after ray.init, which takes SIGTERM for itself
            yield RayRunner(ray, signals)
        finally:
            if started:
                ray.shutdown()
            signals.restore()


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
    """SIGINT and SIGTERM as a note that the runner reads between two waits.

    An exception out of a handler would come up inside Ray's own code, which turns it into another.
    """

    def __init__(self) -> None:
        self._is_main = threading.current_thread() is threading.main_thread()
        self._before = {
            number: signal.getsignal(number) for number in (signal.SIGINT, signal.SIGTERM)
        }
        self._noted = 0

    def listen(self) -> None:
        for number in self._before if self._is_main else ():
            signal.signal(number, self._note)

    def restore(self) -> None:
        for number, handler in self._before.items() if self._is_main else ():
            signal.signal(number, handler)

    def obey(self) -> None:
        """Raise Stopped if a signal came."""
        if self._noted:
            raise Stopped(self._noted)

    def _note(self, number: int, frame: Any) -> None:
        if self._noted:
            raise Stopped(number)  # a second one does not wait
        self._noted = number


def _use_token() -> None:
    """`ray start` asks for the token in ~/.ray/auth_token wherever that file is, and clients must say so."""
    if (
        os.environ.get("RAY_AUTH_TOKEN")
        or os.environ.get("RAY_AUTH_TOKEN_PATH")
        or _TOKEN_FILE.is_file()
    ):
        os.environ.setdefault("RAY_AUTH_MODE", "token")


def _start(ray: Any, address: str, workers: int) -> None:
    common: dict[str, Any] = {
        "log_to_driver": False,
        "logging_level": logging.ERROR,
        "configure_logging": True,
    }
    address = address or (
        "auto" if "RAY_JOB_ID" in os.environ or "RAY_ADDRESS" in os.environ else ""
    )
    if not address:
        environment = {
            "PYTHONPATH": os.pathsep.join(
                [str(_ROOT), *filter(None, [os.environ.get("PYTHONPATH")])]
            )
        }
        # "local", or ray joins whatever cluster this machine had last, also a dead one.
        ray.init(
            address="local",
            num_cpus=workers or None,
            include_dashboard=False,
            runtime_env={"env_vars": environment},
            **common,
        )
        return
    _refuse_silent(address)
    # A job submitted with --working-dir has the packages already; another driver brings them along.
    inside_job = "RAY_JOB_CONFIG_JSON_ENV_VAR" in os.environ
    modules = (
        {}
        if inside_job
        else {"runtime_env": {"py_modules": [str(_ROOT / name) for name in _PACKAGES]}}
    )
    try:
        ray.init(address=address, **modules, **common)
    except (ConnectionError, ValueError) as fault:
        raise RecipeError(
            f"--address {address}",
            f"no Ray cluster answers: {str(fault).splitlines()[0]}",
            "start one with `ray start --head`, or leave --address out to use this machine; "
            "a cluster with a token needs RAY_AUTH_MODE=token and RAY_AUTH_TOKEN or RAY_AUTH_TOKEN_PATH",
        ) from fault


def _refuse_silent(address: str) -> None:
    """Raise RecipeError where nothing listens at a host:port: Ray itself would ask on for minutes."""
    host, _, port = address.removeprefix("ray://").rpartition(":")
    if not port.isdigit():
        return  # "auto": Ray knows where
    try:
        socket.create_connection((host, int(port)), timeout=_ANSWER_S).close()
    except OSError as fault:
        raise RecipeError(
            f"--address {address}", f"no Ray cluster answers: {fault}",
            "start one with `ray start --head`, or leave --address out to use this machine",
        ) from fault  # fmt: skip


def train(loaded: Recipe, workers: int, address: str, allow: Sequence[str] = ()) -> dict[str, Any]:
    """The recipe's training with ``workers`` ranks under Ray Train.

    A lost worker's run starts again from the last whole checkpoint, up to three times. ``allow``:
    settings that may differ from those of the checkpoint that is resumed.
    """
    with connected(address, workers + 1 if not address else 0):
        import torch
        from ray.train import FailureConfig, RunConfig, ScalingConfig
        from ray.train.torch import TorchTrainer

        assert loaded.train is not None
        trainer = TorchTrainer(
            _train_worker,
            train_loop_config={"recipe": loaded, "allow": tuple(allow)},
            scaling_config=ScalingConfig(num_workers=workers, use_gpu=torch.cuda.is_available()),
            run_config=RunConfig(
                name=loaded.name,
                storage_path=os.path.join(loaded.train.out, "ray"),
                failure_config=FailureConfig(max_failures=_RETRIES),
            ),
        )
        with _told_to_stop(loaded.train.out) as told:
            try:
                _fit(trainer)
            except Exception as fault:  # Ray Train has no one base class for what a worker raised
                raise _cause_of(fault) from fault
        if told:
            raise Stopped(told[0])
    from pipelines import launch

    found = launch.newest_checkpoint(loaded)
    return {"checkpoint": found, "metrics": os.path.join(loaded.train.out, "metrics.jsonl")}


def _fit(trainer: Any) -> None:
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
    if faults:
        raise faults[0]


@contextmanager
def _told_to_stop(out: str) -> Iterator[list[int]]:
    """The signals that came. Ranks on other machines see them as a file in the run's folder."""
    stop_file = Path(out) / _STOP_FILE
    told: list[int] = []

    def handle(number: int, frame: Any) -> None:
        if told:
            raise Stopped(number)  # a second one does not wait for the checkpoint
        told.append(number)
        stop_file.touch()

    stop_file.parent.mkdir(parents=True, exist_ok=True)
    stop_file.unlink(missing_ok=True)
    before = {number: signal.signal(number, handle) for number in (signal.SIGINT, signal.SIGTERM)}
    try:
        yield told
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)
        stop_file.unlink(missing_ok=True)


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
    stop_file = Path(loaded.train.out) / _STOP_FILE
    # Stopped ends the rank in an orderly way; the driver knows already: it wrote the file.
    with suppress(Stopped):
        launch.run_rank(loaded, resume=True, stop_asked=stop_file.exists, allow=config["allow"])
