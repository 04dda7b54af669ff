"""The operator's commands, for `cli`: status, gc, verify. Words in, text out; imports nothing but click."""

from __future__ import annotations

import sys

import click

from pipelines.command_line import JSON, SET


@click.command()
@click.argument("pool_or_recipe")
@SET
@JSON
@click.option(
    "--watch",
    is_flag=False,
    flag_value=5.0,
    default=None,
    type=click.FloatRange(min=0.2),
    metavar="[S]",
    help="Again every S seconds (5), until Ctrl-C.",
)
def status(
    pool_or_recipe: str, overrides: tuple[str, ...], as_json: bool, watch: float | None
) -> None:
    """Show how a pool, a recipe's run or a training stands, while it runs or after it died. Writes nothing."""
    from pipelines import status_text

    if watch is not None:
        status_text.watch(pool_or_recipe, overrides, as_json, watch)
    else:
        click.echo(status_text.told(pool_or_recipe, overrides, as_json))


@click.command()
@click.argument("pool")
@click.option("--keep", multiple=True, metavar="RECIPE", help="Another recipe over this pool; may be given often.")  # fmt: skip
@click.option(
    "--pictures", is_flag=True, help="Pictures too, and the sidecars that belong to them."
)
@click.option("--dry-run", is_flag=True, help="Only list.")
@click.option("--yes", is_flag=True, help="Don't ask.")
@JSON
def gc(
    pool: str, keep: tuple[str, ...], pictures: bool, dry_run: bool, yes: bool, as_json: bool
) -> None:
    """List what a pool holds that no recipe refers to, and remove it after asking."""
    from pipelines import gc as collecting

    listed: list[collecting.Leftover] = []

    def show(found: list[collecting.Leftover]) -> None:
        listed.extend(found)
        if not as_json:
            click.echo("\n".join(collecting.lines(found, pictures)))

    gone, removed = collecting.run(
        pool,
        keep,
        pictures=pictures,
        dry_run=dry_run,
        ask=lambda question: yes or _asked(question),
        say=lambda words: click.echo(words, err=True),
        show=show,  # type: ignore[arg-type]
    )
    if as_json:
        click.echo(collecting.record(pool, listed, pictures, removed))
    elif removed:
        click.echo(f"removed {len(gone)}")


def _asked(question: str) -> bool:
    if not sys.stdin.isatty():
        raise click.UsageError(
            f"{question} Nobody can answer here: --yes says so, --dry-run only lists"
        )
    return click.confirm(question, err=True)


@click.command()
@click.argument("pool_or_shards")
@click.option("--quick", is_flag=True, help="Sizes and counts only: no file is read whole.")
@click.option("--set-aside", is_flag=True, help="Of a pool: move damaged parts to *.damaged, so that they are made anew.")  # fmt: skip
@JSON
def verify(pool_or_shards: str, quick: bool, set_aside: bool, as_json: bool) -> None:
    """Check a pool or shards against their manifests: hashes, counts, contract. Exits 1 if something is wrong."""
    from pipelines import verify as verifying

    text, fine = verifying.told(pool_or_shards, quick=quick, as_json=as_json, set_aside=set_aside)
    click.echo(text)
    if not fine:
        sys.exit(1)
