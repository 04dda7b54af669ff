"""From a recipe to what would run: stages built, columns and needs checked, fingerprints, steps.

Everything a user can get wrong in a recipe is found here, before any work. Row stages between two
global steps form one step, so that a part is read once and each image decoded once.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field, replace
from typing import Any

import pyarrow as pa

from curate.contract import storage
from curate.contract.manifest import fingerprint
from curate.contract.parts import Pool
from curate.stage import GlobalStage, Resources, RowStage, ShardStage, SourceStage, Stage
from pipelines import allowance, components, generations, providers, resources
from pipelines.components import Component
from pipelines.errors import RecipeError, split_hint
from pipelines.generations import Retry
from pipelines.recipe import Recipe

_DECISION = ("keep", "reason")
# Entry lists and weights are hashed whole; a source may be terabytes, so its larger files are
# known by their size, their time of change and their two ends.
_HASHED_AT_ONCE = 16
_WHOLE_HASH_BYTES = {"source": 64 << 20, "stage": 1 << 40, "shard": 1 << 40}


@dataclass(frozen=True)
class Planned:
    """One stage in its place. ``upstream`` are the indexes of stages whose refusals it must respect."""

    use: str
    name: str  # the use; `use#2` for its second place in one recipe
    stage: Any
    fingerprint: str
    options: dict[str, Any]
    upstream: tuple[int, ...]  # -1 is the source
    reads: tuple[str, ...]
    columns: tuple[str, ...]  # written, without keep, reason and image
    decides: bool
    makes_images: bool
    input_files_sha256: dict[str, str]
    input_fingerprints: tuple[str, ...]
    provided_by: tuple[str, ...]  # what the values of the columns it reads hang on
    measure: str  # what a row's own values hang on: not on who refused others, nor on which rows there are
    # Runs that this one goes on from, each a fingerprint and kinds of failure: only failures of these kinds
    # are asked again, every other row is taken over.
    follows: tuple[tuple[str, tuple[str, ...]], ...] = ()
    rows_wanted: int | None = (
        None  # after the downloads below it, where it makes up for their losses
    )
    resources: Resources = Resources()  # noqa: RUF009  # frozen; as the recipe says, or the stage itself

    @property
    def schema(self) -> pa.Schema:
        return self.stage.writes()


@dataclass(frozen=True)
class Step:
    """What the runner does at once: a run of fused row stages, or one global stage."""

    kind: str  # "rows" or "global"
    stages: tuple[int, ...]


@dataclass(frozen=True)
class CurationPlan:
    """All a worker needs to know; small and picklable."""

    recipe: str
    seed: int
    pool_root: str
    shards_root: str
    max_error_frac: float
    source: Planned
    source_content: str  # of the source's files; they may grow in number
    stages: tuple[Planned, ...]
    shard: Planned
    steps: tuple[Step, ...]
    retries: tuple[Retry, ...] = ()  # that the pool has seen under this recipe, oldest first
    allowances: tuple[
        allowance.Allowance, ...
    ] = ()  # of stages that follow what is lost below them

    @property
    def pool(self) -> Pool:
        return Pool(self.pool_root)

    @property
    def losses(self) -> dict[str, float]:
        """Stage -> share of what it keeps that comes through the downloads below it, where that is known."""
        return allowance.losses(self.allowances)

    @property
    def has_images(self) -> bool:
        return self.source.makes_images or any(stage.makes_images for stage in self.stages)

    def at(self, index: int) -> Planned:
        return self.source if index < 0 else self.stages[index]

    def image_maker(self, before: int) -> Planned | None:
        """The newest stage above ``before`` that makes pictures."""
        for index in range(before - 1, -2, -1):
            if self.at(index).makes_images:
                return self.at(index)
        return None


def plan_curation(
    recipe: Recipe,
    held: tuple[Planned, str] | None = None,
    losses: Mapping[str, float] | None = None,
) -> CurationPlan:
    """The checked plan of a recipe's [curate] table. Raises RecipeError.

    ``held``: the source and its content as a pool has them; then the source's files are not looked at.
    ``losses``: those of ``CurationPlan.losses`` of a recipe that this one is a part of.
    """
    if recipe.curate is None:
        raise RecipeError(
            recipe.path, "no [curate] table", "this recipe only trains: use `clip-pipe train`"
        )
    curate = recipe.curate
    for where, folder in (("curate.pool", curate.pool), ("curate.shards", curate.shards)):
        try:
            storage.exists(folder)
        except ValueError as fault:
            what, hint = split_hint(str(fault))
            raise RecipeError(where, what, hint) from fault
    if held is not None:
        source, content = held
    else:
        source = _planned(recipe, curate.source, "source", SourceStage, ())
        content = fingerprint(source.stage.identity(), sorted(source.input_files_sha256.values()))
    described = _described(curate.pool)
    ground = _Ground(
        source,
        _in_order(described, content),
        generations.noted(described, recipe.name),
        digests={},
    )
    stages = _stages(recipe, ground)
    followed = allowance.followed(curate.pool, stages) if losses is None else ()
    if lost := allowance.losses(followed) if losses is None else losses:
        ground = replace(ground, losses=lost)
        stages = _stages(recipe, ground)
    stages = _following(recipe, ground, stages, followed)
    return CurationPlan(
        recipe=recipe.name,
        seed=recipe.seed,
        pool_root=curate.pool,
        shards_root=curate.shards,
        max_error_frac=curate.max_error_frac,
        source=source,
        source_content=content,
        stages=stages,
        shard=_planned(recipe, curate.shard, "shard", ShardStage, (source, *stages), ground),
        steps=_steps(list(stages)),
        retries=ground.retries,
        allowances=followed,
    )


@dataclass(frozen=True)
class _Ground:
    """What the stages of a plan stand on."""

    source: Planned
    content: str  # of the source's files, in the order in which the pool took them in
    retries: tuple[Retry, ...]
    digests: dict[str, str]  # of the stages' files, so that none is read twice
    # Stage -> share of the rows it keeps that comes through the downloads below it.
    losses: Mapping[str, float] = field(default_factory=dict)


def _stages(recipe: Recipe, ground: _Ground) -> tuple[Planned, ...]:
    assert recipe.curate is not None
    planned: list[Planned] = [ground.source]
    for component in _with_pair_duplicates(recipe.curate.stage):
        kinds = (RowStage, GlobalStage)
        planned.append(_planned(recipe, component, "stage", kinds, tuple(planned), ground))
    return tuple(planned[1:])


def _following(
    recipe: Recipe,
    ground: _Ground,
    stages: tuple[Planned, ...],
    followed: tuple[allowance.Allowance, ...],
) -> tuple[Planned, ...]:
    """The stages with the runs they go on from: with fewer retries, and with smaller allowances.

    All of them, nearest first: one that was stopped has not asked everything.
    """
    rounds = [ground.losses, *allowance.earlier_rounds(followed)]
    grounds = [
        replace(ground, retries=ground.retries[:count], losses=lost)
        for count in range(len(ground.retries), -1, -1)
        for lost in rounds
    ]
    before = [(_stages(recipe, other), other.retries) for other in grounds[1:]]
    found = []
    for index, planned in enumerate(stages):
        runs: dict[str, tuple[str, ...]] = {}
        for others, retries in before:
            since = generations.generation(retries, planned.name)
            kinds = generations.asked_since(ground.retries, planned.name, since)
            if others[index].fingerprint != planned.fingerprint:
                runs.setdefault(others[index].fingerprint, kinds)
        found.append(replace(planned, follows=tuple(runs.items())))
    return tuple(found)


def _described(pool: str) -> dict[str, Any]:
    try:
        return Pool(pool).describe() or {}
    except (ValueError, OSError):
        return {}  # check_pool says what is wrong with it


def _in_order(found: Mapping[str, Any], content: str) -> str:
    """The content of a source with the order in which a pool took it in.

    Rows of files that were added come last, and the first of several copies stays: a pool that grew
    and one made anew may keep different rows.
    """
    before = [entry.get("content") for entry in found.get("grown", [])]
    held = found.get("source", {}).get("content", content)
    before += [] if held == content else [held]
    return fingerprint(content, before) if before else content


def _with_pair_duplicates(stages: tuple[Component, ...]) -> tuple[Component, ...]:
    """Exact repeats share a uid, so one of each pair must go before anything else is decided."""
    if any(component.use == "filter.duplicate_pair" for component in stages):
        return stages
    return (Component("filter.duplicate_pair", {}, "curate (always first)"), *stages)


def _steps(stages: list[Planned]) -> tuple[Step, ...]:
    """A stage that looks ahead begins a step: what it will get is then known from what is committed."""
    steps: list[Step] = []
    for index, planned in enumerate(stages):
        if isinstance(planned.stage, GlobalStage):
            steps.append(Step("global", (index,)))
        elif steps and steps[-1].kind == "rows" and not planned.stage.looks_ahead:
            steps[-1] = Step("rows", (*steps[-1].stages, index))
        else:
            steps.append(Step("rows", (index,)))
    return tuple(steps)


def _planned(
    recipe: Recipe,
    component: Component,
    kind: str,
    base: Any,
    above: tuple[Planned, ...],
    ground: _Ground | None = None,
) -> Planned:
    """Build one stage, find the providers of what it reads, and fingerprint it.

    What sees the whole pool hangs on the content of the source's files. A row's own values do not, so
    that files can be added to a source.
    """
    stage: Stage = components.build(kind, component, recipe.seed)
    name = _name(component.use, above)
    rows_wanted = stage.rows_wanted() if isinstance(stage, GlobalStage) else None
    if rows_wanted is not None and ground is not None:
        stage = stage.after_losses(ground.losses.get(name, 1.0))  # type: ignore[attr-defined]
    if not isinstance(stage, base):
        raise RecipeError(
            component.where,
            f"{component.use} is a {type(stage).__mro__[1].__name__}, which can't stand here",
        )
    try:
        stage.check_above([planned.stage for planned in above])
        reads = providers.columns_read(stage, kind, component, above)
        names = stage.writes().names
        digests = _digests(stage, kind, ground)
    except (ValueError, OSError) as fault:
        what, hint = split_hint(str(fault))
        raise RecipeError(component.where, what, hint) from fault
    if kind == "stage":
        providers.check_writes(component, names, above)
        providers.check_types(component, stage, reads, above)
    # A global stage must see exactly the rows that live, whoever refused the others.
    whole = kind == "shard" or isinstance(stage, GlobalStage)
    upstream = providers.stands_on(reads, above, everything=whole)
    fingerprints = tuple(above[index + 1].fingerprint for index in upstream)
    options = {item.name: getattr(stage, item.name) for item in dataclasses.fields(stage)}
    decisive = decisive_options(kind, component.use, options, bool(digests))
    # A source may grow; everything else is known by the content of its files.
    own = [component.use, stage.version, decisive]
    own += [] if kind == "source" else [stage.identity(), list(digests.values())]
    return Planned(
        use=component.use,
        name=name,
        stage=stage,
        fingerprint=fingerprint(*own, fingerprints, *_standing(ground, recipe.name, name, whole)),
        provided_by=providers.measures(reads, above),
        measure=fingerprint(*own, providers.measures(reads, above)),
        options=options,
        upstream=upstream,
        reads=reads,
        columns=tuple(name for name in names if name not in (*_DECISION, "image")),
        decides=kind == "source" or "keep" in names,
        makes_images="image" in names,
        input_files_sha256=digests,
        input_fingerprints=fingerprints,
        rows_wanted=rows_wanted,
        resources=resources.asked(kind, component, stage.resources),
    )


def _name(use: str, above: tuple[Planned, ...]) -> str:
    places = sum(planned.use == use for planned in above) + 1
    return use if places == 1 else f"{use}#{places}"


def _standing(ground: _Ground | None, recipe: str, name: str, whole: bool) -> list[Any]:
    """What a stage's fingerprint has of the pool: its content where it sees all of it, and retries.

    Two recipes' retries may be about other kinds, so they never share what they asked.
    """
    if ground is None:
        return []
    again = generations.generation(ground.retries, name)
    return [*([ground.content] if whole else []), *(["retry", recipe, again] if again else [])]


def _digests(stage: Stage, kind: str, ground: _Ground | None) -> dict[str, str]:
    """The content of a stage's files, by path."""
    known = {} if ground is None else ground.digests
    paths = stage.inputs()
    marks = stage.versions() if isinstance(stage, SourceStage) else {}

    def digest(path: str) -> str:
        return providers.identity(path, _WHOLE_HASH_BYTES[kind], marks.get(path))

    left = [path for path in paths if path not in known]
    with ThreadPoolExecutor(_HASHED_AT_ONCE) as pool:
        known.update(zip(left, pool.map(digest, left), strict=True))
    return {path: known[path] for path in paths}


def decisive_options(
    kind: str, use: str, options: dict[str, Any], has_files: bool
) -> dict[str, Any]:
    """The options that a fingerprint has; paths are left out where the files' content is in it."""
    described = components.describe(kind, use).options
    return {
        option.name: options[option.name]
        for option in described
        if not option.is_tuning and not (option.is_path and has_files)
    }
