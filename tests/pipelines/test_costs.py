"""Costs: measured in the pool where something was done, typical else, unknown else; and units a person takes."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pyarrow as pa
import pytest

from curate.contract import parts, storage
from pipelines import costs
from pipelines.plan import CurationPlan, Planned, plan_curation
from tests.pipelines.test_funnel import made, stages


@pytest.fixture
def plan(tmp_path: Path) -> CurationPlan:
    (tmp_path / "entries.txt").write_text("word0\n")
    return plan_curation(made(tmp_path / "entries.txt", stages(tmp_path / "entries.txt")))


def done(plan: CurationPlan, planned: Planned, fingerprint: str = "", **stats: Any) -> None:
    path = plan.pool.columns_path(planned.use, fingerprint or planned.fingerprint, stats["part"])
    parts.write_table(path, pa.table({"uid": ["a"]}), stats)


def test_own_parts_come_before_other_runs_before_typical_rates(plan: CurationPlan) -> None:
    match = plan.stages[2]
    assert match.use == "score.metadata_match"
    rate = costs.rate_of(plan, match)
    assert rate is not None
    assert (rate.source, rate.seconds_per_row) == ("typical", 1 / 350_000)
    done(plan, match, "f" * 64, part=0, rows_in=10, seconds=40.0)
    rate = costs.rate_of(plan, match)
    assert rate == costs.Rate(4.0, "measured in this pool, by another run")
    done(plan, match, part=0, rows_in=10, seconds=20.0)
    done(plan, match, part=1, rows_in=20, taken_over=10, seconds=20.0)
    assert costs.rate_of(plan, match) == costs.Rate(2.0, "measured in this pool")


def test_too_little_work_is_no_measurement(plan: CurationPlan) -> None:
    length = plan.stages[1]
    assert costs.rate_of(plan, length) is None
    done(plan, length, part=0, rows_in=10, seconds=0.001)
    done(plan, length, "e" * 64, part=0, rows_in=0, seconds=9.0)
    assert costs.rate_of(plan, length) is None


def test_the_plan_s_line_says_for_how_many_rows(plan: CurationPlan) -> None:
    assert costs.plan_cost(plan, 2, {}) == "about 3 s (typical) for a million rows by one worker"
    known = {plan.source.name: costs.Known(8_000_000, 2, True)}
    assert costs.plan_cost(plan, 2, known) == (
        "about 23 s (typical) for at most 8,000,000 rows by one worker"
    )
    assert costs.plan_cost(plan, 1, known) == ""


def test_what_was_counted_before_the_pool_grew_bounds_no_new_row(plan: CurationPlan) -> None:
    known = {
        plan.source.name: costs.Known(8_000_000, 9, True),
        plan.stages[1].name: costs.Known(5, 2, False),
    }
    assert "for at most 8,000,000 rows by one worker" in costs.plan_cost(plan, 2, known)
    known[plan.source.name] = costs.Known(7, 2, False)
    assert costs.plan_cost(plan, 2, known).endswith(
        "for at most 5 rows of the 2 parts read in before by one worker"
    )
    folder = plan.pool.columns_folder(plan.source.use, plan.source.fingerprint)
    storage.write_text(f"{folder}/manifest.json", json.dumps({"kept": 7, "parts": 2}))
    assert costs.rows_known(plan, 2) == {plan.source.name: costs.Known(7, 2, True)}
    assert costs.rows_known(plan, 3) == {plan.source.name: costs.Known(7, 2, False)}


def test_workers_share_the_time() -> None:
    rate = costs.Rate(0.01, "typical", "a note")
    assert rate.told(3_600_000) == "about 10 h (typical: a note)"
    assert rate.told(3_600_000, 20) == "about 30 min by 20 workers (typical: a note)"


@pytest.mark.parametrize(
    ("seconds", "told"),
    [(0.2, "under a second"), (61, "about 61 s"), (90, "about 1.5 min"), (5_400, "about 1.5 h"), (40 * 3600, "about 1.7 days"), (3e6, "about 35 days")],
)  # fmt: skip
def test_durations(seconds: float, told: str) -> None:
    assert costs.duration(seconds) == told


@pytest.mark.parametrize(
    ("size", "told"),
    [(0, "0 bytes"), (999, "999 bytes"), (12_345, "12.3 kB"), (2.5e9, "2.5 GB"), (9.99e15, "9,990 TB")],
)  # fmt: skip
def test_sizes(size: float, told: str) -> None:
    assert costs.size(size) == told


def test_a_device_s_memory_is_in_binary_units() -> None:
    assert costs.memory(139.7 * 2**30) == "139.7 GiB"
    assert costs.size(139.7 * 2**30) == "150 GB"
