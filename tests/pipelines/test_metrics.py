"""Figures for Prometheus: counted from events, and really exported by a local Ray."""

from __future__ import annotations

import time
import urllib.request
from collections import Counter
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from pipelines import curation, events, metrics, run_ray
from pipelines.plan import plan_curation
from tests.pipelines.test_curation import SOURCE, STAGES, Quiet

ROOT = Path(__file__).resolve().parent.parent.parent


class Meter:
    def __init__(self) -> None:
        self.values: Counter[tuple[str, ...]] = Counter()

    def inc(self, value: float, tags: dict[str, str]) -> None:
        self.values[tuple(tags.values())] += value  # type: ignore[assignment]

    def set(self, value: float, tags: dict[str, str]) -> None:
        self.values[tuple(tags.values())] = value  # type: ignore[assignment]

    observe = inc


def heard(*told: tuple[str, str, dict[str, Any]]) -> dict[str, Counter[tuple[str, ...]]]:
    meters: dict[str, Meter] = {}

    def make(kind: str, name: str, words: str, labels: tuple[str, ...]) -> Meter:
        assert (kind, labels, words) == metrics.METERS[name]
        return meters.setdefault(name, Meter())

    one = metrics.Metrics(make)
    for event, level, fields in told:
        one.hear(event, level, fields)
    return {name: meter.values for name, meter in meters.items()}


def test_a_part_counts_its_rows_reasons_seconds_and_costs() -> None:
    stats = {"stage": "s", "part": 1, "rows_in": 10, "kept": 7, "refused": {"dull": 2, "error.s.x": 1},
             "seconds": 1.5, "costs": {"bytes": 100.0, "none": 0.0}}  # fmt: skip
    found = heard(("part_done", "debug", stats), ("part_done", "debug", stats))
    assert found["clip_pipe_rows_total"] == {("s", "kept"): 14, ("s", "refused"): 6}
    assert found["clip_pipe_refused_total"] == {("s", "dull"): 4, ("s", "error.s.x"): 2}
    assert found["clip_pipe_parts_total"] == {("s", "done"): 2}
    assert found["clip_pipe_part_seconds"] == {("s",): 3.0}
    assert found["clip_pipe_cost_total"] == {("s", "bytes"): 200.0}


def test_packed_parts_have_reasons_by_stage_and_are_counted_as_parts_only() -> None:
    packed = {
        "stage": "shard.write",
        "part": 0,
        "rows": 3,
        "kept": 1,
        "refused": {"s": {"dull": 2}},
    }
    assert heard(("part_done", "debug", packed)) == {
        "clip_pipe_parts_total": {("shard.write", "done"): 1}
    }


def test_failures_warnings_and_gauges() -> None:
    found = heard(
        ("part_failed", "error", {"stage": "s"}),
        ("part_again", "warning", {"kind": "died"}),
        ("logged", "warning", {"logger": "clip_pipe"}),
        ("step_began", "info", {"step": "s", "parts": 9}),
        ("gauge", "debug", {"name": "running", "value": 4}),
        ("gauge", "debug", {"name": "unknown", "value": 4}),
        ("said", "info", {"message": "nothing to count"}),
    )
    assert found == {
        "clip_pipe_parts_total": {("s", "failed"): 1},
        "clip_pipe_parts_again_total": {("died",): 1},
        "clip_pipe_warnings_total": {("clip_pipe", "warning"): 1},
        "clip_pipe_step_parts": {("s",): 9},
        "clip_pipe_running": {(): 4},
    }


def test_reasons_without_end_share_one_label() -> None:
    many = [
        ("part_done", "debug", {"stage": "s", "rows_in": 1, "kept": 0, "refused": {f"r{n}": 1}})
        for n in range(500)
    ]
    found = heard(*many)["clip_pipe_refused_total"]
    assert len(found) == metrics._MOST_REASONS + 1
    assert found[("s", "other")] == 500 - metrics._MOST_REASONS


def test_figures_that_can_t_be_counted_end_no_run(caplog: Any) -> None:
    def broken(*_: Any) -> Any:
        raise RuntimeError("no agent")

    one = metrics.Metrics(broken)
    for _ in range(2):
        one.hear("part_failed", "error", {"stage": "s"})
    assert len(caplog.records) == 1


def test_every_name_is_in_the_docs() -> None:
    text = (ROOT / "docs" / "operating.md").read_text()
    assert all(f"`ray_{name}`" in text for name in metrics.METERS)
    assert all(f"`{name}`" in text for name in events.EVENTS)


@pytest.mark.ray
@pytest.mark.slow
def test_ray_exports_them(curate_recipe: Callable[..., Any], ray_address: str) -> None:
    import ray

    recipe = curate_recipe(SOURCE, STAGES)
    with run_ray.connected() as runner:
        curation.run(plan_curation(recipe), runner, Quiet())
        node = ray.nodes()[0]
        where = f"http://{node['NodeManagerAddress']}:{node['MetricsExportPort']}/metrics"
        until = time.monotonic() + 60
        lines: list[str] = []
        while not lines and time.monotonic() < until:
            time.sleep(1)
            text = urllib.request.urlopen(where, timeout=10).read().decode()
            lines = [
                line for line in text.splitlines() if line.startswith("ray_clip_pipe_refused_total")
            ]
    values = {
        line.partition('reason="')[2].partition('"')[0]: float(line.rpartition(" ")[2])
        for line in lines
    }
    assert values["error.tiny.dead"] >= 1
    assert values["common"] >= 1
