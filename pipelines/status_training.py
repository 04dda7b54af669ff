"""How a training stands: its newest line of figures, its checkpoints, who holds its folder. Reads only."""

from __future__ import annotations

import fcntl
import json
import os
import struct
import time
import tomllib
from typing import Any

from curate.contract import listing, storage
from pipelines import events

_TAIL_BYTES = 256 << 10
_FIGURES = ("step", "samples_seen", "loss", "logit_scale", "lr", "samples_per_s", "data_wait_frac", "mfu",
            "bottleneck", "phase", "bad_samples")  # fmt: skip
_SMOOTHED = 20  # lines whose rates the time left is told by


def is_training(where: str) -> bool:
    """Whether a training has begun in a folder."""
    if not storage.is_url(where) and not os.path.isdir(where):
        return False
    names = ("metrics.jsonl", "checkpoints")
    return any(storage.exists(storage.join(where, name)) for name in names)


def of(out: str) -> dict[str, Any]:
    """How a training stands."""
    metrics = storage.join(out, "metrics.jsonl")
    lines = _last_lines(metrics)
    steps = [line for line in lines if "step" in line and "eval" not in line]
    last = steps[-1] if steps else {}
    wanted, name = _wanted(out)
    seen = int(last.get("samples_seen", 0))
    rates = [
        float(line["samples_per_s"]) for line in steps[-_SMOOTHED:] if line.get("samples_per_s")
    ]
    rate = sum(rates) / len(rates) if rates else None
    left = max(0, wanted - seen) if wanted else None
    holder = who(out)
    found = {entry.path: entry for entry in listing.files(out)}.get(metrics)
    kept = _checkpoints(out)
    is_finished = wanted is not None and bool(kept) and kept[-1][0] >= wanted
    alive = None if holder is None else holder["alive"]
    state = "finished" if is_finished and not holder else "stopped"
    if holder is not None:
        state = "died" if alive is False else "running"
    logs = events.logs(out)
    report = storage.join(out, "report.html")
    return {
        "folder": out,
        "recipe": name,
        "state": state,
        "who": holder,
        "figures": {key: last[key] for key in _FIGURES if key in last},
        "samples": wanted,
        "left_s": round(left / rate, 1) if rate and left else 0.0 if left == 0 else None,
        "figures_age_s": round(max(0.0, time.time() - found.modified_s), 1) if found else None,
        "evaluations": [line for line in lines if "eval" in line][-5:],
        "checkpoint": kept[-1][1] if kept else None,
        "checkpoint_age_s": round(max(0.0, time.time() - kept[-1][2]), 1) if kept else None,
        "checkpoints": len(kept),
        "log": logs[-1] if logs else None,
        "metrics": metrics,
        "report": report if storage.exists(report) else None,
    }  # fmt: skip


def who(out: str) -> dict[str, Any] | None:
    """Who holds the folder: by its lease where it is behind a URL, else by OUT/.lock. The lock is not taken."""
    if storage.is_url(out):
        from pipelines import status

        return status.who(out)
    path = os.path.join(out, ".lock")
    try:
        with open(path, "rb") as file:
            # F_GETLK of a read lock asks who stands in its way; nobody is kept out meanwhile.
            asked = struct.pack("hhqqi4x", fcntl.F_RDLCK, os.SEEK_SET, 0, 0, 0)
            kind = struct.unpack("hhqqi4x", fcntl.fcntl(file, fcntl.F_GETLK, asked))[0]
            told = json.loads(file.read(4096) or b"{}")
    except (OSError, ValueError):
        return None
    held = {"host": told.get("host"), "pid": told.get("pid")} if isinstance(told, dict) else {}
    return {**held, "alive": kind != fcntl.F_UNLCK, "beat_age_s": None}


def _last_lines(path: str) -> list[dict[str, Any]]:
    """The newest whole lines of a file of JSON objects."""
    try:
        with storage.open_file(path) as file:
            size = file.seek(0, os.SEEK_END)
            begin = max(0, size - _TAIL_BYTES)
            file.seek(begin)
            data: bytes = file.read()
    except (OSError, ValueError):
        return []
    found = []
    for line in data.split(b"\n")[1 if begin else 0 : -1]:
        try:
            one = json.loads(line)
        except ValueError:
            continue
        if isinstance(one, dict):
            found.append(one)
    return found


def _wanted(out: str) -> tuple[int | None, str | None]:
    """(samples of all phases, the recipe's name), by the recipe that the run keeps."""
    try:
        kept = tomllib.loads(storage.read_text(storage.join(out, "recipe.toml")))
        phases = kept["train"]["phase"]
        return sum(int(phase["samples"]) for phase in phases), kept.get("name")
    except (OSError, ValueError, KeyError, TypeError):
        return None, None


def _checkpoints(out: str) -> list[tuple[int, str, float]]:
    """(samples seen, path, written when) of the checkpoints that are there, oldest first."""
    found = []
    for entry in listing.files(storage.join(out, "checkpoints")):
        number = entry.name.removeprefix("samples-").removesuffix(".pt")
        if entry.name == f"samples-{number}.pt" and number.isdigit():
            found.append((int(number), entry.path, entry.modified_s))
    return sorted(found)
