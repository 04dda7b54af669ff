"""What the demo prints at its end: the funnel, the planted faults, both models and their spread."""

from __future__ import annotations

import statistics
from collections.abc import Mapping, Sequence
from typing import Any

from pipelines.demo import score

Figures = Mapping[str, Mapping[str, float]]  # evaluation -> figure -> value


def text(
    manifests: Mapping[str, Mapping[str, Any]],
    faults: Sequence[score.FaultScore],
    figures: Mapping[str, Sequence[Figures]],
    samples: int,
) -> str:
    """``manifests`` by run ("raw", "curated"); ``figures`` by run, one per seed."""
    from pretrain.evaluate import table

    curated = manifests["curated"]
    lines = [
        f"\nrows in {curated['rows_in']}, kept {curated['kept']} (raw run: {manifests['raw']['kept']})"
    ]
    for stage in curated["stages"]:
        lines += [f"  {count:6d}  {reason}" for reason, count in stage["refused"].items()]
    lines += ["\nplanted faults", score.table(faults)]
    seeds = len(next(iter(figures.values())))
    lines.append(
        f"\nboth models, {samples:,} samples each"
        + (f", means of {seeds} seeds" if seeds > 1 else "")
    )
    lines.append(table.text_table({run: means(found) for run, found in figures.items()}))
    if seeds > 1:
        lines.append(spread(figures))
    else:
        lines.append(
            "one seed each: differences within the seed spread (docs/benchmarks.md) mean nothing"
        )
    return "\n".join(lines)


def means(figures: Sequence[Figures]) -> dict[str, dict[str, float]]:
    """The mean over seeds of every figure."""
    return {
        name: {key: statistics.fmean(one[name][key] for one in figures) for key in figures[0][name]}
        for name in figures[0]
    }


def spread(figures: Mapping[str, Sequence[Figures]]) -> str:
    """Least and greatest over the seeds, for the figures that are shares."""
    lines = ["spread over seeds (least to greatest)"]
    for name, first in next(iter(figures.values()))[0].items():
        for key in first:
            if key.startswith("n_"):
                continue
            cells = []
            for run, found in figures.items():
                values = [100 * one[name][key] for one in found]
                cells.append(f"{run} {min(values):5.1f} to {max(values):5.1f} %")
            lines.append(f"  {name:20s} {key:18s} {'   '.join(cells)}")
    return "\n".join(lines)
