"""clip-pipe: from a list of (image URL, alt-text) pairs to an evaluated CLIP model.

Words in, `pipelines` out: every command here only reads its arguments and hands over. Nothing heavy
is imported before a command needs it. Data go to stdout, talk goes to stderr.
"""

from __future__ import annotations

import contextlib
import os
import signal
import sys
from collections.abc import Callable, Iterator
from typing import Any

import click

_SET = click.option(
    "--set",
    "overrides",
    multiple=True,
    metavar="KEY.PATH=VALUE",
    help="Override one value of the recipe; may be given often.",
)
_RECIPE = click.argument("recipe")


class _Group(click.Group):
    """Turns the project's own exceptions into messages and exit codes (2 recipe, 1 run, 128+n signal)."""

    def invoke(self, ctx: click.Context) -> Any:
        from pipelines.errors import RecipeError, RunFailed, Stopped

        try:
            with _signals():
                return super().invoke(ctx)
        except (RecipeError, RunFailed) as fault:
            click.echo(f"error: {fault}", err=True)
            ctx.exit(fault.exit_code)
        except (OSError, ImportError) as fault:
            # A full disk, a folder that became unreadable, a package that is not installed.
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
def _signals() -> Iterator[None]:
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


@click.group(
    cls=_Group, context_settings={"help_option_names": ["-h", "--help"], "max_content_width": 100}
)
@click.version_option(package_name="clip-pipe", prog_name="clip-pipe")
def main() -> None:
    """From a list of (image URL, alt-text) pairs to an evaluated CLIP model.

    \b
    Try it:      clip-pipe demo
    Your data:   clip-pipe check RECIPE, then curate, train, eval, report
    """


@main.command()
@_RECIPE
@_SET
def check(recipe: str, overrides: tuple[str, ...]) -> None:
    """Check a recipe (keys, components, options, columns, files) without doing any work."""
    from pipelines import commands

    click.echo(commands.check(recipe, overrides))


@main.command()
@_RECIPE
@_SET
def plan(recipe: str, overrides: tuple[str, ...]) -> None:
    """Print what would run, step by step, and what is done already."""
    from pipelines import commands

    click.echo(commands.plan(recipe, overrides))


@main.command()
@click.argument("what")
@_SET
def show(what: str, overrides: tuple[str, ...]) -> None:
    """Print a recipe as resolved (after `extends` and --set), or a component's options."""
    from pipelines import commands

    click.echo(commands.show(what, overrides))


@main.command(name="list")
@click.argument("kind", required=False)
def list_(kind: str | None) -> None:
    """List every component that a recipe can use, and the recipes that come along."""
    from pipelines import commands

    click.echo(commands.list_components(kind))


@main.command()
@_RECIPE
@_SET
@click.option("--local", is_flag=True, help="Run in this process, without Ray.")
@click.option(
    "--address", default="", help="Join this Ray cluster (e.g. auto, or ray://host:10001)."
)
@click.option(
    "--workers", default=0, type=click.IntRange(min=0), help="CPUs of the local Ray; 0 means all."
)
def curate(
    recipe: str, overrides: tuple[str, ...], local: bool, address: str, workers: int
) -> None:
    """Turn a recipe's source into shards. Run it again to go on after a crash."""
    from pipelines import commands

    if local and (address or workers):
        raise click.UsageError(
            "--local runs in this process: it goes with neither --address nor --workers"
        )
    click.echo(commands.curate(recipe, overrides, local=local, address=address, workers=workers))


@main.command()
@_RECIPE
@_SET
@click.option(
    "--nproc",
    default=1,
    type=click.IntRange(min=1),
    help="Ranks on this machine, one per GPU (torchrun).",
)
@click.option(
    "--ray",
    "ray_workers",
    default=0,
    type=click.IntRange(min=0),
    help="Ranks on a Ray cluster instead (Ray Train).",
)
@click.option("--address", default="", help="With --ray: the cluster to join.")
@click.option("--resume", is_flag=True, help="Go on from the newest whole checkpoint.")
def train(
    recipe: str,
    overrides: tuple[str, ...],
    nproc: int,
    ray_workers: int,
    address: str,
    resume: bool,
) -> None:
    """Train on a recipe's shards."""
    from pipelines import commands

    if ray_workers and nproc > 1:
        raise click.UsageError(
            "--nproc starts ranks here, --ray starts them on a cluster: give one of them"
        )
    if address and not ray_workers:
        raise click.UsageError("--address goes with --ray")
    click.echo(
        commands.train(
            recipe, overrides, nproc=nproc, ray_workers=ray_workers, address=address, resume=resume
        )
    )


@main.command(name="eval")
@_RECIPE
@_SET
@click.option(
    "--checkpoint", default="", help="A checkpoint; the newest of the recipe's run if left out."
)
@click.option("--json", "as_json", is_flag=True, help="Figures as JSON.")
def eval_(recipe: str, overrides: tuple[str, ...], checkpoint: str, as_json: bool) -> None:
    """Evaluate a trained model with the recipe's evaluations."""
    from pipelines import commands

    click.echo(commands.evaluate(recipe, overrides, checkpoint=checkpoint, as_json=as_json))


@main.command()
@_RECIPE
@_SET
def report(recipe: str, overrides: tuple[str, ...]) -> None:
    """Write the HTML report of a recipe's shards and training run again."""
    from pipelines import commands

    click.echo(commands.report(recipe, overrides))


@main.command()
@click.option(
    "--out",
    default="runs/demo",
    show_default=True,
    help="Where the demo's world, pool, shards and models go.",
)
@click.option(
    "--rows",
    default=0,
    type=click.IntRange(min=0),
    help="Rows of the demo world; 0 means its default.",
)
@click.option(
    "--samples",
    default=0,
    type=click.IntRange(min=0),
    help="Training samples of each model; 0 means the default.",
)
@click.option(
    "--seed",
    default=0,
    type=int,
    show_default=True,
    help="Seed of the world, the curation and both trainings.",
)
@click.option(
    "--seeds",
    default=1,
    type=click.IntRange(min=1),
    show_default=True,
    help="Train each model with this many seeds and print the spread.",
)
def demo(out: str, rows: int, samples: int, seed: int, seeds: int) -> None:
    """The whole journey on a rendered world with planted faults: curate, train twice, evaluate, report."""
    from pipelines.demo import run

    run.demo(out, rows=rows, samples=samples, seed=seed, seeds=seeds)


def _entry() -> Callable[[], None]:
    """The repository's folder is importable also where only `python cli.py` is run (Ray jobs, torchrun)."""
    here = os.path.dirname(os.path.abspath(__file__))
    if here not in sys.path:
        sys.path.insert(0, here)
    return main


if __name__ == "__main__":
    _entry()()
