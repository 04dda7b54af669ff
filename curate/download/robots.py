"""What robots.txt allows, per scheme, host and port, kept for some hours. RFC 9309; parsed by protego.

4xx and endless redirects mean all is allowed, 5xx that nothing is. Where the host cannot be reached at all,
its URLs get that reason, since they would get it anyway.
"""

from __future__ import annotations

from collections import OrderedDict
from dataclasses import dataclass
from typing import Any

from curate.download.guard import Target
from curate.download.outcomes import Refused, matches

MAX_BYTES = 500 << 10  # RFC 9309, 2.5: at least 500 KiB are read
_KEPT = 2_000
_KEPT_S = 4 * 3600.0
_FAILURE_KEPT_S = 300.0


@dataclass(slots=True)
class _Rules:
    until_s: float
    parsed: Any = None  # protego's, None: all is allowed
    refused: Refused | None = None


class Robots:
    """Rules by origin, for one user agent token. The caller fetches the files and tells the time."""

    def __init__(self, token: str) -> None:
        self._token = token
        self._kept: OrderedDict[str, _Rules] = OrderedDict()

    @staticmethod
    def url(target: Target) -> Target:
        """Where the robots.txt that speaks for a URL lies."""
        return Target(target.scheme, target.host, target.port, "/robots.txt")

    def knows(self, target: Target, now_s: float) -> bool:
        """Whether ``verdict`` can be given."""
        rules = self._kept.get(target.origin)
        return rules is not None and now_s < rules.until_s

    def verdict(self, target: Target) -> Refused | None:
        """Why the URL may not be fetched, None where it may. Its robots.txt must have been learnt."""
        rules = self._kept[target.origin]
        self._kept.move_to_end(target.origin)
        if rules.refused is not None:
            return rules.refused
        if rules.parsed is None or rules.parsed.can_fetch(target.url, self._token):
            return None
        return Refused("robots", f"robots.txt of {target.authority} forbids {target.path}"[:200])

    def delay_s(self, target: Target) -> float:
        """The Crawl-delay that the origin asks of us, in seconds; 0 where it asks none."""
        rules = self._kept[target.origin]
        delay_s = None if rules.parsed is None else rules.parsed.crawl_delay(self._token)
        return float(delay_s or 0.0)

    def learn(self, origin: str, found: bytes | Refused, now_s: float) -> None:
        """What asking for an origin's robots.txt brought."""
        self._kept[origin] = _rules(found, now_s)
        self._kept.move_to_end(origin)
        while len(self._kept) > _KEPT:
            self._kept.popitem(last=False)


def _rules(found: bytes | Refused, now_s: float) -> _Rules:
    if isinstance(found, bytes):
        from protego import Protego

        text = found.decode("utf-8-sig", "replace")
        return _Rules(now_s + _KEPT_S, Protego.parse(text) if text.strip() else None)
    if matches(found.kind, "http.5xx"):
        words = f"robots.txt: {found}"[:200]
        return _Rules(now_s + _FAILURE_KEPT_S, refused=Refused("robots", words))
    if found.kind.startswith("http.") or found.kind in ("redirect", "opt_out"):
        return _Rules(now_s + _KEPT_S)
    words = f"asking for robots.txt: {found}"[:200]
    return _Rules(now_s + _FAILURE_KEPT_S, refused=Refused(found.kind, words))
