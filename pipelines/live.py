"""What a person sees while a model trains: figures under a bar on a terminal, a plain line elsewhere; on stderr.

A rank shows the lines it is given (`shown`). Ranks that torchrun started have no terminal of their own: the
process that launched them reads metrics.jsonl as it grows (`following`); of a run behind a URL that is the file on
this machine, or the object where the ranks are elsewhere.
"""

from __future__ import annotations

import json
import math
import os
import sys
import threading
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager, suppress
from typing import Any, TextIO

from curate.contract import storage
from pretrain.loop import away
from pretrain.loop.settings import TrainSettings

Line = Mapping[str, Any]
_LOOK_EVERY_S = 0.5
_LOOK_AWAY_S = 15.0  # at an object, which is read whole
_FOLLOWED = "CLIP_PIPE_FOLLOWED"  # set for ranks whose launcher shows their figures


class Live:
    """Plain lines: one for each line of metrics.jsonl."""

    def __init__(self, settings: TrainSettings, stream: TextIO) -> None:
        self.stream = stream
        self.total = sum(
            math.ceil(phase.samples / phase.global_batch) * phase.global_batch
            for phase in settings.phase
        )
        self.phases = len(settings.phase)
        self.checkpoint_s = settings.checkpoint_minutes * 60
        self._rate = 0.0

    def __call__(self, line: Line) -> None:
        """Show a line; those that say nothing of a step (evaluations, notes) are passed over."""
        if "step" in line:
            parts = [self.progress(line), *self.figures(line)]
            print("  ".join(parts), file=self.stream, flush=True)

    def close(self) -> None:
        """Nothing is open."""

    def progress(self, line: Line) -> str:
        seen = line["samples_seen"]
        share = seen / max(self.total, 1)
        return f"step {line['step']:,}  {_short(seen)} of {_short(self.total)} samples ({share:.1%}), {self.eta(line)}"

    def eta(self, line: Line) -> str:
        """Time left at the rate of late."""
        rate = float(line.get("samples_per_s") or 0)
        self._rate = 0.7 * self._rate + 0.3 * rate if self._rate else rate
        left = self.total - line["samples_seen"]
        return f"{duration(left / self._rate)} left" if self._rate and left > 0 else "at the end"

    def figures(self, line: Line) -> list[str]:
        """Loss, rates and what holds the run up, as words."""
        found = [f"loss {line['loss']:.4g}"]
        found += [f"accuracy {line['batch_accuracy']:.1%}"] if "batch_accuracy" in line else []
        found += [f"scale {line['logit_scale']:.3g}"] if line.get("logit_scale") else []
        found += [f"lr {line['lr']:.3g}", f"{line['samples_per_s']:,.0f} samples/s"]
        found += [f"MFU {line['mfu']:.0%}"] if line.get("mfu") is not None else []
        found.append(f"wait {line['data_wait_frac']:.0%}, {line['bottleneck']}")
        found += [f"phase {line['phase'] + 1} of {self.phases}"] if self.phases > 1 else []
        found += [f"{line['bad_samples']:,} bad samples"] if line["bad_samples"] else []
        due_s = line.get("checkpoint_in_s")
        found += [] if due_s is None else [f"checkpoint in {duration(due_s)}"]
        return found


class LiveBar(Live):
    """The same on a terminal: a bar, and the newest figures under it."""

    def __init__(self, settings: TrainSettings, stream: TextIO) -> None:
        super().__init__(settings, stream)
        from rich.console import Console
        from rich.live import Live as RichLive

        self._live = RichLive(
            console=Console(file=stream), refresh_per_second=4, redirect_stdout=False
        )
        self._live.start()

    def __call__(self, line: Line) -> None:
        from rich.progress_bar import ProgressBar
        from rich.table import Table
        from rich.text import Text

        if "step" not in line:
            return
        bar = ProgressBar(total=self.total, completed=line["samples_seen"], width=60)
        rows = Table.grid()
        for row in (Text(self.progress(line)), bar, Text("  ".join(self.figures(line)))):
            rows.add_row(row)
        self._live.update(rows)

    def close(self) -> None:
        """The last figures stay on the screen."""
        self._live.stop()


@contextmanager
def shown(
    settings: TrainSettings, stream: TextIO | None = None
) -> Iterator[Callable[[Line], None]]:
    """A function that shows a line of metrics, for ``pretrain.loop.train.run(progress=...)``."""
    target = stream or sys.stderr
    live = LiveBar(settings, target) if target.isatty() else Live(settings, target)
    try:
        yield (lambda line: None) if _FOLLOWED in os.environ else live
    finally:
        live.close()


@contextmanager
def following(settings: TrainSettings, stream: TextIO | None = None) -> Iterator[bool]:
    """Show what other processes append to the run's metrics.jsonl, where a person looks at a terminal.

    Gives whether it does; where it does not, the first rank's own plain lines are to be passed on.
    """
    target = stream or sys.stderr
    if not target.isatty():
        yield False
        return
    ended = threading.Event()
    path = storage.join(settings.out, "metrics.jsonl")
    begin = storage.size_bytes(path) if storage.exists(path) else 0
    with shown(settings, target) as show:
        thread = threading.Thread(target=_tail, args=(path, begin, show, ended), daemon=True)
        thread.start()
        os.environ[_FOLLOWED] = "1"
        try:
            yield True
        finally:
            del os.environ[_FOLLOWED]
            ended.set()
            thread.join()


def _tail(path: str, at: int, show: Callable[[Line], None], ended: threading.Event) -> None:
    """Show each whole line from byte ``at`` on; a file that became shorter was rewound by a resumed run."""
    while True:
        last = ended.is_set()
        here = away.local(path) if storage.is_url(path) else path
        is_here = here == path or os.path.exists(here)
        with suppress(*(() if is_here else (Exception,))):  # the store may be down for a while
            at, found = _from(here if is_here else path, at)
            whole = found.rpartition(b"\n")[0]
            at += len(whole) + 1 if whole else 0
            for line in whole.splitlines():
                try:
                    show(json.loads(line))
                except (ValueError, KeyError, TypeError):
                    continue  # the rest of a line whose begin was cut
        if last:
            return
        ended.wait(_LOOK_EVERY_S if is_here else _LOOK_AWAY_S)


def _from(path: str, at: int) -> tuple[int, bytes]:
    """(byte ``at``, or the end of a file that is shorter; what stands from there on)."""
    if storage.is_url(path):
        found = storage.read_text(path).encode() if storage.exists(path) else b""
        at = min(at, len(found))
        return at, found[at:]
    if not os.path.exists(path):
        return at, b""
    with open(path, "rb") as file:
        at = min(at, os.path.getsize(path))
        file.seek(at)
        return at, file.read()


def duration(seconds: float) -> str:
    """In the two units a person would name."""
    if seconds < 60:
        return f"{seconds:.0f} s"
    minutes = round(seconds / 60)
    if minutes < 60:
        return f"{minutes} min"
    hours, minutes = divmod(minutes, 60)
    if hours < 48:
        return f"{hours} h {minutes:02d} min"
    return f"{hours / 24:.1f} days"


def _short(count: float) -> str:
    """12,800 as it is, 12,800,000,000 as 12.8 B."""
    for size, unit in ((1e9, "B"), (1e6, "M")):
        if count >= size:
            return f"{count / size:.4g} {unit}"
    return f"{count:,.0f}"
