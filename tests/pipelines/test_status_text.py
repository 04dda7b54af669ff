"""The words of status: a table, what goes on, what failed; and again and again until a signal."""

from __future__ import annotations

import io
import json
from pathlib import Path
from typing import Any

import pytest

from pipelines import status_text
from pipelines.errors import Stopped

STAGE = {"stage": "download.fetch", "state": "running", "done": 37, "parts": 100, "running": 8, "failed": 1,
         "rows_in": 370_000, "kept": 351_002, "refused": {}, "is_about": True, "rows_per_s": 1180.4,
         "rows_per_s_lately": 1204.0}  # fmt: skip
WHO = {
    "pid": 4711,
    "user": "ann",
    "host": "node-7",
    "began": "2026-01-01 00:00:00 UTC",
    "beat_age_s": 4.0,
    "alive": True,
}


def pool(**more: Any) -> dict[str, Any]:
    told = {"folder": "runs/x/pool", "recipe": "x", "state": "running", "who": WHO, "parts": 100, "notes": [],
            "stages": [STAGE, {**STAGE, "stage": "shard.write", "state": "waiting", "done": 0, "running": 0, "failed": 0}],
            "left_s": 720.0, "refused": [{"stage": "s", "reason": f"r{n}", "rows": 1000 - n} for n in range(12)],
            "failures": [{"message": "part 17 of download.fetch: it hung"}], "log": "runs/x/pool/logs/a.jsonl", "report": None}  # fmt: skip
    return {"pool": {**told, **more}, "train": None}


def test_a_run_that_goes_on() -> None:
    text = "\n".join(status_text.lines(pool()))
    assert (
        "running: process 4711 of ann on node-7, since 2026-01-01 00:00:00 UTC, last beat 4 s ago"
        in text
    )
    assert "37 of 100 (8 running, 1 failed)" in text
    assert "~370,000" in text
    assert "1,204" in text
    assert "now: download.fetch: 37 of 100 parts, about 12 min left; 1 stages after it" in text
    assert "r7 993, and 4 more reasons" in text
    assert "failed: part 17 of download.fetch: it hung" in text
    assert text.endswith("log: runs/x/pool/logs/a.jsonl")


@pytest.mark.parametrize(("state", "who", "words"), [
    ("died", {**WHO, "alive": False}, "died: process 4711 of ann on node-7"),
    ("stopped", None, "stopped: nobody is at work; `clip-pipe curate` goes on"),
    ("finished", None, "finished"),
    ("running", {**WHO, "alive": None}, "(on another machine: by its beat)"),
])  # fmt: skip
def test_who_is_at_work(state: str, who: dict[str, Any] | None, words: str) -> None:
    assert words in "\n".join(status_text.lines(pool(state=state, who=who)))


def test_watching_goes_on_until_a_signal(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "pool.json").write_text('{"parts": 0, "slices": []}')
    waits: list[float] = []

    def wait(seconds: float) -> None:
        waits.append(seconds)
        if len(waits) == 3:
            raise Stopped(2)

    monkeypatch.setattr(status_text.time, "sleep", wait)
    stream = io.StringIO()
    status_text.watch(str(tmp_path), (), True, 0.5, stream)
    assert waits == [0.5] * 3
    assert [json.loads(line)["schema"] for line in stream.getvalue().splitlines()] == [1] * 3


def test_a_terminal_is_cleared_between_two(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    class Terminal(io.StringIO):
        def isatty(self) -> bool:
            return True

    def wait(seconds: float) -> None:
        raise Stopped(2)

    (tmp_path / "pool.json").write_text('{"parts": 0, "slices": []}')
    monkeypatch.setattr(status_text.time, "sleep", wait)
    stream = Terminal()
    status_text.watch(str(tmp_path), (), False, 1.0, stream)
    assert stream.getvalue().startswith(status_text._CLEAR)
