"""How the log of a Ray job ends: with the exit code and the error, as `ray job` knows but failed or not."""

from __future__ import annotations

import sys
import traceback

import click


def tell(end: BaseException, inner: BaseException | None = None) -> int:
    """Print the last line of a command that ended by ``end``, unless it went well; its exit code.

    ``inner``: what the command raised before click made an exit of it.
    """
    if not isinstance(end, SystemExit):  # nobody has told it yet
        traceback.print_exception(end)
    code = _code(end)
    if code:
        line = _line(_cause(inner or end))
        print(f"clip-pipe: exit code {code}: {line}", file=sys.stderr, flush=True)
    return code


def _code(end: BaseException) -> int:
    if not isinstance(end, SystemExit):
        return 1
    return end.code if isinstance(end.code, int) else int(end.code is not None)


def _cause(end: BaseException) -> BaseException | None:
    """What was raised before the process was told to exit."""
    seen: BaseException | None = end
    while isinstance(seen, SystemExit | click.exceptions.Exit):
        seen = seen.__context__
    return seen


def _line(cause: BaseException | None) -> str:
    if cause is None:
        return "see above"
    told = cause.format_message() if isinstance(cause, click.ClickException) else str(cause)
    return told.strip().partition("\n")[0] or type(cause).__name__
