"""metrics.jsonl: one JSON object a line, and none beyond the point a run resumes from; and its followers.

The file is always written. ``train.loggers`` names what is told besides: "tensorboard" (event files in
OUT/tensorboard) and "wandb" (a run that is gone on with on resume). Their step is samples_seen, so runs of
different batch sizes lie on each other. Figures of evaluations go to them too (`evaluated`).
Where OUT is behind a URL the file grows on this disk, and is put whole now and then: `away`.
"""

from __future__ import annotations

import importlib.util
import json
import logging
import math
import os
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import AbstractContextManager, contextmanager, nullcontext
from typing import Any, Protocol

from curate.contract import storage
from pretrain.loop import away
from pretrain.loop.settings import LOGGERS

_logger = logging.getLogger(__name__)


class Tracker(Protocol):
    """Gets the numbers of every line that has a samples_seen."""

    def write(self, figures: dict[str, float], samples_seen: int) -> None: ...

    def close(self, failed: bool) -> None: ...


class MetricsLog:
    """Appends to OUT/metrics.jsonl. Lines are flushed one by one, so a kill costs half a line at most.

    Behind a URL it costs what came since the last put; never what a checkpoint stands on.
    """

    def __init__(self, path: str, may_write: Callable[[], None] = lambda: None) -> None:
        """``may_write`` raises away.FolderLost where the folder is another run's by now."""
        self.path, self._may_write = path, may_write
        self.trackers: list[Tracker] = []
        self._away: away.Growing | None = None  # on the first rank, once it has looked at the file

    def rewind(self, samples_seen: int) -> None:
        """Drop lines beyond ``samples_seen`` and those that are not whole; one without it goes with the last.

        A line of an older checkpoint's evaluation stays, wherever it stands.
        """
        if storage.is_url(self.path):
            there = storage.read_text(self.path) if storage.exists(self.path) else None
            kept = _until((there or "").encode().splitlines(keepends=True), samples_seen)
            self._away = away.Growing(self.path, away.local(self.path), self._may_write)
            self._away.begin(b"".join(kept).decode(), there)
            return
        if not os.path.exists(self.path):
            return
        with open(self.path, "rb") as file:
            kept = _until(file, samples_seen)
        temporary = f"{self.path}.tmp-{os.getpid()}"
        with open(temporary, "wb") as file:
            file.writelines(kept)
        os.replace(temporary, self.path)

    def put(self) -> None:
        """Behind a URL: return when all lines are there. Raises as the store does."""
        if self._away is not None:
            self._away.put()

    def _append(self, line: str) -> None:
        if self._away is not None:
            self._away.add(line)
            return
        with open(self.path, "a", encoding="utf-8") as file:
            file.write(line)

    def note(self, entry: dict[str, Any]) -> None:
        """Append an entry that no tracker is told of, unless a run killed before its next checkpoint did."""
        line = json.dumps(entry) + "\n"
        path = self.path if self._away is None else self._away.local
        if os.path.exists(path):
            with open(path, encoding="utf-8") as file:
                if any(one == line for one in file):
                    return
        self._append(line)

    def follow(
        self,
        loggers: Sequence[str],
        samples_seen: int,
        settings: dict[str, Any],
        *,
        resumed: bool = False,
    ) -> None:
        """Tell these loggers too, from now on; on the first rank only.

        ``settings`` is what they show beside the run; ``resumed``: an attempt before may have told them
        of it, also one that was killed before its first checkpoint. Raises ValueError as ``check`` does,
        or where a service can't be used.
        """
        out = self.path.rpartition("/")[0]
        check(loggers, out)
        begun = samples_seen if resumed or samples_seen else None
        self.trackers = [_TRACKERS[name](out, begun, settings) for name in loggers]

    def write(self, figures: dict[str, Any]) -> None:
        """Append one line; a figure that is not finite is null, which JSON has, and NaN it has not."""
        figures = {name: _finite(value) for name, value in figures.items()}
        self._append(json.dumps(figures, allow_nan=False) + "\n")
        numbers = {
            name: float(value)
            for name, value in figures.items()
            if isinstance(value, int | float) and name != "samples_seen"
        }
        for tracker in self.trackers:
            tracker.write(numbers, int(figures["samples_seen"]))

    def __enter__(self) -> MetricsLog:
        return self

    def __exit__(self, kind: type[BaseException] | None, *_: object) -> None:
        self.close(failed=kind is not None)

    def close(self, failed: bool = False) -> None:
        """The run has ended; what goes on in the background is waited for."""
        for tracker in self.trackers:
            tracker.close(failed)
        self.trackers = []
        if self._away is not None:
            self._away.close()


def evaluated(
    out: str,
    loggers: Sequence[str],
    samples_seen: int,
    results: Mapping[str, Mapping[str, float]],
    *,
    ema: bool = False,
    alone: Callable[[str], AbstractContextManager[Any]] | None = None,
) -> None:
    """Tell these loggers what evaluations of a checkpoint gave: ``eval/<name>.<figure>`` at its samples_seen.

    ``results``: {evaluation: figures}; with ``ema`` they stand under ``eval_ema/``. They are in metrics.jsonl already, so a logger that
    can't be told is warned of, and no more. W&B has one writer at a time: it is told nothing while a run goes on.
    ``alone`` holds a folder behind a URL.
    """
    group = "eval_ema" if ema else "eval"
    figures = {
        f"{group}/{name}.{figure}": float(value)
        for name, of in results.items()
        for figure, value in of.items()
        if value is not None and math.isfinite(value)
    }
    for name in loggers if figures else ():
        try:
            check((name,), out)
            with (
                (alone if alone and storage.is_url(out) else _alone)(out)
                if name == "wandb"
                else nullcontext()
            ):
                # Of TensorBoard's earlier events none is to be dropped; W&B goes on with the run it knows.
                begun = None if name == "tensorboard" else samples_seen
                tracker: Tracker = _TRACKERS[name](out, begun, {})
                tracker.write(figures, samples_seen)
                tracker.close(False)
        except (ValueError, OSError) as fault:
            _logger.warning("figures of evaluations are in metrics.jsonl, and not in %s: %s", name, fault)  # fmt: skip


@contextmanager
def _alone(out: str) -> Iterator[None]:
    """Nobody trains into the folder meanwhile. Raises ValueError where somebody does. Of a URL nobody knows."""
    if storage.is_url(out):
        yield
        return
    from pretrain.loop import lock  # with torch

    held = lock.take(out)
    try:
        yield
    finally:
        held.release()


def check(loggers: Sequence[str], out: str = "") -> None:
    """Raise ValueError for a logger not known, not installed, or that can't write to OUT. Imports nothing."""
    for name in loggers:
        if name not in LOGGERS:
            raise ValueError(f"train.loggers: no logger {name!r}. hint: {' or '.join(LOGGERS)}")
        if importlib.util.find_spec(name) is None:
            raise ValueError(
                f"train.loggers: {name} is not installed. hint: pip install 'clip-pipe[track]', or leave it out"
            )
        if name == "tensorboard" and storage.is_url(out):
            raise ValueError(
                f"train.loggers: tensorboard's event files can only be written to a disk, and train.out = {out!r} is a URL. "
                "hint: leave it out (metrics.jsonl has every figure), use wandb, or train into a local or shared folder"
            )


class _TensorBoard:
    """Event files in OUT/tensorboard. What earlier files say beyond the point of a resume is not shown."""

    def __init__(self, out: str, samples_seen: int | None, settings: dict[str, Any]) -> None:
        from torch.utils.tensorboard import SummaryWriter

        purge = None if samples_seen is None else samples_seen + 1
        self._writer = SummaryWriter(os.path.join(out, "tensorboard"), purge_step=purge)

    def write(self, figures: dict[str, float], samples_seen: int) -> None:
        for name, value in figures.items():
            self._writer.add_scalar(name, value, samples_seen)

    def close(self, failed: bool) -> None:
        self._writer.close()


class _Wandb:
    """A run whose id is kept in OUT/wandb.json. Project, entity and mode by W&B's own environment variables."""

    def __init__(self, out: str, samples_seen: int | None, settings: dict[str, Any]) -> None:
        import wandb

        path = storage.join(out, "wandb.json")
        known = None if samples_seen is None else _read(path).get("id")
        try:
            self._run = wandb.init(
                project=os.environ.get("WANDB_PROJECT", "clip-pipe"),
                name=os.environ.get("WANDB_NAME")
                or "/".join(storage.absolute(out).split("/")[-2:]),
                id=known,
                resume="allow" if known else None,
                dir=away.folder(out) if storage.is_url(out) else out,
                config={**settings, "out": out},
                settings=wandb.Settings(silent=True),
            )
        except wandb.Error as fault:
            raise ValueError(
                f"train.loggers: wandb can't begin a run: {fault}. "
                "hint: `wandb login`, or set WANDB_MODE=offline and `wandb sync` later"
            ) from fault
        # Not W&B's own step, which may not go back: a resumed run repeats what its checkpoint had not.
        self._run.define_metric("samples_seen")
        self._run.define_metric("*", step_metric="samples_seen")
        storage.write_text(path, json.dumps({"id": self._run.id}))

    def write(self, figures: dict[str, float], samples_seen: int) -> None:
        self._run.log({**figures, "samples_seen": samples_seen})

    def close(self, failed: bool) -> None:
        self._run.finish(exit_code=int(failed))


_TRACKERS: dict[str, Any] = {"tensorboard": _TensorBoard, "wandb": _Wandb}


def _read(path: str) -> dict[str, Any]:
    try:
        return dict(json.loads(storage.read_text(path)))
    except (OSError, ValueError):
        return {}


def _until(lines: Iterable[bytes], samples_seen: int) -> list[bytes]:
    """The whole lines up to a point; one without samples_seen goes with the last that has it."""
    kept: list[bytes] = []
    last = 0.0
    for line in lines:
        seen = _samples_seen(line)
        last = last if seen is None else seen
        if line.endswith(b"\n") and last <= samples_seen:
            kept.append(line)
    return kept


def _finite(value: Any) -> Any:
    return None if isinstance(value, float) and not math.isfinite(value) else value


def _samples_seen(line: bytes) -> float | None:
    """The samples_seen of a line; infinity for one that is not a JSON object, None for one without."""
    try:
        seen = json.loads(line).get("samples_seen")
        return None if seen is None else float(seen)
    except (ValueError, TypeError, AttributeError):
        return float("inf")
