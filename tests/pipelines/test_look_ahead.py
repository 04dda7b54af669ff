"""A stage hears of its rows before it is asked: in order, once, only of those it will get; same bytes anyway."""

from __future__ import annotations

import json
import threading
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from curate.contract import parts, storage
from pipelines import curation, fused, look_ahead, part, run_ray
from pipelines.errors import RunFailed
from pipelines.plan import CurationPlan, plan_curation
from pipelines.run_local import LocalRunner
from tests.pipelines.test_curation import SOURCE, Quiet, shard_bytes
from tests.tiny.stages import USE


def stages_of(log: Path | str = "", **options: Any) -> list[dict[str, Any]]:
    ahead = {"use": f"{USE}:Ahead", "log": str(log), **options}
    ahead.setdefault("dead", "number 11")
    return [
        {"use": f"{USE}:Length"},
        {"use": "filter.threshold", "column": "length", "at_least": 15},
        ahead,
        {"use": f"{USE}:PictureSize"},
    ]


def run(recipe: Any) -> CurationPlan:
    plan = plan_curation(recipe)
    curation.run(plan, LocalRunner(), Quiet())
    return plan


def lines(log: Path, kind: str) -> list[list[str]]:
    found = [line.split() for line in log.read_text().splitlines()]
    return [words[1:] for words in found if words[0] == kind]


def living(plan: CurationPlan, index: int, number: int) -> list[str]:
    mask = part.alive_mask(plan, plan.stages[index].upstream, number)
    uids = parts.read_table(plan.pool.rows_path(number), ["uid"])["uid"].to_pylist()
    return [uid for uid, alive in zip(uids, mask, strict=True) if alive]


def test_it_begins_a_step_and_what_follows_is_fused_with_it(
    curate_recipe: Callable[..., Any],
) -> None:
    plan = plan_curation(curate_recipe(SOURCE, stages_of()))
    assert [(step.kind, step.stages) for step in plan.steps] == [
        ("global", (0,)),
        ("rows", (1, 2)),
        ("rows", (3, 4)),
    ]


def test_each_part_is_told_once_in_order_with_the_rows_it_will_be_asked_for(
    curate_recipe: Callable[..., Any], tmp_path: Path
) -> None:
    log = tmp_path / "log"
    plan = run(curate_recipe(SOURCE, stages_of(log)))
    told = lines(log, "told")
    assert [int(words[0]) for words in told] == [1, 2, 3, 4, 5]  # all of part 0 is refused above
    assert [words[1:] for words in told] == [living(plan, 3, number) for number in range(1, 6)]
    asked = [uid for words in lines(log, "asked") for uid in words]
    assert asked == [uid for words in told for uid in words[1:]]
    assert len(asked) < 30  # duplicates, rows without url and short captions are no part of it


def test_it_hears_of_as_many_parts_as_it_wants(
    curate_recipe: Callable[..., Any], tmp_path: Path
) -> None:
    def before_the_first_batch(room: int) -> int:
        log = tmp_path / f"log{room}"
        run(curate_recipe(SOURCE, stages_of(log, room=room), folder=f"{room}"))
        words = [line.split()[0] for line in log.read_text().splitlines()]
        return words.index("asked")

    assert before_the_first_batch(0) == 1
    assert before_the_first_batch(1_000) == 5


def test_it_hears_of_the_next_parts_while_it_is_at_work(
    curate_recipe: Callable[..., Any], tmp_path: Path
) -> None:
    log = tmp_path / "log"
    # `slow` waits in its first batch until it has heard of 15 rows; one part has fewer than 8.
    run(curate_recipe(SOURCE, stages_of(log, room=15, slow=True)))
    words = [line.split()[0] for line in log.read_text().splitlines()]
    assert words[:2] == ["told", "asked"]
    assert words[2] == "told"


def test_notes_lie_under_the_measure_and_are_gone_when_the_part_is_committed(
    curate_recipe: Callable[..., Any], tmp_path: Path
) -> None:
    broken = curate_recipe(SOURCE, [*stages_of(), lost_service(tmp_path)])
    plan = plan_curation(broken)
    root = Path(look_ahead.notes_root(plan, plan.stages[3]))
    assert root.name.startswith(plan.stages[3].measure[:8])
    with pytest.raises(RunFailed, match="the service at x is down"):
        curation.run(plan, LocalRunner(), Quiet())
    begun = sorted(path.name for path in root.iterdir())
    assert begun == ["part-00003", "part-00004"]  # in work, and heard of; 0 to 2 are committed
    run(broken)
    assert not root.exists()
    plan = plan_curation(curate_recipe(SOURCE, other_threshold(stages_of())))
    assert Path(look_ahead.notes_root(plan, plan.stages[3])) == root


def lost_service(folder: Path) -> dict[str, Any]:
    return {"use": f"{USE}:Killer", "flag": str(folder / "flag"), "at": "26", "how": "service"}


def other_threshold(stages: list[dict[str, Any]]) -> list[dict[str, Any]]:
    return [{**stage, "at_least": 14} if "at_least" in stage else stage for stage in stages]


def test_leftover_notes_of_committed_parts_go_with_the_next_run(
    curate_recipe: Callable[..., Any],
) -> None:
    recipe = curate_recipe(SOURCE, stages_of())
    plan = run(recipe)
    stale = Path(look_ahead.notes_of(plan, plan.stages[3], 2))
    stale.mkdir(parents=True)
    (stale / "journal").write_bytes(b"x")
    curation.measure(plan, LocalRunner(), Quiet())
    assert not stale.parent.exists()


def test_a_run_that_ends_whole_drops_the_notes_of_runs_with_other_options(
    curate_recipe: Callable[..., Any], tmp_path: Path
) -> None:
    broken = curate_recipe(SOURCE, [*stages_of(dead="number 12"), lost_service(tmp_path)])
    with pytest.raises(RunFailed):
        run(broken)
    work = Path(broken.curate.pool, "work")
    assert list(work.glob("*-notes"))
    run(curate_recipe(SOURCE, stages_of()))
    assert not list(work.glob("*-notes"))


def test_it_hears_of_no_part_that_is_done(
    curate_recipe: Callable[..., Any], tmp_path: Path
) -> None:
    """A stage below it has still to run over that part, so it is among those to come."""
    log = tmp_path / "log"
    recipe = curate_recipe(SOURCE, stages_of(log, room=1000))
    plan = run(recipe)
    for index, number in ((3, 1), (4, 1), (4, 2), (3, 3), (4, 3)):
        Path(part.sidecar(plan, plan.stages[index], number)).unlink()
    log.unlink()
    curation.measure(plan, LocalRunner(), Quiet())
    assert [words[0] for words in lines(log, "told")] == ["00001", "00003"]


def test_nothing_is_told_once_the_part_is_over(
    curate_recipe: Callable[..., Any], monkeypatch: pytest.MonkeyPatch
) -> None:
    recipe = curate_recipe(SOURCE, stages_of(room=1000))
    plan = plan_curation(recipe)
    curation.measure(plan, LocalRunner(), Quiet())
    for number in range(1, 6):
        Path(part.sidecar(plan, plan.stages[3], number)).unlink()
    planned, began = plan.stages[3], threading.Event()
    state, ended = planned.stage.open(), list[float]()

    def expect(self: Any, rows: Any, state: Any, notes: str) -> None:
        if threading.current_thread().name == "look-ahead":
            began.set()
            time.sleep(0.3)
            ended.append(time.monotonic())

    monkeypatch.setattr(type(planned.stage), "expect", expect)
    monkeypatch.setattr(
        type(planned.stage),
        "wants_more",
        lambda *_: threading.current_thread().name == "look-ahead",
    )
    ahead = look_ahead.LookAhead(plan, 3, 1, (2, 3, 4, 5), (), state)
    ahead.begin(look_ahead.coming(plan, 3, 1, ()))
    assert began.wait(60)
    ahead.end(committed=False)
    over = time.monotonic()
    time.sleep(0.4)
    assert ended
    assert max(ended) < over


def test_rows_that_are_known_are_not_told(
    curate_recipe: Callable[..., Any], tmp_path: Path
) -> None:
    run(curate_recipe(SOURCE, stages_of()))
    log = tmp_path / "log"
    # Lets shorter captions through.
    plan = run(curate_recipe(SOURCE, other_threshold(stages_of(log))))
    told = {uid for words in lines(log, "told") for uid in words[1:]}
    asked = {uid for words in lines(log, "asked") for uid in words}
    everyone = {uid for number in range(6) for uid in living(plan, 3, number)}
    assert told == asked
    assert 0 < len(told) < len(everyone)


def test_a_pool_behind_fsspec(curate_recipe: Callable[..., Any], tmp_path: Path) -> None:
    log = tmp_path / "log"
    away = curate_recipe(SOURCE, stages_of(log), pool="memory://look_ahead/pool", folder="away")
    plan = plan_curation(away)
    curation.measure(plan, LocalRunner(), Quiet())
    assert not storage.exists(look_ahead.notes_root(plan, plan.stages[3]))
    assert [int(words[0]) for words in lines(log, "told")] == [1, 2, 3, 4, 5]
    here = run(curate_recipe(SOURCE, stages_of(), folder="here"))
    for number in range(6):
        paths = [p.pool.images_path(p.stages[3].fingerprint, number) for p in (plan, here)]
        assert parts.read_images(paths[0]) == parts.read_images(paths[1])


def test_costs_are_summed_over_the_parts(curate_recipe: Callable[..., Any]) -> None:
    plan = run(curate_recipe(SOURCE, stages_of()))
    planned = plan.stages[3]
    folder = plan.pool.columns_folder(planned.use, planned.fingerprint)
    costs = json.loads((Path(folder) / "manifest.json").read_text())["costs"]
    of_parts = [parts.read_stats(part.sidecar(plan, planned, n))["costs"] for n in range(6)]
    assert costs["calls"] == sum(entry["calls"] for entry in of_parts) >= 6
    assert sorted(costs) == ["calls", "tar_cpu_s"]


def test_a_fault_in_looking_ahead_stops_the_run_and_says_where(
    curate_recipe: Callable[..., Any],
) -> None:
    with pytest.raises(RunFailed, match=r"could not begin with part 1: OSError: notes are damaged"):
        run(curate_recipe(SOURCE, stages_of(broken=True)))


def test_the_same_bytes_without_looking_ahead_and_in_any_spans(
    curate_recipe: Callable[..., Any], tmp_path: Path
) -> None:
    alone = [
        {"use": f"{USE}:Picture", "dead": "number 11"} if s["use"].endswith("Ahead") else s
        for s in stages_of()
    ]
    plain = curate_recipe(SOURCE, alone, folder="plain")
    run(plain)
    for rows_per_part, span in ((8, 1), (8, 4), (3, 8), (47, 1)):
        recipe = curate_recipe(
            {**SOURCE, "rows_per_part": rows_per_part},
            stages_of(),
            folder=f"{rows_per_part}-{span}",
        )
        curation.run(plan_curation(recipe), Spread(span), Quiet())
        assert pictures(recipe) == pictures(plain)
        assert shard_bytes(recipe)["00000.tar"] == shard_bytes(plain)["00000.tar"]


def pictures(recipe: Any) -> dict[str, bytes]:
    found: dict[str, bytes] = {}
    for path in sorted(Path(recipe.curate.pool).glob("images/*/*.tar")):
        found |= parts.read_images(str(path))
    return found


class Spread(LocalRunner):
    """As if spans of parts went to other processes: a state is forgotten between two calls."""

    def __init__(self, span: int) -> None:
        self.span = span

    def map(self, function: Any, plan: Any, calls: Any, resources: Any) -> Any:
        if function is fused.run_span:
            numbers = [number for call in calls for number in call[1]]
            groups = [tuple(numbers[n : n + self.span]) for n in range(0, len(numbers), self.span)]
            calls = [(calls[0][0], group, (), calls[0][3]) for group in groups]
        for done in super().map(function, plan, calls, resources):
            fused._OPENED.clear()
            yield done


@pytest.mark.ray
def test_the_same_bytes_under_ray(
    curate_recipe: Callable[..., Any], ray_address: str, tmp_path: Path
) -> None:
    source = {**SOURCE, "rows_per_part": 3}
    here, there = (curate_recipe(source, stages_of(), folder=name) for name in ("here", "there"))
    run(here)
    log = tmp_path / "log"
    there = curate_recipe(source, stages_of(log), folder="there")
    with run_ray.connected() as runner:
        curation.run(plan_curation(there), runner, Quiet())
    assert shard_bytes(here) == shard_bytes(there)
    asked = [uid for words in lines(log, "asked") for uid in words]
    told = [uid for words in lines(log, "told") for uid in words[1:]]
    assert sorted(asked) == sorted(told)


@given(count=st.integers(0, 200), workers=st.integers(0, 30), is_ahead=st.booleans())
def test_spans_cover_the_parts_in_order(count: int, workers: int, is_ahead: bool) -> None:
    todo = list(range(0, 2 * count, 2))
    found = look_ahead.spans(todo, workers, is_ahead)
    assert [number for span, _ in found for number in span] == todo
    for span, upcoming in found:
        last = todo.index(span[-1])
        assert list(upcoming) == todo[last + 1 : last + 1 + len(upcoming)]
        assert len(span) <= 8
        assert len(upcoming) <= 8
    if is_ahead and workers and count >= 3 * workers:
        assert len(found) >= 3 * workers
