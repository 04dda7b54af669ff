"""The two ways a command ends badly: a recipe or usage that can't work (2), a run that failed (1)."""

from __future__ import annotations

import difflib
from collections.abc import Iterable
from typing import Any


class RecipeError(Exception):
    """Found before any work. Says where, what was found, and a hint. Exit code 2."""

    exit_code = 2

    def __init__(self, where: str, what: str, hint: str = "") -> None:
        super().__init__(f"{where}: {what}" + (f"\nhint: {hint}" if hint else ""))
        self._parts = (where, what, hint)

    def __reduce__(self) -> tuple[Any, ...]:
        return type(self), self._parts  # it may come back from a worker


class RunFailed(Exception):
    """A run that could not end. What is committed stays; the same command resumes. Exit code 1."""

    exit_code = 1


class TooManyErrors(RunFailed):
    """More rows of one stage failed than the recipe allows."""

    def __init__(self, message: str, stage: str) -> None:
        super().__init__(message)
        self.stage = stage

    def __reduce__(self) -> tuple[Any, ...]:
        return type(self), (self.args[0], self.stage)


class PartDamaged(RunFailed):
    """A part of the pool is not what its manifest says; ``path``: which file of it."""

    def __init__(self, message: str, path: str, what: str) -> None:
        super().__init__(message)
        self.path, self.what = path, what

    def __reduce__(self) -> tuple[Any, ...]:
        return type(self), (self.args[0], self.path, self.what)


class Stopped(BaseException):
    """Ctrl-C or SIGTERM. Not an Exception, so that no row-level handler takes it for a bad row."""

    def __init__(self, signal_number: int) -> None:
        super().__init__(f"stopped by signal {signal_number}")
        self.exit_code = 128 + signal_number

    def __reduce__(self) -> tuple[Any, ...]:
        return type(self), (self.exit_code - 128,)


def did_you_mean(word: str, known: Iterable[str], what: str = "known") -> str:
    """A hint: the nearest known word, or all of them when none is near."""
    names = sorted(known)
    near = difflib.get_close_matches(word, names, n=1, cutoff=0.6)
    if near:
        return f"did you mean {near[0]!r}?"
    return f"{what}: {', '.join(names)}" if names else ""


def split_hint(message: str) -> tuple[str, str]:
    """(what, hint) of a ValueError written as ``what. hint: do this``."""
    what, _, hint = message.partition("hint:")
    return what.strip().rstrip("."), hint.strip()
