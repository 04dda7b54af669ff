"""What a run finds in its folder: nothing, or a checkpoint to go on from, as it was or with stated changes."""

from __future__ import annotations

import logging
import os
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from curate.contract import storage
from pretrain.loop import away, checkpoint
from pretrain.loop.log import MetricsLog

_logger = logging.getLogger(__name__)


def prepare_folder(out: str, resume: bool, recipe_text: str) -> str:
    """The checkpoint to resume from, or "". Raises ValueError for a folder that can't be used."""
    begun = [
        name for name in ("metrics.jsonl", "checkpoints") if storage.exists(storage.join(out, name))
    ]
    if begun and not resume:
        raise ValueError(
            f"{out} already holds a run ({begun[0]}). hint: go on with --resume, or give another folder"
        )
    if storage.is_url(out):
        _look_here(out, begun)
    path, damaged = checkpoint.newest_whole(out) if resume else (None, [])
    for fault in damaged:
        _logger.warning("%s; resuming from %s, that one is set aside", fault, path)
    checkpoint.set_aside_newer(out, path or "")
    checkpoint.clean(out)
    if not storage.is_url(out):
        os.makedirs(out, exist_ok=True)
    if path is None:
        _begin_anew(out, recipe_text)
    return path or ""


def _look_here(out: str, begun: Sequence[str]) -> None:
    """What an attempt on this machine could not put behind the URL is put now, if it is newer than all whole ones there.

    Raises ValueError where that can't be done.
    """
    if not begun:
        away.set_aside(out)
        return
    here = checkpoint.committed(checkpoint.folder(away.folder(out)))
    if not here or checkpoint.fault_of(here[-1]):
        return
    there = reversed(checkpoint.committed(checkpoint.folder(out)))
    whole = (path.rpartition("/")[2] for path in there if not checkpoint.fault_of(path))
    newest = next(whole, "")
    if here[-1].rpartition("/")[2] <= newest:
        return
    try:
        put = checkpoint.put_waiting(
            out, lambda: away.put_lines(storage.join(out, "metrics.jsonl"))
        )
    except away.NotPut as fault:
        raise ValueError(
            f"an attempt before left a checkpoint on this machine: {fault}. hint: mend that, or move it out of the way to go on from {newest or 'the start'}"
        ) from fault
    _logger.warning("%s: put there now; an attempt before had to leave it on this machine", ", ".join(put))  # fmt: skip


def _begin_anew(out: str, recipe_text: str) -> None:
    """Where no checkpoint was ever committed. What an attempt before wrote is kept under another name."""
    metrics, recipe = (storage.join(out, name) for name in ("metrics.jsonl", "recipe.toml"))
    if storage.exists(metrics) and storage.size_bytes(metrics):
        kept = _set_aside(metrics)
        _logger.warning(
            "%s holds no checkpoint: beginning anew; the metrics so far are %s", out, kept
        )
    if recipe_text:
        if storage.exists(recipe) and storage.read_text(recipe) != recipe_text:
            _set_aside(recipe)
        storage.write_text(recipe, recipe_text)


def _set_aside(path: str) -> str:
    number = 1
    while storage.exists(f"{path}.before-{number}"):
        number += 1
    storage.move(path, f"{path}.before-{number}")
    return f"{path}.before-{number}"


@dataclass(frozen=True)
class Now:
    """What a run is told, to compare with a checkpoint."""

    settings: dict[str, Any]  # of checkpoint.describe
    data_sha256: str  # of the content of shards and sidecars
    data_hash: str  # of their manifests; may be unknown
    phases: int


def allowed_changes(
    saved: dict[str, Any], now: Now, path: str, allow: Sequence[str]
) -> tuple[dict[str, str], list[str]]:
    """(what is not as it was and may be, keys of ``allow`` under which nothing changed).

    Raises ValueError for a change that is not allowed, or that no run could go on with.
    """
    if "optimizer" not in saved:
        raise ValueError(
            f"{path} holds weights only, no optimizer: an average? hint: move it out of the run's checkpoints"
        )
    changes = checkpoint.changed(saved["settings"], now.settings)
    if saved["data_sha256"] != now.data_sha256:
        changes["data"] = (
            "the content of shards or sidecars is not what the checkpoint was trained on"
        )
    elif saved["data_hash"] and now.data_hash and saved["data_hash"] != now.data_hash:
        changes["data"] = f"checkpoint has manifest {saved['data_hash']}, now {now.data_hash}"
    fine, refused, idle = checkpoint.split_allowed(changes, allow)
    if refused:
        told = "; ".join(f"{name}: {words}" for name, words in refused.items())
        keys = " ".join(f"--allow-change {name}" for name in list(refused)[:3])
        raise ValueError(
            f"{path} cannot be resumed: {told}. hint: undo the change, train into another folder, "
            f"or go on with it by {keys}"
        )
    begun = int(saved["cursor"]["phase"])
    if begun >= now.phases:
        raise ValueError(
            f"{path} stands in phase {begun}, and there are {now.phases} phases now. "
            "hint: leave the phases that were begun"
        )
    return fine, idle


def history(saved: dict[str, Any], changes: dict[str, str]) -> list[dict[str, Any]]:
    """Every change that a run went on with, oldest first: {"samples_seen", "changed"}."""
    before = list(saved.get("history", []))
    note = {"samples_seen": saved["cursor"]["samples_seen"], "changed": changes}
    return [*before, note] if changes else before


def note(log: MetricsLog, entry: dict[str, Any], recipe_text: str) -> None:
    """Write an allowed change into the metrics, and the run's recipe as it is now."""
    log.note(entry)
    if recipe_text:
        storage.write_text(storage.join(log.path.rpartition("/")[0], "recipe.toml"), recipe_text)
