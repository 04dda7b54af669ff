"""A training run's metrics.jsonl: a thinned-out series for the plots, and the newest figures."""

from __future__ import annotations

import json
from collections.abc import Iterator
from dataclasses import dataclass, field
from typing import Any

from curate.contract import storage

_MAX_POINTS = 1000
_NOT_FIGURES = ("eval", "step", "samples_seen", "checkpoint")


@dataclass
class Metrics:
    """What a run wrote. ``evaluations``: the last figures of each evaluation."""

    lines: list[dict[str, Any]] = field(default_factory=list)
    evaluations: dict[str, dict[str, float]] = field(default_factory=dict)
    n_damaged: int = 0  # lines that are not JSON objects, as a killed run may leave one


def read(path: str) -> Metrics:
    """Read line by line; at most 1,000 evenly spaced training lines are kept, and the last."""
    found = Metrics()
    stride, number = 1, 0
    last: dict[str, Any] | None = None
    for line in _objects(path, found):
        if "eval" in line:
            figures = {
                key: value
                for key, value in line.items()
                if key not in _NOT_FIGURES and _number(value)
            }
            found.evaluations[str(line["eval"])] = figures
            continue
        if "changed" in line:
            continue  # a note of a resumed run
        last = line
        if number % stride == 0:
            found.lines.append(line)
        number += 1
        if len(found.lines) > _MAX_POINTS:
            found.lines, stride = found.lines[::2], 2 * stride
    if last is not None and found.lines[-1] is not last:
        found.lines.append(last)
    return found


def _objects(path: str, found: Metrics) -> Iterator[dict[str, Any]]:
    with storage.open_file(path) as file:
        for line in file:
            try:
                value = json.loads(line)
            except ValueError:
                value = None
            if isinstance(value, dict):
                yield value
            elif line.strip():
                found.n_damaged += 1


def _number(value: Any) -> bool:
    return isinstance(value, int | float) and not isinstance(value, bool)
