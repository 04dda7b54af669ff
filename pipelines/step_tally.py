"""What came of a stage's rows so far, added up part by part: a driver must not hold a hundred thousand parts' stats."""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping
from typing import Any


class Tally:
    """Sums over the parts of one stage. ``dead``: the stats of those in which every row failed."""

    def __init__(self) -> None:
        self.parts = self.rows_in = 0
        self.seconds = 0.0
        self.refused: Counter[str] = Counter()
        self.errors: Counter[str] = Counter()
        self.failed = 0  # rows, of ``errors``
        self.costs: dict[str, float] = {}
        self.dead: list[dict[str, Any]] = []

    def add(self, entry: Mapping[str, Any]) -> None:
        """``entry``: what the stage's manifest says of one part."""
        errors = errors_of(entry)
        self.parts += 1
        self.rows_in += entry["rows_in"]
        self.seconds += entry["seconds"]
        self.refused.update(entry["refused"])
        self.errors.update(errors)
        self.failed += errors.total()
        for name, spent in entry.get("costs", {}).items():
            self.costs[name] = self.costs.get(name, 0.0) + spent
        if entry["rows_in"] and not entry["kept"] and len(errors) == len(entry["refused"]):
            names = ("part", "rows_in", "kept", "refused")
            self.dead.append({name: entry[name] for name in names})


def errors_of(entry: Mapping[str, Any]) -> Counter[str]:
    """Reason -> rows of those that failed, from the stats of one part."""
    refused: Mapping[str, int] = entry["refused"]
    return Counter({r: rows for r, rows in refused.items() if r.startswith("error.")})
