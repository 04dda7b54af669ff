"""Lines for logs, a bar for terminals, and a file that grows followed from outside."""

from __future__ import annotations

import io
import json
import re
import tempfile
from pathlib import Path
from typing import Any

import pytest

from curate.contract import storage
from pipelines import live
from pretrain.loop import away
from pretrain.loop.settings import Phase, TrainSettings

LINE: dict[str, Any] = {
    "step": 120, "samples_seen": 491_520, "phase": 0, "loss": 6.41234, "logit_scale": 14.9, "lr": 1.23e-4,
    "samples_per_s": 9_812.3, "data_wait_frac": 0.021, "mfu": 0.44, "bottleneck": "compute-bound", "bad_samples": 3,
    "batch_accuracy": 0.25, "checkpoint_in_s": 240.0,
}  # fmt: skip


class Terminal(io.StringIO):
    def isatty(self) -> bool:
        return True


def settings(out: str = "out", **phase: Any) -> TrainSettings:
    usual = {"samples": 12_800_000_000, "global_batch": 4096, **phase}
    return TrainSettings(model="ViT-B-32", out=out, phase=(Phase(**usual),))


def test_a_plain_line_says_all_that_matters() -> None:
    out = io.StringIO()
    with live.shown(settings(), out) as show:
        show(LINE)
        show({"eval": "a", "top1": 0.3})
    (line,) = out.getvalue().splitlines()
    for part in ("step 120", "491,520 of 12.8 B samples (0.0%)", "15.1 days left", "loss 6.412", "accuracy 25.0%", "scale 14.9",
                 "lr 0.000123", "9,812 samples/s", "MFU 44%", "wait 2%, compute-bound", "3 bad samples", "checkpoint in 4 min"):  # fmt: skip
        assert part in line
    assert "\x1b" not in line


def test_what_is_not_known_is_left_out() -> None:
    out = io.StringIO()
    with live.shown(settings(samples=8_192), out) as show:
        show(
            {**LINE, "samples_seen": 8_192, "mfu": None, "logit_scale": None, "samples_per_s": 0.0}
        )
    line = out.getvalue()
    assert "MFU" not in line
    assert "scale" not in line
    assert "8,192 of 8,192 samples (100.0%), at the end" in line


@pytest.mark.parametrize(
    ("seconds", "words"),
    [(0.4, "0 s"), (59, "59 s"), (61, "1 min"), (3_599, "1 h 00 min"), (100_000, "27 h 47 min"), (300_000, "3.5 days")],
)  # fmt: skip
def test_durations(seconds: float, words: str) -> None:
    assert live.duration(seconds) == words


def test_a_terminal_gets_a_bar_and_no_color_is_honoured(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("TERM", "xterm")
    monkeypatch.setenv("COLUMNS", "200")
    for no_color in (False, True):
        monkeypatch.setenv("NO_COLOR", "1") if no_color else monkeypatch.delenv(
            "NO_COLOR", raising=False
        )
        out = Terminal()
        with live.shown(settings(samples=983_040), out) as show:
            show(LINE)
        text = out.getvalue()
        assert "(50.0%)" in text
        assert "━" in text
        assert "━loss" not in text.replace("\x1b[0m", "")  # figures have a line of their own
        assert "compute-bound" in text
        assert bool(re.search(r"\x1b\[[39]\d", text)) != no_color


def test_a_growing_file_is_followed(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(live, "_LOOK_EVERY_S", 0.01)
    heard: list[int] = []
    monkeypatch.setattr(live.Live, "__call__", lambda self, line: heard.append(line["step"]))
    monkeypatch.setattr(live, "LiveBar", live.Live)
    path = tmp_path / "metrics.jsonl"
    path.write_text(json.dumps({**LINE, "step": 1}) + "\n")
    with live.following(settings(str(tmp_path)), Terminal()) as does:
        assert does
        ranks = io.StringIO()
        with live.shown(settings(), ranks) as show:  # a rank inherits the environment
            show(LINE)
        assert not ranks.getvalue()
        with path.open("a") as file:
            file.write(json.dumps({**LINE, "step": 2}) + '\n{"step": 3, ')
            file.flush()
            file.write('"loss": 1}\n[]\n{"eval": 1}\n')
    assert heard == [2, 3]


@pytest.mark.parametrize("is_here", [True, False])
def test_a_run_behind_a_url_is_followed(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, is_here: bool
) -> None:
    """The file that grows on this machine, or the object where the ranks are elsewhere."""
    monkeypatch.setattr(live, "_LOOK_EVERY_S", 0.01)
    monkeypatch.setattr(live, "_LOOK_AWAY_S", 0.01)
    monkeypatch.setattr(tempfile, "tempdir", str(tmp_path))
    heard: list[int] = []
    monkeypatch.setattr(live.Live, "__call__", lambda self, line: heard.append(line["step"]))
    monkeypatch.setattr(live, "LiveBar", live.Live)
    out = f"memory://{tmp_path.name}-{is_here}"
    path = f"{out}/metrics.jsonl"
    first, second = (json.dumps({**LINE, "step": step}) + "\n" for step in (1, 2))
    storage.write_text(path, first)
    with live.following(settings(out), Terminal()) as does:
        assert does
        storage.write_text(away.local(path) if is_here else path, first + second)
    assert heard == [2]


def test_without_a_terminal_nothing_is_followed(tmp_path: Path) -> None:
    with live.following(settings(str(tmp_path)), io.StringIO()) as does:
        assert not does
