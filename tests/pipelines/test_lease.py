"""One runner a folder: a second one is told who is at work, and a dead one's place is taken."""

from __future__ import annotations

import json
import multiprocessing
import os
import signal
import threading
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from curate.contract import storage
from pipelines import curation, lease
from pipelines.errors import RunFailed
from pipelines.plan import plan_curation
from pipelines.run_local import LocalRunner
from tests.pipelines.test_curation import SOURCE, STAGES, Quiet, run, shard_bytes
from tests.tiny.stages import USE


@pytest.fixture(params=["", "memory://test_lease", pytest.param("bucket", marks=pytest.mark.net)])
def folder(request: pytest.FixtureRequest, tmp_path: Path) -> Iterator[str]:
    if request.param == "bucket":
        yield f"{request.getfixturevalue('bucket')}/pool"
        return
    yield request.param or str(tmp_path)
    if request.param:
        storage.remove(request.param)


def elsewhere(folder: str, **changed: Any) -> str:
    """The lease of a process on another machine."""
    told = {
        "host": "far", "boot": "b", "processes": "p", "pid": 7, "started": "1", "user": "ann", "run": "r",
        "began": "2026-01-01 00:00:00 UTC", "beat": "2026-01-01 00:10:00 UTC", "command": "clip-pipe curate x", **changed,
    }  # fmt: skip
    text = json.dumps(told)
    storage.write_text(f"{folder}/.lease", text)
    return text


def in_thread(work: Callable[[], None]) -> BaseException | None:
    """What another run, in another thread, ends with."""
    faults: list[BaseException] = []

    def call() -> None:
        try:
            work()
        except BaseException as fault:
            faults.append(fault)

    thread = threading.Thread(target=call)
    thread.start()
    thread.join(60)
    assert not thread.is_alive()
    return faults[0] if faults else None


def take(folder: str) -> None:
    with lease.held((folder,), lambda text: None):
        pass


def test_a_second_run_is_told_who_is_at_work(folder: str) -> None:
    with lease.held((folder,), about=lambda: {"step": "source", "parts": 4, "done": 1}):
        told = lease.read(folder)
        assert told is not None
        assert (told["pid"], told["step"], told["parts"], told["done"]) == (os.getpid(), "source", 4, 1)  # fmt: skip
        fault = in_thread(lambda: take(folder))
        assert isinstance(fault, RunFailed)
        words = str(fault)
        assert f"another run of clip-pipe is at work in this folder: process {os.getpid()}" in words
        for part in (told["user"], told["host"], told["began"], told["beat"], "command: ", "hint:"):
            assert part in words
        take(folder)  # the same run, once more
        lease.check()
    assert lease.read(folder) is None
    assert in_thread(lambda: take(folder)) is None


def test_it_ends_with_the_run_however_that_ends(folder: str) -> None:
    with pytest.raises(KeyboardInterrupt), lease.held((folder,)):
        raise KeyboardInterrupt
    assert not storage.exists(f"{folder}/.lease")


def test_a_killed_run_s_place_is_taken_at_once(tmp_path: Path) -> None:
    def die() -> None:
        with lease.held((str(tmp_path),)):
            os.kill(os.getpid(), signal.SIGKILL)

    process = multiprocessing.get_context("fork").Process(target=die)
    process.start()
    process.join(60)
    assert (tmp_path / ".lease").exists()
    said: list[str] = []
    with lease.held((str(tmp_path),), said.append):
        assert f"process {process.pid} of" in said[0]
        assert (lease.read(str(tmp_path)) or {})["pid"] == os.getpid()


def test_a_process_number_given_out_again_is_not_taken_for_it(tmp_path: Path) -> None:
    with lease.held((str(tmp_path),)):
        told = lease.read(str(tmp_path)) or {}
    assert lease.is_gone(told) is False
    assert lease.is_gone({**told, "started": "1"}) is True
    assert lease.is_gone({**told, "boot": "another"}) is None
    assert lease.is_gone({**told, "host": "another"}) is None
    storage.write_text(f"{tmp_path}/.lease", json.dumps({**told, "started": "1"}))
    take(str(tmp_path))


def test_of_another_machine_it_is_looked_whether_it_lives(
    folder: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """No clock is asked: only whether the lease changes while we look."""
    passed = [0.0]

    def sleep(seconds: float) -> None:
        passed[0] += seconds
        if beats:
            elsewhere(folder, beat=beats.pop())

    monkeypatch.setattr(lease, "_clock", lambda: passed[0])
    monkeypatch.setattr(lease.time, "sleep", sleep)
    beats = ["later"]
    elsewhere(folder)
    with pytest.raises(
        RunFailed, match=r"process 7 of ann on far, since 2026-01-01 .*last beat later"
    ):
        take(folder)
    assert passed[0] < lease.DEAD_S / 2
    said: list[str] = []
    with lease.held((folder,), said.append):  # no beat any more
        pass
    assert passed[0] >= lease.DEAD_S
    assert ["waiting up to 60 s" in said[0], "going on" in said[1]] == [True, True]


def test_a_lease_that_was_taken_ends_the_run(folder: str) -> None:
    with lease.held((folder,)):
        held = lease._HELD[-1]
        theirs = elsewhere(folder)
        held.renew()
        with pytest.raises(RunFailed, match="now held by process 7 of ann on far"):
            lease.check()
    assert storage.read_text(f"{folder}/.lease") == theirs, "it is not ours to delete"


def test_a_beat_tells_where_the_run_is_or_that_it_can_t(folder: str) -> None:
    where: dict[str, Any] = {"step": "source"}
    with lease.held((folder,), about=lambda: where if where else {"step": 1 / 0}):
        before = lease.read(folder) or {}
        where["step"] = "shards"
        lease._HELD[-1].renew()
        told = lease.read(folder) or {}
        assert (before["step"], told["step"]) == ("source", "shards")
        assert (before["run"], before["began"]) == (told["run"], told["began"])
        where.clear()
        lease._HELD[-1].renew()
        assert "division by zero" in (lease.read(folder) or {})["step"]
        lease.check()


def test_a_run_that_slept_looks_before_it_writes(
    folder: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    passed = [0.0]
    monkeypatch.setattr(lease, "_clock", lambda: passed[0])
    with lease.held((folder,)):
        passed[0] = lease.DEAD_S * 10
        lease.check()  # nobody came meanwhile
        elsewhere(folder)
        lease.check()  # it was renewed a moment ago
        passed[0] *= 2
        with pytest.raises(RunFailed, match="lease is gone"):
            lease.check()


def test_a_store_that_is_down_for_long_ends_the_run(
    folder: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    passed = [0.0]
    monkeypatch.setattr(lease, "_clock", lambda: passed[0])

    def down(*rest: Any) -> bool:
        raise OSError("no route")

    with lease.held((folder,)):
        monkeypatch.setattr(lease.storage, "swap_text", down)
        passed[0] = lease.DEAD_S * 0.9
        lease.check()
        passed[0] = lease.DEAD_S * 1.1
        with pytest.raises(RunFailed, match="could not be renewed"):
            lease.check()


def test_two_runs_over_one_pool(curate_recipe: Callable[..., Any]) -> None:
    """Also of two recipes. Afterwards the second has what it needs."""
    first = curate_recipe(SOURCE, STAGES, shard={"samples_per_shard": 7})
    second = curate_recipe(
        SOURCE, [{"use": f"{USE}:Length"}], shards=f"{first.curate.shards}-other"
    )
    faults: list[BaseException | None] = []

    class Meddled(LocalRunner):
        def map(self, function: Any, plan: Any, *rest: Any) -> Iterator[tuple[int, Any]]:
            if not faults:
                faults.append(in_thread(lambda: run(second)))
                faults.append(in_thread(lambda: curation.measure(plan, LocalRunner(), Quiet())))
            return super().map(function, plan, *rest)

    curation.run(plan_curation(first), Meddled(), Quiet())
    assert [type(fault) for fault in faults] == [RunFailed, RunFailed]
    assert shard_bytes(first)
    run(second)
    for recipe in (first, second):
        assert not list(Path(recipe.curate.pool).glob(".lease*"))
        assert not list(Path(recipe.curate.shards).glob(".lease*"))


def test_a_run_that_lost_its_lease_commits_nothing_more(curate_recipe: Callable[..., Any]) -> None:
    recipe = curate_recipe(SOURCE, STAGES)
    before: list[int] = []

    def files() -> int:
        return sum(1 for path in Path(recipe.curate.pool).rglob("part-*") if path.is_file())

    class Robbed(LocalRunner):
        def map(self, function: Any, plan: Any, *rest: Any) -> Iterator[tuple[int, Any]]:
            for count, found in enumerate(super().map(function, plan, *rest)):
                if count == 1 and not before:
                    elsewhere(recipe.curate.pool)
                    lease._HELD[0].renew()
                    before.append(files())
                yield found

    with pytest.raises(RunFailed, match="nothing more was written"):
        curation.run(plan_curation(recipe), Robbed(), Quiet())
    assert files() == before[0]
    Path(recipe.curate.pool, ".lease").unlink()
    run(recipe)


def test_only_a_lease_in_a_folder_is_nothing(curate_recipe: Callable[..., Any]) -> None:
    """A run that was killed before it wrote anything else."""
    recipe = curate_recipe(SOURCE, STAGES)
    for folder in (recipe.curate.pool, recipe.curate.shards):
        elsewhere(folder, **{**lease._machine(), "pid": 4_194_303})
        assert lease.is_empty(folder)
    run(recipe)
    elsewhere(recipe.curate.pool + "-other")
    Path(recipe.curate.pool + "-other", "mine.txt").touch()
    assert not lease.is_empty(recipe.curate.pool + "-other")


def test_a_finished_run_needs_no_lease(curate_recipe: Callable[..., Any]) -> None:
    recipe = curate_recipe(SOURCE, STAGES)
    run(recipe)
    with lease.held((recipe.curate.pool, recipe.curate.shards)):
        found = []
        assert in_thread(lambda: found.append(run(recipe).already_done)) is None
    assert found == [True]
