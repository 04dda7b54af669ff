"""Builds a Report from what runs left behind: SHARDS, the POOL it names, and TRAIN folders.

What is missing is left out: a text-only run has no pictures, a deleted pool no refused ones.
"""

from __future__ import annotations

import dataclasses
import json
from collections.abc import Mapping, Sequence
from typing import Any

from curate.contract import storage
from curate.contract.parts import Pool, stage_folder
from pipelines.report import (
    balance,
    download,
    entries,
    ledger,
    metrics,
    options,
    overlaps,
    pictures,
)
from pipelines.report.content import KEPT, Balance, EntryBalance, FunnelRow, Report, Totals

_MATCH, _BALANCE = "score.metadata_match", "filter.metadata_balance"


def curation_report(shards_root: str, entry_texts: Sequence[str] | None = None) -> Report:
    """The report of one curation. Raises ValueError for a folder that is not a finished one's.

    ``entry_texts``: the entry list, by id; without it entries are shown by their number.
    """
    manifest = read_manifest(shards_root)
    ledger_path = storage.join(shards_root, "ledger.parquet")
    summary = ledger.summarize(ledger_path)
    root = manifest.get("pool") or ""
    pool = Pool(root) if root and Pool(root).describe() is not None else None
    notes: list[str] = []
    if root and pool is None:
        notes.append(
            f"The pool {root} is not there: entries and pictures of refused rows are left out."
        )
    if pool is not None and _by_language(pool, manifest):
        notes.append(
            "Entries were matched with a list per language: single ones are not shown here, `clip-pipe forecast` has them by language."
        )
    thumbnails = {KEPT: pictures.kept(shards_root)}
    thumbnails |= pictures.refused(
        pool, manifest.get("images", []), summary.samples, manifest["stages"]
    )
    found, balanced = _entries(manifest, pool, ledger_path, entry_texts)
    return Report(
        title=f"Curation: {manifest['recipe']}",
        funnel=[_funnel_row(stage, pool, manifest.get("seed")) for stage in manifest["stages"]],
        totals=Totals(manifest["rows_in"], manifest["kept"], summary.rows, summary.reasons),
        entries=found,
        balance=balanced,
        overlap=overlaps.found(pool, manifest) if pool is not None else None,
        downloads=download.found(pool, manifest) if pool is not None else (),
        thumbnails=thumbnails,
        notes=notes,
        provenance=_provenance(manifest, shards_root),
    )


def training_report(train_out: str, name: str) -> Report:
    """The report of one training run. Raises ValueError for a folder without metrics.jsonl."""
    report = with_runs(Report(title=f"Training: {name}"), {name: train_out})
    return dataclasses.replace(report, provenance={"recipe": name, "folder": train_out})


def with_runs(report: Report, runs: Mapping[str, str]) -> Report:
    """The report with curves and figures of training runs, ``{name: TRAIN folder}``, side by side."""
    curves: dict[str, Any] = dict(report.curves)
    evaluations: dict[str, Any] = dict(report.evaluations)
    notes = list(report.notes)
    for name, folder in runs.items():
        path = storage.join(folder, "metrics.jsonl")
        if not storage.exists(path):
            raise ValueError(
                f"{folder}: no metrics.jsonl, so not a training run. hint: give the recipe's train.out"
            )
        found = metrics.read(path)
        curves[name] = found.lines
        if found.evaluations:
            evaluations[name] = found.evaluations
        if found.n_damaged:
            notes.append(f"{path}: {found.n_damaged} lines could not be read and were left out.")
    return dataclasses.replace(report, curves=curves, evaluations=evaluations, notes=notes)


def read_manifest(shards_root: str) -> dict[str, Any]:
    """SHARDS/manifest.json. Raises ValueError where there is none."""
    path = storage.join(shards_root, "manifest.json")
    if not storage.exists(path):
        raise ValueError(
            f"{shards_root}: no manifest.json, so not the shards of a finished run. hint: run `clip-pipe curate` first"
        )
    return json.loads(storage.read_text(path))


def _funnel_row(stage: Mapping[str, Any], pool: Pool | None, seed: int | None) -> FunnelRow:
    use = options.use_of(stage)
    return FunnelRow(
        stage=stage_folder(use, stage["fingerprint"]),
        use=stage["use"],
        rows_in=stage["rows_in"],
        kept=stage["kept"],
        refused=dict(sorted(stage["refused"].items(), key=lambda item: (-item[1], item[0]))),
        seconds=stage.get("seconds", 0.0),
        options=options.told(use, options.resolved(pool, stage), seed),
    )


def _entries(
    manifest: Mapping[str, Any], pool: Pool | None, ledger_path: str, texts: Sequence[str] | None
) -> tuple[EntryBalance | None, Balance | None]:
    """The entries and the threshold, where the run matched, balanced and has its pool."""
    stages = {options.use_of(stage): stage for stage in reversed(manifest["stages"])}
    if _BALANCE not in stages or pool is None:
        return None, None
    stage = stages[_BALANCE]
    state = balance.state_of(pool, stage)
    counts = None
    if _MATCH in stages and not _by_language(pool, manifest):
        counts = entries.entry_counts(
            pool,
            _MATCH,
            stages[_MATCH]["fingerprint"],
            ledger_path,
            [stage["use"] for stage in manifest["stages"]],
            stage["use"],
            None if state is None or balance.is_grouped(state) else state,
        )
    chosen = options.resolved(pool, stage)
    return (
        entries.balance_of(counts.before, counts.after, texts) if counts is not None else None,
        balance.balance_of(stage, state, chosen, counts) if state is not None else None,
    )


def _by_language(pool: Pool, manifest: Mapping[str, Any]) -> bool:
    """Whether ids of entries count within a language's own list, so that they can't be added up."""
    matches = [stage for stage in manifest["stages"] if options.use_of(stage) == _MATCH]
    return any(options.resolved(pool, stage).get("rule") == "worldwide" for stage in matches)


def _provenance(manifest: Mapping[str, Any], shards_root: str) -> dict[str, str]:
    packages = manifest.get("packages", {})
    return {
        "recipe": manifest["recipe"],
        "fingerprint": manifest["fingerprint"],
        "seed": str(manifest.get("seed", "")),
        "shards": shards_root,
        "pool": manifest.get("pool") or "",
        "versions": ", ".join(f"{name} {version}" for name, version in packages.items()),
    }
