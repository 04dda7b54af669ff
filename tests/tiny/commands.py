"""Whole commands in processes of their own, for tests that send them signals."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent.parent


def stopped(arguments: list[str], number: signal.Signals, begun: Callable[[], object]) -> None:
    """Run `cli.py`, send a signal once ``begun()`` is true, and hold the process to an orderly end."""
    process = subprocess.Popen(
        [sys.executable, "cli.py", *arguments],
        cwd=ROOT,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        env={**os.environ, "PYTHONPATH": str(ROOT)},
    )
    deadline = time.monotonic() + 120
    while not begun() and time.monotonic() < deadline:
        time.sleep(0.05)
    process.send_signal(number)
    out, err = process.communicate(timeout=120)
    assert process.returncode == 128 + number, err[-3000:]
    assert out == ""
    assert "the same command goes on" in err
    assert "Traceback" not in err
