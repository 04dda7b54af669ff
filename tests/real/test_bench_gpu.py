"""`make bench-gpu` at toy size on a CPU: every contender runs, open_clip's own trainer too, and the table is whole."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from importlib.util import find_spec
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parent.parent.parent


@pytest.mark.slow
def test_the_whole_bench_at_toy_size(tmp_path: Path) -> None:
    environment = {**os.environ, "PYTHONPATH": str(ROOT), "WANDB_MODE": "disabled", "OMP_NUM_THREADS": "1"}  # fmt: skip
    out = tmp_path / "figures.json"
    done = subprocess.run(
        [sys.executable, "tests/bench/gpu.py", "--tiny", "--out", str(out)],
        cwd=ROOT, env=environment, capture_output=True, text=True, timeout=400,
    )  # fmt: skip
    assert done.returncode == 0, done.stderr[-2000:]
    figures = json.loads(out.read_text())["vit_tiny_64"]
    theirs = {"open_clip"} if find_spec("webdataset") else set()
    if "clip-pipe, NVJPEG is left out" in done.stderr:
        assert 'there is no CUDA device here. hint: decode = "worker"' in done.stderr
    else:
        theirs |= {"clip-pipe, NVJPEG"}
    assert set(figures) == {"clip-pipe", "clip-pipe, equal", "clip-pipe, FLIP", "clip-pipe, CLIPA"} | theirs  # fmt: skip
    for name, (measured,) in figures.items():
        assert measured["samples_per_s"] > 0, name
        assert 0 <= measured["data_wait_frac"] <= 1, name
        assert measured["windows"] == 2, name
    assert done.stdout.count("vit_tiny_64") == len(figures)
