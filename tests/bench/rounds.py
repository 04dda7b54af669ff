"""Contenders by turns, each in a fresh process, and the ratios of their medians. Used by the trainer's benchmarks."""

from __future__ import annotations

import json
import os
import statistics
import subprocess
import sys
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

ROOT = Path(__file__).resolve().parent.parent.parent
_LIMIT_S = 1800
Measured = dict[str, Any]


def fresh(script: str, name: str, job: Measured, python: str = sys.executable) -> Measured:
    """What ``python script --one NAME --job JSON`` prints as its last line. Ends the program if it fails."""
    command = [python, script, "--one", name, "--job", json.dumps(job)]
    environment = {
        **os.environ,
        "PYTHONPATH": str(ROOT),
        "OMP_NUM_THREADS": "1",
        "PYTHONHASHSEED": "0",
        "NO_ALBUMENTATIONS_UPDATE": "1",
    }
    told = subprocess.run(
        command, capture_output=True, text=True, cwd=ROOT, env=environment, timeout=_LIMIT_S
    )
    if told.returncode:
        sys.exit(f"{name} ended with {told.returncode}:\n{told.stderr[-3000:]}")
    return json.loads(told.stdout.strip().splitlines()[-1])


@dataclass
class Rounds:
    """What contenders took, round by round; ``cpu_ms`` and ``wall_ms`` are per sample. The first is the ruler."""

    title: str
    found: dict[str, list[Measured]] = field(default_factory=dict)

    def add(self, name: str, measured: Measured) -> None:
        self.found.setdefault(name, []).append(measured)
        shown = " ".join(
            f"{k}={v:.3f}" if isinstance(v, float) else f"{k}={v}" for k, v in measured.items()
        )
        print(f"  {name}: {shown}", file=sys.stderr, flush=True)

    def ratio(self, name: str, than: str, key: str = "cpu_ms") -> float:
        """How many times less of ``key`` than another: the median over rounds, each beside its neighbour."""
        pairs = zip(self.found.get(than, []), self.found.get(name, []))
        ratios = [theirs[key] / ours[key] for theirs, ours in pairs]
        return statistics.median(ratios) if ratios else float("nan")

    def show(self, more: Sequence[str] = ()) -> None:
        """The table: medians of the rounds, and how many times less CPU than the first contender."""
        ruler = next(iter(self.found))
        width = max(map(len, self.found)) + 2
        print(f"\n{self.title}")
        print(
            f"{'':{width}s}{'ms CPU/sample':>14s}{'samples/CPU-s':>15s}{'samples/s':>11s}{'times less CPU (rounds)':>32s}"
            + "".join(f"{key:>14s}" for key in more)
        )
        for name, rounds in self.found.items():
            cpu_ms, wall_ms = (
                statistics.median(one[key] for one in rounds) for key in ("cpu_ms", "wall_ms")
            )
            each = [
                a["cpu_ms"] / b["cpu_ms"] for a, b in zip(self.found[ruler], rounds, strict=False)
            ]
            spread = f"{self.ratio(name, ruler):.2f} ({min(each):.2f} to {max(each):.2f})"
            print(
                f"{name:{width}s}{cpu_ms:14.3f}{1000 / cpu_ms:15.1f}{1000 / wall_ms:11.1f}{spread:>32s}"
                + "".join(f"{_shown(rounds[-1].get(key, '')):>14s}" for key in more)
            )

    def goal(self, name: str, than: str, least: float) -> None:
        """One line: the goal, what was found, and whether it is met."""
        if name in self.found and than in self.found:
            found = self.ratio(name, than)
            met = "met" if found >= least else "NOT met"
            print(
                f"goal: {name} at least {least} times {than} per CPU-second; found {found:.2f}: {met}"
            )


def _shown(value: Any) -> str:
    return f"{value:.3f}" if isinstance(value, float) else str(value)
