"""How many CPU cores this process may use: by its affinity and its control group's quota. No torch."""

from __future__ import annotations

import os
from pathlib import Path

_QUOTA = Path("/sys/fs/cgroup/cpu.max")


def cores() -> int:
    """At least 1."""
    count = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count()
    try:
        quota, period = _QUOTA.read_text().split()
        return max(min(count or 1, round(int(quota) / int(period))), 1)
    except (OSError, ValueError):  # no such group, or "max"
        return count or 1
