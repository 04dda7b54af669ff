"""One function per command of the tool: recipe in, text for stdout back."""

from __future__ import annotations

import contextlib
import difflib
import json
import sys
import textwrap
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

from curate.contract import storage
from pipelines import components, preflight, recipe, sharding
from pipelines.errors import RecipeError, did_you_mean, split_hint
from pipelines.plan import CurationPlan, plan_curation


def check(name: str, overrides: Sequence[str] = ()) -> str:
    """Everything that can be known to be wrong before any work. Raises RecipeError."""
    loaded = recipe.load(name, overrides)
    told = [f"{loaded.path}: recipe {loaded.name!r} is fine"]
    if loaded.curate is not None:
        planned = plan_curation(loaded)
        slices = _slices(planned)
        sharding.check_folder(planned)
        told.append(
            f"curate: {slices} parts of {planned.source.use}, {len(planned.stages)} stages, {len(planned.steps)} steps"
        )
    if loaded.train is not None:
        preflight.check_training(loaded)
        phases = loaded.train.phase
        told.append(
            f"train: {loaded.train.model}, {len(phases)} phases, {sum(p.samples for p in phases):,} samples"
        )
    if loaded.evaluate:
        told.append(f"evaluate: {', '.join(component.use for component in loaded.evaluate)}")
    return "\n".join(told)


def plan(name: str, overrides: Sequence[str] = (), *, gpu: str = "", gpus: int = 1) -> str:
    """The steps of a recipe, with what is done already; of a training also time and memory on ``gpus``."""
    from pipelines import plan_text

    loaded = recipe.load(name, overrides)
    lines = [f"recipe {loaded.name}  (seed {loaded.seed})"]
    if loaded.curate is not None:
        planned = plan_curation(loaded)
        lines += plan_text.curation(planned, _slices(planned))
    if loaded.train is not None:
        lines += plan_text.training(loaded, gpu, gpus)
    for component in loaded.evaluate:
        lines.append(f"evaluate  {component.use}  {plan_text.options(component.options)}")
    return "\n".join(lines)


def show(what: str, overrides: Sequence[str] = ()) -> str:
    """A recipe resolved, as TOML; or a component's summary, its options and what they mean."""
    head, _, rest = what.partition(".")  # `view.short_text` for `short_text`
    if head in components.KINDS and rest in components.found(head):
        what = rest
    kind = next((kind for kind in components.KINDS if what in components.found(kind)), None)
    if kind is None:
        uses = [use for one in components.KINDS for use in components.found(one)]
        uses += [
            f"{one}.{use}"
            for one in components.KINDS
            for use in components.found(one)
            if "." not in use
        ]
        near = difflib.get_close_matches(what, uses, n=1, cutoff=0.75)
        if near and "." in what and not what.endswith(".toml"):
            raise RecipeError(
                f"show {what}", "no such component or recipe", f"did you mean {near[0]!r}?"
            )
        return recipe.to_toml(recipe.load(what, overrides)).rstrip()
    description = components.describe(kind, what)
    lines = [f"{what}  ({kind})", f"  {description.summary}"]
    for option in description.options:
        default = "required" if option.default is components.REQUIRED else f"= {option.default!r}"
        words = components.type_name(option.annotation) if option.annotation is not None else ""
        lines.append(f"  {option.name:28s} {default:24s} {words}")
    if description.words:
        lines += ["", textwrap.indent(description.words.replace("``", "`"), "  ")]
    return "\n".join(lines)


def list_components(kind: str | None = None) -> str:
    """Every component with its first line, by kind; then the shipped recipes."""
    kinds = [*components.KINDS, "recipe"]
    if kind is not None and kind not in kinds:
        raise RecipeError(f"list {kind}", "no such kind", did_you_mean(kind, kinds, "kinds"))
    lines: list[str] = []
    for name in [kind] if kind else kinds:
        lines.append(name)
        if name == "recipe":
            lines += [f"  {path.stem}" for path in sorted(recipe.SHIPPED.glob("*.toml"))]
        else:
            lines += [
                f"  {use:28s} {components.describe(name, use).summary}"
                for use in components.found(name)
            ]
    return "\n".join(lines)


def curate(
    name: str,
    overrides: Sequence[str],
    *,
    local: bool,
    address: str,
    workers: int,
    retry: str | None = None,
    patience: tuple[float, float] = (0.0, 600.0),
) -> str:
    """Run the curation; one JSON line with what came of the rows.

    ``retry``: kinds of failure whose rows are asked again, see `pipelines.retry`.
    ``patience``: seconds to wait for a task (0: as its step's own times say), and for a node.
    """
    from pipelines import curation, events, progress
    from pipelines.report import written

    loaded = recipe.load(name, overrides)
    planned = plan_curation(loaded)
    _slices(planned)
    sharding.check_folder(planned)
    for where, folder in (
        ("curate.pool", planned.pool_root),
        ("curate.shards", planned.shards_root),
    ):
        writable(where, folder)
    if retry is not None:
        nothing = _begin_retry(planned, retry)
        if nothing:
            return nothing
        planned = plan_curation(loaded)
    shown = progress.for_stream()
    try:
        with events.logged(planned.pool_root, "curate", recipe=loaded.name) as log:
            with _runner(local, address, workers, shown, patience, planned) as runner:
                outcome = curation.run(planned, runner, shown, loaded)
            page = written.curation(planned.shards_root, _entry_texts(planned))
    finally:
        shown.close()
    manifest = outcome.manifest
    told = {key: manifest[key] for key in ("recipe", "rows_in", "kept", "shards", "fingerprint")}
    told |= {"folder": planned.shards_root, "report": page}
    told |= {"log": log.path} if log.is_open else {}
    return json.dumps(told, ensure_ascii=False)


def _begin_retry(planned: CurationPlan, text: str) -> str:
    """Note a retry; where no row is to be asked again, one JSON line with the failures that there are."""
    from pipelines import lease, retry

    with lease.held((planned.pool_root,), _note):
        begun = retry.begin(planned, retry.parse(text), _note)
    if begun.rows:
        _note(f"{begun.rows:,} rows are asked again" + (" (resumed)" if begun.resumed else ""))
        return ""
    there = [f"there is {retry.told(begun.failures)}"] if begun.failures else []
    if begun.not_run:
        what = f"{begun.not_run[0]} has not run for all rows yet"
        there.append(f"{what}; run `clip-pipe curate` without --retry, which asks them")
    _note(f"nothing to retry for {text}: {'; '.join(there) or 'no row failed'}")
    told = {"recipe": planned.recipe, "retried": 0, "failures": begun.failures}
    return json.dumps(told, ensure_ascii=False)


@contextlib.contextmanager
def _runner(
    local: bool,
    address: str,
    workers: int,
    shown: Any,
    patience: tuple[float, float],
    planned: CurationPlan,
) -> Iterator[Any]:
    """Where worker functions run: this process, a local Ray, or a cluster."""
    from pipelines import same_files

    places = same_files.of_curation(planned)
    same_files.refuse_lost(places)
    if local:
        from pipelines import fused
        from pipelines.run_local import LocalRunner

        try:
            yield LocalRunner()
        finally:
            fused.close_opened()  # decoding processes would live on, idle, beside the report
        return
    from pipelines import run_ray
    from pipelines.task_pool import Settings

    shown.say("starting Ray" if not address else f"joining Ray at {address}")
    with run_ray.connected(
        address, workers, Settings(*patience), say=shown.say, places=places
    ) as runner:
        yield runner


def forecast(
    name: str,
    overrides: Sequence[str],
    *,
    ts: str,
    probe: int,
    as_json: bool,
    local: bool,
    address: str,
    workers: int,
    patience: tuple[float, float] = (0.0, 600.0),
) -> str:
    """What a recipe would keep and cost, once its text-only stages are run."""
    import os

    from pipelines import forecast as forecasting
    from pipelines import forecast_text, front, progress, whatif

    loaded = recipe.load(name, overrides)
    planned = plan_curation(loaded)
    _slices(planned)
    writable("curate.pool", planned.pool_root)
    thresholds = whatif.parse_ts(ts)
    count = 1 if local or address else workers or os.cpu_count() or 1
    here = local or front.is_done(front.front_of(loaded, planned).plan)
    shown = progress.for_stream()
    try:
        with _runner(here, address, workers, shown, patience, planned) as runner:
            found = forecasting.forecast(
                loaded, runner, shown, ts=thresholds, sample_rows=probe, workers=count
            )
    finally:
        shown.close()
    if as_json:
        return json.dumps(forecasting.record(found), indent=1, ensure_ascii=False)
    return "\n".join(forecast_text.lines(found))


def whatif(where: str, overrides: Sequence[str], *, ts: str, as_json: bool) -> str:
    """What changed options of filters would keep of a pool, beside what is kept now."""
    from pipelines import whatif as scenarios

    return scenarios.told(where, overrides, scenarios.parse_ts(ts), as_json)


def entries_build(out: str, options: Mapping[str, Any]) -> str:
    """Build an entry list; one JSON line with what each source gave."""
    from pipelines import entry_lists

    return entry_lists.build(out, options)


def entries_lint(
    path: str, *, rule: str, as_json: bool, fix: str, renumber: bool
) -> tuple[str, bool]:
    """What is wrong with an entry list, and whether it is fine."""
    from pipelines import entry_lists

    return entry_lists.lint(path, rule=rule, as_json=as_json, fix=fix, renumber=renumber)


def explain(caption: str, options: Mapping[str, Any], *, as_json: bool) -> str:
    """What a caption matches, and what balancing would decide about it."""
    from pipelines import explain as explaining

    answer = explaining.explain(explaining.Question(caption=caption, **options))
    return explaining.to_json(answer) if as_json else explaining.to_text(answer)


def writable(where: str, folder: str) -> None:
    """Raise RecipeError for a folder that nothing can be written to."""
    try:
        storage.prepare(folder)
    except ValueError as fault:
        what, hint = split_hint(str(fault))
        raise RecipeError(where, what, hint) from fault


def train(
    name: str, overrides: Sequence[str], *, nproc: int, ray_workers: int, address: str, resume: bool,
    allow: Sequence[str] = (),
) -> str:  # fmt: skip
    """Train; one JSON line with the final checkpoint. ``allow``: settings that may differ on resume."""
    from pipelines import launch

    return launch.train(
        name, overrides, nproc=nproc, ray_workers=ray_workers, address=address, resume=resume, allow=allow,
    )  # fmt: skip


def evaluate(
    name: str, overrides: Sequence[str], *, checkpoint: str, as_json: bool, ema: bool = False
) -> str:
    """The recipe's evaluations of one checkpoint, as a table or as JSON."""
    from pipelines import launch

    return launch.evaluate(recipe.load(name, overrides), checkpoint, as_json=as_json, ema=ema)


def checkpoint_verify(paths: Sequence[str]) -> tuple[str, bool]:
    """What checkpoints hold, and whether all of them are whole."""
    from pipelines import checkpoints

    return checkpoints.verify(paths)


def checkpoint_diff(a: str, b: str) -> str:
    """Where two checkpoints differ."""
    from pipelines import checkpoints

    return checkpoints.diff(a, b)


def checkpoint_average(paths: Sequence[str], *, out: str, last: int) -> str:
    """Average weights; one JSON line with the file and what it was made of."""
    from pipelines import checkpoints

    return checkpoints.average(paths, out=out, last=last)


def report(name: str, overrides: Sequence[str]) -> str:
    """Write the pages again; their paths, one a line."""
    from pipelines.report import written

    loaded = recipe.load(name, overrides)
    pages: list[str] = []
    if loaded.curate is not None:
        planned = plan_curation(loaded)
        found = sharding.manifest_of(planned.shards_root)
        if found is not None and found.get("recipe") == loaded.name:
            if found.get("fingerprint") != planned.shard.fingerprint:
                _note(
                    f"{planned.shards_root} holds shards of another version of this recipe; the page is about those"
                )
            pages.append(written.curation(planned.shards_root, _entry_texts(planned)))
        elif storage.exists(planned.pool.description_path):
            pages.append(_unfinished(planned))
    if loaded.train is not None and storage.exists(storage.join(loaded.train.out, "metrics.jsonl")):
        pages.append(written.training(loaded.train.out, loaded.name))
    if not pages:
        raise RecipeError(
            loaded.path,
            "nothing to report on: no shards and no training run",
            "run `clip-pipe curate` first",
        )
    return "\n".join(pages)


def _unfinished(planned: CurationPlan) -> str:
    """The page of a run without shards; what failed is said, too."""
    from pipelines import failures
    from pipelines.report import unfinished

    for stage, entry in failures.read(planned.pool_root).items():
        for number, told in entry["parts"].items():
            _note(failures.line(stage, int(number), told))
    return unfinished.write(planned)


def _note(text: str) -> None:
    print(f"note: {text}", file=sys.stderr, flush=True)


def _slices(planned: CurationPlan) -> int:
    """How many parts the source has; its faults become RecipeErrors here, before any work."""
    from pipelines import intake

    described = intake.check_pool(planned)
    if described is not None:
        return int(described["parts"])
    try:
        return len(planned.source.stage.parts())
    except (ValueError, OSError) as fault:
        what, hint = split_hint(str(fault))
        raise RecipeError(f"curate.source ({planned.source.use})", what, hint) from fault


def _entry_texts(planned: CurationPlan) -> list[str] | None:
    """The entry list of the plan's matching stage, for the report."""
    for stage in planned.stages:
        # Under `worldwide` an id means another text in each language, so entries keep their number.
        if stage.use == "score.metadata_match" and stage.options["rule"] == "spaced":
            from curate.score.metadata_match import read_entries

            return read_entries(stage.options["entries"])
    return None
