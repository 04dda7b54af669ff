"""The words of ``clip-pipe status``: the record of `status` as lines; again and again with ``--watch``."""

from __future__ import annotations

import json
import sys
import time
from collections.abc import Iterator, Mapping, Sequence
from typing import Any, TextIO

from pipelines import status
from pipelines.errors import Stopped
from pipelines.live import duration

_REASONS = 8
_FAILURES = 10
_CLEAR = "\033[H\033[2J\033[3J"


def told(where: str, overrides: Sequence[str], as_json: bool) -> str:
    """The command's text, or its record as JSON."""
    found = status.of(where, overrides)
    if as_json:
        return json.dumps(found, ensure_ascii=False)
    return "\n".join(lines(found))


def watch(
    where: str,
    overrides: Sequence[str],
    as_json: bool,
    every_s: float,
    stream: TextIO | None = None,
) -> None:
    """The same every ``every_s`` seconds until Ctrl-C: in place on a terminal, elsewhere one after another."""
    stream = stream or sys.stdout
    try:
        while True:
            text = told(where, overrides, as_json)
            stream.write(_CLEAR if stream.isatty() and not as_json else "")
            stream.write(text + "\n")
            stream.flush()
            time.sleep(every_s)
    except Stopped:
        return


def lines(found: Mapping[str, Any]) -> list[str]:
    """The record in words."""
    pool, train = found["pool"], found["train"]
    out = list(_pool(pool)) if pool else []
    if train:
        out += ["", *_training(train)] if out else list(_training(train))
    if not pool and not train:
        out.append("nothing has begun: no pool and no training")
    return out


def _pool(pool: Mapping[str, Any]) -> Iterator[str]:
    yield f"pool {pool['folder']}" + (f", recipe {pool['recipe']}" if pool["recipe"] else "")
    yield _state(pool["state"], pool["who"], "curate")
    yield from (f"note: {note}" for note in pool["notes"])
    if pool["stages"]:
        yield from _table([_row(one) for one in pool["stages"]])
    step = [one for one in pool["stages"] if one["state"] == "running"]
    if step:
        names = " + ".join(one["stage"] for one in step)
        after = sum(one["state"] in ("waiting", "partly") for one in pool["stages"])
        left = "time left not known yet" if pool["left_s"] is None else f"about {duration(pool['left_s'])} left"  # fmt: skip
        more = f"; {after} stages after it" if after else ""
        yield f"now: {names}: {min(one['done'] for one in step)} of {pool['parts']} parts, {left}{more}"
    if pool["refused"]:
        shown = [f"{entry['reason']} {entry['rows']:,}" for entry in pool["refused"][:_REASONS]]
        rest = len(pool["refused"]) - _REASONS
        yield "refused: " + ", ".join(shown) + (f", and {rest} more reasons" if rest > 0 else "")
    for failure in pool["failures"][:_FAILURES]:
        yield f"failed: {failure['message']}"
    if len(pool["failures"]) > _FAILURES:
        yield f"failed: and {len(pool['failures']) - _FAILURES:,} more, see work/failures.json"
    yield from _files(pool)


def _row(one: Mapping[str, Any]) -> tuple[str, ...]:
    parts = f"{one['done']:,} of {one['parts']:,}"
    more = [f"{one['running']} running"] if one["running"] else []
    more += [f"{one['failed']} failed"] if one["failed"] else []
    about = "~" if one["is_about"] else ""
    rates = (one["rows_per_s"], one["rows_per_s_lately"] if one["state"] == "running" else None)
    rows = (one["rows_in"], one["kept"]) if one["done"] else (None, None)
    return (
        one["stage"],
        one["state"],
        parts + (f" ({', '.join(more)})" if more else ""),
        *("" if count is None else f"{about}{count:,}" for count in rows),
        *("" if rate is None else f"{rate:,.0f}" for rate in rates),
    )


def _table(rows: Sequence[tuple[str, ...]]) -> Iterator[str]:
    head = ("stage", "", "parts", "rows in", "kept", "rows/s", "lately")
    every = [head, *rows]
    widths = [max(len(row[at]) for row in every) for at in range(len(head))]
    for row in every:
        cells = [
            cell.ljust(width) if at < 3 else cell.rjust(width)
            for at, (cell, width) in enumerate(zip(row, widths, strict=True))
        ]
        yield "  ".join(cells).rstrip()


def _state(state: str, who: Mapping[str, Any] | None, command: str) -> str:
    """Whether anybody is at work, and who."""
    if who is None:
        again = f"; `clip-pipe {command}` goes on" if state == "stopped" else ""
        return f"{state}: nobody is at work{again}" if state != "finished" else "finished"
    name = f"process {who.get('pid', '?')}" + (f" of {who['user']}" if who.get("user") else "")
    name += f" on {who.get('host', '?')}"
    if who.get("began"):
        name += f", since {who['began']}"
    if who.get("beat_age_s") is not None:
        name += f", last beat {duration(who['beat_age_s'])} ago"
    if state == "died":
        return f"died: {name}; what was done is kept, and the same command goes on"
    unsure = "" if who["alive"] else " (on another machine: by its beat)"
    return f"running: {name}{unsure}"


def _training(train: Mapping[str, Any]) -> Iterator[str]:
    yield f"training {train['folder']}" + (f", recipe {train['recipe']}" if train["recipe"] else "")
    yield _state(train["state"], train["who"], "train --resume")
    figures = train["figures"]
    if figures:
        yield f"step {figures.get('step', 0):,}, {_progress(train)}"
        yield "  ".join(_figures(figures))
    if train["figures_age_s"] is not None:
        yield f"last figures {duration(train['figures_age_s'])} ago"
    if train["checkpoint"]:
        age = duration(train["checkpoint_age_s"])
        yield f"last checkpoint: {train['checkpoint']} ({age} ago; {train['checkpoints']} kept)"
    else:
        yield "no checkpoint yet"
    yield from _files(train)


def _progress(train: Mapping[str, Any]) -> str:
    seen = int(train["figures"].get("samples_seen", 0))
    if not train["samples"]:
        return f"{seen:,} samples"
    left = "" if train["left_s"] is None or train["state"] != "running" else f", about {duration(train['left_s'])} left"  # fmt: skip
    return f"{seen:,} of {train['samples']:,} samples ({seen / train['samples']:.1%}){left}"


def _figures(figures: Mapping[str, Any]) -> Iterator[str]:
    for name, form in (("loss", "{:.4g}"), ("lr", "{:.3g}"), ("samples_per_s", "{:,.0f}"), ("data_wait_frac", "{:.0%}"), ("mfu", "{:.0%}"), ("bad_samples", "{:,}")):  # fmt: skip
        if figures.get(name) is not None:
            yield f"{name} {form.format(figures[name])}"


def _files(found: Mapping[str, Any]) -> Iterator[str]:
    for name in ("log", "report"):
        if found.get(name):
            yield f"{name}: {found[name]}"
