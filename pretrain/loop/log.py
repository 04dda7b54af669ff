"""metrics.jsonl: one JSON object a line, and none beyond the point a run resumes from."""

from __future__ import annotations

import json
import os
from typing import Any


class MetricsLog:
    """Appends to OUT/metrics.jsonl. Lines are flushed one by one, so a kill costs half a line at most."""

    def __init__(self, path: str) -> None:
        self.path = path

    def rewind(self, samples_seen: int) -> None:
        """Cut the file before its first line beyond ``samples_seen``, or that is not whole."""
        if not os.path.exists(self.path):
            return
        kept: list[bytes] = []
        with open(self.path, "rb") as file:
            for line in file:
                if not line.endswith(b"\n") or _samples_seen(line) > samples_seen:
                    break
                kept.append(line)
        temporary = f"{self.path}.tmp-{os.getpid()}"
        with open(temporary, "wb") as file:
            file.writelines(kept)
        os.replace(temporary, self.path)

    def write(self, figures: dict[str, Any]) -> None:
        with open(self.path, "a", encoding="utf-8") as file:
            file.write(json.dumps(figures) + "\n")


def _samples_seen(line: bytes) -> float:
    """The samples_seen of a line; infinity for one that is not JSON, 0 for one without."""
    try:
        return float(json.loads(line).get("samples_seen", 0))
    except (ValueError, AttributeError):
        return float("inf")
