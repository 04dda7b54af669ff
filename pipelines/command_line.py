"""What commands of the tool share: options, and how a command ends badly. Imports nothing but click."""

from __future__ import annotations

import contextlib
import signal
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


def count(name: str, told: str, least: int = 0, **more: Any) -> Any:
    """An option that is a whole number, ``least`` or more; left out it is ``least``, or ``default``."""
    more = {"default": least, **more}
    return click.option(*name.split(), type=click.IntRange(min=least), help=told, **more)


def place(command: Callable[..., Any]) -> Callable[..., Any]:
    """The options that say where worker functions run."""
    for option in (
        count("--workers", "CPUs of the local Ray; 0 means all."),
        click.option("--address", default="", help="Join this Ray cluster (e.g. auto, or ray://host:10001)."),
        click.option("--local", is_flag=True, help="Run in this process, without Ray."),
    ):  # fmt: skip
        command = option(command)
    return command


def one_place(place: dict[str, Any]) -> dict[str, Any]:
    """``place`` if it is one. Raises UsageError for options that say two."""
    if place["local"] and (place["address"] or place["workers"]):
        raise click.UsageError(
            "--local runs in this process: it goes with neither --address nor --workers"
        )
    return place


class Group(click.Group):
    """Turns the project's own exceptions into messages and exit codes (2 recipe, 1 run, 128+n signal)."""

    def invoke(self, ctx: click.Context) -> Any:
        from pipelines.errors import RecipeError, RunFailed, Stopped

        try:
            with signals():
                return super().invoke(ctx)
        except (RecipeError, RunFailed) as fault:
            click.echo(f"error: {fault}", err=True)
            ctx.exit(fault.exit_code)
        except (OSError, ImportError, EOFError) as fault:
            # A full disk, a folder that became unreadable, a file that ends too early (click would
            # say no more than "Aborted!"), a package that is not installed.
            where = getattr(fault, "filename", None)
            what = getattr(fault, "strerror", None) or fault
            click.echo(f"error: {f'{where}: ' if where else ''}{what}", err=True)
            ctx.exit(1)
        except Stopped as stop:
            click.echo(
                "stopped. Everything committed is kept: the same command goes on from there (train: with --resume).",
                err=True,
            )
            ctx.exit(stop.exit_code)


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
