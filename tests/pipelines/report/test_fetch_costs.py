"""Sums of a stage as milliseconds of one picture."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from curate.contract import storage
from pipelines.report import fetch_costs
from tests.tiny import fetched_run
from tests.tiny.fetched_run import FETCH

SUMS = {
    "fetch_cpu_s": 0.4, "requests": 1100.0, "connections": 40.0, "tls_handshakes": 20.0, "tls_wall_s": 1.0,
    "wire_bytes": 2.5e8, "decode_cpu_s": 3.0, "resize_cpu_s": 1.0, "encode_cpu_s": 0.5, "decoder_cpu_s": 5.0,
    "pictures": 1000.0, "tar_cpu_s": 0.03,
}  # fmt: skip


def test_sums_become_figures_of_one_picture(tmp_path: Path) -> None:
    pool, _ = fetched_run.make(tmp_path, [], SUMS)
    costs = fetch_costs.found(pool, FETCH)
    assert costs is not None
    assert {cost.name: pytest.approx(cost.cpu_ms) for cost in costs.cpu} == {
        "fetch, TLS included": 0.4,
        "decode": 3.0,
        "resize": 1.0,
        "encode": 0.5,
        "decoding processes: start, pipes, checks": 0.5,
        "tar": 0.03,
    }
    assert (costs.pictures, costs.attempts, costs.connections) == (1000, 1100, 40)
    assert (costs.handshakes, costs.handshake_wall_ms) == (20, 50.0)
    assert costs.wire_bytes == 250_000_000


def test_runs_that_measured_the_same_are_added_up(tmp_path: Path) -> None:
    """A retry fetched 10 of the 1,010 pictures; another size is another measure."""
    pool, _ = fetched_run.make(tmp_path, [], {"pictures": 10.0, "decode_cpu_s": 0.03})
    own = pool.columns_folder(FETCH["use"], FETCH["fingerprint"])
    for folder, measure, costs in (
        (own, "m", None),
        (
            pool.columns_folder(FETCH["use"], "01" * 32),
            "m",
            {"pictures": 1000.0, "decode_cpu_s": 3.0},
        ),
        (pool.columns_folder(FETCH["use"], "02" * 32), "other", SUMS),
        (pool.columns_folder("download.fetcher", "03" * 32), "m", SUMS),
        (pool.columns_folder(FETCH["use"], "04" * 32), None, SUMS),
    ):
        if measure is not None:
            storage.write_text(f"{folder}/measure.json", json.dumps({"measure": measure}))
        if costs is not None:
            storage.write_text(f"{folder}/manifest.json", json.dumps({"costs": costs}))
    costs_found = fetch_costs.found(pool, FETCH)
    assert costs_found is not None
    assert costs_found.pictures == 1010
    assert costs_found.cpu[1].cpu_ms == pytest.approx(3.0)


def test_nothing_noted_is_nothing_told(tmp_path: Path) -> None:
    pool, _ = fetched_run.make(tmp_path, [])
    assert fetch_costs.found(pool, FETCH) is None  # no manifest
    pool, _ = fetched_run.make(tmp_path, [], {})
    assert fetch_costs.found(pool, FETCH) is None
    assert fetch_costs.of_sums({"fetch_cpu_s": 1.0, "pictures": 0}) is None


def test_what_was_not_measured_is_never_negative() -> None:
    costs = fetch_costs.of_sums({"pictures": 10, "decode_cpu_s": 1.0})
    assert costs is not None
    assert min(cost.cpu_ms for cost in costs.cpu) == 0.0
    assert costs.handshake_wall_ms == 0.0
