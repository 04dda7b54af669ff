"""Figures for people and for programs: an aligned text table, and JSON lines.

Shares are in [0, 1] and shown in per cent; names that begin with ``n_`` are counts. No torch is
imported here, so that reports can be made anywhere.
"""

from __future__ import annotations

import json
import math
from collections.abc import Mapping
from typing import Any

Figures = Mapping[str, float]


def json_line(name: str, figures: Figures, context: Mapping[str, Any] | None = None) -> str:
    """One line of metrics.jsonl: ``{"eval": name, **context, **figures}``, a newline at its end."""
    line = {"eval": name, **(context or {}), **finite(figures)}
    return json.dumps(line, ensure_ascii=False, allow_nan=False) + "\n"


def finite(figures: Figures) -> dict[str, Any]:
    """Figures as JSON can hold them: null for NaN and infinity, and ``not_finite`` says which each was."""
    odd = {figure: str(value) for figure, value in figures.items() if not math.isfinite(value)}
    found = {figure: None if figure in odd else value for figure, value in figures.items()}
    return {**found, "not_finite": odd} if odd else found


def shown(figure: str, value: float | None) -> str:
    """A figure as a person reads it: ``12.3 %``, ``1,000``, or a dash where there is none."""
    if value is None or not math.isfinite(value):
        return "–"
    return f"{value:,.0f}" if figure.startswith("n_") else f"{100 * value:.1f} %"


def rows(runs: Mapping[str, Mapping[str, Figures]]) -> list[tuple[str, str, list[float | None]]]:
    """(evaluation, figure, its value in each run), in order of first appearance."""
    names = dict.fromkeys(
        (name, figure)
        for run in runs.values()
        for name, figures in run.items()
        for figure in figures
    )
    order = {name: place for place, name in enumerate(dict.fromkeys(name for name, _ in names))}
    return [
        (name, figure, [run.get(name, {}).get(figure) for run in runs.values()])
        for name, figure in sorted(names, key=lambda both: order[both[0]])
    ]


def render(results: Mapping[str, Figures]) -> str:
    """One run's figures, ``{evaluation: figures}``, as an aligned table."""
    return text_table({"value": results})


def text_table(runs: Mapping[str, Mapping[str, Figures]]) -> str:
    """Runs side by side: ``{run: {evaluation: figures}}`` as an aligned table."""
    lines = [["evaluation", "figure", *runs]]
    last = ""
    for name, figure, values in rows(runs):
        lines.append(
            [name if name != last else "", figure, *(shown(figure, value) for value in values)]
        )
        last = name
    widths = [max(len(cell) for cell in column) for column in zip(*lines)]
    return "\n".join(_aligned(line, widths) for line in lines) + "\n"


def _aligned(cells: list[str], widths: list[int]) -> str:
    words = [cell.ljust(width) for cell, width in zip(cells[:2], widths)]
    numbers = [cell.rjust(width) for cell, width in zip(cells[2:], widths[2:])]
    return "  ".join(words + numbers).rstrip()
