"""A download killed at random moments asks for no picture again but those in flight, and ends in the same bytes.

Whole commands against a server that logs every GET. The numbers are printed (pytest -s).
"""

from __future__ import annotations

import asyncio
import contextlib
import io
import math
import os
import random
import signal
import subprocess
import sys
import time
from collections import Counter
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from aiohttp import web
from PIL import Image

from curate.download.journal import Journal
from pipelines import commands
from tests.pipelines.test_killed import shard_bytes
from tests.tiny.local_server import serve

ROOT = Path(__file__).resolve().parent.parent.parent
ROWS, PARTS, AT_ONCE = 240, 4, 8
AHEAD = 30  # answers that are not noted yet, where a run is to be killed
DEAD_EVERY = 40

pytestmark = pytest.mark.net


class Logged:
    """A server's pictures, and for each run which paths it was asked for.

    A run gets no more than ``allowed`` answers until that is raised. What is among ``hangs`` is answered,
    by 410, when all others have been asked for.
    """

    def __init__(self, answer_s: float) -> None:
        self.answer_s = answer_s
        self.answered, self.allowed = 0, math.inf
        self.pictures = {f"/{n}.jpg": picture(n) for n in range(ROWS) if n % DEAD_EVERY}
        self.asked: list[Counter[str]] = [Counter()]
        self.hangs: set[str] = set()

    async def answer(self, request: Any) -> web.StreamResponse:
        self.asked[-1][request.path] += 1
        await asyncio.sleep(self.answer_s)
        if request.path in self.hangs:
            while len(self.asked[-1]) < ROWS:
                await asyncio.sleep(0.01)
            return web.Response(status=410)
        while self.answered >= self.allowed:
            await asyncio.sleep(0.01)
        self.answered += 1
        if request.path not in self.pictures:
            return web.Response(status=404)
        return web.Response(body=self.pictures[request.path], content_type="image/jpeg")


def picture(number: int) -> bytes:
    made = io.BytesIO()
    noise = random.Random(number).randbytes(12 * 12 * 3)
    Image.frombytes("RGB", (12, 12), noise).resize((96, 96)).save(made, "JPEG", quality=90)
    return made.getvalue()


def recipe(folder: Path, run: str, base_url: str, **options: Any) -> list[str]:
    urls = [f"{base_url}/{n}.jpg" for n in range(ROWS)]
    table = pa.table({"url": urls, "caption": [f"picture {n}" for n in range(ROWS)]})
    pq.write_table(table, folder / "rows.parquet")
    words = {"image_size": 64, "thread_count": AT_ONCE, "decode_processes": 1, **options}
    told = "\n".join(f"{key} = {value}" for key, value in words.items())
    path = folder / f"{run}.toml"
    path.write_text(
        f'name = "killed"\n[curate]\npool = "{folder}/{run}/pool"\nshards = "{folder}/{run}/shards"\n'
        f'[curate.source]\nuse = "source.url_table"\npath = "{folder}/rows.parquet"\nrows_per_part = {ROWS // PARTS}\n'
        f'[[curate.stage]]\nuse = "download.fetch"\nallow_hosts = ["{base_url.removeprefix("http://")}"]\n{told}\n'
        "[curate.shard]\nsamples_per_shard = 100\n"
    )
    return [sys.executable, str(ROOT / "cli.py"), "curate", str(path), "--local"]


def start(command: list[str]) -> subprocess.Popen[bytes]:
    environment = {**os.environ, "PYTHONPATH": str(ROOT)}
    return subprocess.Popen(
        command,
        env=environment,
        stdout=subprocess.DEVNULL,
        stderr=subprocess.PIPE,
        start_new_session=True,
    )


def run_here(command: list[str]) -> None:
    """The same without a process of its own, which takes a while to start."""
    commands.curate(command[3], (), local=True, address="", workers=0)


def finish(process: subprocess.Popen[bytes]) -> None:
    try:
        _, told = process.communicate(timeout=100)
    finally:
        if process.poll() is None:
            os.killpg(process.pid, signal.SIGKILL)
    assert process.returncode == 0, told.decode()[-3000:]


def is_killed(process: subprocess.Popen[bytes], server: Logged, pool: Path, at: int) -> bool:
    """Kill the process and its children after its first GET, once ``at`` URLs are finished.

    False where it had ended by then. So long the server is never far ahead of what is noted, as the
    decoder takes a while to start.
    """
    before = len(finished(pool))
    server.answered, server.allowed = 0, AHEAD
    deadline, count = time.monotonic() + 200, before
    while (count < at or not server.asked[-1]) and process.poll() is None:
        assert time.monotonic() < deadline, "what comes is not noted"
        time.sleep(0.005)
        with contextlib.suppress(OSError):  # a part was over while we looked
            count = len(finished(pool))
        server.allowed = count - before + AHEAD
    killed = process.poll() is None
    if killed:
        os.killpg(process.pid, signal.SIGKILL)
        process.communicate()
    server.allowed = math.inf
    return killed


def finished(pool: Path) -> set[str]:
    """Paths of the URLs whose outcome is in the pool: in a committed part, or in the notes of one in work."""
    rows = [pq.read_table(path) for path in sorted(pool.glob("rows/*.parquet"))]
    urls = {row["uid"]: row["url"] for table in rows for row in table.to_pylist()}
    uids = {uid for folder in pool.glob("work/*-notes/*") for uid in Journal(str(folder)).read()}
    for path in pool.glob("columns/download.fetch-*/part-*.parquet"):
        uids.update(pq.read_table(path)["uid"].to_pylist())
    return {"/" + urls[uid].rpartition("/")[2] for uid in uids}


@pytest.mark.parametrize(
    ("kills", "answer_s"), [(2, 0.03), pytest.param(10, 0.2, marks=pytest.mark.slow)]
)
def test_no_picture_is_fetched_twice_but_those_in_flight(
    tmp_path: Path, kills: int, answer_s: float
) -> None:
    server = Logged(answer_s)
    lots = random.Random(4)
    moments = [0, *sorted(lots.sample(range(1, ROWS - AHEAD), kills - 1))]
    with serve(server.answer) as base_url:
        run_here(recipe(tmp_path, "quiet", base_url))
        quiet = server.asked[-1]
        done, known = 0, list[set[str]]()
        while done < kills:
            server.asked.append(Counter())
            process = start(recipe(tmp_path, "killed", base_url))
            pool = tmp_path / "killed" / "pool"
            if not is_killed(process, server, pool, moments[done]):
                finish(process)
                break
            done += 1
            known.append(finished(pool))
        server.asked.append(Counter())
        finish(start(recipe(tmp_path, "killed", base_url)))
    runs = server.asked[1:]
    asked = sum(runs, Counter())
    again = [len(runs[n] & sum(runs[n + 1 :], Counter())) for n in range(len(runs) - 1)]
    gets, held = [run.total() for run in runs], [len(paths) for paths in known]
    print(f"\n{done} kills of {ROWS} URLs: GETs by run {gets}, again {again}, finished {held}")
    assert done >= kills / 2
    assert max(quiet.values()) == 1
    assert set(asked) == set(quiet)
    assert all(max(run.values(), default=1) == 1 for run in runs)
    for number, paths in enumerate(known):
        assert not paths & set(sum(runs[number + 1 :], Counter()))
    # On the wire when the run was killed, or waiting for the decoder.
    assert max(again) <= AHEAD + AT_ONCE
    assert len(known[-1]) >= len(known[0])
    assert any(known)
    assert shard_bytes(tmp_path / "killed") == shard_bytes(tmp_path / "quiet")
    assert not list((tmp_path / "killed" / "pool" / "work").glob("*-notes"))


def test_hangs_of_one_part_do_not_hold_the_next(tmp_path: Path) -> None:
    server = Logged(0.002)
    size = ROWS // PARTS
    server.hangs = {f"/{part * size + 7}.jpg" for part in range(PARTS)}
    limit_s = 60.0
    options = {"timeout": limit_s, "first_byte_timeout": limit_s, "thread_count": 4 * AT_ONCE}
    with serve(server.answer) as base_url:
        run_here(recipe(tmp_path, "run", base_url, **options))
    assert len(server.asked[-1]) == ROWS
    ledger = pq.read_table(tmp_path / "run" / "shards" / "ledger.parquet").to_pylist()
    reasons = Counter(row["reason"] for row in ledger)
    # None of them ran out of time, as it would if others waited for it.
    assert reasons["error.download.fetch.http.410"] == PARTS
    assert reasons["error.download.fetch.http.404"] == ROWS / DEAD_EVERY
