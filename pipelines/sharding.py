"""Kept rows into SHARDS, every row into the ledger; each file whole or not there.

A folder being written carries a marker with the recipe and fingerprint it is written for, so that a
crash resumes, and another recipe's folder is refused before any work.
"""

from __future__ import annotations

import json
import math
from collections import Counter
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq

from curate.contract import done, listing, parts, shards, storage
from curate.contract.columns import LEDGER_SCHEMA
from curate.contract.manifest import package_versions
from curate.stage import ShardStage
from pipelines import generations, lease
from pipelines.errors import RecipeError, split_hint
from pipelines.part import decided_rows, load_columns, pictures_of
from pipelines.plan import CurationPlan

_MARKER = shards.UNFINISHED
_LEDGER_FOLDER_PARTS = 256  # more parts than this, and the ledger is a folder of parts
MOST_CUTS = 1 << 16  # pieces of the order that a gathered index is cut into
_PLACED_AT_ONCE = 16  # parts of the ledger
_GATHER_AT_LEAST = 64  # parts whose indexes each tar looks into
KEPT_SCHEMA = pa.schema([("uid", pa.string()), ("url", pa.string()), ("caption", pa.string())])


def check_folder(plan: CurationPlan) -> dict[str, Any] | None:
    """The manifest of shards already whole, or None. Raises RecipeError for a folder of something else."""
    root = plan.shards_root
    for name in ("manifest.json", _MARKER):
        path = storage.join(root, name)
        if storage.exists(path):
            found = _read_json(path)
            if found.get("recipe") != plan.recipe:
                raise RecipeError(
                    f"curate.shards = {root!r}",
                    f"the folder holds shards of the recipe {found.get('recipe')!r}, not of {plan.recipe!r}",
                    "name another folder, or delete that one",
                )
            whole = name == "manifest.json" and found.get("fingerprint") == plan.shard.fingerprint
            return found if whole and _is_complete(root, found) else None
    if not lease.is_empty(root):
        raise RecipeError(
            f"curate.shards = {root!r}",
            "the folder is not empty and holds no shards of clip-pipe (no manifest.json)",
            "name a new or empty folder",
        )
    return None


def manifest_of(root: str) -> dict[str, Any] | None:
    """The manifest of a shards folder, whatever recipe made it; None where there is none."""
    path = storage.join(root, "manifest.json")
    return _read_json(path) if storage.exists(path) else None


def _read_json(path: str) -> dict[str, Any]:
    try:
        return storage.read_json(path, "curate.shards")
    except ValueError as fault:
        what, hint = split_hint(str(fault))
        raise RecipeError("curate.shards", what.removeprefix("curate.shards: "), hint) from fault


def _is_complete(root: str, manifest: dict[str, Any]) -> bool:
    """Whether the files that the manifest stands for are there; somebody may have deleted some."""
    names = ["ledger.parquet", *(shards.shard_name(number) for number in range(manifest["shards"]))]
    names += ["index.parquet", "sizes.json"] if manifest["images"] else ["kept.parquet"]
    return all(storage.exists(storage.join(root, name)) for name in names)


def begin(plan: CurationPlan) -> None:
    """Mark the folder as being written; what another fingerprint left half-done is dropped."""
    root = plan.shards_root
    marker = storage.join(root, _MARKER)
    mine = {"recipe": plan.recipe, "fingerprint": plan.shard.fingerprint, "cleared": True}
    if storage.exists(marker) and _read_json(marker) == mine:
        return
    storage.remove(storage.join(_work(plan), "assembled"))
    storage.write_text(marker, json.dumps({**mine, "cleared": False}))
    # The manifest first: without it nothing here counts as finished shards.
    for name in ("manifest.json", "sizes.json", "index.parquet", "ledger.parquet", "kept.parquet"):
        storage.remove(storage.join(root, name))
    listing.remove_files(storage.glob(storage.join(root, "*.tar")))
    storage.write_text(marker, json.dumps(mine))


def pack(plan: CurationPlan, part: int) -> dict[str, Any]:
    """Commit one part's ledger rows and, where there are pictures, its sample blocks."""
    paths = _packed(plan, part)
    beside = {name: paths[name] for name in ("blocks", "index") if plan.has_images}
    if before := parts.prior_attempt(paths["ledger"], beside):
        return before
    lease.check()
    rows = parts.read_part(plan.pool.rows_path(part), ["uid", "url", "caption"])
    ledger = _ledger(plan, part, rows)
    kept = np.asarray(ledger["keep"])
    others: dict[str, tuple[str, done.Written]] = {}
    stats: dict[str, Any] = {
        "part": part,
        "rows": len(rows),
        "kept": int(kept.sum()),
        "refused": _refused(ledger),
    }
    if plan.has_images:
        names = tuple(name for name in plan.shard.reads if name != "image")
        samples = load_columns(plan, names, len(plan.stages), part).filter(pa.array(kept))
        with pictures_of(plan, len(plan.stages), part) as pictures:
            stats["histogram"] = plan.shard.stage.pack(
                samples, pictures, paths["blocks"], paths["index"]
            )
        others = {name: (path, done.written_as(path)) for name, path in beside.items()}
    return parts.write_part(paths["ledger"], ledger, stats, others)[0]


def gatherings(plan: CurationPlan, part_count: int) -> list[tuple[int, int]]:
    """The parts, from and up to, whose indexes are made one before tars are assembled; [] where they are few.

    Each tar has samples of nearly every part. To look into each of 100,000 parts for each of 30,000 tars is
    three thousand million openings; into 316 gathered ones, ten million.
    """
    gathers = type(plan.shard.stage).gather is not ShardStage.gather
    if not gathers or part_count <= _GATHER_AT_LEAST:
        return []
    size = max(_GATHER_AT_LEAST, math.isqrt(part_count))
    return [(n, min(n + size, part_count)) for n in range(0, part_count, size)]


def gather(plan: CurationPlan, cuts: int, first: int, stop: int) -> None:
    """Commit the order of the samples of some parts, cut into ``cuts`` pieces that are read alone."""
    path = _gathered(plan, cuts, first, stop)
    if parts.prior_attempt(path):
        return
    lease.check()
    index_paths = {part: _packed(plan, part)["index"] for part in range(first, stop)}
    written = plan.shard.stage.gather(index_paths, cuts, path)
    done.commit(path, {"parts": stop - first}, written, {})


def assemble(
    plan: CurationPlan, part_count: int, number: int, piece: tuple[int, ...], cuts: int = 0
) -> dict[str, Any]:
    """Commit one tar, its index, and the manifest that names both. ``cuts``: of the gathered order, if it is."""
    index_path = _assembled(plan, number)
    path = storage.join(plan.shards_root, shards.shard_name(number))
    if before := parts.prior_attempt(index_path, {"tar": path}):
        return before
    lease.check()
    shares = gatherings(plan, part_count) if cuts else []
    if shares:
        gathered = [_gathered(plan, cuts, *share) for share in shares]
        index = plan.shard.stage.assemble_gathered(
            piece, gathered, cuts, lambda part: _packed(plan, part)["blocks"], path
        )
    else:
        paths = [_packed(plan, part) for part in range(part_count)]
        packed = [(entry["blocks"], entry["index"]) for entry in paths]
        index = plan.shard.stage.assemble(piece, packed, path)
    stats = {"part": number, "samples": len(index["key"].unique())}
    return parts.write_part(index_path, index, stats, {"tar": (path, done.written_as(path))})[0]


def finish(
    plan: CurationPlan, part_stats: list[dict[str, Any]], sizes: list[int]
) -> dict[str, Any]:
    """Write ledger, index, sizes and, last, the manifest; drop the marker and what is not needed."""
    lease.check()
    root = plan.shards_root
    part_count = len(part_stats)
    _write_ledger(plan, part_count)
    if plan.has_images:
        index_paths = [_assembled(plan, number) for number in range(len(sizes))]
        _concatenate(index_paths, storage.join(root, "index.parquet"), shards.INDEX_SCHEMA)
        named = {shards.shard_name(number): size for number, size in enumerate(sizes)}
        storage.write_text(storage.join(root, "sizes.json"), json.dumps(named, indent=2) + "\n")
    else:
        _write_kept(plan, part_count)
    manifest = _manifest(plan, part_stats, sizes)
    text = json.dumps(manifest, indent=2, sort_keys=True, ensure_ascii=False) + "\n"
    storage.write_text(storage.join(root, "manifest.json"), text)
    close(plan)
    return manifest


def is_left_open(plan: CurationPlan) -> bool:
    """Whether a run died between the manifest of whole shards and its end."""
    is_open = storage.exists(storage.join(plan.shards_root, _MARKER))
    return is_open or any(lease.is_left(root) for root in (plan.pool_root, plan.shards_root))


def close(plan: CurationPlan) -> None:
    """Drop the marker of shards that are whole, and what is not needed any more."""
    storage.remove(storage.join(plan.shards_root, _MARKER))
    storage.remove(_work(plan))


def _work(plan: CurationPlan) -> str:
    return plan.pool.work_folder(plan.shard.fingerprint)


def _packed(plan: CurationPlan, part: int) -> dict[str, str]:
    names = {"ledger": "parquet", "blocks": "tar", "index": "parquet"}
    return {
        name: storage.join(_work(plan), name, f"part-{part:05d}.{end}")
        for name, end in names.items()
    }


def _gathered(plan: CurationPlan, cuts: int, first: int, stop: int) -> str:
    name = f"parts-{first:05d}-{stop - 1:05d}.tables"
    return storage.join(_work(plan), f"gathered-of-{cuts:05d}", name)


def _assembled(plan: CurationPlan, number: int) -> str:
    return storage.join(_work(plan), "assembled", f"{number:05d}.parquet")


def _ledger(plan: CurationPlan, part: int, rows: pa.Table) -> pa.Table:
    """One row for every row of the part, with the first stage that refused it and why."""
    reasons, stages = pa.nulls(len(rows), pa.string()), pa.nulls(len(rows), pa.string())
    alive = np.ones(len(rows), dtype=bool)
    for name, keep, found in decided_rows(plan, part):
        newly = pa.array(alive & ~keep)
        if newly.true_count:
            reasons = pc.if_else(newly, pc.fill_null(found, "refused"), reasons)
            stages = pc.if_else(newly, pa.scalar(name), stages)
        alive &= keep
    columns = [
        rows["uid"],
        rows["url"],
        rows["caption"],
        pa.array(alive),
        reasons,
        stages,
    ]
    return pa.table(columns, schema=LEDGER_SCHEMA)


def _refused(ledger: pa.Table) -> dict[str, dict[str, int]]:
    """stage -> reason -> rows."""
    refused = ledger.filter(pc.invert(ledger["keep"]))
    counted = refused.group_by(["stage", "reason"]).aggregate([([], "count_all")])
    found = sorted(counted.to_pylist(), key=lambda row: (row["stage"], row["reason"]))
    counts: dict[str, dict[str, int]] = {}
    for row in found:
        counts.setdefault(row["stage"], {})[row["reason"]] = row["count_all"]
    return counts


def _write_ledger(plan: CurationPlan, part_count: int) -> None:
    target = storage.join(plan.shards_root, "ledger.parquet")
    sources = [_packed(plan, part)["ledger"] for part in range(part_count)]
    if part_count <= _LEDGER_FOLDER_PARTS:
        _remove_if_folder(target)
        _concatenate(sources, target, LEDGER_SCHEMA)
        return
    storage.remove(target)

    def place(part: int) -> None:
        done.checked(sources[part])
        storage.link_or_copy(sources[part], storage.join(target, f"part-{part:05d}.parquet"))

    with ThreadPoolExecutor(_PLACED_AT_ONCE) as pool:
        for start in range(0, part_count, _LEDGER_FOLDER_PARTS):
            list(pool.map(place, range(start, min(start + _LEDGER_FOLDER_PARTS, part_count))))


def _remove_if_folder(path: str) -> None:
    if storage.exists(path) and storage.glob(storage.join(path, "*")):
        storage.remove(path)


def _write_kept(plan: CurationPlan, part_count: int) -> None:
    """A text-only run ends with the list of kept pairs, for any downloader."""
    path = storage.join(plan.shards_root, "kept.parquet")
    with (
        storage.committed(path) as file,
        _writer(file, KEPT_SCHEMA) as writer,
    ):
        for ledger in parts.read_parts([_packed(plan, n)["ledger"] for n in range(part_count)]):
            writer.write_table(ledger.filter(ledger["keep"]).select(KEPT_SCHEMA.names))


def _concatenate(sources: list[str], target: str, schema: pa.Schema) -> None:
    """One parquet file out of many, one row group at a time."""
    with (
        storage.committed(target) as file,
        _writer(file, schema) as writer,
    ):
        for table in parts.read_parts(sources):
            writer.write_table(table.cast(schema))


def _writer(file: Any, schema: pa.Schema) -> pq.ParquetWriter:
    dictionaries = parts.repetitive(schema)
    return pq.ParquetWriter(file, schema, compression="zstd", use_dictionary=dictionaries)


def _manifest(
    plan: CurationPlan, part_stats: list[dict[str, Any]], sizes: list[int]
) -> dict[str, Any]:
    """The funnel by stage from the ledger's own counts, and what made these shards."""
    refused: dict[str, Counter[str]] = {}
    for stats in part_stats:
        for stage, reasons in stats["refused"].items():
            refused.setdefault(stage, Counter()).update(reasons)
    rows = sum(stats["rows"] for stats in part_stats)
    stages: list[dict[str, Any]] = []
    rows_in = rows
    for planned in (plan.source, *plan.stages):
        reasons = dict(sorted(refused.get(planned.name, Counter()).items()))
        kept = rows_in - sum(reasons.values())
        folder = plan.pool.columns_folder(planned.use, planned.fingerprint)
        told = storage.read_json(storage.join(folder, "manifest.json"), "pool")
        stages.append(
            {
                "use": planned.name,
                "fingerprint": planned.fingerprint,
                "rows_in": rows_in,
                "kept": kept,
                "refused": reasons,
                "seconds": told["seconds"],
            }
        )
        rows_in = kept
    images = [p.fingerprint for p in (plan.source, *plan.stages) if p.makes_images]
    # Without what only the pool is about, so that shards made anew are the same.
    names = ("kinds", "rows", "before", "after")
    retries = [
        {name: entry[name] for name in names if name in entry}
        for entry in generations.entries_of(plan.pool.describe(), plan.recipe)
    ]
    return {
        "schema_version": 1,
        "recipe": plan.recipe,
        "fingerprint": plan.shard.fingerprint,
        "seed": plan.seed,
        "rows_in": rows,
        "kept": rows_in,
        "shards": len(sizes),
        "stages": stages,
        "pool": plan.pool_root,
        "images": images,
        "packages": package_versions(),
        **({"retries": retries} if retries else {}),  # kinds, rows, and failures before and after
    }
