"""Figures of a run for Prometheus: counted from events in the driver, exported by whoever makes the meters.

The Ray runner makes Ray's own (`pipelines.run_ray`), which Ray's agent on the driver's node exports under
``ray_`` and the names below. Workers count nothing: what a part cost comes with its result.
"""

from __future__ import annotations

import logging
from collections.abc import Callable, Mapping
from typing import Any

_logger = logging.getLogger(__name__)
# name -> (kind, labels, what it says); the list in docs/operating.md
METERS: dict[str, tuple[str, tuple[str, ...], str]] = {
    "clip_pipe_rows_total": ("counter", ("stage", "outcome"), "Rows kept or refused, of parts that ended."),
    "clip_pipe_refused_total": ("counter", ("stage", "reason"), "Rows refused, by reason."),
    "clip_pipe_parts_total": ("counter", ("stage", "outcome"), "Parts that ended: done or failed."),
    "clip_pipe_parts_again_total": ("counter", ("kind",), "Calls that were lost and are run again: died, hung, memory or raised."),
    "clip_pipe_part_seconds": ("histogram", ("stage",), "Seconds that a part took in its worker."),
    "clip_pipe_cost_total": ("counter", ("stage", "cost"), "Sums that stages tell: bytes, CPU seconds, waits."),
    "clip_pipe_warnings_total": ("counter", ("logger", "level"), "Warnings and errors that were logged."),
    "clip_pipe_step_parts": ("gauge", ("step",), "Parts of the step that goes on."),
    "clip_pipe_running": ("gauge", (), "Calls that run now."),
    "clip_pipe_nodes": ("gauge", (), "Living nodes of the cluster."),
}  # fmt: skip
SECONDS = [
    0.1,
    0.3,
    1,
    3,
    10,
    30,
    100,
    300,
    1000,
    3000,
    10_000,
]  # bounds of the histogram's buckets
_MOST_REASONS = 200  # beyond these a label is "other": each is a series of its own
_GAUGES = {"running": "clip_pipe_running", "nodes": "clip_pipe_nodes"}
Make = Callable[
    [str, str, str, tuple[str, ...]], Any
]  # (kind, name, what it says, labels) -> a meter


class Metrics:
    """Hears events and counts. A meter has ``inc``, ``set`` or ``observe`` of (value, tags), as Ray's have."""

    def __init__(self, make: Make) -> None:
        self._make = make
        self._meters: dict[str, Any] = {}
        self._reasons: set[str] = set()
        self._is_broken = False

    def hear(self, event: str, level: str, fields: Mapping[str, Any]) -> None:
        """Never raises: a run does not end for its figures."""
        if self._is_broken:
            return
        try:
            self._count(event, level, fields)
        except Exception:
            self._is_broken = True
            _logger.warning("figures for Prometheus stop here", exc_info=True)

    def _count(self, event: str, level: str, fields: Mapping[str, Any]) -> None:
        if event == "part_done":
            self._part(fields)
        elif event == "part_failed":
            tags = {"stage": str(fields["stage"]), "outcome": "failed"}
            self._meter("clip_pipe_parts_total").inc(1, tags)
        elif event == "part_again":
            self._meter("clip_pipe_parts_again_total").inc(1, {"kind": str(fields["kind"])})
        elif event == "logged":
            tags = {"logger": str(fields.get("logger", "")), "level": level}
            self._meter("clip_pipe_warnings_total").inc(1, tags)
        elif event == "step_began":
            tags = {"step": str(fields["step"])}
            self._meter("clip_pipe_step_parts").set(float(fields["parts"]), tags)
        elif event == "gauge" and fields["name"] in _GAUGES:
            self._meter(_GAUGES[fields["name"]]).set(float(fields["value"]), {})

    def _part(self, stats: Mapping[str, Any]) -> None:
        stage = str(stats["stage"])
        self._meter("clip_pipe_parts_total").inc(1, {"stage": stage, "outcome": "done"})
        refused = stats.get("refused", {})
        if "rows_in" in stats:
            outcomes = {"kept": stats["kept"], "refused": stats["rows_in"] - stats["kept"]}
            for outcome, rows in outcomes.items():
                if rows:
                    tags = {"stage": stage, "outcome": outcome}
                    self._meter("clip_pipe_rows_total").inc(rows, tags)
            for reason, rows in refused.items():
                tags = {"stage": stage, "reason": self._known(reason)}
                self._meter("clip_pipe_refused_total").inc(rows, tags)
        if "seconds" in stats:
            self._meter("clip_pipe_part_seconds").observe(stats["seconds"], {"stage": stage})
        for cost, spent in stats.get("costs", {}).items():
            if spent > 0:
                self._meter("clip_pipe_cost_total").inc(spent, {"stage": stage, "cost": cost})

    def _known(self, reason: str) -> str:
        if len(self._reasons) < _MOST_REASONS:
            self._reasons.add(reason)
        return reason if reason in self._reasons else "other"

    def _meter(self, name: str) -> Any:
        if name not in self._meters:
            kind, labels, words = METERS[name]
            self._meters[name] = self._make(kind, name, words, labels)
        return self._meters[name]
