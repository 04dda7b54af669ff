"""Parts that could not be done, whatever was tried: what a runner says of them, and POOL/work/failures.json.

The file has ``{stage: {"parts": {"17": {"kind", "told", "attempts", "node", "log"}}}}``. A part leaves it
when it ends after all. Only the driver writes it.
"""

from __future__ import annotations

import json
from collections.abc import Iterable, Mapping
from dataclasses import asdict, dataclass
from typing import Any

from curate.contract import storage
from pipelines import events
from pipelines.errors import RunFailed

KINDS = ("died", "hung", "memory", "raised")
_HOW = {
    "died": "its process died",
    "hung": "it hung",
    "memory": "it took too much memory",
    "raised": "it raised",
}
_SHOWN = 5


@dataclass(frozen=True)
class Failed:
    """What a runner gives in place of a call's results that it could not get. ``kind``: one of KINDS."""

    kind: str
    told: str  # its last words
    attempts: int
    node: str = ""
    log: str = ""  # the worker's own words, a file on that node
    results: int = 0  # that the call had given before


class Failures:
    """What is noted of one pool; each change is written at once."""

    def __init__(self, pool_root: str) -> None:
        self._path = storage.join(pool_root, "work", "failures.json")
        self._found = read(pool_root)

    @property
    def path(self) -> str:
        return self._path

    def note(self, stage: str, part: int, failed: Failed) -> None:
        told = asdict(failed)
        del told["results"]
        events.tell(
            "part_failed", "error", stage=stage, part=part, message=line(stage, part, told), **told
        )
        self._found.setdefault(stage, {"parts": {}})["parts"][str(part)] = told
        self._write()

    def ended(self, stage: str, parts: Iterable[int]) -> None:
        """These parts of a stage are done after all."""
        noted = self._found.get(stage, {}).get("parts", {})
        gone = [str(part) for part in parts if str(part) in noted]
        for part in gone:
            del noted[part]
        if gone:
            self._found = {name: entry for name, entry in self._found.items() if entry["parts"]}
            self._write()

    def forget(self) -> None:
        """The run ended whole."""
        if self._found:
            self._found = {}
            self._write()

    def _write(self) -> None:
        if self._found:
            storage.write_text(self._path, json.dumps(self._found, indent=1, ensure_ascii=False))
        else:
            storage.remove(self._path)


def read(pool_root: str) -> dict[str, Any]:
    """Stage -> its failed parts; {} where none is noted, or what is there is not ours."""
    path = storage.join(pool_root, "work", "failures.json")
    try:
        found = storage.read_json(path, "failures")
    except ValueError:
        return {}
    return {
        stage: entry
        for stage, entry in found.items()
        if isinstance(entry, dict) and isinstance(entry.get("parts"), dict)
    }


def line(stage: str, part: int, told: Mapping[str, Any]) -> str:
    """One failed part in words."""
    where = f" on {told['node']}" if told.get("node") else ""
    log = f"; its log there: {told['log']}" if told.get("log") else ""
    how = _HOW.get(str(told.get("kind")), str(told.get("kind")))
    return f"part {part} of {stage}: {how} in each of {told.get('attempts')} attempts{where}: {told.get('told')}{log}"


def raised(stage: str, failed: Mapping[int, Failed], of: int, path: str) -> RunFailed:
    """The exception that ends a run some of whose parts failed, all others being done."""
    lines = [line(stage, part, asdict(one)) for part, one in sorted(failed.items())[:_SHOWN]]
    if len(failed) > _SHOWN:
        lines.append(f"and {len(failed) - _SHOWN} more")
    return RunFailed(
        f"{len(failed)} of {of} parts could not be done; all others are (noted in {path})\n"
        + "\n".join(lines)
        + "\nhint: the same command tries them again"
    )
