"""A training whose folder is in an object store ends as one on disk does, whatever happens to it and to the store."""

from __future__ import annotations

import json
import logging
import os
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from datetime import timedelta
from pathlib import Path
from typing import Any

import pytest
import tomli_w
import torch

from curate.contract import object_client, object_login, storage
from pipelines import checkpoints, launch, lease, recipe
from pipelines.errors import RecipeError, RunFailed, Stopped
from pretrain.loop import away, checkpoint
from tests.tiny import object_server, scenes
from tests.tiny.launched import Launched

BATCH = 8
FIGURES = (
    "step",
    "samples_seen",
    "phase",
    "loss",
    "logit_scale",
    "lr",
    "batch_accuracy",
    "grad_norm_image",
)
CLI = Path(__file__).resolve().parent.parent.parent / "cli.py"

pytestmark = pytest.mark.net


@pytest.fixture(autouse=True)
def here(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Path]:
    """A temporary folder of the test's own, for this process and those that it starts; one thread."""
    folder = tmp_path / "tmp"
    folder.mkdir()
    monkeypatch.setenv("TMPDIR", str(folder))
    monkeypatch.setattr(tempfile, "tempdir", str(folder))
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    yield folder
    torch.set_num_threads(before)


@pytest.fixture(scope="module")
def disk(tmp_path_factory: pytest.TempPathFactory) -> str:
    """An undisturbed run of 8 steps on disk."""
    folder = tmp_path_factory.mktemp("disk")
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    launch.run_rank(recipe.load(write(folder, str(folder / "run"))), resume=False)
    torch.set_num_threads(threads)
    return str(folder / "run")


def write(folder: Path, out: str, steps: int = 8, **train: Any) -> str:
    """The path of a recipe that trains so many steps in two phases; the shards lie on disk."""
    if not (folder / "shards").exists():
        scenes.write_shards(folder / "shards", 40, rewrite_count=2)
    phase = {"global_batch": BATCH, "lr": 1e-3}
    table = {
        "model": scenes.write_model(folder), "shards": str(folder / "shards"), "out": out, "workers": 0,
        "precision": "fp32", "log_every_steps": 1, "checkpoint_minutes": 10, "keep_every_samples": 2 * BATCH,
        "phase": [{**phase, "samples": steps // 2 * BATCH}, {**phase, "samples": (steps - steps // 2) * BATCH}],
        **train,
    }  # fmt: skip
    data = {
        "name": "away", "train": table,
        "evaluate": [{"use": "retrieval", "name": "r", "path": str(folder / "shards")}],
    }  # fmt: skip
    path = folder / f"{out.rpartition('/')[2]}.toml"
    path.write_text(tomli_w.dumps(data))
    return str(path)


def train(path: str, resume: bool = False) -> dict[str, Any]:
    told = launch.train(path, [], nproc=1, ray_workers=0, address="", resume=resume)
    return dict(json.loads(told))


def stopped(path: str, after: int, resume: bool = False) -> None:
    """Train until the store holds so many lines, as SIGTERM would end it."""
    steps = iter(range(1, 10_000))
    with pytest.raises(Stopped):
        launch.run_rank(recipe.load(path), resume=resume, stop_asked=lambda: next(steps) >= after)


def figures(out: str) -> list[dict[str, Any]]:
    lines = [
        json.loads(x) for x in storage.read_text(storage.join(out, "metrics.jsonl")).splitlines()
    ]
    return [{name: line[name] for name in FIGURES} for line in lines if "step" in line]


def assert_same_bits(a: str, b: str) -> None:
    found, wanted = (checkpoint.read(str(checkpoint.newest(out))) for out in (a, b))
    assert found["cursor"] == wanted["cursor"]
    for part in ("state_dict", "objective", "optimizer"):
        assert _flat(found[part]) == _flat(wanted[part])
    assert figures(a) == figures(b)


def _flat(thing: Any) -> list[Any]:
    if isinstance(thing, torch.Tensor):
        return [thing.dtype, thing.flatten().tolist()]
    if isinstance(thing, dict):
        return [pair for key in thing for pair in (key, _flat(thing[key]))]
    return [_flat(one) for one in thing] if isinstance(thing, (list, tuple)) else [thing]


def names(out: str) -> list[int]:
    return [int(path[-15:-3]) // BATCH for path in checkpoint.committed(checkpoint.folder(out))]


@pytest.mark.slow
def test_stopped_resumed_evaluated_and_looked_into_as_on_disk(
    bucket: str, disk: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    out = f"{bucket}/runs/away"
    with (
        object_server.proxy(os.environ["AWS_ENDPOINT_URL"], every=25) as server,
        monkeypatch.context() as behind,
    ):
        behind.setenv("AWS_ENDPOINT_URL", server.address)
        path = write(tmp_path, out)
        stopped(path, 5)
        assert names(out)[-1] == 5
        with pytest.raises(RecipeError, match="the folder holds a run already\nhint: add --resume"):
            train(path)
        assert train(path, resume=True) == {
            "recipe": "away", "checkpoint": f"{out}/checkpoints/samples-{8 * BATCH:012d}.pt",
            "samples_seen": 8 * BATCH, "metrics": f"{out}/metrics.jsonl", "report": f"{out}/report.html",
        }  # fmt: skip
        assert any(kind for *_, kind in server.seen)
        assert_same_bits(out, disk)
    assert names(out) == [2, 4, 5, 6, 8]
    assert {path.rpartition("/")[2] for path in storage.listed(out)} == {
        "metrics.jsonl", "checkpoints", "recipe.toml", "report.html",
    }  # fmt: skip
    assert not [file for file in Path(away.folder(out)).rglob("*") if file.is_file()]
    told, fine = checkpoints.verify([out])
    assert fine, told
    assert "state_dict image: " in checkpoints.diff(out, disk)
    mean = f"{bucket}/mean.pt"
    checkpoints.average([out], out=mean, last=2)
    assert checkpoints.verify([mean])[1]
    begun = recipe.load(
        write(
            tmp_path,
            str(tmp_path / "begun"),
            2,
            pretrained=f"{out}/checkpoints/samples-{8 * BATCH:012d}.pt",
        )
    )
    launch.run_rank(begun, resume=False)
    launch.evaluate(recipe.load(path), "", as_json=True)
    assert storage.read_text(f"{out}/metrics.jsonl").count('"eval": "r"') == 1


def test_a_second_run_is_refused_and_a_lost_folder_not_written_to(
    bucket: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    out = f"{bucket}/run"
    path = write(tmp_path, out)
    with (
        launch.alone(out),
        pytest.raises(
            RecipeError, match=rf"trained into by process {os.getpid()} on .*, since .*\nhint: wait"
        ),
    ):
        train(path)
    assert not storage.listed(out)
    monkeypatch.setattr(lease, "BEAT_S", 0.05)
    taken = iter(range(10_000))

    def take() -> bool:  # another run takes it over after the third step
        if next(taken) == 3:
            storage.write_text(f"{out}/{lease.NAME}", '{"pid": 1, "host": "elsewhere"}')
        time.sleep(0.1)
        return False

    with pytest.raises(RunFailed, match=r"lease is gone .now held by process 1"):
        launch.run_rank(recipe.load(path), resume=False, stop_asked=take)
    assert all(step <= 4 for step in names(out))
    assert "elsewhere" in storage.read_text(f"{out}/{lease.NAME}")


@pytest.mark.slow
def test_a_store_that_is_gone_for_good_loses_nothing(
    bucket: str,
    disk: str,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    caplog: pytest.LogCaptureFixture,
) -> None:
    """The run goes on to its end and says what lies where; --resume puts it there."""
    monkeypatch.setattr(object_client, "_ATTEMPTS", 1)
    monkeypatch.setattr(object_login, "_RETRY_WITHIN", timedelta(seconds=0.05))
    out = f"{bucket}/run"
    path = write(tmp_path, out)
    steps = iter(range(1, 10_000))
    with (
        object_server.proxy(os.environ["AWS_ENDPOINT_URL"]) as server,
        monkeypatch.context() as behind,
    ):
        behind.setenv("AWS_ENDPOINT_URL", server.address)

        def gone() -> bool:
            if next(steps) == 2:
                server.always["PUT"] = "busy"
            return False

        with caplog.at_level(logging.WARNING), pytest.raises(RunFailed) as fault:
            launch.run_rank(recipe.load(path), resume=False, stop_asked=gone)
        local = f"{checkpoint.folder(away.folder(out))}/samples-{8 * BATCH:012d}.pt"
        assert str(fault.value).startswith(
            f"the last checkpoint is whole, and on this machine only: {local}"
        )
        assert "SlowDown" in str(fault.value)
        assert "Training goes on; it is tried again" in caplog.text
        server.always.clear()
        train(path, resume=True)
    assert not os.path.exists(local)
    assert names(out) == [2, 4, 6, 8]
    assert_same_bits(out, disk)


def test_tensorboard_is_refused_before_any_work(bucket: str, tmp_path: Path) -> None:
    path = write(tmp_path, f"{bucket}/run", loggers=["tensorboard"])
    with pytest.raises(RecipeError, match=r"only be written to a disk.*\nhint: leave it out"):
        train(path)
    assert not storage.listed(f"{bucket}/run")


def test_a_store_that_can_not_be_written_to_is_told_before_any_work(
    bucket: str, tmp_path: Path
) -> None:
    path = write(tmp_path, f"{bucket}-that-is-not-there/run")
    with pytest.raises(RecipeError, match=r"train.out: .*there is no bucket .*\nhint: make it"):
        train(path)


def wait_for(what: Callable[[], object], timeout_s: float = 300) -> None:
    until = time.monotonic() + timeout_s
    while not what():
        assert time.monotonic() < until
        time.sleep(0.02)


@pytest.mark.slow
def test_killed_and_signalled_on_a_store_that_fails_now_and_then(
    bucket: str, tmp_path: Path
) -> None:
    """The whole command of 30 steps, one request in twenty failing: ``kill -9`` twice, SIGTERM once, to the end."""
    disk, out = str(tmp_path / "disk"), f"{bucket}/run"
    train(write(tmp_path, disk, 30, checkpoint_minutes=0.002))
    path = write(tmp_path, out, 30, checkpoint_minutes=0.002)
    with object_server.proxy(os.environ["AWS_ENDPOINT_URL"], every=20) as server:
        environment = {**os.environ, "AWS_ENDPOINT_URL": server.address, "OMP_NUM_THREADS": "1"}

        def begin() -> subprocess.Popen[str]:
            return subprocess.Popen(
                [sys.executable, str(CLI), "train", path, "--resume"],
                env=environment, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True,
            )  # fmt: skip

        for wanted, how in ((3, "kill"), (12, "kill"), (18, "terminate")):
            process = begin()
            wait_for(lambda: process.poll() is not None or (names(out) or [0])[-1] >= wanted)  # noqa: B023
            getattr(process, how)()
            _, said = process.communicate()
            assert process.returncode == (-9 if how == "kill" else 143), said[-3000:]
        process = begin()
        _, said = process.communicate(timeout=300)
        assert process.returncode == 0, said[-3000:]
        assert "the run before ended without an end" not in said  # SIGTERM gave the lease back
    assert_same_bits(out, disk)


@pytest.mark.slow
def test_two_ranks_killed_and_resumed(bucket: str, tmp_path: Path) -> None:
    """Only the first rank writes; the other one reads the checkpoint by its path."""
    import pretrain.loop.train  # noqa: F401
    from pretrain.model.encoder import import_open_clip

    import_open_clip()
    disk, out = str(tmp_path / "disk"), f"{bucket}/run"
    Launched(
        write(tmp_path, disk, 30, checkpoint_minutes=0.002), 2, tmp_path / "log-disk"
    ).end_well()
    path = write(tmp_path, out, 30, checkpoint_minutes=0.002)
    killed = Launched(path, 2, tmp_path / "log-away")
    wait_for(lambda: not killed.alive or (names(out) or [0])[-1] >= 6)
    killed.kill()
    assert names(out)[-1] < 30
    Launched(path, 2, tmp_path / "log-away").end_well()
    assert_same_bits(out, disk)
