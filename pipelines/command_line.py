"""What commands of the tool share: options, and how a command ends badly. Imports nothing but click."""

from __future__ import annotations

import contextlib
import errno
import os
import signal
import sys
from collections.abc import Callable, Iterator
from typing import Any

import click

SET = click.option(
    "--set",
    "overrides",
    multiple=True,
    metavar="KEY.PATH=VALUE",
    help="Override one value of the recipe; may be given often.",
)
RECIPE = click.argument("recipe")
TS = click.option(
    "--t",
    "ts",
    default="",
    metavar="5k,20k,...",
    help="Thresholds of filter.metadata_balance to compare, a column each.",
)
JSON = click.option("--json", "as_json", is_flag=True, help="Figures as JSON.")

_NO_ROOM = (errno.ENOSPC, errno.EDQUOT, errno.EROFS)

# How long a runner on Ray waits for a task, and for a node, in seconds.
PATIENCE = {"task_deadline": 0.0, "wait_for_resources": 600.0}


def count(name: str, told: str, least: int = 0, **more: Any) -> Any:
    """An option that is a whole number, ``least`` or more; left out it is ``least``, or ``default``."""
    more = {"default": least, **more}
    return click.option(*name.split(), type=click.IntRange(min=least), help=told, **more)


def _seconds(name: str, told: str, default: float) -> Any:
    return click.option(
        name,
        type=click.FloatRange(min=0),
        default=default,
        metavar="S",
        help=told,
        show_default=True,
    )


def place(command: Callable[..., Any]) -> Callable[..., Any]:
    """The options that say where worker functions run."""
    for option in (
        count("--workers", "CPUs of the local Ray; 0 means all."),
        click.option("--address", default="", help="Join this Ray cluster (e.g. auto, or host:6379)."),
        click.option("--local", is_flag=True, help="Run in this process, without Ray."),
        _seconds("--task-deadline", "Under Ray: end a task that says nothing for so long; 0 means ten times the longest silence so far, 2 minutes or more.", 0.0),
        _seconds("--wait-for-resources", "On a cluster: wait so long where no node has what a stage asks for.", 600.0),
    ):  # fmt: skip
        command = option(command)
    return command


def one_place(place: dict[str, Any]) -> dict[str, Any]:
    """``place`` if it is one, its seconds as ``patience``. Raises UsageError for options that say two."""
    if place["local"] and (place["address"] or place["workers"]):
        raise click.UsageError(
            "--local runs in this process: it goes with neither --address nor --workers"
        )
    seconds = [place.pop(name, default) for name, default in PATIENCE.items()]
    return {**place, "patience": tuple(seconds)}


class Group(click.Group):
    """Turns the project's own exceptions into messages and exit codes (2 recipe, 1 run, 128+n signal)."""

    def main(self, *args: Any, **more: Any) -> Any:
        """As click's; in a Ray job the log ends with the exit code, which `ray job` itself makes 1."""
        try:
            return super().main(*args, **more)
        except BaseException as end:
            if "RAY_JOB_CONFIG_JSON_ENV_VAR" not in os.environ:
                raise
            from pipelines import last_words

            sys.exit(last_words.tell(end, self._end))

    _end: BaseException | None = (
        None  # how the command itself ended, before click made an exit of it
    )

    def invoke(self, ctx: click.Context) -> Any:
        try:
            return self._invoke(ctx)
        except BaseException as end:
            self._end = end
            raise

    def _invoke(self, ctx: click.Context) -> Any:
        from pipelines.errors import RecipeError, RunFailed, Stopped

        try:
            with signals():
                return super().invoke(ctx)
        except (RecipeError, RunFailed) as fault:
            click.echo(f"error: {fault}", err=True)
            _tell_notes(fault)
            ctx.exit(fault.exit_code)
        except (OSError, ImportError, EOFError) as fault:
            # A full disk, a folder that became unreadable, a file that ends too early (click would
            # say no more than "Aborted!"), a package that is not installed.
            where = getattr(fault, "filename", None)
            what = getattr(fault, "strerror", None) or fault
            words = f"error: {f'{where}: ' if where else ''}{what}"
            click.echo(words.replace(". hint: ", "\nhint: ", 1), err=True)
            if isinstance(fault, OSError) and fault.errno in _NO_ROOM:
                click.echo(
                    "hint: make room, or name another folder; what was done is kept", err=True
                )
            _tell_notes(fault)
            ctx.exit(1)
        except Stopped as stop:
            click.echo(
                "stopped. Everything committed is kept: the same command goes on from there (train: with --resume).",
                err=True,
            )
            ctx.exit(stop.exit_code)


def _tell_notes(fault: BaseException) -> None:
    """Where more is to be read: the run's log."""
    for note in getattr(fault, "__notes__", ()):
        click.echo(note, err=True)


@contextlib.contextmanager
def signals() -> Iterator[None]:
    """SIGINT and SIGTERM end a run in an orderly way: workers are stopped, nothing half-written stays."""
    from pipelines.errors import Stopped

    def stop(number: int, frame: Any) -> None:
        raise Stopped(number)

    before = {number: signal.signal(number, stop) for number in (signal.SIGINT, signal.SIGTERM)}
    try:
        yield
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)


def options(*rows: tuple[str, Any, str]) -> Callable[[Any], Any]:
    """Options by rows of (flag, default, help): a default () may be given often, False makes a switch.

    Whole numbers are 0 or more.
    """

    def added(command: Any) -> Any:
        for flag, default, words in reversed(rows):
            more: dict[str, Any] = {"is_flag": default is False, "multiple": default == ()}
            if type(default) is int:
                more["type"] = click.IntRange(min=0)
            shown = default not in ("", (), 0, False)
            command = click.option(flag, default=default, help=words, show_default=shown, **more)(
                command
            )
        return command

    return added
