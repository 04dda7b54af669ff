"""Tables as text: aligned, with every reason of any column, and a note for each figure that is no exact one."""

from __future__ import annotations

from pipelines.funnel import Funnel, StageCount
from pipelines.side_by_side import funnel_lines, funnel_record, rows_as_text

NOW = Funnel((StageCount("source", 1000, {"error.x": 10}), StageCount("filter", 990, {"a": 90})))
THEN = Funnel(
    (StageCount("source", 1000, {"error.x": 10}), StageCount("filter", 990, {"b": 1}, 5)),
    "at least",
)


def test_columns_are_aligned() -> None:
    assert rows_as_text(["", "n"], [["a", "1"], ["long", "1,000"]]) == [
        "          n",
        "a         1",
        "long  1,000",
    ]


def test_two_funnels_have_a_difference_and_every_reason() -> None:
    lines = funnel_lines([("now", NOW), ("then", THEN)])
    assert lines[0].startswith("rows that reach a stage, and refused ones  ")
    cells = [
        line.removeprefix("rows that reach a stage, and refused ones").split() for line in lines
    ]
    assert cells[:8] == [
        ["now", "then", "difference"],
        ["source", "1,000", "1,000", "="],
        ["error.x", "10", "10", "="],
        ["filter", "990", "990", "="],
        ["a", "90", "0", "-90"],
        ["b", "0", "1", "+1"],
        ["(never", "measured)", "0", "5", "+5"],
        ["kept", "900", "984", "+84"],
    ]
    assert lines[-2].startswith("then: 5 rows would reach filter and were never measured there")
    assert lines[-1].startswith("then: kept is at least so many")


def test_three_funnels_say_how_many_more_each_keeps() -> None:
    lines = funnel_lines([("now", NOW), ("one", THEN), ("two", NOW)])
    assert [line.split() for line in lines if "beside now" in line] == [
        ["beside", "now", "+84", "+0"]
    ]


def test_a_record_has_the_same_figures() -> None:
    record = funnel_record(THEN)
    assert (record["rows"], record["kept"], record["bound"], record["unmeasured"]) == (1000, 984, "at least", 5)  # fmt: skip
    assert record["stages"][1] == {
        "stage": "filter", "rows_in": 990, "refused": {"b": 1}, "unmeasured": 5, "kept": 984,
    }  # fmt: skip
