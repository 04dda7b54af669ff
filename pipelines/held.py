"""A plan over what a pool holds: its source's files may be gone or more by now, and are not read.

``pool.json`` says what the source was and its rows say which columns it brought, so the plan is the one
of the run that read them in.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq

from curate.contract import storage
from curate.contract.columns import ROW_FIELDS
from curate.contract.manifest import fingerprint
from curate.contract.parts import Pool
from curate.stage import SourceStage
from pipelines import components
from pipelines.errors import RecipeError, split_hint
from pipelines.plan import CurationPlan, Planned, decisive_options, plan_curation
from pipelines.recipe import CuratePlan, Recipe

NO_POOL_HINT = "run `clip-pipe curate` or `clip-pipe forecast` first: they make the pool"


@dataclass(frozen=True, kw_only=True)
class _Held(SourceStage):
    """A source of which the rows are there; it can't be read again."""

    schema: pa.Schema = field(default_factory=lambda: pa.schema([]))

    def writes(self) -> pa.Schema:
        return self.schema


def plan_of_pool(recipe: Recipe) -> CurationPlan:
    """The plan of a recipe over the rows that its pool holds. Raises RecipeError, also for no pool."""
    if recipe.curate is None:
        return plan_curation(recipe)  # which says so
    found = _described(recipe.curate.pool)
    source = _source(recipe, recipe.curate, found)
    return plan_curation(recipe, (source, str(found["source"]["content"])))


def unread_files(recipe: Recipe) -> int:
    """Files that were added to the source and that the pool does not hold; 0 where that can't be known."""
    assert recipe.curate is not None
    held = set(_described(recipe.curate.pool)["source"].get("files_sha256", {}))
    try:
        stage = components.build("source", recipe.curate.source, recipe.seed)
        now = set(stage.inputs())
    except (RecipeError, ValueError, OSError):
        return 0
    return len(now - held) if held <= now else 0


def _described(root: str) -> dict[str, Any]:
    """pool.json. Raises RecipeError where there is none, or none of ours."""
    where = f"curate.pool = {root!r}"
    try:
        found = Pool(root).describe()
    except (ValueError, NotADirectoryError) as fault:
        what, hint = split_hint(str(fault))
        raise RecipeError(where, what, hint) from fault
    if found is None:
        raise RecipeError(where, "there is no pool", NO_POOL_HINT)
    if not isinstance(found.get("source"), dict) or not isinstance(found.get("parts"), int):
        raise RecipeError(where, "pool.json names no source or no parts", "name another pool")
    return found


def _source(recipe: Recipe, curate: CuratePlan, found: dict[str, Any]) -> Planned:
    """The recipe's source with the files that the pool knows, and the columns of the pool's rows."""
    component = curate.source
    given = components.resolve_options("source", component, recipe.seed)
    described = components.describe("source", component.use).options
    options = {option.name: given.get(option.name, option.default) for option in described}
    digests: dict[str, str] = found["source"].get("files_sha256", {})
    decisive = decisive_options("source", component.use, options, bool(digests))
    cls: Any = components.load("source", component.use)
    own = fingerprint(component.use, cls.version, decisive, ())
    schema = _schema(Pool(curate.pool), found["parts"], own)
    return Planned(
        use=component.use,
        name=component.use,
        stage=_Held(schema=schema),
        fingerprint=own,
        provided_by=(),
        measure=own,
        options=options,
        upstream=(),
        reads=(),
        columns=tuple(name for name in schema.names if name != "image"),
        decides=True,
        makes_images="image" in schema.names,
        input_files_sha256=digests,
        input_fingerprints=(),
    )


def _schema(pool: Pool, count: int, source: str) -> pa.Schema:
    """What the source wrote beyond uid, url and caption, by the first part that is read in."""
    standard = {item.name for item in ROW_FIELDS}
    paths = (pool.rows_path(number) for number in range(count))
    first = next((path for path in paths if storage.exists(path)), None)
    own: list[pa.Field] = []
    if first is not None:
        with storage.open_file(first) as file:
            own = [item for item in pq.read_schema(file) if item.name not in standard]
    if storage.glob(pool.images_path(source, 0).replace("part-00000", "part-*")):
        own.append(pa.field("image", pa.binary()))
    return pa.schema(own)
