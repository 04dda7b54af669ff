"""Checkpoints: written beside, hashed, renamed; the newest whole one is what a run resumes from.

    OUT/checkpoints/samples-000000012800.json    sha256 and size, of the file that follows
    OUT/checkpoints/samples-000000012800.pt      weights, optimizer, cursor, settings, recipe; its name commits it

A kill at any moment leaves files under temporary names and stamps of nothing, never a .pt without its
stamp. Whatever has a .pt's own name is kept: damaged and unproven ones are set aside, not deleted.

`state_dict` in it has open_clip's names, so open_clip reads the file as it is. There is no state of
random generators to keep: every draw is a function of (seed, samples_seen, purpose). Nothing in it
says how many ranks wrote it.

Where OUT is behind a URL, a checkpoint is made whole on this disk, stamp and all, and put from there: `away`.
"""

from __future__ import annotations

import hashlib
import json
import logging
import os
import re
from collections.abc import Callable, Sequence
from dataclasses import fields, is_dataclass, replace
from typing import IO, Any

import torch
from torch import Tensor

from curate.contract import storage
from curate.contract.manifest import package_versions
from pretrain.loop import away
from pretrain.loop.settings import TrainSettings
from pretrain.objective.base import Term

_logger = logging.getLogger(__name__)
SCHEMA = 1
_HASHED_BYTES = 8 << 20  # of a file behind a URL, at a time
# These change where and how fast a run goes, and of what it computes the rounding at most.
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
    "compile",
    "activation_checkpointing",
    "log_every_steps",
    "max_bad_frac",
    "stuck_steps",
)
_FREE_IN_PHASE = ("micro_batch",)


class _Hashing:
    """A file that hashes what is written to it. ``fault``: why that failed, which torch.save does not say."""

    def __init__(self, file: IO[Any]) -> None:
        self.file = file
        self.digest = hashlib.sha256()
        self.size_bytes = 0
        self.fault: OSError | None = None

    def write(self, data: Any) -> int:
        self.digest.update(data)
        self.size_bytes += len(memoryview(data).cast("B"))
        try:
            return self.file.write(data)
        except OSError as fault:
            self.fault = fault
            raise

    def flush(self) -> None:
        self.file.flush()


def folder(out: str) -> str:
    return storage.join(out, "checkpoints")


def save(
    out: str,
    content: dict[str, Any],
    keep: int,
    *,
    forever: bool = False,
    before_put: Callable[[], None] = lambda: None,
) -> str:
    """Commit a checkpoint named by ``content["cursor"]["samples_seen"]``; the oldest beyond ``keep`` go.

    One that is kept ``forever`` does not count and is never deleted. Returns its path. Behind a URL
    ``before_put`` is called when it is whole on this disk; raises away.NotPut where it stays there.
    """
    name = f"samples-{content['cursor']['samples_seen']:012d}.pt"
    more = {"keep": True} if forever else {}
    if storage.is_url(out):
        here = folder(away.folder(out))
        write(storage.join(here, name), content, **more)
        _thin(here, 1)  # it takes the place of those that could not be put
        put_waiting(out, before_put)
    else:
        write(storage.join(folder(out), name), content, **more)
    try:
        _thin(folder(out), keep)
        if storage.is_url(out):
            _drop_stamps(folder(out))
    except Exception as fault:
        if not storage.is_url(out):
            raise
        _logger.warning("older checkpoints could not be deleted: %s", fault)
    return storage.join(folder(out), name)


def _thin(where: str, keep: int) -> None:
    """Delete the oldest beyond ``keep``, but for those that are kept forever."""
    passing = [old for old in committed(where) if not _stamp(old).get("keep")]
    for old in passing[: -max(keep, 1)]:
        _delete(old)


def _drop_stamps(where: str) -> None:
    """Of files that were never put. On disk they are left: who deleted the file may want to know."""
    names = _listed(where)
    for name in names:
        if re.fullmatch(r"samples-\d+\.json", name) and f"{name[:-5]}.pt" not in names:
            storage.remove(storage.join(where, name))


def _delete(path: str) -> None:
    storage.remove(path)  # first: without its stamp it would be a file that nothing vouches for
    storage.remove(stamp_path(path))


def put_waiting(out: str, before_put: Callable[[], None] = lambda: None) -> list[str]:
    """Put what waits on this disk for a run's folder behind a URL, newest first; returns what was put.

    Raises away.NotPut, naming the newest that is left here, and away.FolderLost as ``before_put`` does.
    """
    here = folder(away.folder(out))
    waiting = committed(here)
    put: list[str] = []
    try:
        if waiting:
            before_put()
        for path in reversed(waiting):  # the newest: a run goes on from it
            target = storage.join(folder(out), path.rpartition("/")[2])
            for file in (stamp_path(path), path):
                storage.link_or_copy(file, stamp_path(target) if file != path else target)
            _delete(path)
            put.append(target)
    except away.FolderLost:
        raise
    except Exception as fault:
        left = waiting[-1 - len(put)]
        raise away.NotPut(f"{left} could not be put into {folder(out)}: {fault}") from fault
    return put


def write(path: str, content: dict[str, Any], **more: Any) -> None:
    """Commit one file, and just before it its stamp with ``more`` in it. Raises OSError as the disk does."""
    with storage.committed(path) as file:
        hashing = _Hashing(file)
        try:
            torch.save({"schema": SCHEMA, "versions": package_versions(), **content}, hashing)  # type: ignore[arg-type]
        except RuntimeError as fault:
            raise hashing.fault or fault from fault
        stamp = {"sha256": hashing.digest.hexdigest(), "size_bytes": hashing.size_bytes, **more}
        storage.write_text(stamp_path(path), json.dumps(stamp) + "\n")


def newest_whole(out: str) -> tuple[str | None, list[str]]:
    """(path of the newest checkpoint whose bytes are as written, what was wrong with newer ones).

    The path is None where none was ever committed. Raises ValueError where there are some and all
    are damaged, or without a stamp.
    """
    faults: list[str] = []
    for path in reversed(_named(folder(out))):
        fault = fault_of(path)
        if fault is None:
            return path, faults
        faults.append(f"{path}: {fault}")
    if not faults:
        return None, []
    raise ValueError(
        f"no checkpoint to resume from: {'; '.join(faults)}. hint: bring back the .pt and its .json as they were "
        "written, or start anew in an empty folder; nothing was changed here"
    )


def newest(out: str) -> str | None:
    """The newest whole checkpoint of a run; None where there is none. Raises ValueError as ``newest_whole``."""
    return newest_whole(out)[0]


def set_aside_newer(out: str, path: str) -> None:
    """Rename what is newer than ``path``, "damaged-..." or "unstamped-...": it counts no more.

    Behind a URL also what waits on this disk, which would take the place of what comes.
    """
    wheres = [folder(out), *([folder(away.folder(out))] if storage.is_url(out) else [])]
    for newer in (one for where in wheres for one in _named(where)):
        if newer.rpartition("/")[2] > path.rpartition("/")[2]:
            stamp = stamp_path(newer)
            why = "damaged-" if storage.exists(stamp) else "unstamped-"
            number = 0
            while storage.exists(aside := _aside(newer, why, number)):
                number += 1
            storage.move(newer, aside)
            storage.move(stamp, stamp_path(aside))


def _aside(path: str, why: str, number: int) -> str:
    where, _, name = path.rpartition("/")
    return f"{where}/{why}{f'{number}-' if number else ''}{name}"


def clean(out: str) -> None:
    """Delete what a killed process left half written: files under temporary names, and no others."""
    if storage.is_url(out):  # there nothing is ever half written; on its way there it is
        out = away.folder(out)
    for name in os.listdir(folder(out)) if os.path.isdir(folder(out)) else ():
        if name.startswith("samples-") and storage.TEMPORARY in name:
            os.remove(storage.join(folder(out), name))


def all_finite(parameters: Sequence[Tensor]) -> bool:
    """Whether this rank's figures are all finite; the device is waited for once."""
    own = [getattr(p, "to_local", lambda p=p: p)().detach() for p in parameters]
    return not own or bool(torch.stack([rows.isfinite().all() for rows in own]).all())


def read(path: str) -> dict[str, Any]:
    """All of a checkpoint, on the CPU. Nothing in it is executed."""
    if storage.is_url(path):
        with storage.open_shard(path) as file:
            return torch.load(file, map_location="cpu", weights_only=True)
    return torch.load(path, map_location="cpu", weights_only=True)


def describe(settings: TrainSettings) -> dict[str, Any]:
    """What decides the result, as flat JSON: "phase.0.lr" -> 0.0005. Components by class and options."""
    return dict(_flat("", settings))


def changed(saved: dict[str, Any], now: dict[str, Any]) -> dict[str, str]:
    """Every setting that differs, and how in words."""
    names = sorted(set(saved) | set(now))
    return {
        name: f"checkpoint has {saved.get(name)!r}, now {now.get(name)!r}"
        for name in names
        if saved.get(name) != now.get(name)
    }


def split_allowed(
    changes: dict[str, str], allowed: Sequence[str]
) -> tuple[dict[str, str], dict[str, str], list[str]]:
    """(changes that are allowed, those that are not, keys of ``allowed`` under which nothing changed).

    A key allows itself and everything below it: "phase.0" allows "phase.0.lr".
    """

    def covers(key: str, name: str) -> bool:
        return name == key or name.startswith(f"{key}.")

    fine = {n: words for n, words in changes.items() if any(covers(key, n) for key in allowed)}
    idle = [key for key in allowed if not any(covers(key, name) for name in changes)]
    return fine, {name: words for name, words in changes.items() if name not in fine}, idle


def _flat(name: str, thing: Any) -> list[tuple[str, Any]]:
    if isinstance(thing, TrainSettings):
        members = {
            f.name: getattr(thing, f.name) for f in fields(thing) if f.name not in FREE_TO_CHANGE
        }
        # Where the data lie may change; what is in them is compared by data_sha256.
        members["shards"] = tuple(source.weight for source in thing.shards)
        members["sidecar"] = tuple(replace(sidecar, path="") for sidecar in thing.sidecar)
    elif isinstance(thing, Term):
        members = {"use": type(thing).__qualname__, **thing.options()}
    elif is_dataclass(thing):
        kind = (
            {}
            if type(thing).__module__ == TrainSettings.__module__
            else {"use": type(thing).__qualname__}
        )
        members = {**kind, **{f.name: getattr(thing, f.name) for f in fields(thing)}}
        members = {k: v for k, v in members.items() if k not in _FREE_IN_PHASE or kind}
    elif isinstance(thing, (list, tuple)):
        members = {str(i): entry for i, entry in enumerate(thing)}
    else:
        return [(name, thing)]
    dot = f"{name}." if name else ""
    return [pair for member, value in members.items() for pair in _flat(f"{dot}{member}", value)]


def committed(where: str) -> list[str]:
    """The checkpoints in a folder that have a stamp, oldest first."""
    names = _listed(where)
    return [path for path in _named(where, names) if stamp_path(path).rpartition("/")[2] in names]


def _named(where: str, names: set[str] | None = None) -> list[str]:
    """All that has a checkpoint's name, stamped or not, oldest first."""
    names = _listed(where) if names is None else names
    found = sorted(name for name in names if re.fullmatch(r"samples-\d+\.pt", name))
    return [storage.join(where, name) for name in found]


def _listed(where: str) -> set[str]:
    """The names in a folder; behind a URL by one listing."""
    if storage.is_url(where):
        return {path.rpartition("/")[2] for path in storage.listed(where)}
    return set(os.listdir(where)) if os.path.isdir(where) else set()


def stamp_path(path: str) -> str:
    return path.removesuffix(".pt") + ".json"


def _stamp(path: str) -> dict[str, Any]:
    """What stands beside a checkpoint; nothing where it can't be read."""
    try:
        found = json.loads(storage.read_text(stamp_path(path)))
    except ValueError:
        return {}
    return found if isinstance(found, dict) else {}


def fault_of(path: str) -> str | None:
    """What is wrong with a checkpoint's bytes, judged by its stamp; None where they are as written."""
    if not storage.exists(stamp_path(path)):
        return "no stamp (.json) beside it says what its bytes were"
    stamp = _stamp(path)
    wanted = stamp.get("sha256")
    if not wanted:
        return "its stamp is not JSON with a sha256"
    size = stamp.get("size_bytes")
    if size is not None and storage.size_bytes(path) != size:
        return "its bytes differ from those written"
    return None if _sha256(path) == wanted else "its bytes differ from those written"


def _sha256(path: str) -> str:
    if not storage.is_url(path):
        with open(path, "rb") as file:
            return hashlib.file_digest(file, "sha256").hexdigest()
    digest = hashlib.sha256()
    with storage.open_shard(path) as away_file:
        while data := away_file.read(_HASHED_BYTES):
            digest.update(data)
    return digest.hexdigest()
