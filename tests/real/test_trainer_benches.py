"""The trainer's benchmarks parse and run at their smallest size. What they measure is in docs/benchmarks.md."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest

from tests.bench import pairs, trainers

ROOT = Path(__file__).resolve().parents[2]


def bench(name: str, *arguments: str) -> str:
    told = subprocess.run(
        [sys.executable, str(ROOT / f"tests/bench/{name}.py"), *arguments],
        capture_output=True, text=True, cwd=ROOT, timeout=900, env={**os.environ, "PYTHONPATH": str(ROOT)},
    )  # fmt: skip
    assert told.returncode == 0, told.stderr[-3000:]
    return told.stdout


@pytest.mark.slow
def test_loader() -> None:
    told = bench(
        "loader", "--samples", "96", "--shards", "4", "--passes", "1", "--skip", "1", "--rounds", "1",
        "--batch", "16", "--size", "64", "--workers", "1",
    )  # fmt: skip
    assert "goal: clip-pipe at least 3.3 times open_clip" in told
    assert "litdata: not measured" in told or "litdata  " in told


@pytest.mark.slow
def test_train_step() -> None:
    size = ("--models", "vit_tiny_64:4", "--precision", "fp32", "--steps", "2", "--rounds", "1")
    assert "goal: clip-pipe at least 1.0 times open_clip" in bench("train_step", *size)
    assert "beyond these" in bench("train_step", *size, "--profile")


@pytest.mark.slow
def test_trainers() -> None:
    if pairs.data_folder() is None:
        pytest.skip("no shared data: the captioned photographs; set CLIP_PIPE_SHARED_DATA")
    told = bench("trainers", "--samples", "96", "--pictures", "16", "--seeds", "0", "--batch", "16")
    assert "text_to_image_r10" in told
    assert "CPU s a run" in told


def test_chance_is_that_of_drawing_captions_without_returning_them() -> None:
    found = trainers.chance([5] * 1000)
    assert found["text_to_image_r10"] == pytest.approx(0.01)
    assert found["image_to_text_r1"] == pytest.approx(5 / 5000)
    missed = 1.0
    for draw in range(10):
        missed *= (4995 - draw) / (5000 - draw)
    assert found["image_to_text_r10"] == pytest.approx(1 - missed)


def test_below_only_where_every_seed_is() -> None:
    assert trainers.verdict([0.1, 0.2], [0.15, 0.3]) == "within the spread"
    assert trainers.verdict([0.1, 0.12], [0.15, 0.3]) == "BELOW"
    assert trainers.verdict([0.4, 0.5], [0.15, 0.3]) == "above"
