"""Wall time of `clip-pipe --help`, `list`, `show` and `check`: the best of several whole processes.

python tests/bench/startup.py
"""

from __future__ import annotations

import subprocess
import sys
import time
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent.parent
COMMANDS = (["--help"], ["list"], ["show", "url_list"], ["show", "score.text_regions"])
LIMIT_S = 0.3  # of --help


def best_s(command: list[str], runs: int = 7) -> float:
    times: list[float] = []
    for _ in range(runs):
        started = time.perf_counter()
        subprocess.run(
            [sys.executable, "cli.py", *command], cwd=ROOT, check=True, capture_output=True
        )
        times.append(time.perf_counter() - started)
    return min(times)


def main() -> None:
    found = {" ".join(command): best_s(command) for command in COMMANDS}
    for name, seconds in found.items():
        print(f"clip-pipe {name:28s} {seconds * 1000:6.0f} ms")
    if found["--help"] > LIMIT_S:
        sys.exit(f"--help took {found['--help']:.2f} s, more than {LIMIT_S} s")


if __name__ == "__main__":
    main()
