"""What happens in a run, as events: to its log file (POOL/logs, TRAIN/logs), and to whoever else listens.

One JSON object a line: ``time`` (UTC), ``level``, ``event``, ``run``, and what the event is about: ``step``,
``stage``, ``part``, ``message``. What Python's loggers warn of is an event too, in workers as well: a worker
gives its warnings to the driver with its results (`heard`). A log never ends a run: one that can't be written
says so once. Each is bounded, and so are a folder's logs.
"""

from __future__ import annotations

import hashlib
import json
import logging
import os
import sys
import tempfile
import threading
import time
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from datetime import UTC, datetime
from typing import Any, Protocol, TextIO

from curate.contract import storage

FOLDER = "logs"
LEVELS = ("debug", "info", "warning", "error")
EVENTS = {  # name -> what it says; the list in docs/operating.md
    "run_began": "the command, its recipe, where it writes",
    "run_ended": "how: done, failed or stopped; its last words; seconds",
    "step_began": "the step and its parts",
    "step_ended": "the step and what came of it",
    "part_failed": "a part that was given up: kind, last words, attempts, node, the worker's own log",
    "part_again": "a part that was lost and is run again: kind, last words, node",
    "node_lost": "a node that is no longer in the cluster",
    "node_joined": "a node that came to the cluster",
    "said": "a line that the run printed",
    "logged": "what a Python logger warned of, in the driver or in a worker",
    "full": "the log has reached its limit; only the end of the run is still written",
}
_LOGGERS = ("clip_pipe", "curate", "pretrain", "pipelines")
_MOST_BYTES = 32 << 20  # of one log
_MOST_LOGS = 50  # of one folder; the oldest go
_MOST_WORDS = 4000
_MOST_HEARD = 50  # warnings of one call
_OPENS = "step_began"  # before the first step a run may be refused, and must leave nothing behind
_ALWAYS = ("run_ended", "part_failed")


class Listener(Protocol):
    """Gets every event of a run."""

    def hear(self, event: str, level: str, fields: Mapping[str, Any]) -> None: ...


_LISTENERS: list[Listener] = []
_GAUGES: dict[str, float] = {}


def tell(event: str, level: str = "info", **fields: Any) -> None:
    """Say what happened to all who listen in this process; nobody does in a worker."""
    for listener in tuple(_LISTENERS):
        listener.hear(event, level, fields)


def gauge(name: str, value: float) -> None:
    """Say how something stands now: ``running`` parts, for the lease and the metrics. Not logged."""
    _GAUGES[name] = value
    tell("gauge", "debug", name=name, value=value)


def gauges() -> dict[str, float]:
    """How things stood when they were said last."""
    return dict(_GAUGES)


@contextmanager
def listening(listener: Listener) -> Iterator[None]:
    """``listener`` hears of all that is told meanwhile."""
    _LISTENERS.append(listener)
    try:
        yield
    finally:
        _LISTENERS.remove(listener)


def results(plan: Any, name: str, result: Any) -> None:
    """Tell of the parts that a worker function's result is about: ``part_done``, with the part's own counts."""
    if not _LISTENERS or not isinstance(result, Mapping):
        return
    if result and all(isinstance(key, int) for key in result):
        for index, stats in result.items():
            _part_done(plan.stages[index].name, stats)
    elif "part" in result:
        known = {p.fingerprint: p.name for p in (plan.source, *plan.stages)}
        _part_done(known.get(result.get("fingerprint", ""), name), result)


def own_log() -> dict[str, str]:
    """The path of this run's log, for its lease; {} where it keeps none."""
    kept = [one for one in _LISTENERS if isinstance(one, Log) and one.is_open]
    return {"log": kept[-1].path} if kept else {}


def _part_done(stage: str, stats: Mapping[str, Any]) -> None:
    tell("part_done", "debug", **{**stats, "stage": stage})


def folder_of(root: str) -> str:
    """Where the logs of a pool or a training lie: in it, or on local disk ($TMPDIR) for one behind a URL."""
    if not storage.is_url(root):
        return storage.join(root, FOLDER)
    root = root.rstrip("/")
    plain = "".join(letter if letter.isalnum() else "-" for letter in root)
    plain += f"-{hashlib.sha256(root.encode()).hexdigest()[:8]}"  # s3://a/b-c is not s3://a/b/c
    return os.path.join(tempfile.gettempdir(), f"clip-pipe-{os.getuid()}", FOLDER, plain)


def logs(root: str) -> list[str]:
    """The logs that this machine has of a pool or a training, oldest first."""
    try:
        names = sorted(os.listdir(folder_of(root)))
    except OSError:
        return []
    return [os.path.join(folder_of(root), name) for name in names if name.endswith(".jsonl")]


class Log:
    """One run's file. It is made when the first step begins: a run that is refused leaves none."""

    def __init__(self, root: str) -> None:
        began = datetime.now(UTC).strftime("%Y%m%dT%H%M%S")
        self.run = f"{began}-{os.uname().nodename.partition('.')[0]}-{os.getpid()}"
        self.path = os.path.join(folder_of(root), f"{self.run}.jsonl")
        self._root = root
        self._file: TextIO | None = None
        self._held: list[str] = []  # lines of a run that has not begun to write
        self._bytes = 0
        self._is_full = self._is_broken = False
        self._lock = threading.RLock()

    @property
    def is_open(self) -> bool:
        return self._file is not None

    def open(self) -> None:
        """From here on the file is there; what was told before is in it."""
        with self._lock:
            if self._file is not None or self._is_broken:
                return
            try:
                if storage.is_url(self._root):  # the folder of this user, see pretrain.loop.away
                    os.makedirs(self.path.partition(f"/{FOLDER}/")[0], mode=0o700, exist_ok=True)
                os.makedirs(os.path.dirname(self.path), exist_ok=True)
                for old in logs(self._root)[: -_MOST_LOGS + 1]:
                    with suppress(OSError):
                        os.remove(old)
                self._file = open(self.path, "a", encoding="utf-8", buffering=1)  # noqa: SIM115
                held, self._held = self._held, []
                for line in held:
                    self._file.write(line)
            except OSError as fault:
                self._give_up(fault)

    def hear(self, event: str, level: str, fields: Mapping[str, Any]) -> None:
        if level == "debug" or self._is_broken:
            return
        with self._lock:
            if event == _OPENS:
                self.open()
            if self._bytes > _MOST_BYTES and event not in _ALWAYS:
                if self._is_full:
                    return
                self._is_full, event, level, fields = True, "full", "warning", {}
            line = _line(event, level, self.run, fields)
            self._bytes += len(line)
            if self._file is None:
                self._held.append(line)
                return
            try:
                self._file.write(line)
            except (OSError, ValueError) as fault:
                self._give_up(fault)

    def close(self) -> None:
        with self._lock, suppress(OSError):
            if self._file is not None:
                self._file.close()

    def _give_up(self, fault: Exception) -> None:
        self._is_broken = True
        print(f"note: {self.path}: the log can't be written: {fault}", file=sys.stderr, flush=True)


@contextmanager
def logged(root: str, command: str, *, at_once: bool = False, **fields: Any) -> Iterator[Log]:
    """Keep a log of what the block does in ``root``. Its end is in it, however it comes but for kill -9.

    ``at_once``: the file is made now, and not when the first step begins. An exception gets a note with its path.
    """
    log = Log(root)
    handler = _Warnings()
    began = time.monotonic()
    _GAUGES.clear()
    with listening(log):
        tell("run_began", command=command, where=root, **fields)
        if at_once:
            log.open()
        for name in _LOGGERS:
            logging.getLogger(name).addHandler(handler)
        outcome, words = "done", ""
        try:
            yield log
        except BaseException as fault:
            # Stopped is a signal; whatever else ends a run is told with its type, as it has no words of ours.
            outcome = "stopped" if type(fault).__name__ == "Stopped" else "failed"
            words = f"{type(fault).__name__}: {fault}"
            if log.is_open and outcome == "failed":
                fault.add_note(f"log: {log.path}")
            raise
        finally:
            for name in _LOGGERS:
                logging.getLogger(name).removeHandler(handler)
            level = "info" if outcome == "done" else "error"
            seconds = round(time.monotonic() - began, 1)
            tell("run_ended", level, outcome=outcome, message=words, seconds=seconds)
            log.close()


def _line(event: str, level: str, run: str, fields: Mapping[str, Any]) -> str:
    now = datetime.now(UTC).isoformat(timespec="milliseconds").replace("+00:00", "Z")
    told = {key: _short(value) for key, value in fields.items()}
    entry = {"time": now, "level": level, "event": event, "run": run, **told}
    return json.dumps(entry, ensure_ascii=False, default=str) + "\n"


def _short(value: Any) -> Any:
    return value[:_MOST_WORDS] if isinstance(value, str) else value


class _Warnings(logging.Handler):
    """Warnings of our loggers as events. They are printed as before."""

    def __init__(self) -> None:
        super().__init__(logging.WARNING)

    def emit(self, record: logging.LogRecord) -> None:
        _print_as_before(record)
        with suppress(Exception):
            tell("logged", **_of_record(record))


def _print_as_before(record: logging.LogRecord) -> None:
    """Python prints what no handler takes; one that only listens must not keep it from that."""
    logger: logging.Logger | None = logging.getLogger(record.name)
    while logger is not None:
        if not all(isinstance(one, _Warnings | _Keeping) for one in logger.handlers):
            return
        logger = logger.parent if logger.propagate else None
    if logging.lastResort is not None and record.levelno >= logging.lastResort.level:
        logging.lastResort.handle(record)


def _of_record(record: logging.LogRecord) -> dict[str, Any]:
    level = "error" if record.levelno >= logging.ERROR else "warning"
    found = {"level": level, "logger": record.name, "message": record.getMessage()[:_MOST_WORDS]}
    if record.exc_info and record.exc_info[1] is not None:
        found["error"] = f"{type(record.exc_info[1]).__name__}: {record.exc_info[1]}"[:_MOST_WORDS]
    return found


class Heard:
    """What loggers warned of in a worker, on its way to the driver."""

    def __init__(self, records: Sequence[dict[str, Any]], node: str, process: int) -> None:
        self.records, self.node, self.process = list(records), node, process

    def tell(self) -> None:
        """In the driver."""
        for record in self.records:
            tell("logged", **record, node=self.node, process=self.process)


class _Keeping(logging.Handler):
    def __init__(self) -> None:
        super().__init__(logging.WARNING)
        self.records: list[dict[str, Any]] = []
        self.left = _MOST_HEARD

    def emit(self, record: logging.LogRecord) -> None:
        _print_as_before(record)
        if self.left > 0:
            self.left -= 1
            with suppress(Exception):
                self.records.append(_of_record(record))

    def taken(self) -> Heard | None:
        records, self.records = self.records, []
        return Heard(records, os.uname().nodename, os.getpid()) if records else None


def heard(found: Iterator[Any]) -> Iterator[Any]:
    """In a worker: what ``found`` gives, and before each of it what loggers warned of meanwhile, as Heard.

    What was warned of before an exception comes before it.
    """
    keeping = _Keeping()
    for name in _LOGGERS:
        logging.getLogger(name).addHandler(keeping)
    try:
        while True:
            try:
                one = next(found)
            except StopIteration:
                return
            finally:
                if (records := keeping.taken()) is not None:
                    yield records
            yield one
    finally:
        for name in _LOGGERS:
            logging.getLogger(name).removeHandler(keeping)
