"""Parts: masks and columns by who wrote them, values scattered to their rows, stats that count."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
import pyarrow as pa

from curate.contract import parts
from pipelines import part
from pipelines.plan import plan_curation
from tests.tiny.stages import USE


def test_scatter_puts_values_at_their_rows() -> None:
    alive = np.array([False, True, True, False])
    full = part.scatter(pa.table({"x": [5, 6]}), alive, pa.schema([("x", pa.int64())]))
    assert full["x"].to_pylist() == [None, 5, 6, None]


def test_ingest_commits_rows_decisions_and_counts(curate_recipe: Callable[..., Any]) -> None:
    source = {"use": f"{USE}:Numbers", "count": 12, "rows_per_part": 7, "bad_every": 6}
    plan = plan_curation(curate_recipe(source, []))
    stats = [part.ingest(plan, entry) for entry in plan.source.stage.parts()]
    assert [(s["rows"], s["kept"], s["refused"]) for s in stats] == [
        (7, 6, {"error.tiny.null_url": 1}),
        (5, 4, {"error.tiny.null_url": 1}),
    ]
    assert part.alive_mask(plan, (-1,), 0).tolist() == [True] * 5 + [False, True]
    table = part.load_columns(plan, ("caption", "part", "row"), 0, 1)
    assert table["part"].to_pylist() == [1] * 5
    assert table["row"].to_pylist() == list(range(5))
    assert parts.read_table(plan.pool.rows_path(1)).column_names == ["uid", "url", "caption"]
