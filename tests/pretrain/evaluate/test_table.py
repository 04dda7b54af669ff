"""Figures as JSON lines and as an aligned table."""

from __future__ import annotations

import json

from pretrain.evaluate import table

RAW = {"zero_shot": {"top1": 0.1234, "n_pictures": 1000.0}, "retrieval": {"image_to_text_r1": 1.0}}
CURATED = {"zero_shot": {"top1": 0.5}, "other": {"top1": float("nan")}}


def test_one_run_as_text() -> None:
    assert table.render(RAW).splitlines() == [
        "evaluation  figure              value",
        "zero_shot   top1               12.3 %",
        "            n_pictures          1,000",
        "retrieval   image_to_text_r1  100.0 %",
    ]


def test_runs_side_by_side_keep_each_evaluation_together() -> None:
    assert table.rows({"raw": RAW, "curated": CURATED}) == [
        ("zero_shot", "top1", [0.1234, 0.5]),
        ("zero_shot", "n_pictures", [1000.0, None]),
        ("retrieval", "image_to_text_r1", [1.0, None]),
        ("other", "top1", [None, CURATED["other"]["top1"]]),
    ]
    lines = table.text_table({"raw": RAW, "curated": CURATED}).splitlines()
    assert lines[0].split() == ["evaluation", "figure", "raw", "curated"]
    assert lines[1].split() == ["zero_shot", "top1", "12.3", "%", "50.0", "%"]
    assert lines[4].split() == ["other", "top1", "–", "–"]
    assert table.text_table({}) == "evaluation  figure\n"


def test_a_line_of_metrics_is_json() -> None:
    line = table.json_line("zéro", {"top1": 0.5}, {"samples_seen": 7})
    assert line.endswith("}\n")
    assert json.loads(line) == {"eval": "zéro", "samples_seen": 7, "top1": 0.5}


def test_figures_that_are_not_finite_are_null_and_say_what_they_were() -> None:
    figures = {"top1": float("nan"), "top5": float("inf"), "n_bad": 3}
    line = table.json_line("z", figures)
    assert json.loads(line, parse_constant=None) == {
        "eval": "z",
        "top1": None,
        "top5": None,
        "n_bad": 3,
        "not_finite": {"top1": "nan", "top5": "inf"},
    }
    assert "NaN" not in line
    assert table.shown("top5", float("inf")) == "–"
