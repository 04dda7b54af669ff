"""Training killed by -9 at whatever it was doing, and resumed: the same bits; on other ranks: the same samples."""

from __future__ import annotations

import contextlib
import json
import os
import random
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch

from pretrain.loop import checkpoint
from tests.tiny import scenes
from tests.tiny.launched import Launched

ROOT = Path(__file__).resolve().parent.parent.parent
STEPS = 15
BATCH = 12
# Nearly all of it is the vocabulary: a checkpoint has 13 MB.
MODEL = {
    "embed_dim": 16,
    "vision_cfg": {"image_size": 32, "layers": 1, "width": 32, "head_width": 16, "patch_size": 16},
    "text_cfg": {"context_length": 24, "vocab_size": 49408, "width": 16, "heads": 1, "layers": 1},
}
FIGURES = ("step", "samples_seen", "phase", "loss", "logit_scale", "lr", "bad_samples", "batch_accuracy",
           "grad_norm_image", "grad_norm_text")  # fmt: skip

pytestmark = pytest.mark.net


def write(folder: Path, steps: int, out: str, **train: Any) -> str:
    """The path of a recipe that trains ``steps`` steps in two phases; shards and model beside it."""
    import tomli_w

    if not (folder / "shards").exists():
        scenes.write_shards(folder / "shards", 40, rewrite_count=2)
        (folder / "model.json").write_text(json.dumps(MODEL))
    phase = {"global_batch": BATCH, "lr": 1e-3, "grad_clip_norm": 1.0}
    train = {
        "model": str(folder / "model.json"), "shards": str(folder / "shards"), "out": str(folder / out),
        "workers": 0, "precision": "fp32", "log_every_steps": 1, "checkpoint_minutes": 0.0005, "ema_decay": 0.9,
        "keep_every_samples": 5 * BATCH,
        "phase": [
            {**phase, "samples": (steps - steps // 3) * BATCH},
            {**phase, "samples": (steps // 3) * BATCH, "tweak": [{"use": "freeze", "tower": "image"}]},
        ],
        **train,
    }  # fmt: skip
    path = folder / f"{out}.toml"
    path.write_text(tomli_w.dumps({"name": "killed", "train": train}))
    return str(path)


def figures(out: Path) -> list[dict[str, Any]]:
    lines = [json.loads(line) for line in (out / "metrics.jsonl").read_text().splitlines()]
    return [{name: line[name] for name in FIGURES} for line in lines]


def assert_same_bits(a: Path, b: Path) -> None:
    """Weights, averages, moments, cursor and metrics of two runs' last checkpoints."""
    found, wanted = (checkpoint.read(str(checkpoint.newest(str(out)))) for out in (a, b))
    for part in ("state_dict", "ema", "objective", "optimizer", "cursor"):
        same(found[part], wanted[part], part)
    assert figures(a) == figures(b)


def same(a: Any, b: Any, where: str) -> None:
    if isinstance(a, torch.Tensor):
        assert torch.equal(a, b), where
    elif isinstance(a, dict):
        assert list(a) == list(b), where
        for key in a:
            same(a[key], b[key], f"{where}.{key}")
    elif isinstance(a, (list, tuple)):
        assert len(a) == len(b), where
        for number, (one, other) in enumerate(zip(a, b, strict=True)):
            same(one, other, f"{where}.{number}")
    else:
        assert a == b, where


def wait_for(what: Callable[[], object], alive: Callable[[], bool], timeout_s: float = 300) -> None:
    until = time.monotonic() + timeout_s
    while alive() and not what():
        assert time.monotonic() < until
        time.sleep(0.001)


def lines(out: Path) -> int:
    path = out / "metrics.jsonl"
    return path.read_bytes().count(b"\n") if path.exists() else 0


def is_writing(out: Path) -> bool:
    return any((out / "checkpoints").glob("*.pt.tmp-*"))


def launched(folder: Path, out: str, ranks: int, **train: Any) -> Launched:
    return Launched(write(folder, STEPS, out, **train), ranks, folder / f"log-{out}")


@pytest.fixture(scope="module")
def quiet(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, dict[int, list[str]]]:
    """A folder with an undisturbed run on two ranks, and the keys that it saw."""
    import pretrain.loop.train  # noqa: F401
    from pretrain.model.encoder import import_open_clip

    import_open_clip()  # once, for all ranks that are forked from here
    folder = tmp_path_factory.mktemp("killed")
    run = launched(folder, "quiet", 2)
    run.end_well()
    return folder, run.keys_by_step()


Quiet = tuple[Path, dict[int, list[str]]]


def test_killed_while_starting_and_while_writing(
    quiet: Quiet, monkeypatch: pytest.MonkeyPatch
) -> None:
    folder = quiet[0]
    out = folder / "killed"
    starting = launched(folder, "killed", 2)
    time.sleep(0.2)
    starting.kill()
    assert not lines(out)
    fsync = os.fsync

    def slow(descriptor: int) -> None:  # long enough to be met in the midst
        time.sleep(0.3)
        fsync(descriptor)

    with monkeypatch.context() as patch:
        patch.setattr(os, "fsync", slow)
        writing = launched(folder, "killed", 2)
    wait_for(lambda: lines(out) >= 3 and is_writing(out), lambda: writing.alive)
    writing.kill()
    assert lines(out) < STEPS
    launched(folder, "killed", 2).end_well()
    assert_same_bits(out, folder / "quiet")
    kept = [int(p.stem.split("-")[1]) for p in sorted((out / "checkpoints").glob("samples-*.pt"))]
    assert kept[:2] == [5 * BATCH, 10 * BATCH]  # keep_every_samples
    assert kept[-1] == STEPS * BATCH


@pytest.mark.parametrize(
    ("ranks", "changed"), [(1, {"workers": 2}), (3, {}), (2, {"parallel": "fsdp"})]
)
def test_resumed_on_other_ranks_and_workers_it_sees_the_same_samples(
    quiet: Quiet, ranks: int, changed: dict[str, Any]
) -> None:
    folder, wanted = quiet
    assert list(wanted) == [BATCH * step for step in range(1, STEPS + 1)]
    out = folder / f"ranks{ranks}"
    # The folder as it was at the first milestone, which the undisturbed run has kept.
    begun = f"samples-{5 * BATCH:012d}"
    for name in ("metrics.jsonl", f"checkpoints/{begun}.pt", f"checkpoints/{begun}.json"):
        (out / name).parent.mkdir(parents=True, exist_ok=True)
        shutil.copy(folder / "quiet" / name, out / name)
    run = launched(folder, out.name, ranks, **changed)
    run.end_well()
    seen = run.keys_by_step()
    assert list(seen) == list(wanted)[5:]
    assert all(keys == wanted[samples] for samples, keys in seen.items())
    found, told = figures(out), figures(folder / "quiet")
    assert [line["step"] for line in found] == [line["step"] for line in told]
    assert [line["loss"] for line in found] == pytest.approx(
        [line["loss"] for line in told], rel=1e-4
    )
    last, wanted_last = (
        checkpoint.read(str(checkpoint.newest(str(folder / name)))) for name in (out.name, "quiet")
    )
    for part in ("state_dict", "ema"):  # whole, under the same names, whoever wrote it
        assert list(last[part]) == list(wanted_last[part])
        for name, rows in last[part].items():
            torch.testing.assert_close(rows, wanted_last[part][name], atol=2e-3, rtol=1e-2)


@pytest.mark.slow
def test_the_whole_command_killed_twenty_times(tmp_path: Path) -> None:
    """200 steps on two ranks by torchrun; the command and all below it are killed, by their ids.

    Each run is killed five times, at moments drawn over its whole length, and once more as it starts.
    """
    began = time.monotonic()
    assert command(tmp_path, "quiet").wait() == 0
    whole_s = time.monotonic() - began
    with (tmp_path / "quiet" / "metrics.jsonl").open() as file:
        steps_s = sum(BATCH / json.loads(line)["samples_per_s"] for line in file)
    chosen = random.Random(int(os.environ.get("CLIP_PIPE_KILL_SEED", "0")))
    kills: list[tuple[str, int]] = []
    run = 0
    while len(kills) < 20:
        run += 1
        out = tmp_path / f"killed{run}"
        begin = chosen.randrange(6)
        moments = sorted(chosen.sample(range(1, 200), 5))
        for number in range(6):
            process = command(tmp_path, out.name)
            how = "starting" if number == begin else chosen.choice(["anywhere", "writing"])
            if how == "starting":
                pause((whole_s - steps_s) * chosen.random(), process)
            elif not reached(moments.pop(0), process, out, how == "writing"):
                break  # the last checkpoint was the end's
            pause(chosen.random() * steps_s / 200, process)
            if process.poll() is not None:
                break
            killed(process)
            kills.append((how, lines(out)))
            print(f"{len(kills)}: run {run}, {how} at line {lines(out)}", flush=True)
        assert command(tmp_path, out.name).wait() == 0
        assert_same_bits(out, tmp_path / "quiet")
    print(f"undisturbed {whole_s:.0f} s, of which steps {steps_s:.0f} s; {run} runs; {kills}")
    assert {line // 50 for how, line in kills if how != "starting"} >= {0, 1, 2, 3}


@pytest.mark.slow
@pytest.mark.ray
def test_a_rank_of_ray_train_killed_while_it_writes(quiet: Quiet) -> None:
    """The first rank's process ends in the midst of a file; all start again from the newest whole one: same bits."""
    folder = quiet[0]
    out = folder / "ray"
    recipe = write(folder, STEPS, "ray")
    process = subprocess.Popen(
        [sys.executable, str(ROOT / "cli.py"), "train", recipe, "--ray", "2"],
        env={**os.environ, "PYTHONPATH": str(ROOT), "OMP_NUM_THREADS": "1"},
        stdout=subprocess.DEVNULL, stderr=(folder / "said-ray.txt").open("ab"),
    )  # fmt: skip
    begun = kills = 0
    try:
        while process.poll() is None and not begun and kills < 3:
            wait_for(lambda: lines(out) >= 3 and is_writing(out), lambda: process.poll() is None)
            for temporary in (out / "checkpoints").glob("*.pt.tmp-*"):
                pid = int(temporary.name.split("-")[-2])
                os.kill(pid, signal.SIGKILL)
                wait_for(
                    lambda pid=pid: not Path(f"/proc/{pid}").exists() or "Z" in state(pid),
                    lambda: True,
                )  # type: ignore[misc]
                kills += 1
                begun += temporary.exists()  # it was in the midst, and not at the end
        assert process.wait(timeout=400) == 0, (folder / "said-ray.txt").read_text()[-3000:]
    finally:
        if process.poll() is None:
            killed(process)
    assert begun
    assert not list((out / "checkpoints").glob("*.tmp-*"))
    assert_same_bits(out, folder / "quiet")


def state(pid: int) -> str:
    try:
        return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0]
    except OSError:
        return "Z"


def reached(line: int, process: subprocess.Popen[bytes], out: Path, writing: bool) -> bool:
    """Wait until a resumed run has come so far, and is in the midst of a checkpoint; False where it ended."""

    def alive() -> bool:
        return process.poll() is None

    before = lines(out)
    if (
        before
    ):  # it first cuts the file to its checkpoint, or it goes on where that is the end of it
        wait_for(lambda: lines(out) != before, alive)
    wait_for(lambda: lines(out) >= line, alive)
    if writing:
        wait_for(lambda: is_writing(out), alive)
    return alive()


def pause(seconds: float, process: subprocess.Popen[bytes]) -> None:
    until = time.monotonic() + seconds
    while time.monotonic() < until and process.poll() is None:
        time.sleep(0.01)


def command(folder: Path, out: str) -> subprocess.Popen[bytes]:
    recipe = write(folder, 200, out, checkpoint_minutes=0.02, keep_every_samples=0)
    return subprocess.Popen(
        [sys.executable, str(ROOT / "cli.py"), "train", recipe, "--nproc", "2", "--resume"],
        env={**os.environ, "PYTHONPATH": str(ROOT), "OMP_NUM_THREADS": "1"},
        stdout=subprocess.DEVNULL, stderr=(folder / "said.txt").open("ab"),
    )  # fmt: skip


def killed(process: subprocess.Popen[bytes]) -> None:
    """``kill -9`` for the command and everything below it, by id, and wait until all are gone."""
    below = [process.pid]
    for pid in below:
        for children in Path(f"/proc/{pid}/task").glob("*/children"):
            below += [int(child) for child in children.read_text().split()]
    for pid in below:
        with contextlib.suppress(ProcessLookupError):
            os.kill(pid, signal.SIGKILL)
    process.wait()
    wait_for(lambda: not any(runs_still(pid) for pid in below), lambda: True)


def runs_still(pid: int) -> bool:
    try:
        return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0] != "Z"
    except OSError:
        return False
