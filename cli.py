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
_TS = click.option(
    "--t",
    "ts",
    default="",
    metavar="5k,20k,...",
    help="Thresholds of filter.metadata_balance to compare, a column each.",
)
_JSON = click.option("--json", "as_json", is_flag=True, help="Figures as JSON.")


def _count(name: str, told: str, least: int = 0, **more: Any) -> Any:
    """An option that is a whole number, ``least`` or more; left out it is ``least``."""
    return click.option(
        *name.split(), default=least, type=click.IntRange(min=least), help=told, **more
    )


def _place(command: Callable[..., Any]) -> Callable[..., Any]:
    """The options that say where worker functions run."""
    for option in (
        _count("--workers", "CPUs of the local Ray; 0 means all."),
        click.option("--address", default="", help="Join this Ray cluster (e.g. auto, or ray://host:10001)."),
        click.option("--local", is_flag=True, help="Run in this process, without Ray."),
    ):  # fmt: skip
        command = option(command)
    return command


def _one_place(place: dict[str, Any]) -> dict[str, Any]:
    """``place`` if it is one. Raises UsageError for options that say two."""
    if place["local"] and (place["address"] or place["workers"]):
        raise click.UsageError(
            "--local runs in this process: it goes with neither --address nor --workers"
        )
    return place


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
@click.option(
    "--retry",
    metavar="KIND,...",
    help="Ask rows again that failed so, and no others: http.5xx, timeout, dns, transient, ...",
)
@_place
def curate(recipe: str, overrides: tuple[str, ...], retry: str | None, **place: Any) -> None:
    """Turn a recipe's source into shards. Run it again to go on after a crash."""
    from pipelines import commands

    click.echo(commands.curate(recipe, overrides, retry=retry, **_one_place(place)))


@main.command()
@_RECIPE
@_SET
@_TS
@_count("--probe", "Fetch N of the rows that would be downloaded, for their sizes.", metavar="N")
@_place
@_JSON
def forecast(
    recipe: str, overrides: tuple[str, ...], ts: str, probe: int, as_json: bool, **place: Any
) -> None:
    """Print what a recipe would keep and cost, after running its text-only stages."""
    from pipelines import commands

    told = commands.forecast(
        recipe, overrides, ts=ts, probe=probe, as_json=as_json, **_one_place(place)
    )
    click.echo(told)


@main.command()
@click.argument("pool_or_recipe")
@_SET
@_TS
@_JSON
def whatif(pool_or_recipe: str, overrides: tuple[str, ...], ts: str, as_json: bool) -> None:
    """Print what other options of the filters would keep, from what the pool holds already."""
    from pipelines import commands

    click.echo(commands.whatif(pool_or_recipe, overrides, ts=ts, as_json=as_json))


@main.command()
@_RECIPE
@_SET
@_count("--nproc", "Ranks on this machine, one per GPU (torchrun).", 1)
@_count("--ray ray_workers", "Ranks on a Ray cluster instead (Ray Train).")
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


def _options(*rows: tuple[str, Any, str]) -> Callable[[Any], Any]:
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


@main.group()
def entries() -> None:
    """Build and check entry lists, what score.metadata_match looks for."""


@entries.command(name="build")
@click.option("--out", required=True, help="The list: one entry per line, or JSON by its ending.")
@_options(
    ("--extend", "", "An old list: its lines come first and keep their ids."),
    ("--numbers", False, "The numbers 0 to 99."),
    ("--wordnet", "", "WordNet's folder of data files, or a list of its names."),
    ("--lemmas", False, "All of WordNet's words, not only the name of each synset."),
    ("--corpus", (), "Count words in this .txt, .parquet, .csv, .tsv or .jsonl; may be repeated."),
    ("--column", "caption", "The column of --corpus and --seen-in that holds texts."),
    ("--wikipedia", (), "Count words in this pages-articles.xml.bz2; may be repeated."),
    ("--unigram-min-count", 100, "Take words seen so often."),
    ("--bigram-min-pmi", 30.0, "Take neighbours with so many bits of mutual information."),
    ("--bigram-min-count", 1, "Take neighbours seen so often."),
    ("--titles", (), "Pageviews files, or lines of title, tab, views; may be repeated."),
    ("--language", "en", "The Wikipedia whose pageviews count."),
    ("--min-views", 70, "Take titles viewed so often."),
    ("--seen-in", (), "Take only entries that these texts hold, the most frequent first."),
    ("--seen-at-least", 1, "Take only entries that so many texts of --seen-in hold."),
    ("--size", 500_000, "Entries at most."),
)
def entries_build(out: str, **options: Any) -> None:
    """Build an entry list from WordNet, a corpus, Wikipedia and titles; its provenance lies beside it."""
    from pipelines import commands

    click.echo(commands.entries_build(out, options))


@entries.command(name="lint")
@click.argument("path")
@click.option(
    "--rule",
    default="spaced",
    type=click.Choice(["spaced", "worldwide"]),
    help="How it is matched.",
)
@_options(
    ("--json", False, "Every finding, as JSON."),
    ("--fix", "", "Write the list here with an empty line for each dead entry: ids stay."),
    ("--renumber", False, "With --fix: leave dead entries out instead; ids change."),
)
def entries_lint(path: str, rule: str, json: bool, fix: str, renumber: bool) -> None:
    """Find entries that can never match, and doubtful ones. Exits 1 if any is dead."""
    from pipelines import commands

    if renumber and not fix:
        raise click.UsageError("--renumber goes with --fix")
    text, fine = commands.entries_lint(path, rule=rule, as_json=json, fix=fix, renumber=renumber)
    click.echo(text)
    if not fine:
        sys.exit(1)


@main.command()
@click.argument("caption")
@_SET
@_options(
    ("--recipe", "", "The recipe whose list, balance and pool are used."),
    ("--entries", "", "A list instead, or a folder with one per language."),
    ("--pool", "", "Take the entry counts of this pool."),
    ("--url", "", "The pair's URL: with it the row's own draw is known."),
    ("--language", "", "The caption's language, where lists or counts are kept by language."),
    ("--json", False, "The answer as JSON."),
)
@click.option("--group", help="The caption's value of the column that the balance has in `by`.")
@click.option(
    "--t", type=click.IntRange(min=1, max=1 << 62), help="Another threshold than the pool's."
)
def explain(caption: str, json: bool, **options: Any) -> None:
    """Print what a caption matches, with what probability it is kept, and what it nearly matches."""
    from pipelines import commands

    click.echo(commands.explain(caption, options, as_json=json))


@main.command()
@_options(
    ("--out", "runs/demo", "Where the demo's world, pool, shards and models go."),
    ("--rows", 0, "Rows of the demo world; 0 means its default."),
    ("--samples", 0, "Training samples of each model; 0 means the default."),
)
@click.option(
    "--seed",
    default=0,
    type=int,
    show_default=True,
    help="Seed of the world, the curation and both trainings.",
)
@_count(
    "--seeds", "Train each model with this many seeds and print the spread.", 1, show_default=True
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
