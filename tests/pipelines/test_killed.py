"""The real stages, whole commands, kill -9 again and again at whatever they were doing: the same bytes."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pyarrow.parquet as pq
import pytest

from pipelines.demo import server, world

ROOT = Path(__file__).resolve().parent.parent.parent
ROWS = 500

pytestmark = [pytest.mark.slow, pytest.mark.net]


def command(folder: Path, run: str, base_url: str) -> list[str]:
    values = {
        "curate.pool": folder / run / "pool",
        "curate.shards": folder / run / "shards",
        "curate.source.path": folder / "world" / "source.parquet",
        "curate.source.rows_per_part": 60,
        "curate.stage.0.entries": folder / "world" / "entries.txt",
        "curate.stage.6.endpoint": f"{base_url}/v1",
        "curate.shard.samples_per_shard": 40,
    }
    overrides = [word for key, value in values.items() for word in ("--set", f"{key}={value}")]
    return [sys.executable, str(ROOT / "cli.py"), "curate", "demo_curated", "--local", *overrides]


def shard_bytes(folder: Path) -> dict[str, bytes]:
    names = ("*.tar", "index.parquet", "ledger.parquet", "sizes.json")
    return {
        path.name: path.read_bytes()
        for name in names
        for path in sorted((folder / "shards").glob(name))
    }


def test_killed_whatever_it_was_doing(tmp_path: Path) -> None:
    made = world.build(0, ROWS)
    environment = {**os.environ, "PYTHONPATH": str(ROOT)}
    with server.serve(made) as base_url:
        world.write(made, base_url, str(tmp_path / "world"))
        started = time.monotonic()
        subprocess.run(
            command(tmp_path, "quiet", base_url), env=environment, check=True, capture_output=True
        )
        whole_s = time.monotonic() - started
        kills = 0
        for attempt in range(40):
            process = subprocess.Popen(
                command(tmp_path, "killed", base_url),
                env=environment,
                stdout=subprocess.DEVNULL,
                stderr=subprocess.PIPE,
            )
            try:
                # Ever later, so that each attempt gets past where the last was killed.
                process.wait(whole_s * (0.15 + 0.05 * attempt))
            except subprocess.TimeoutExpired:
                process.send_signal(signal.SIGKILL)
                process.wait()
                kills += 1
                continue
            assert process.returncode == 0, process.stderr.read() if process.stderr else ""
            break
    assert kills >= 3
    assert shard_bytes(tmp_path / "killed") == shard_bytes(tmp_path / "quiet")
    assert len(pq.read_table(tmp_path / "killed" / "shards" / "ledger.parquet")) == ROWS
