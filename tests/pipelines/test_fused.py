"""Fused stages: they see each other's columns, refused rows are null, pictures stream to a tar."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pyarrow as pa
import pytest

from curate.contract import parts, storage
from curate.stage import KEEP, REASON, StageError
from pipelines import curation, fused, part
from pipelines.plan import plan_curation
from pipelines.run_local import LocalRunner
from tests.pipelines.test_curation import SOURCE, Quiet
from tests.tiny.stages import USE


def prepared(curate_recipe: Callable[..., Any], stages: list[dict[str, Any]]) -> Any:
    source = {"use": f"{USE}:Numbers", "count": 12, "rows_per_part": 12, "bad_every": 6}
    plan = plan_curation(curate_recipe(source, [{"use": "filter.duplicate_pair"}, *stages]))
    (only,) = plan.source.stage.parts()
    part.ingest(plan, only)
    uid = parts.read_table(plan.pool.rows_path(0), ["uid"])["uid"]
    table, alive = part.living(plan, 0, 0)
    part.commit_decision(
        plan,
        0,
        0,
        pa.table(
            [pa.array([True] * len(table)), pa.array([None] * len(table), REASON.type)],
            schema=pa.schema([KEEP, REASON]),
        ),
        alive,
        0.0,
        table["uid"],
    )
    return plan, uid


def test_fused_stages_in_one_pass(curate_recipe: Callable[..., Any]) -> None:
    plan, uid = prepared(
        curate_recipe,
        [{"use": f"{USE}:Picture", "dead": "number 3"}, {"use": f"{USE}:PictureSize"}],
    )
    stats = fused.run_rows(plan, (1, 2), 0)
    assert stats[1]["rows_in"] == 10
    assert stats[1]["refused"] == {"error.tiny.dead": 1}
    assert (stats[2]["rows_in"], stats[2]["kept"]) == (9, 9)
    size = parts.read_table(part.sidecar(plan, plan.stages[2], 0))
    assert size["uid"].equals(uid)
    dead = [3, 5, 11]  # the picture that is dead, and the two rows without url
    assert [n for n, value in enumerate(size["picture_bytes"].to_pylist()) if value is None] == dead
    pictures = parts.read_images(plan.pool.images_path(plan.stages[1].fingerprint, 0))
    assert set(pictures) == {u for n, u in enumerate(uid.to_pylist()) if n not in dead}


def test_the_second_half_of_a_pass_reads_the_first_from_disk(
    curate_recipe: Callable[..., Any],
) -> None:
    plan, _ = prepared(curate_recipe, [{"use": f"{USE}:Picture"}, {"use": f"{USE}:PictureSize"}])
    fused.run_rows(plan, (1,), 0)
    apart = fused.run_rows(plan, (1, 2), 0)
    table = parts.read_table(part.sidecar(plan, plan.stages[2], 0))
    plan2, _ = prepared(
        lambda *a, **k: curate_recipe(*a, folder="b", **k),
        [{"use": f"{USE}:Picture"}, {"use": f"{USE}:PictureSize"}],
    )
    together = fused.run_rows(plan2, (1, 2), 0)
    assert parts.read_table(part.sidecar(plan2, plan2.stages[2], 0)).equals(table)
    assert {k: v["kept"] for k, v in apart.items()} == {k: v["kept"] for k, v in together.items()}


def test_a_stage_that_returns_other_rows_is_a_fault_of_the_stage(
    curate_recipe: Callable[..., Any],
) -> None:
    plan, _ = prepared(curate_recipe, [{"use": f"{USE}:Drops"}])
    with pytest.raises(StageError, match="returned 9 rows for 10"):
        fused.run_rows(plan, (1,), 0)


def test_a_stage_that_can_not_open_blames_no_row(curate_recipe: Callable[..., Any]) -> None:
    plan, _ = prepared(curate_recipe, [{"use": f"{USE}:Unopened"}])
    with pytest.raises(
        StageError, match=r"could not be opened: OSError: weights\.onnx is no model"
    ):
        fused.run_rows(plan, (1,), 0)
    assert not part.is_done(plan, plan.stages[1], 0)


def test_two_stages_of_one_step_make_pictures_behind_fsspec(
    curate_recipe: Callable[..., Any],
) -> None:
    stages = [{"use": f"{USE}:Picture"}, {"use": f"{USE}:Longer"}]
    found = []
    for folder, options in (("here", {}), ("away", {"pool": "memory://two_makers/pool"})):
        plan = plan_curation(curate_recipe(SOURCE, stages, folder=folder, **options))
        count = curation.measure(plan, LocalRunner(), Quiet())
        makers = [one for one in plan.stages if one.makes_images]
        paths = [plan.pool.images_path(m.fingerprint, n) for m in makers for n in range(count)]
        found.append([parts.read_images(path) for path in paths])
    assert found[0] == found[1]
    first, second = found[0][:count], found[0][count:]
    assert [{uid: one + b"+" for uid, one in held.items()} for held in first] == second
    storage.remove("memory://two_makers")


def test_what_was_opened_is_closed_once_at_the_end(monkeypatch: pytest.MonkeyPatch) -> None:
    closed: list[str] = []

    class State:
        def close(self) -> None:
            closed.append("closed")

    monkeypatch.setattr(fused, "_OPENED", {"one": State(), "other": object()})
    fused.close_opened()
    fused.close_opened()
    assert closed == ["closed"]
    assert not fused._OPENED


def test_a_process_that_goes_on_to_another_step_lets_go_of_what_it_opened(
    curate_recipe: Callable[..., Any], monkeypatch: pytest.MonkeyPatch
) -> None:
    """Workers live longer than a step, and must not hold the models of all."""
    monkeypatch.setattr(fused, "_OPENED", {"a step before": object()})
    plan = plan_curation(curate_recipe(SOURCE, [{"use": f"{USE}:Length"}]))
    count = curation.measure(plan, LocalRunner(), Quiet())
    assert count > 1
    assert list(fused._OPENED) == [fused._key(plan.stages[1])]
