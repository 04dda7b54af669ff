"""What a pool holds of its source: pool.json, checked before any work, and grown when files are added.

Rows that are in a pool stay as they are: files may be added to a source, and their rows come after
those that are there. A file that changed or went makes it another source.
"""

from __future__ import annotations

import json
from typing import Any

from curate.contract import storage
from curate.contract.manifest import SCHEMA_VERSION
from pipelines import components
from pipelines.components import Component
from pipelines.errors import RecipeError, split_hint
from pipelines.plan import CurationPlan
from pipelines.recipe import Recipe


def check_pool(plan: CurationPlan) -> dict[str, Any] | None:
    """pool.json, grown by the source's new files; None for a new pool. Writes nothing.

    Raises RecipeError for a pool of another source, and for a source whose files changed.
    """
    where = f"curate.pool = {plan.pool_root!r}"
    try:
        found = plan.pool.describe()
    except (ValueError, NotADirectoryError) as fault:
        what, hint = split_hint(str(fault))
        raise RecipeError(where, what, hint) from fault
    if found is None:
        if not storage.is_empty(plan.pool_root):
            raise RecipeError(
                where,
                "the folder is not empty and holds no pool (no pool.json)",
                "name a new or empty folder",
            )
        return None
    if found.get("schema_version") != SCHEMA_VERSION:
        raise RecipeError(
            where,
            f"schema version {found.get('schema_version')}, this clip-pipe reads {SCHEMA_VERSION}",
        )
    source = found.get("source", {})
    if source.get("fingerprint") != plan.source.fingerprint:
        raise RecipeError(
            where,
            f"the pool holds rows of another source (recipe {found.get('recipe')!r}), or rows that were read with other options",
            "name a new pool folder, or delete that one",
        )
    return found if source.get("content") == plan.source_content else _grown(plan, found, where)


def begin(plan: CurationPlan) -> dict[str, Any]:
    """pool.json as this run takes it, written where it is new or has grown."""
    found = check_pool(plan)
    if found is None:
        found = _described(plan, _slices(plan), [])
    if found != plan.pool.describe():
        text = json.dumps(found, indent=1, default=str) + "\n"
        storage.write_text(plan.pool.description_path, text)
        return json.loads(text)
    return found


def keep_recipe(recipe: Recipe) -> None:
    """Write POOL/recipe.toml: the [curate] table of the newest run, paths absolute, for `clip-pipe whatif POOL`."""
    import tomli_w

    curate = recipe.curate
    assert curate is not None

    def table(kind: str, component: Component) -> dict[str, Any]:
        options = components.resolve_options(kind, component, recipe.seed)
        plain = {name: _plain(value) for name, value in options.items() if value is not None}
        return {"use": component.use, **plain}

    data = {
        "name": recipe.name,
        "seed": recipe.seed,
        "curate": {
            "pool": curate.pool,
            "shards": curate.shards,
            "max_error_frac": curate.max_error_frac,
            "source": table("source", curate.source),
            "stage": [table("stage", component) for component in curate.stage],
            "shard": table("shard", curate.shard),
        },
    }
    path = storage.join(curate.pool, "recipe.toml")
    storage.write_text(path, tomli_w.dumps(data))


def _plain(value: Any) -> Any:
    return [_plain(entry) for entry in value] if isinstance(value, tuple) else value


def part_count(plan: CurationPlan) -> int:
    return int((plan.pool.describe() or {"parts": 0})["parts"])


def _described(
    plan: CurationPlan, slices: list[dict[str, Any]], grown: list[dict[str, Any]]
) -> dict[str, Any]:
    return {
        "schema_version": SCHEMA_VERSION,
        "recipe": plan.recipe,
        "parts": len(slices),
        "source": {
            "use": plan.source.use,
            "fingerprint": plan.source.fingerprint,
            "content": plan.source_content,
            "options": plan.source.options,
            "files_sha256": plan.source.input_files_sha256,
        },
        "grown": grown,  # what the pool held before files were added, oldest first
        "slices": slices,
    }


def _slices(plan: CurationPlan) -> list[dict[str, Any]]:
    """The source's slices as JSON has them, in source order. Raises RecipeError."""
    try:
        found = [entry.payload for entry in plan.source.stage.parts()]
    except (ValueError, OSError) as fault:
        what, hint = split_hint(str(fault))
        raise RecipeError(f"curate.source ({plan.source.use})", what, hint) from fault
    return json.loads(json.dumps(found, default=str))


def _grown(plan: CurationPlan, found: dict[str, Any], where: str) -> dict[str, Any]:
    """The description with the slices of new files behind those that are there."""
    before, now = found["source"].get("files_sha256", {}), plan.source.input_files_sha256
    changed = [path for path in before if path in now and now[path] != before[path]]
    slices = _slices(plan)
    keys = [json.dumps(piece, sort_keys=True) for piece in slices]
    held = {json.dumps(piece, sort_keys=True) for piece in found["slices"]}
    gone = held - set(keys)
    if changed or gone:
        what = changed[0] if changed else sorted(gone)[0]
        raise RecipeError(
            where,
            f"the source's files changed since the pool was made: {what}",
            "files may be added to a source, but those that are there must stay as they are: name a new pool folder",
        )
    added = [piece for piece, key in zip(slices, keys, strict=True) if key not in held]
    grown = [
        *found.get("grown", []),
        {"parts": found["parts"], "content": found["source"].get("content")},
    ]
    return _described(plan, [*found["slices"], *added], grown)
