"""Tables as text: columns of figures side by side, and funnels as lines and as JSON records."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from pipelines.funnel import Funnel, StageCount

_NAME_WIDTH = 44
_HEADING = "rows that reach a stage, and refused ones"
_NOTES = {
    "at least": "at least so many: rows without a value are left out",
    "about": "about so many: a whole-pool stage below did not see the rows without a value",
}


def rows_as_text(head: Sequence[str], rows: Sequence[Sequence[str]]) -> list[str]:
    """Lines with the first column to the left and the others to the right."""
    everything = [head, *rows]
    widths = [max(len(row[n]) for row in everything) for n in range(len(head))]
    return [
        "  ".join(
            cell.ljust(width) if n == 0 else cell.rjust(width)
            for n, (cell, width) in enumerate(zip(row, widths, strict=True))
        ).rstrip()
        for row in everything
    ]


def funnel_lines(columns: Sequence[tuple[str, Funnel]], differences: bool = True) -> list[str]:
    """Each stage with the rows it is reached by, refuses by reason and keeps; a column per funnel."""
    single = differences and len(columns) == 2
    head = [_HEADING, *(name for name, _ in columns), *(["difference"] if single else [])]
    table: list[list[str]] = []

    def add(name: str, values: Sequence[int]) -> None:
        cells = [f"{value:,}" for value in values]
        if single:
            cells.append(f"{values[1] - values[0]:+,}" if values[1] != values[0] else "=")
        table.append([name, *cells])

    for position in range(len(columns[0][1].stages)):
        stages = [funnel.stages[position] for _, funnel in columns]
        _stage_lines(stages, add)
    add("kept", [funnel.kept for _, funnel in columns])
    if differences and len(columns) > 2:
        now = columns[0][1].kept
        more = [f"{funnel.kept - now:+,}" for _, funnel in columns[1:]]
        table.append([f"  beside {columns[0][0]}", "", *more])
    return [*rows_as_text(head, table), *_notes(columns)]


def _stage_lines(stages: Sequence[StageCount], add: Any) -> None:
    add(stages[0].stage, [stage.rows_in for stage in stages])
    for reason in sorted({reason for stage in stages for reason in stage.refused}):
        add(f"  {reason[:_NAME_WIDTH]}", [stage.refused.get(reason, 0) for stage in stages])
    if any(stage.unmeasured for stage in stages):
        add("  (never measured)", [stage.unmeasured for stage in stages])


def _notes(columns: Sequence[tuple[str, Funnel]]) -> list[str]:
    notes: list[str] = []
    for name, funnel in columns:
        for stage in funnel.stages:
            if stage.unmeasured:
                notes.append(
                    f"{name}: {stage.unmeasured:,} rows would reach {stage.stage} and were never measured there (or failed there before); they leave the funnel"
                )
        if funnel.bound != "exact":
            notes.append(f"{name}: kept is {_NOTES[funnel.bound]}")
    return ["", *notes] if notes else []


def funnel_record(funnel: Funnel) -> dict[str, Any]:
    """The same figures for machines."""
    return {
        "rows": funnel.rows,
        "kept": funnel.kept,
        "bound": funnel.bound,
        "unmeasured": funnel.unmeasured,
        "stages": [
            {
                "stage": stage.stage,
                "rows_in": stage.rows_in,
                "refused": stage.refused,
                "unmeasured": stage.unmeasured,
                "kept": stage.kept,
            }
            for stage in funnel.stages
        ],
    }
