"""From a recipe to what would run: stages built, columns and needs checked, fingerprints, steps.

Everything a user can get wrong in a recipe is found here, before any work. Row stages between two
global steps form one step, so that a part is read once and each image decoded once.
"""

from __future__ import annotations

import dataclasses
import hashlib
from dataclasses import dataclass
from typing import Any

import pyarrow as pa

from curate.contract import storage
from curate.contract.columns import COLUMNS
from curate.contract.manifest import fingerprint
from curate.contract.parts import Pool
from curate.stage import VIRTUAL_COLUMNS, GlobalStage, RowStage, ShardStage, SourceStage, Stage
from pipelines import components
from pipelines.components import Component
from pipelines.errors import RecipeError, did_you_mean, split_hint
from pipelines.recipe import Recipe

_DECISION = ("keep", "reason")
# Entry lists and weights are hashed whole; a source may be terabytes, so its larger files are
# known by their size, their time of change and their two ends.
_WHOLE_HASH_BYTES = {"source": 64 << 20, "stage": 1 << 40, "shard": 1 << 40}
_EDGE_BYTES = 64 << 10


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

    @property
    def pool(self) -> Pool:
        return Pool(self.pool_root)

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


def plan_curation(recipe: Recipe, held: tuple[Planned, str] | None = None) -> CurationPlan:
    """The checked plan of a recipe's [curate] table. Raises RecipeError.

    ``held``: the source and its content as a pool has them; then the source's files are not looked at.
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
    whole = _in_order(curate.pool, content)
    planned: list[Planned] = [source]
    for component in _with_pair_duplicates(curate.stage):
        planned.append(
            _planned(recipe, component, "stage", (RowStage, GlobalStage), tuple(planned), whole)
        )
    shard = _planned(recipe, curate.shard, "shard", ShardStage, tuple(planned), whole)
    return CurationPlan(
        recipe=recipe.name,
        seed=recipe.seed,
        pool_root=curate.pool,
        shards_root=curate.shards,
        max_error_frac=curate.max_error_frac,
        source=source,
        source_content=content,
        stages=tuple(planned[1:]),
        shard=shard,
        steps=_steps(planned[1:]),
    )


def _in_order(pool: str, content: str) -> str:
    """The content of a source with the order in which a pool took it in.

    Rows of files that were added come last, and the first of several copies stays: a pool that grew
    and one made anew may keep different rows.
    """
    try:
        found = Pool(pool).describe() or {}
    except (ValueError, OSError):
        return content  # check_pool says what is wrong with it
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
    steps: list[Step] = []
    for index, planned in enumerate(stages):
        if isinstance(planned.stage, GlobalStage):
            steps.append(Step("global", (index,)))
        elif steps and steps[-1].kind == "rows":
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
    content: str = "",
) -> Planned:
    """Build one stage, find the providers of what it reads, and fingerprint it.

    ``content`` is that of the source's files: what sees the whole pool hangs on it. A row's own values
    do not, so that files can be added to a source.
    """
    stage: Stage = components.build(kind, component, recipe.seed)
    if not isinstance(stage, base):
        raise RecipeError(
            component.where,
            f"{component.use} is a {type(stage).__mro__[1].__name__}, which can't stand here",
        )
    try:
        stage.check_above([planned.stage for planned in above])
        reads = _reads(stage, kind, component, above)
        names = stage.writes().names
        digests = {path: _identity(path, _WHOLE_HASH_BYTES[kind]) for path in stage.inputs()}
    except (ValueError, OSError) as fault:
        what, hint = split_hint(str(fault))
        raise RecipeError(component.where, what, hint) from fault
    if kind == "stage":
        _check_writes(component, names, above)
        _check_types(component, stage, reads, above)
    # A global stage must see exactly the rows that live, whoever refused the others.
    whole = kind == "shard" or isinstance(stage, GlobalStage)
    upstream = _upstream(reads, above, everything=whole)
    fingerprints = tuple(above[index + 1].fingerprint for index in upstream)
    options = {item.name: getattr(stage, item.name) for item in dataclasses.fields(stage)}
    decisive = decisive_options(kind, component.use, options, bool(digests))
    places = sum(planned.use == component.use for planned in above) + 1
    # A source may grow; everything else is known by the content of its files.
    own = [component.use, stage.version, decisive]
    own += [] if kind == "source" else [stage.identity(), list(digests.values())]
    return Planned(
        use=component.use,
        name=component.use if places == 1 else f"{component.use}#{places}",
        stage=stage,
        fingerprint=fingerprint(*own, fingerprints, *([content] if whole else [])),
        provided_by=_measures(reads, above),
        measure=fingerprint(*own, _measures(reads, above)),
        options=options,
        upstream=upstream,
        reads=reads,
        columns=tuple(name for name in names if name not in (*_DECISION, "image")),
        decides=kind == "source" or "keep" in names,
        makes_images="image" in names,
        input_files_sha256=digests,
        input_fingerprints=fingerprints,
    )


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


def _measures(reads: tuple[str, ...], above: tuple[Planned, ...]) -> tuple[str, ...]:
    """What the values of the columns that a stage reads hang on, provider by provider."""
    found = [planned for planned in above[1:] if set(planned.columns) & set(reads)]
    makers = [planned for planned in above if planned.makes_images]
    if "image" in reads and makers:
        found.append(makers[-1])
    return tuple(
        planned.fingerprint if isinstance(planned.stage, GlobalStage) else planned.measure
        for planned in [*above[:1], *found]
    )


def _reads(
    stage: Stage, kind: str, component: Component, above: tuple[Planned, ...]
) -> tuple[str, ...]:
    """The columns a stage names, each provided by something above. Raises RecipeError."""
    if kind == "source":
        return ()
    has_images = any(planned.makes_images for planned in above)
    provided = {"uid", "url", "caption", *VIRTUAL_COLUMNS} | {
        name for planned in above for name in planned.columns
    }
    if not has_images:
        provided.discard("image")
    reads = tuple(provided - {"part", "row"}) if kind == "shard" else stage.reads()
    for name in reads:
        if name not in provided:
            maker = f"{_maker(name)} " if _maker(name) else ""
            raise RecipeError(
                component.where,
                f"{component.use} reads the column {name!r}, which nothing above it provides",
                f"put {maker}above it" if maker else did_you_mean(name, provided, "columns here"),
            )
    return tuple(sorted(reads))


def _maker(column: str) -> str:
    """A component of the project that writes ``column`` with default options, or ''."""
    for use in components.found("stage"):
        description = components.describe("stage", use)
        if any(option.default is components.REQUIRED for option in description.options):
            options = {o.name: "" for o in description.options if o.default is components.REQUIRED}
        else:
            options = {}
        try:
            made = components.load("stage", use)(**options)
            names = made.writes().names
        except (ValueError, TypeError, OSError):
            continue
        if column in names:
            return use
    return ""


def _check_writes(component: Component, names: list[str], above: tuple[Planned, ...]) -> None:
    for planned in above:
        for name in set(names) & {"uid", "url", "caption", *planned.columns}:
            raise RecipeError(
                component.where,
                f"{component.use} writes the column {name!r}, which is there already (from {planned.use})",
                "no stage overwrites a column; remove one of the two",
            )


def _check_types(
    component: Component, stage: Stage, reads: tuple[str, ...], above: tuple[Planned, ...]
) -> None:
    """Let the stage judge the types of the columns it reads. Raises RecipeError."""
    types = {
        f.name: f.type for planned in above for f in planned.schema if f.name in planned.columns
    }
    types |= {name: COLUMNS[name].type for name in ("uid", "url", "caption", "image")}
    types |= {"part": pa.int64(), "row": pa.int64()}
    try:
        stage.check_columns({name: types[name] for name in reads})
    except ValueError as fault:
        what, hint = split_hint(str(fault))
        raise RecipeError(component.where, what, hint) from fault


def _upstream(
    reads: tuple[str, ...], above: tuple[Planned, ...], everything: bool
) -> tuple[int, ...]:
    """Indexes of the deciders above and of the providers of ``reads``, with what those stand on."""
    chosen: set[int] = set()
    for position, planned in enumerate(above):
        provides = set(planned.columns) & set(reads) or (planned.makes_images and "image" in reads)
        if everything or planned.decides or provides:
            chosen.add(position - 1)
            chosen.update(planned.upstream)
    return tuple(sorted(chosen))


def _identity(path: str, whole_bytes: int) -> str:
    """sha256 of a file; of its size, time of change and two ends where it is over ``whole_bytes``."""
    digest = hashlib.sha256()
    try:
        size = storage.size_bytes(path)
        with storage.open_file(path) as file:
            if size <= whole_bytes:
                while chunk := file.read(1 << 20):
                    digest.update(chunk)
            else:
                digest.update(f"{size} {storage.modified(path)}".encode())
                digest.update(file.read(_EDGE_BYTES))
                file.seek(size - _EDGE_BYTES)
                digest.update(file.read(_EDGE_BYTES))
    except FileNotFoundError as fault:
        raise ValueError(
            f"{path}: no such file. hint: check the path; a relative one is taken from the folder you run in"
        ) from fault
    return digest.hexdigest()
