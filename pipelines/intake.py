"""What a pool holds of its source: pool.json, checked before any work, and grown when files are added.

Rows that are in a pool stay as they are: files may be added to a source, and their rows come after
those that are there. A file that changed or went makes it another source.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Sequence
from typing import Any

from curate.contract import parts, storage
from curate.contract.manifest import SCHEMA_VERSION
from pipelines import components, lease
from pipelines.components import Component
from pipelines.errors import RecipeError, split_hint
from pipelines.plan import CurationPlan
from pipelines.recipe import Recipe

_WITHOUT_MANIFESTS = 1  # the schema version in which a file that existed was done


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
        if not lease.is_empty(plan.pool_root):
            raise RecipeError(
                where,
                "the folder is not empty and holds no pool (no pool.json)",
                "name a new or empty folder",
            )
        return None
    if found.get("schema_version") not in (SCHEMA_VERSION, _WITHOUT_MANIFESTS):
        raise RecipeError(
            where,
            f"schema version {found.get('schema_version')}, this clip-pipe reads {SCHEMA_VERSION}",
            "use the clip-pipe that made it, or name another pool",
        )
    source = found.get("source", {})
    if source.get("fingerprint") != plan.source.fingerprint:
        raise RecipeError(
            where,
            f"the pool holds rows of another source (recipe {found.get('recipe')!r}), or rows that were read with other options",
            "name a new pool folder, or delete that one",
        )
    return found if source.get("content") == plan.source_content else _grown(plan, found, where)


def begin(plan: CurationPlan, say: Callable[[str], None] = print) -> dict[str, Any]:
    """pool.json as this run takes it, written where it is new or has grown."""
    found = check_pool(plan)
    if found is None:
        found = _described(plan, _slices(plan))
    found = adopted(plan, found, say)
    if found != plan.pool.describe():
        text = json.dumps(found, indent=1, default=str) + "\n"
        storage.write_text(plan.pool.description_path, text)
        return json.loads(text)
    return found


def adopted(
    plan: CurationPlan, found: dict[str, Any], say: Callable[[str], None]
) -> dict[str, Any]:
    """pool.json of a pool that was made before parts had manifests, once all of them have one; else as it is.

    There a file that exists is whole, and its counts are in its footer. Files are not read, so their hashes
    stay open. Counts of half-done steps are made anew; notes of downloads stay.
    """
    if found["schema_version"] != _WITHOUT_MANIFESTS:
        return found
    root = plan.pool_root
    written = 0
    makers = [path.rsplit("/", 1)[-1] for path in storage.listed(storage.join(root, "images"))]
    for folder in [storage.join(root, "rows"), *storage.listed(storage.join(root, "columns"))]:
        maker = next((name for name in makers if name[:8] == folder.rpartition("-")[2]), "")
        for path in storage.inside(folder, "part-*.parquet"):
            number = int(path.rsplit("/", 1)[-1].partition(".")[0].removeprefix("part-"))
            images = plan.pool.images_path(maker, number) if maker else ""
            beside = {"images": images} if images and storage.exists(images) else {}
            written += parts.adopt(path, beside)
    for folder in storage.listed(storage.join(root, "work")):
        if not folder.endswith("-notes"):
            storage.remove(folder)
    say(f"{root}: made by an earlier clip-pipe; its {written} files of parts got manifests")
    return {**found, "schema_version": SCHEMA_VERSION}


def keep_recipe(recipe: Recipe) -> None:
    """Write POOL/recipe.toml: the [curate] table of the newest run, paths absolute, for `clip-pipe whatif POOL`."""
    import tomli_w

    curate = recipe.curate
    assert curate is not None

    def table(kind: str, component: Component) -> dict[str, Any]:
        options = components.resolve_options(kind, component, recipe.seed)
        # The recipe's own seed stays the recipe's, so that it can be changed in one place.
        # cpus, gpus and memory_gb are no options of the component.
        plain = {name: _plain(options.get(name, own)) for name, own in component.options.items()}
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
    plan: CurationPlan,
    slices: list[dict[str, Any]],
    grown: Sequence[dict[str, Any]] = (),
    retries: Sequence[dict[str, Any]] = (),
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
            **_known(plan),
        },
        "grown": list(grown),  # what the pool held before files were added, oldest first
        **({"retries": list(retries)} if retries else {}),  # see generations, oldest first
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
    """The description with the slices of new files behind those that are there. Raises RecipeError."""
    slices, held = _slices(plan), found["slices"]
    if all("path" in piece for piece in [*slices, *held]):
        added, gone = _new_files(slices, held)
    elif all("samples" in piece for piece in [*slices, *held]):
        added, gone = _new_samples(slices, held)
    else:
        added, gone = _new_slices(slices, held)
    before, now = found["source"], _known(plan)
    changed = [
        path
        for key, kept in now.items()
        for path, value in before.get(key, {}).items()
        if path in kept and kept[path] != value
    ]
    if changed or gone or not (added or now["sizes_bytes"]):
        raise RecipeError(
            where,
            f"the source's files changed since the pool was made: {[*changed, *gone, 'one of them'][0]}",
            "files may be added to a source, but those that are there must stay as they are: name a new pool folder",
        )
    grown = [*found.get("grown", []), {"parts": found["parts"], "content": before.get("content")}]
    return _described(plan, [*held, *added], grown, found.get("retries", []))


def _known(plan: CurationPlan) -> dict[str, dict[str, Any]]:
    """What is remembered of the source's files, to tell new ones from changed ones."""
    return {
        "files_sha256": plan.source.input_files_sha256,
        "sizes_bytes": plan.source.stage.sizes_bytes(),
    }


Slices = list[dict[str, Any]]


def _new_files(slices: Slices, held: Slices) -> tuple[Slices, list[str]]:
    """(slices of files that no held slice is of, files that are gone)."""
    there, before = {piece["path"] for piece in slices}, {piece["path"] for piece in held}
    return [piece for piece in slices if piece["path"] not in before], sorted(before - there)


def _new_samples(slices: Slices, held: Slices) -> tuple[Slices, list[str]]:
    """The same for slices that list their samples: new ones may stand between those that are there."""
    before = {json.dumps(sample) for piece in held for sample in piece["samples"]}
    added, there = [], set()
    for piece in slices:
        keys = [json.dumps(sample) for sample in piece["samples"]]
        there.update(keys)
        fresh = [s for s, key in zip(piece["samples"], keys, strict=True) if key not in before]
        if fresh:
            added.append({**piece, "samples": fresh})
    return added, sorted(before - there)


def _new_slices(slices: Slices, held: Slices) -> tuple[Slices, list[str]]:
    """The same for slices of which nothing is known."""
    keys = [json.dumps(piece, sort_keys=True) for piece in slices]
    before = {json.dumps(piece, sort_keys=True) for piece in held}
    added = [piece for piece, key in zip(slices, keys, strict=True) if key not in before]
    return added, sorted(before - set(keys))
