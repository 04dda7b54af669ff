"""How a pool stands: while a run goes on, after it died, where its recipe can't be read; nothing is written."""

from __future__ import annotations

import json
import os
import time
from pathlib import Path
from typing import Any

import pytest

from curate.contract import done, parts, shards, storage
from curate.contract.listing import Entry
from pipelines import failures, lease, status
from pipelines.errors import RecipeError, RunFailed
from tests.tiny import whole_run
from tests.tiny.stages import USE


@pytest.fixture(scope="module")
def made(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("made")
    whole_run.make(folder)
    return folder


@pytest.fixture
def run(made: Path, tmp_path: Path) -> Path:
    return whole_run.copied(made, tmp_path)


def stages(told: dict[str, Any]) -> dict[str, dict[str, Any]]:
    return {one["stage"].removeprefix(f"{USE}:"): one for one in told["pool"]["stages"]}


def snapshot(root: Path) -> dict[str, int]:
    return {str(path): path.stat().st_mtime_ns for path in root.rglob("*")}


def test_a_run_that_ended(run: Path) -> None:
    before = snapshot(run)
    told = status.of(str(run / "pool"))
    pool = told["pool"]
    assert (pool["state"], pool["who"], pool["parts"]) == ("finished", None, 6)
    found = stages(told)
    assert list(found) == [
        "Numbers",
        "filter.duplicate_pair",
        "Length",
        "Common",
        "Picture",
        "PictureSize",
        "shard.write",
    ]
    assert {one["state"] for one in found.values()} == {"done"}
    assert [found[name]["rows_in"] for name in ("Numbers", "Length", "Picture")] == [47, 33, 10]
    assert pool["refused"][0] == {"stage": f"{USE}:Common", "reason": "common", "rows": 23}
    assert Path(pool["log"]).is_file()
    assert json.loads(json.dumps(told)) == told
    assert snapshot(run) == before


def test_the_recipe_says_the_same_as_the_pool(made: Path) -> None:
    by_recipe = status.of(str(made / "whole.toml"))
    assert stages(by_recipe) == stages(status.of(str(made / "pool")))


def test_a_run_that_failed_in_the_middle(tmp_path: Path) -> None:
    broken = [whole_run.STAGES[1], {"use": f"{USE}:Unopened"}, *whole_run.STAGES[2:]]
    with pytest.raises(RunFailed):
        whole_run.run(whole_run.write(tmp_path, broken))
    told = status.of(str(tmp_path / "pool"))
    assert told["pool"]["state"] == "stopped"
    found = stages(told)
    assert found["Common"]["state"] == "done"
    assert [found[name]["state"] for name in ("Unopened", "Picture", "shard.write")] == [
        "waiting"
    ] * 3


def take_back(run: Path, name: str, numbers: tuple[int, ...]) -> None:
    """Parts of a stage as if they had not been done yet."""
    (folder,) = (run / "pool" / "columns").glob(f"tests.tiny.stages.{name}-*")
    for number in numbers:
        done.withdraw(str(folder / f"part-{number:05d}.parquet"))
    storage.remove(str(run / "shards" / "manifest.json"))


def test_while_a_run_goes_on(run: Path) -> None:
    take_back(run, "Picture", (3, 4, 5))
    take_back(run, "PictureSize", (2, 3, 4, 5))
    step = f"{USE}:Picture + {USE}:PictureSize"
    about = lambda: {"step": step, "parts": 6, "done": 2, "running": 2, "log": "/where/it/is.jsonl"}  # noqa: E731
    with lease.held((str(run / "pool"),), about=about):
        text = (run / "pool" / ".lease").read_text()
        told = status.of(str(run / "pool"))
        assert (run / "pool" / ".lease").read_text() == text
    pool, found = told["pool"], stages(told)
    assert pool["state"] == "running"
    assert (pool["who"]["pid"], pool["who"]["alive"]) == (os.getpid(), True)
    assert pool["who"]["beat_age_s"] < 60
    assert [
        (found[n]["done"], found[n]["state"], found[n]["running"])
        for n in ("Picture", "PictureSize")
    ] == [(3, "running", 2), (2, "running", 2)]
    assert found["shard.write"]["state"] == "waiting"
    assert pool["left_s"] > 0
    assert pool["log"] == "/where/it/is.jsonl"


@pytest.mark.parametrize(("host", "beat_s", "state"), [
    ("here", 5, "died"), ("elsewhere", 5, "running"), ("elsewhere", 3600, "died"),
])  # fmt: skip
def test_a_lease_of_a_dead_process_and_of_other_machines(
    run: Path, host: str, beat_s: float, state: str
) -> None:
    path = run / "pool" / ".lease"
    with lease.held((str(run / "pool"),)):
        told = json.loads(path.read_text())
    beat = time.strftime("%Y-%m-%d %H:%M:%S UTC", time.gmtime(time.time() - beat_s))
    told |= {"started": "1", "beat": beat}  # this number, but not this process
    told |= {} if host == "here" else {"host": "elsewhere"}
    path.write_text(json.dumps(told))
    pool = status.of(str(run / "pool"))["pool"]
    assert pool["state"] == state
    assert pool["who"]["alive"] is (None if state == "running" else False)


def test_failures_are_told_with_their_last_words(run: Path) -> None:
    failed = failures.Failed("hung", "nothing came for 60 s", 4, "node-7", "/tmp/worker.out")
    failures.Failures(str(run / "pool")).note(f"{USE}:Picture", 4, failed)
    pool = status.of(str(run / "pool"))["pool"]
    (one,) = pool["failures"]
    assert (one["part"], one["kind"], one["node"]) == (4, "hung", "node-7")
    assert "nothing came for 60 s" in one["message"]
    assert next(s for s in pool["stages"] if s["stage"] == f"{USE}:Picture")["failed"] == 1


def test_a_pool_whose_recipe_can_t_be_read_is_told_by_its_folders(run: Path) -> None:
    text = (run / "pool" / "recipe.toml").read_text()
    (run / "pool" / "recipe.toml").write_text(text.replace("stages:Length", "stages:Gone"))
    pool = status.of(str(run / "pool"))["pool"]
    assert "Gone" in pool["notes"][0]
    assert [one["done"] for one in pool["stages"]] == [6] * 7
    assert next(one for one in pool["stages"] if one["stage"] == "source rows")["rows_in"] == 47


def test_very_many_parts_are_sampled_and_said_to_be_about(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(status, "_READ_AT_MOST", 10)
    root = str(tmp_path)
    count = 95
    storage.write_text(f"{root}/pool.json", json.dumps({"parts": count, "slices": []}))
    for n in range(count):
        told = {"part": n, "rows": 9, "rows_in": 8, "kept": 6, "refused": {"dull": 2}, "seconds": 1}
        storage.write_text(
            done.manifest_path(f"{root}/columns/a.b-12345678/part-{n:05d}.parquet"),
            json.dumps(told),
        )
    one = next(one for one in status.of(root)["pool"]["stages"] if one["stage"] == "a.b-12345678")
    assert one["is_about"]
    assert (one["done"], one["rows_in"], one["kept"], one["refused"]) == (
        95,
        760,
        570,
        {"dull": 190},
    )


def test_rates_are_of_the_times_at_which_parts_were_committed() -> None:
    now = time.time()
    made = [Entry(f"part-{n}.json", 1, now - 600 + 60 * n) for n in range(11)]  # one a minute
    overall, lately = status._rates(made, 120.0)
    assert overall == pytest.approx(2.0, rel=0.01)
    assert lately == pytest.approx(2.0, rel=0.25)
    stale = [Entry(f"part-{n}.json", 1, now - 6000 + n) for n in range(11)]
    assert status._rates(stale, 120.0)[1] == 0.0
    assert status._rates(made[:1], 120.0) == (None, None)
    assert status._rates([made[0]] * 6, 120.0)[0] is None  # stamps of whole seconds tell no rate


def test_shards_that_are_being_written_again_are_not_done(run: Path) -> None:
    (run / "shards" / shards.UNFINISHED).write_text("{}")
    pool = status.of(str(run / "pool"))["pool"]
    assert (pool["stages"][-1]["state"], pool["state"]) == ("waiting", "stopped")


def test_a_folder_of_neither_kind_is_refused(tmp_path: Path) -> None:
    with pytest.raises(RecipeError, match="neither a pool"):
        status.of(str(tmp_path))
    (tmp_path / "pool.json").write_text("{")
    with pytest.raises(RecipeError, match="can't be read as JSON"):
        status.of(str(tmp_path))


def test_a_pool_that_is_just_begun(tmp_path: Path) -> None:
    with lease.held((str(tmp_path),), about=lambda: {"step": "", "parts": 0, "done": 0}):
        pool = status.of(str(tmp_path))["pool"]
    assert (pool["state"], pool["parts"]) == ("running", 0)


@pytest.mark.net
@pytest.mark.slow
def test_in_an_object_store(bucket: str, tmp_path: Path) -> None:
    path = whole_run.write(
        tmp_path, whole_run.STAGES[:1], pool=f"{bucket}/pool", shards=f"{bucket}/shards"
    )
    whole_run.run(path)
    told = status.of(f"{bucket}/pool")
    assert told["pool"]["state"] == "finished"
    assert stages(told)["Length"]["rows_in"] == 33
    assert (
        told["pool"]["stages"][0]["rows_per_s"] is None
        or told["pool"]["stages"][0]["rows_per_s"] > 0
    )
    assert parts.Pool(f"{bucket}/pool").describe() is not None
