"""What an earlier run measured is taken over row by row, pictures too, and never changes what comes out."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pytest

from curate.contract import parts, storage
from curate.stage import KEEP, REASON, decision
from pipelines import curation, part, reuse
from pipelines.errors import RunFailed
from pipelines.plan import plan_curation
from pipelines.run_local import LocalRunner
from tests.pipelines.test_curation import SOURCE, Quiet, ledger, shard_bytes
from tests.tiny.stages import USE


def stages(most: int, calls: Path, dead: str = "number 11") -> list[dict[str, Any]]:
    return [
        {"use": f"{USE}:Common", "most": most},
        {"use": f"{USE}:Length", "calls_file": str(calls)},
        {"use": f"{USE}:Picture", "dead": dead},
        {"use": f"{USE}:PictureSize"},
    ]


def run(recipe: Any) -> None:
    storage.remove(recipe.curate.shards)
    curation.run(plan_curation(recipe), LocalRunner(), Quiet())


def calls_of(path: Path) -> int:
    return len(path.read_text().split()) if path.exists() else 0


@pytest.mark.parametrize("mosts", [(10, 12), (12, 10), (8, 12, 10)])
def test_another_threshold_above_measures_new_rows_only(
    curate_recipe: Callable[..., Any], tmp_path: Path, mosts: tuple[int, ...]
) -> None:
    calls = tmp_path / "calls"
    taken = []
    for most in mosts:
        recipe = curate_recipe(SOURCE, stages(most, calls))
        run(recipe)
        plan = plan_curation(recipe)
        stats = [parts.read_stats(part.sidecar(plan, plan.stages[2], n)) for n in range(6)]
        taken.append((sum(s["rows_in"] for s in stats), sum(s["taken_over"] for s in stats)))
    fresh = curate_recipe(SOURCE, stages(mosts[-1], tmp_path / "other"), folder="fresh")
    run(fresh)
    assert shard_bytes(recipe) == shard_bytes(fresh)
    assert ledger(recipe) == ledger(fresh)
    assert taken[0][1] == 0
    rows_in, known = taken[-1]
    # Rows are refused by Common beyond a count, so a lower threshold's rows are among a higher one's.
    assert known == min(rows_in, max(rows for rows, _ in taken[:-1]))


def test_rows_of_two_earlier_runs_are_joined(
    curate_recipe: Callable[..., Any], tmp_path: Path
) -> None:
    """One run saw the short captions, another the long ones; the third needs neither to be measured."""

    def chain(**bounds: int) -> list[dict[str, Any]]:
        return [
            {"use": f"{USE}:Length"},
            {"use": "filter.threshold", "column": "length", **bounds},
            {"use": f"{USE}:Picture"},
        ]

    for bounds in ({"at_most": 14}, {"at_least": 15}, {"at_most": 100}):
        recipe = curate_recipe(SOURCE, chain(**bounds))
        run(recipe)
    plan = plan_curation(recipe)
    stats = [parts.read_stats(part.sidecar(plan, plan.stages[3], n)) for n in range(6)]
    assert [s["taken_over"] for s in stats] == [s["rows_in"] for s in stats]
    fresh = curate_recipe(SOURCE, chain(at_most=100), folder="fresh")
    run(fresh)
    assert shard_bytes(recipe) == shard_bytes(fresh)


def test_pictures_are_taken_over_and_not_fetched_again(
    curate_recipe: Callable[..., Any], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    from tests.tiny.stages import Picture

    run(curate_recipe(SOURCE, stages(12, tmp_path / "calls", dead="")))

    def refuse(self: Any, batch: pa.Table, state: Any) -> pa.Table:
        raise AssertionError("fetched again")

    monkeypatch.setattr(Picture, "process", refuse)
    recipe = curate_recipe(SOURCE, stages(10, tmp_path / "calls", dead=""))
    run(recipe)
    assert sum(row["keep"] for row in ledger(recipe)) == 10
    assert not [row for row in ledger(recipe) if "AssertionError" in (row["reason"] or "")]


def test_another_option_of_its_own_is_measured_anew(
    curate_recipe: Callable[..., Any], tmp_path: Path
) -> None:
    run(curate_recipe(SOURCE, stages(12, tmp_path / "a")))
    recipe = curate_recipe(SOURCE, stages(12, tmp_path / "a", dead="number 12"))
    plan = plan_curation(recipe)
    assert reuse.find(plan, plan.stages[3], 1) is None
    assert reuse.find(plan, plan.stages[4], 1) is None, "its pictures are others"


def test_a_row_that_failed_is_asked_again(
    curate_recipe: Callable[..., Any], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    from tests.tiny.stages import Picture

    first = curate_recipe(SOURCE, stages(12, tmp_path / "a", dead="number 3"))
    run(first)
    failed = {row["uid"] for row in ledger(first) if row["reason"] == "error.tiny.dead"}
    assert len(failed) > 1
    asked: list[str] = []
    original = Picture.process

    def process(self: Any, batch: pa.Table, state: Any) -> pa.Table:
        asked.extend(batch["uid"].to_pylist())
        return original(self, batch, state)

    monkeypatch.setattr(Picture, "process", process)
    again = curate_recipe(SOURCE, stages(10, tmp_path / "a", dead="number 3"))
    run(again)
    assert asked
    assert set(asked) <= failed


def test_a_failure_that_lasts_is_taken_over(
    curate_recipe: Callable[..., Any], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    table = pa.table(
        {
            "keep": [True, False, False, None, False],
            "reason": [None, "error.x.gone", "error.x.busy", None, "dull"],
        }
    )
    plan = plan_curation(curate_recipe(SOURCE, stages(12, tmp_path / "a")))
    planned = dataclasses.replace(plan.stages[3], use="x")
    monkeypatch.setattr(type(planned.stage), "lasting_errors", ("gone",))
    assert reuse.known_rows(planned, table).tolist() == [True, True, False, False, True]


def test_a_service_that_came_back_is_asked(
    curate_recipe: Callable[..., Any], tmp_path: Path
) -> None:
    """An earlier run with a high max_error_frac left errors; a later one, with other rows, starts anew."""
    flag = tmp_path / "up"
    service = {"use": f"{USE}:Service", "flag": str(flag)}
    run(curate_recipe(SOURCE, [{"use": f"{USE}:Common", "most": 12}, service], max_error_frac=1.0))
    flag.touch()
    recipe = curate_recipe(SOURCE, [{"use": f"{USE}:Common", "most": 10}, service])
    run(recipe)
    assert not [row for row in ledger(recipe) if "refused" in (row["reason"] or "")]


def test_a_state_counted_before_dead_parts_were_given_back_is_dropped(
    curate_recipe: Callable[..., Any], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    flag = tmp_path / "up"
    chain = [{"use": f"{USE}:Service", "flag": str(flag)}, {"use": f"{USE}:Common", "most": 10}]

    def stop(*_: Any) -> None:
        raise KeyboardInterrupt

    killed = curate_recipe(SOURCE, chain, max_error_frac=1.0)
    with monkeypatch.context() as patch:
        patch.setattr("tests.tiny.stages.Common.decide", stop)
        with pytest.raises(KeyboardInterrupt):
            run(killed)
    with pytest.raises(RunFailed):
        run(curate_recipe(SOURCE, chain))
    flag.touch()
    recipe = curate_recipe(SOURCE, chain)
    run(recipe)
    fresh = curate_recipe(SOURCE, chain, folder="fresh")
    run(fresh)
    assert ledger(recipe) == ledger(fresh)


def test_a_pool_s_name_is_no_pattern(curate_recipe: Callable[..., Any], tmp_path: Path) -> None:
    for most in (12, 10):
        recipe = curate_recipe(SOURCE, stages(most, tmp_path / "a"), folder="run[1]")
        run(recipe)
    plan = plan_curation(recipe)
    assert parts.read_stats(part.sidecar(plan, plan.stages[2], 0))["taken_over"] > 0


def test_rows_come_back_in_their_order() -> None:
    def table(names: list[str], reasons: list[str | None]) -> pa.Table:
        schema = pa.schema([("name", pa.string()), KEEP, REASON])
        return pa.table([pa.array(names), *decision(reasons)], schema=schema)

    known = np.array([False, True, True, False, True])
    found = reuse.spliced(
        known, table(["b", "c", "e"], [None, "x", "y"]), table(["a", "d"], ["y", None])
    )
    assert found["name"].to_pylist() == ["a", "b", "c", "d", "e"]
    assert found["reason"].to_pylist() == ["y", None, "x", None, "y"]


def test_each_picture_is_read_where_its_row_is_known_from(
    curate_recipe: Callable[..., Any], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    plan = plan_curation(curate_recipe(SOURCE, stages(12, tmp_path / "calls")))
    uids = ["a", "b", "c", "d"]
    paths = [str(tmp_path / f"{run}.tar") for run in range(3)]
    for run_number, path in enumerate(paths):  # each has all, and none twice the same bytes
        parts.write_images(
            path, uids, [b"\xff\xd8\xff" + f"{run_number}{u}".encode() for u in uids]
        )
    opened: list[str] = []
    original = parts.Pictures._opened
    monkeypatch.setattr(
        parts.Pictures, "_opened", lambda one: (opened.append(one._path), original(one))[1]
    )
    schema = part.sidecar_schema(plan.stages[3])
    table = pa.table([pa.nulls(4, f.type) for f in schema], schema=schema)
    known_from = np.array([0, 2, 0, 2], np.int32)
    prior = reuse.Prior(plan.stages[3], np.ones(4, bool), table, paths, known_from)
    assert not opened
    found = prior.take(np.array([3, 0, 1]), ["d", "a", "b"])["image"].to_pylist()
    assert found == [b"\xff\xd8\xff" + text for text in (b"2d", b"0a", b"2b")]
    prior.take(np.array([2]), ["c"])
    assert opened == [paths[0], paths[2]]
    files = [pictures._file for pictures in prior._pictures.values()]
    prior.close()
    assert len(files) == 2
    assert all(file is not None and file.closed for file in files)


def test_a_part_lets_go_of_the_pictures_it_took_over(
    curate_recipe: Callable[..., Any], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    run(curate_recipe(SOURCE, stages(12, tmp_path / "calls", dead="")))
    closed: list[int] = []
    original = reuse.Prior.close

    def close(self: reuse.Prior) -> None:
        closed.append(len(self._pictures))
        original(self)

    monkeypatch.setattr(reuse.Prior, "close", close)
    run(curate_recipe(SOURCE, stages(10, tmp_path / "calls", dead="")))
    assert sum(closed) > 0


def test_a_failed_row_that_is_refused_above_now_is_not_carried_over(
    curate_recipe: Callable[..., Any], tmp_path: Path
) -> None:
    """What remains is known whole; but the part's counts would still have the row that is gone."""

    def chain(at_least: int) -> list[dict[str, Any]]:
        return [
            {"use": f"{USE}:Length"},
            {"use": "filter.threshold", "column": "length", "at_least": at_least},
            {"use": f"{USE}:Common", "most": 50},  # ends a step
            {"use": f"{USE}:Picture", "dead": "number 8"},  # the one short caption of its part
        ]

    def counts(recipe: Any) -> list[tuple[int, int, dict[str, int]]]:
        plan = plan_curation(recipe)
        stats = [parts.read_stats(part.sidecar(plan, plan.stages[4], n)) for n in range(6)]
        return [(one["rows_in"], one["kept"], one["refused"]) for one in stats]

    first = curate_recipe(SOURCE, chain(1))
    run(first)
    assert counts(first)[1] == (5, 4, {"error.tiny.dead": 1})
    recipe = curate_recipe(SOURCE, chain(15))
    run(recipe)
    fresh = curate_recipe(SOURCE, chain(15), folder="fresh")
    run(fresh)
    assert counts(recipe)[1] == (4, 4, {})
    assert counts(recipe) == counts(fresh)


def test_a_part_whose_rows_are_as_before_is_carried_over_whole(
    curate_recipe: Callable[..., Any], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """No row is refused by either threshold, so pictures are linked and nothing is read row by row."""
    run(curate_recipe(SOURCE, stages(50, tmp_path / "a", dead="")))
    before = plan_curation(curate_recipe(SOURCE, stages(50, tmp_path / "a", dead="")))

    def refuse(*_: Any) -> None:
        raise AssertionError("a part was run")

    monkeypatch.setattr("pipelines.fused._Fused", refuse)
    recipe = curate_recipe(SOURCE, stages(60, tmp_path / "a", dead=""))
    run(recipe)
    plan = plan_curation(recipe)
    for index in (2, 3, 4):
        old, new = before.stages[index], plan.stages[index]
        assert old.fingerprint != new.fingerprint
        for number in range(6):
            stats = parts.read_stats(part.sidecar(plan, new, number))
            assert stats["fingerprint"] == new.fingerprint
            assert stats["taken_over"] == stats["rows_in"]
            if new.makes_images:
                pair = [plan.pool.images_path(one.fingerprint, number) for one in (old, new)]
                assert Path(pair[0]).samefile(pair[1])
    fresh = curate_recipe(SOURCE, stages(60, tmp_path / "a", dead=""), folder="fresh")
    monkeypatch.undo()
    run(fresh)
    assert shard_bytes(recipe) == shard_bytes(fresh)
