"""What a person sees while a run goes on: bars on a terminal, plain lines elsewhere; always on stderr."""

from __future__ import annotations

import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any, TextIO

from pipelines import events

_PLAIN_EVERY_S = 10.0
_SHOWN: list[Progress] = []  # who hears of rows, the last one


def rows_done(count: int) -> None:
    """Say from within a part that so many rows more are done; heard in the process that shows progress."""
    for progress in _SHOWN[-1:]:
        progress.rows(count)


class Progress:
    """Plain lines: one when a step begins to take long, one when it ends."""

    def __init__(self, stream: TextIO | None = None) -> None:
        self.stream = stream or sys.stderr
        self._title, self._total, self._done = "", 0, 0
        self._told = 0.0
        self._rows = 0
        self._ended = ""  # how a step ended, which is an event of its own

    @contextmanager
    def counting_rows(self) -> Iterator[None]:
        """Meanwhile rows that are done are shown, too: for steps in which one part takes long."""
        _SHOWN.append(self)
        try:
            yield
        finally:
            _SHOWN.pop()

    def say(self, text: str) -> None:
        self._tell(text)
        print(text, file=self.stream, flush=True)

    def _tell(self, text: str) -> None:
        if text != self._ended:
            events.tell("said", message=text)

    def start(self, title: str, total: int) -> None:
        self._title, self._total, self._done, self._rows = title, total, 0, 0
        events.tell("step_began", step=title, parts=total)
        self._started = self._told = time.monotonic()

    def advance(self, note: str = "") -> None:
        self._done += 1
        now = time.monotonic()
        if now - self._told >= _PLAIN_EVERY_S and self._done < self._total:
            self._told = now
            left_s = (now - self._started) / self._done * (self._total - self._done)
            self.say(
                f"{self._title}: {self._done} of {self._total}, about {left_s:.0f} s left{note and '  ' + note}"
            )

    def told(self) -> dict[str, Any]:
        """Where the run is, for its lease."""
        step = {"step": self._title, "parts": self._total, "done": self._done}
        return {**step, **events.gauges(), **events.own_log()}

    def rows(self, count: int) -> None:
        """So many rows more of the step are done."""
        self._rows += count
        now = time.monotonic()
        if now - self._told >= _PLAIN_EVERY_S:
            self._told = now
            self.say(f"{self._title}: {self._done} of {self._total}, {self._rows_so_far(now)}")

    def _rows_so_far(self, now: float) -> str:
        return f"{self._rows:,} rows, {self._rows / max(now - self._started, 1e-3):,.0f} rows/s"

    def finish(self, text: str) -> None:
        """The step that was started has ended."""
        events.tell("step_ended", step=self._title, message=text)
        self._ended = f"{self._title}: {text}"
        self.say(f"{self._title}: {text}")

    def finish_stage(self, name: str, text: str) -> None:
        """One of the step's stages has ended."""
        self._title = name
        self.finish(text)

    def close(self) -> None:
        """Nothing is open."""


class BarProgress(Progress):
    """The same with a bar, for a terminal."""

    def __init__(self, stream: TextIO | None = None) -> None:
        super().__init__(stream)
        from rich.console import Console
        from rich.progress import BarColumn, MofNCompleteColumn, TextColumn, TimeRemainingColumn
        from rich.progress import Progress as RichProgress

        console = Console(file=self.stream, stderr=True)
        self._rich = RichProgress(
            TextColumn("{task.description}"), BarColumn(), MofNCompleteColumn(), TimeRemainingColumn(), TextColumn("{task.fields[note]}"),
            console=console, transient=True,
        )  # fmt: skip
        self._rich.start()
        self._task: Any = None

    def say(self, text: str) -> None:
        self._tell(text)
        self._rich.console.print(text, highlight=False, markup=False)

    def start(self, title: str, total: int) -> None:
        super().start(title, total)
        self._task = self._rich.add_task(title, total=total, note="")

    def advance(self, note: str = "") -> None:
        self._done += 1
        if self._rows and not note:
            note = self._rows_so_far(time.monotonic())
        self._rich.update(self._task, advance=1, note=note)

    def rows(self, count: int) -> None:
        self._rows += count
        self._rich.update(self._task, note=self._rows_so_far(time.monotonic()))

    def finish(self, text: str) -> None:
        if self._task is not None:
            self._rich.remove_task(self._task)
            self._task = None
        super().finish(text)

    def close(self) -> None:
        self._rich.stop()


def for_stream(stream: TextIO | None = None) -> Progress:
    """Bars where a person looks at a terminal, lines otherwise."""
    target = stream or sys.stderr
    return BarProgress(target) if target.isatty() else Progress(target)
