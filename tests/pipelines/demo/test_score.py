"""Precision and recall on a hand-made ledger, with the rows worked out by hand."""

from __future__ import annotations

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from curate.contract.columns import LEDGER_SCHEMA
from pipelines.demo import world as demo_world
from pipelines.demo.score import LOOKED_FOR, FaultScore, score, table

STAGES = [
    "filter.duplicate_pair",
    "score.metadata_match",
    "filter.metadata_balance",
    "download.fetch",
    "filter.duplicate_image",
    "score.text_regions",
    "filter.threshold",
]
TEXT = ("threshold.text_area_frac", "filter.threshold")
HTTP = ("error.download.fetch.http.404", "download.fetch")
BALANCED = ("balanced", "filter.metadata_balance")
PAIR = ("duplicate.pair", "filter.duplicate_pair")
IMAGE = ("duplicate.image", "filter.duplicate_image")
KEPT = None

# (uid, fault, first_row, refused with) in source order
ROWS = [
    ("a", None, None, KEPT),
    ("b", "text-parrot", None, TEXT),
    ("c", "text-parrot", None, KEPT),  # a miss
    ("d", "text-parrot", None, BALANCED),  # never reached the filter
    ("e", "text-unrelated", None, TEXT),
    ("f", None, None, TEXT),  # a clean row refused
    ("g", "dead-link", None, HTTP),
    ("h", None, None, ("error.download.fetch.timeout", "download.fetch")),
    ("a", "duplicate-pair", 0, PAIR),
    ("i", None, None, BALANCED),
    ("j", "duplicate-image", 9, KEPT),  # its first row was refused before: rightly kept
    ("k", "duplicate-image", 0, IMAGE),
    ("l", "junk-caption", None, ("unmatched", "filter.metadata_balance")),
    ("m", "null-url", None, ("error.source.url_table.null_url", "source.url_table")),
    ("n", "wrong-caption", None, KEPT),
]


def write(folder, rows=ROWS, order=None) -> tuple[str, str]:
    truth = pa.table(
        {
            "uid": [row[0] for row in rows],
            "fault": pa.array([row[1] for row in rows], pa.string()),
            "first_row": pa.array([row[2] for row in rows], pa.int64()),
        }
    )
    listed = [rows[index] for index in order] if order else rows
    ledger = pa.table(
        {
            "uid": [row[0] for row in listed],
            "url": ["http://x"] * len(listed),
            "caption": ["c"] * len(listed),
            "keep": [row[3] is None for row in listed],
            "reason": [row[3][0] if row[3] else None for row in listed],
            "stage": [row[3][1] if row[3] else None for row in listed],
        },
        schema=LEDGER_SCHEMA,
    )
    for name, content in (("ledger", ledger), ("truth", truth)):
        pq.write_table(content, folder / f"{name}.parquet")
    return str(folder / "ledger.parquet"), str(folder / "truth.parquet")


def by_fault(scores: list[FaultScore]) -> dict[str, FaultScore]:
    return {line.fault: line for line in scores}


def test_hand_worked_figures(tmp_path):
    found = by_fault(score(*write(tmp_path), STAGES))
    # text: b and e rightly, f wrongly refused -> precision 2/3 for both kinds
    assert found["text-parrot"] == FaultScore(
        "text-parrot",
        True,
        3,
        2,
        1,
        0.5,
        pytest.approx(2 / 3),
        {"threshold.text_area_frac": 1, "kept": 1, "balanced": 1},
    )
    assert (found["text-unrelated"].recall, found["text-unrelated"].precision) == (
        1.0,
        pytest.approx(2 / 3),
    )
    assert (found["dead-link"].recall, found["dead-link"].precision) == (1.0, 0.5)
    assert (found["junk-caption"].recall, found["junk-caption"].precision) == (1.0, 1.0)
    assert (found["null-url"].recall, found["null-url"].precision) == (1.0, 1.0)


def test_a_duplicate_counts_only_if_its_first_row_came_so_far(tmp_path):
    found = by_fault(score(*write(tmp_path), STAGES))
    images = found["duplicate-image"]
    assert (images.planted, images.reached, images.found, images.recall, images.precision) == (
        2,
        1,
        1,
        1.0,
        1.0,
    )
    pairs = found["duplicate-pair"]
    assert (pairs.planted, pairs.reached, pairs.found, pairs.recall) == (1, 1, 1, 1.0)


def test_what_no_stage_looks_for_has_no_figures(tmp_path):
    ledger, truth = write(
        tmp_path, [row for row in ROWS if row[3] is None or row[3][1] != "filter.threshold"]
    )
    found = by_fault(score(ledger, truth, STAGES[:-1]))
    for fault in ("wrong-caption", "text-parrot"):
        assert not found[fault].looked_for
        assert (found[fault].recall, found[fault].precision) == (None, None)


def test_a_stage_that_got_no_such_row_has_no_recall(tmp_path):
    rows = [("a", "text-parrot", None, BALANCED), ("b", None, None, KEPT)]
    line = by_fault(score(*write(tmp_path, rows), STAGES))["text-parrot"]
    assert line.looked_for
    assert (line.reached, line.recall, line.precision) == (0, None, None)


def test_ledger_order_of_different_uids_does_not_matter(tmp_path):
    straight = score(*write(tmp_path), STAGES)
    # the two rows of uid "a" keep their order, all else is turned round
    order = sorted(
        range(len(ROWS)),
        key=lambda index: (ROWS[index][0] != "a", -index if ROWS[index][0] != "a" else index),
    )
    assert score(*write(tmp_path, order=order), STAGES) == straight


def test_a_reason_may_carry_its_room(tmp_path):
    rows = [("a", "text-parrot", None, ("filter.threshold.text_area_frac", "filter.threshold"))]
    assert score(*write(tmp_path, rows), STAGES)[0].recall == 1.0


def test_other_rows_or_unknown_stages_are_named(tmp_path):
    ledger, truth = write(tmp_path)
    with pytest.raises(ValueError, match=r"refused by \['filter.threshold'\].*hint: "):
        score(ledger, truth, STAGES[:-1])
    pq.write_table(pq.read_table(truth).slice(1), truth)
    with pytest.raises(ValueError, match=r"15 and 14 rows.*hint: "):
        score(ledger, truth, STAGES)


def test_every_planted_fault_is_in_the_table():
    assert set(LOOKED_FOR) == set(demo_world.PLANTED_SHARES)


def test_table_has_a_line_per_fault(tmp_path):
    lines = table(score(*write(tmp_path), STAGES)).splitlines()
    assert lines[0].split() == ["fault", "planted", "reached", "found", "recall", "precision"]
    assert lines[1].split() == ["text-parrot", "3", "2", "1", "0.500", "0.667"]
    assert lines[-1].split()[:2] == ["wrong-caption", "1"]
    assert "nothing in this recipe looks for it" in lines[-1]
    assert len({len(line) for line in lines if "nothing" not in line}) == 1
