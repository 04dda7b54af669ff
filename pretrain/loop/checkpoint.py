"""Checkpoints: written beside, hashed, renamed; the newest whole one is what a run resumes from.

    OUT/checkpoints/samples-000000012800.pt      weights, optimizer, cursor, settings, recipe
    OUT/checkpoints/samples-000000012800.json    sha256 and size of it; written last

`state_dict` in it has open_clip's names, so open_clip reads the file as it is. There is no state of
random generators to keep: every draw is a function of (seed, samples_seen, purpose).
"""

from __future__ import annotations

import hashlib
import json
import os
import re
from dataclasses import fields, is_dataclass
from typing import IO, Any

import torch

from curate.contract import storage
from curate.contract.manifest import package_versions
from pretrain.loop.settings import TrainSettings
from pretrain.objective.base import Term

SCHEMA = 1
# These change where and how fast a run goes, never what it computes.
FREE_TO_CHANGE = (
    "out",
    "workers",
    "checkpoint_minutes",
    "keep_checkpoints",
    "keep_every_samples",
    "loggers",
    "cache",
    "cache_gb",
    "parallel",
    "log_every_steps",
    "max_bad_frac",
)


class _Hashing:
    """A file that hashes what is written to it."""

    def __init__(self, file: IO[Any]) -> None:
        self.file = file
        self.digest = hashlib.sha256()
        self.size_bytes = 0

    def write(self, data: Any) -> int:
        self.digest.update(data)
        self.size_bytes += len(memoryview(data).cast("B"))
        return self.file.write(data)

    def flush(self) -> None:
        self.file.flush()


def folder(out: str) -> str:
    return storage.join(out, "checkpoints")


def save(out: str, content: dict[str, Any], keep: int) -> str:
    """Commit a checkpoint named by ``content["cursor"]["samples_seen"]``; the oldest beyond ``keep`` go.

    Returns its path.
    """
    path = storage.join(folder(out), f"samples-{content['cursor']['samples_seen']:012d}.pt")
    with storage.committed(path) as file:
        hashing = _Hashing(file)
        torch.save({"schema": SCHEMA, "versions": package_versions(), **content}, hashing)  # type: ignore[arg-type]
    stamp = {"sha256": hashing.digest.hexdigest(), "size_bytes": hashing.size_bytes}
    storage.write_text(_stamp_path(path), json.dumps(stamp) + "\n")
    for old in _all(out)[: -max(keep, 1)]:
        os.remove(_stamp_path(old))
        os.remove(old)
    return path


def newest_whole(out: str) -> tuple[str | None, list[str]]:
    """(path of the newest checkpoint whose bytes are as written, what was wrong with newer ones).

    The path is None where none was ever committed. Raises ValueError where all are damaged.
    """
    faults: list[str] = []
    for path in reversed(_all(out)):
        fault = _fault(path)
        if fault is None:
            return path, faults
        faults.append(f"{path}: {fault}")
    if not faults:
        return None, []
    raise ValueError(
        f"no checkpoint to resume from: {'; '.join(faults)}. hint: start anew in an empty folder"
    )


def newest(out: str) -> str | None:
    """The newest whole checkpoint of a run; None where there is none. Raises ValueError if all are damaged."""
    return newest_whole(out)[0]


def set_aside_newer(out: str, path: str) -> None:
    """Rename committed checkpoints that are newer than ``path``: they are damaged, and count no more."""
    for newer in _all(out):
        if newer > path:
            for name in (newer, _stamp_path(newer)):
                os.replace(name, storage.join(folder(out), "damaged-" + name.rsplit("/", 1)[-1]))


def clean(out: str) -> None:
    """Delete what a killed process left half written."""
    whole = {path for pt in _all(out) for path in (pt, _stamp_path(pt))}
    for name in os.listdir(folder(out)) if os.path.isdir(folder(out)) else ():
        path = storage.join(folder(out), name)
        if path not in whole and name.startswith("samples-"):
            os.remove(path)


def read(path: str) -> dict[str, Any]:
    """All of a checkpoint, on the CPU. Nothing in it is executed."""
    return torch.load(path, map_location="cpu", weights_only=True)


def describe(settings: TrainSettings) -> dict[str, Any]:
    """What decides the result, as flat JSON: "phase.0.lr" -> 0.0005. Components by class and options."""
    return dict(_flat("", settings))


def changed(saved: dict[str, Any], now: dict[str, Any]) -> list[str]:
    """Every setting that differs, in words."""
    names = sorted(set(saved) | set(now))
    return [
        f"{name}: checkpoint has {saved.get(name)!r}, now {now.get(name)!r}"
        for name in names
        if saved.get(name) != now.get(name)
    ]


def _flat(name: str, thing: Any) -> list[tuple[str, Any]]:
    if isinstance(thing, TrainSettings):
        members = {
            f.name: getattr(thing, f.name) for f in fields(thing) if f.name not in FREE_TO_CHANGE
        }
        # Where the shards lie may change; what is in them is compared by data_sha256.
        members["shards"] = tuple(source.weight for source in thing.shards)
    elif isinstance(thing, Term):
        members = {"use": type(thing).__qualname__, **thing.options()}
    elif is_dataclass(thing):
        kind = (
            {}
            if type(thing).__module__ == TrainSettings.__module__
            else {"use": type(thing).__qualname__}
        )
        members = {**kind, **{f.name: getattr(thing, f.name) for f in fields(thing)}}
    elif isinstance(thing, (list, tuple)):
        members = {str(i): entry for i, entry in enumerate(thing)}
    else:
        return [(name, thing)]
    dot = f"{name}." if name else ""
    return [pair for member, value in members.items() for pair in _flat(f"{dot}{member}", value)]


def _all(out: str) -> list[str]:
    """Checkpoints that were committed, oldest first."""
    if not os.path.isdir(folder(out)):
        return []
    names = sorted(n for n in os.listdir(folder(out)) if re.fullmatch(r"samples-\d+\.pt", n))
    paths = [storage.join(folder(out), name) for name in names]
    return [path for path in paths if os.path.exists(_stamp_path(path))]


def _stamp_path(path: str) -> str:
    return path.removesuffix(".pt") + ".json"


def _fault(path: str) -> str | None:
    try:
        stamp = json.loads(storage.read_text(_stamp_path(path)))
    except ValueError as fault:
        return f"its stamp is not JSON: {fault}"
    with open(path, "rb") as file:
        digest = hashlib.file_digest(file, "sha256").hexdigest()
    return None if digest == stamp.get("sha256") else "its bytes differ from those written"
