"""Parts: masks and columns by who wrote them, values scattered to their rows, stats that count."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
import pyarrow as pa
import pytest

from curate.contract import parts, storage
from pipelines import part
from pipelines.plan import plan_curation
from tests.tiny import object_server
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


@pytest.mark.parametrize("where", ["", "memory://test_part"])
def test_a_survey_tells_what_is_done(curate_recipe: Callable[..., Any], where: str) -> None:
    source = {"use": f"{USE}:Numbers", "count": 12, "rows_per_part": 3}
    recipe = curate_recipe(source, [], **({"pool": f"{where}/pool"} if where else {}))
    plan = plan_curation(recipe)
    try:
        assert [seen for _, seen in part.survey(plan, plan.source, range(2))] == [
            (None, "", "")
        ] * 2
        for entry in plan.source.stage.parts()[1:]:
            part.ingest(plan, entry)
        storage.write_text(part.sidecar(plan, plan.source, 3), "not as it was")
        found = dict(part.survey(plan, plan.source, range(4)))
        assert list(found) == [0, 1, 2, 3]
        assert [one.stats is not None for one in found.values()] == [False, True, True, False]
        assert [bool(one.fault) for one in found.values()] == [False, False, False, True]
        assert found[1] == part.look(plan, plan.source, 1)
    finally:
        storage.remove(plan.pool_root)


@pytest.mark.net
def test_a_survey_of_an_object_store_is_a_listing_and_a_question_a_part(
    curate_recipe: Callable[..., Any],
    bucket: str,
    moto_address: str,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    source = {"use": f"{USE}:Numbers", "count": 12, "rows_per_part": 3}
    plan = plan_curation(curate_recipe(source, [], pool=f"{bucket}/pool"))
    for entry in plan.source.stage.parts():
        part.ingest(plan, entry)
    with object_server.proxy(moto_address) as proxy:
        monkeypatch.setenv("AWS_ENDPOINT_URL", proxy.address)
        found = list(part.survey(plan, plan.source, range(4)))
        assert [method for method, _, _ in proxy.seen] == ["GET"] * 5
    monkeypatch.setenv("AWS_ENDPOINT_URL", moto_address)
    assert all(seen.stats for _, seen in found)
    storage.write_text(part.sidecar(plan, plan.source, 3), "cut")
    assert "3 of" in dict(part.survey(plan, plan.source, [1, 3]))[3].fault
