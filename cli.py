"""clip-pipe: from a list of (image URL, alt-text) pairs to an evaluated CLIP model.

Words in, `pipelines` out: every command here only reads its arguments and hands over. Nothing heavy
is imported before a command needs it. Data go to stdout, talk goes to stderr.
"""

from __future__ import annotations

import os
import sys
from collections.abc import Callable
from typing import Any

import click

from pipelines import operator_commands
from pipelines.command_line import JSON, RECIPE, SET, TS, Group, count, one_place, options, place


@click.group(
    cls=Group, context_settings={"help_option_names": ["-h", "--help"], "max_content_width": 100}
)
@click.version_option(package_name="clip-pipe", prog_name="clip-pipe")
def main() -> None:
    """From a list of (image URL, alt-text) pairs to an evaluated CLIP model.

    \b
    Try it:      clip-pipe demo
    Your data:   clip-pipe check RECIPE, then curate, train, eval, report
    """


for _command in (operator_commands.status, operator_commands.gc, operator_commands.verify):
    main.add_command(_command)


@main.command()
@RECIPE
@SET
def check(recipe: str, overrides: tuple[str, ...]) -> None:
    """Check a recipe (keys, components, options, columns, files) without doing any work."""
    from pipelines import commands

    click.echo(commands.check(recipe, overrides))


@main.command()
@RECIPE
@SET
@options(("--gpu", "", "Predict time and memory of the training on this GPU, e.g. h200."))
@count("--gpus", "On so many of them.", 1)
def plan(recipe: str, overrides: tuple[str, ...], gpu: str, gpus: int) -> None:
    """Print what would run, step by step, what is done already, and what a training would cost."""
    from pipelines import commands

    click.echo(commands.plan(recipe, overrides, gpu=gpu, gpus=gpus))


@main.command()
@click.argument("what")
@SET
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
@RECIPE
@SET
@click.option(
    "--retry",
    metavar="KIND,...",
    help="Ask rows again that failed so, and no others: http.5xx, timeout, dns, transient, ...",
)
@place
def curate(recipe: str, overrides: tuple[str, ...], retry: str | None, **place: Any) -> None:
    """Turn a recipe's source into shards. Run it again to go on after a crash."""
    from pipelines import commands

    click.echo(commands.curate(recipe, overrides, retry=retry, **one_place(place)))


@main.command()
@RECIPE
@SET
@TS
@count("--probe", "Fetch N of the rows that would be downloaded, for their sizes.", metavar="N")
@place
@JSON
def forecast(
    recipe: str, overrides: tuple[str, ...], ts: str, probe: int, as_json: bool, **place: Any
) -> None:
    """Print what a recipe would keep and cost, after running its text-only stages."""
    from pipelines import commands

    told = commands.forecast(
        recipe, overrides, ts=ts, probe=probe, as_json=as_json, **one_place(place)
    )
    click.echo(told)


@main.command()
@click.argument("pool_or_recipe")
@SET
@TS
@JSON
def whatif(pool_or_recipe: str, overrides: tuple[str, ...], ts: str, as_json: bool) -> None:
    """Print what other options of the filters would keep, from what the pool holds already."""
    from pipelines import commands

    click.echo(commands.whatif(pool_or_recipe, overrides, ts=ts, as_json=as_json))


@main.command()
@RECIPE
@SET
@count("--nproc", "Ranks on this machine, one per GPU (torchrun).", 1)
@count("--ray ray_workers", "Ranks on a Ray cluster instead (Ray Train).", 1, default=None)
@click.option("--address", default="", help="With --ray: the cluster to join.")
@options(
    ("--resume", False, "Go on from the newest whole checkpoint."),
    ("--allow-change", (), "With --resume: this setting may differ (phase.0.lr, phase.0, data)."),
)
def train(
    recipe: str,
    overrides: tuple[str, ...],
    nproc: int,
    ray_workers: int | None,
    address: str,
    resume: bool,
    allow_change: tuple[str, ...],
) -> None:
    """Train on a recipe's shards."""
    from pipelines import commands

    if ray_workers and nproc > 1:
        raise click.UsageError(
            "--nproc starts ranks here, --ray starts them on a cluster: give one of them"
        )
    if address and not ray_workers:
        raise click.UsageError("--address goes with --ray")
    if allow_change and not resume:
        raise click.UsageError("--allow-change goes with --resume")
    told = commands.train(
        recipe, overrides, nproc=nproc, ray_workers=ray_workers or 0, address=address, resume=resume, allow=allow_change,
    )  # fmt: skip
    click.echo(told, nl=bool(told))


@main.command(name="eval")
@RECIPE
@SET
@click.option(
    "--checkpoint", default="", help="A checkpoint; the newest of the recipe's run if left out."
)
@click.option("--ema", is_flag=True, help="Its averaged weights (train.ema_decay) instead.")
@JSON
def eval_(
    recipe: str, overrides: tuple[str, ...], checkpoint: str, ema: bool, as_json: bool
) -> None:
    """Evaluate a trained model with the recipe's evaluations."""
    from pipelines import commands

    click.echo(
        commands.evaluate(recipe, overrides, checkpoint=checkpoint, ema=ema, as_json=as_json)
    )


@main.command()
@RECIPE
@SET
def report(recipe: str, overrides: tuple[str, ...]) -> None:
    """Write the HTML report of a recipe's shards and training run again."""
    from pipelines import commands

    click.echo(commands.report(recipe, overrides))


@main.group()
def checkpoint() -> None:
    """Look into checkpoints: are they whole, how do two differ; and average their weights."""


@checkpoint.command(name="verify")
@click.argument("paths", nargs=-1, required=True)
def checkpoint_verify(paths: tuple[str, ...]) -> None:
    """Check files, or all of a run's: bytes, that they load, finite figures. Exits 1 if one is bad."""
    from pipelines import commands

    text, fine = commands.checkpoint_verify(paths)
    click.echo(text)
    if not fine:
        sys.exit(1)


@checkpoint.command(name="diff")
@click.argument("a")
@click.argument("b")
def checkpoint_diff(a: str, b: str) -> None:
    """Compare two checkpoints (or the newest of two runs): settings, versions, data, every tensor."""
    from pipelines import commands

    click.echo(commands.checkpoint_diff(a, b))


@checkpoint.command(name="average")
@click.argument("paths", nargs=-1, required=True)
@click.option(
    "--out", required=True, help="The file to write, for eval --checkpoint and open_clip."
)
@count("--last", "The newest N of one run's instead of files.", metavar="N")
def checkpoint_average(paths: tuple[str, ...], out: str, last: int) -> None:
    """Average the weights of several checkpoints, each with the same share."""
    from pipelines import commands

    click.echo(commands.checkpoint_average(paths, out=out, last=last))


@main.group()
def entries() -> None:
    """Build and check entry lists, what score.metadata_match looks for."""


@entries.command(name="build")
@click.option("--out", required=True, help="The list: one entry per line, or JSON by its ending.")
@options(
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
@options(
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
@SET
@options(
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
@options(
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
@count(
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
