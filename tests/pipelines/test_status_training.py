"""How a training stands, by its figures, its checkpoints and its lock."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

from pipelines import status, status_text, status_training

LINE = {"step": 1, "samples_seen": 100, "loss": 2.5, "lr": 1e-3, "samples_per_s": 50.0, "data_wait_frac": 0.1,
        "bad_samples": 0}  # fmt: skip


@pytest.fixture
def out(tmp_path: Path) -> Path:
    (tmp_path / "checkpoints").mkdir()
    for seen in (100, 1000, 900):
        (tmp_path / "checkpoints" / f"samples-{seen:012d}.pt").write_bytes(b"x")
    lines = [{**LINE, "step": n, "samples_seen": 100 * n} for n in range(1, 11)]
    lines.append({"eval": "zero_shot", "samples_seen": 1000, "top1": 0.5})
    text = "".join(json.dumps(line) + "\n" for line in lines)
    (tmp_path / "metrics.jsonl").write_text(
        text + '{"step": 11, "samples_'
    )  # a kill costs half a line
    (tmp_path / "recipe.toml").write_text('name = "mine"\n[[train.phase]]\nsamples = 1000\n[[train.phase]]\nsamples = 500\n')  # fmt: skip
    return tmp_path


def test_figures_progress_and_checkpoint(out: Path) -> None:
    told = status.of(str(out))["train"]
    assert (told["state"], told["who"], told["recipe"]) == ("stopped", None, "mine")
    assert (told["figures"]["step"], told["samples"], told["left_s"]) == (10, 1500, 10.0)
    assert told["checkpoint"].endswith("samples-000000001000.pt")
    assert told["checkpoints"] == 3
    assert [line["eval"] for line in told["evaluations"]] == ["zero_shot"]
    text = "\n".join(status_text.lines({"pool": None, "train": told}))
    assert "step 10, 1,000 of 1,500 samples (66.7%)" in text
    assert "loss 2.5" in text


def test_a_training_that_has_seen_all_its_samples(out: Path) -> None:
    (out / "checkpoints" / "samples-000000001500.pt").write_bytes(b"x")
    assert status.of(str(out))["train"]["state"] == "finished"


def test_who_trains_is_told_without_taking_the_lock(out: Path) -> None:
    code = (  # as pretrain.loop.lock does, without what that imports
        "import fcntl, json, os, sys\n"
        "file = os.open(sys.argv[1] + '/.lock', os.O_RDWR | os.O_CREAT)\n"
        "fcntl.lockf(file, fcntl.LOCK_EX | fcntl.LOCK_NB)\n"
        "os.write(file, json.dumps({'host': 'here', 'pid': os.getpid()}).encode())\n"
        "print('held', flush=True)\nsys.stdin.read()"
    )
    process = subprocess.Popen(
        [sys.executable, "-c", code, str(out)], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True,
        env={**os.environ, "PYTHONPATH": os.getcwd()},
    )  # fmt: skip
    assert process.stdout is not None
    assert process.stdout.readline() == "held\n"
    told: Any = status_training.of(str(out))
    assert (told["state"], told["who"]["pid"], told["who"]["alive"]) == (
        "running",
        process.pid,
        True,
    )
    process.kill()
    process.wait()
    told = status_training.of(str(out))
    assert (told["state"], told["who"]["alive"]) == ("died", False)
    process.stdin.close()  # type: ignore[union-attr]
    process.stdout.close()


def test_a_training_that_has_just_begun(tmp_path: Path) -> None:
    (tmp_path / "metrics.jsonl").write_text("")
    told = status.of(str(tmp_path))["train"]
    assert (told["figures"], told["checkpoint"], told["left_s"]) == ({}, None, None)
    assert status_text.lines({"pool": None, "train": told})
