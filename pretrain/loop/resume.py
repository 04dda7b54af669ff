"""What a run finds in its folder: nothing, or a checkpoint to go on from, as it was or with stated changes."""

from __future__ import annotations

import json
import logging
import os
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from curate.contract import storage
from pretrain.loop import checkpoint

_logger = logging.getLogger(__name__)


def prepare_folder(out: str, resume: bool, recipe_text: str) -> str:
    """The checkpoint to resume from, or "". Raises ValueError for a folder that can't be used."""
    if storage.is_url(out):
        raise ValueError(
            f"train.out = {out!r} is a URL. hint: train into a local or shared folder, and copy it"
        )
    begun = [
        name for name in ("metrics.jsonl", "checkpoints") if os.path.exists(storage.join(out, name))
    ]
    if begun and not resume:
        raise ValueError(
            f"{out} already holds a run ({begun[0]}). hint: go on with --resume, or give another folder"
        )
    path, damaged = checkpoint.newest_whole(out) if resume else (None, [])
    for fault in damaged:
        _logger.warning("%s; resuming from %s, that one is set aside", fault, path)
    if path is not None:
        checkpoint.set_aside_newer(out, path)
    checkpoint.clean(out)
    os.makedirs(out, exist_ok=True)
    if path is None:
        _begin_anew(out, recipe_text)
    return path or ""


def _begin_anew(out: str, recipe_text: str) -> None:
    """Where no checkpoint was ever committed. What an attempt before wrote is kept under another name."""
    metrics, recipe = (storage.join(out, name) for name in ("metrics.jsonl", "recipe.toml"))
    if os.path.exists(metrics) and os.path.getsize(metrics):
        kept = _set_aside(metrics)
        _logger.warning(
            "%s holds no checkpoint: beginning anew; the metrics so far are %s", out, kept
        )
    if recipe_text:
        if os.path.exists(recipe) and storage.read_text(recipe) != recipe_text:
            _set_aside(recipe)
        storage.write_text(recipe, recipe_text)


def _set_aside(path: str) -> str:
    number = 1
    while os.path.exists(f"{path}.before-{number}"):
        number += 1
    os.rename(path, f"{path}.before-{number}")
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


def note(out: str, entry: dict[str, Any], recipe_text: str) -> None:
    """Write an allowed change into the metrics, and the run's recipe as it is now."""
    line = json.dumps(entry) + "\n"
    path = storage.join(out, "metrics.jsonl")
    # A run killed before its next checkpoint has written this very line already.
    if not _holds(path, line):
        with open(path, "a", encoding="utf-8") as file:
            file.write(line)
    if recipe_text:
        storage.write_text(storage.join(out, "recipe.toml"), recipe_text)


def _holds(path: str, line: str) -> bool:
    """Whether a text file has this very line."""
    if not os.path.exists(path):
        return False
    with open(path, encoding="utf-8") as file:
        return any(one == line for one in file)
