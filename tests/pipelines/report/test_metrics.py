"""metrics.jsonl: thinned out evenly, newest figures, damaged lines counted."""

from __future__ import annotations

import itertools
import json
from pathlib import Path

from pipelines.report import metrics


def read(path: Path, lines: list[object]) -> metrics.Metrics:
    path.write_text(
        "\n".join(line if isinstance(line, str) else json.dumps(line) for line in lines)
    )
    return metrics.read(str(path))


def test_lines_and_the_newest_figures(tmp_path: Path) -> None:
    found = read(
        tmp_path / "m",
        [
            {"step": 1, "loss": 3.0},
            {"eval": "a", "top1": 0.1, "gone": 1},
            {"eval": "b", "top1": 0.5},
            {"step": 2, "loss": 2.0},
            {"eval": "a", "samples_seen": 9, "checkpoint": "c", "note": "x", "top1": 0.2},
        ],
    )
    assert [line["step"] for line in found.lines] == [1, 2]
    assert found.evaluations == {"a": {"top1": 0.2}, "b": {"top1": 0.5}}
    assert found.n_damaged == 0


def test_damaged_lines_are_counted(tmp_path: Path) -> None:
    found = read(tmp_path / "m", [{"step": 1}, '{"step": 2, "lo', "[1]", "", {"step": 3}])
    assert ([line["step"] for line in found.lines], found.n_damaged) == ([1, 3], 2)


def test_a_long_run_is_thinned_evenly_and_keeps_its_ends(tmp_path: Path) -> None:
    found = read(tmp_path / "m", [{"step": step} for step in range(10_007)])
    steps = [line["step"] for line in found.lines]
    assert 400 < len(steps) <= 1001
    assert (steps[0], steps[-1]) == (0, 10_006)
    assert {b - a for a, b in itertools.pairwise(steps[:-1])} == {16}


def test_an_empty_file(tmp_path: Path) -> None:
    assert read(tmp_path / "m", []) == metrics.Metrics()
