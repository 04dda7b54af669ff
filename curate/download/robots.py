"""What robots.txt allows, per scheme, host and port, kept for some hours. RFC 9309; parsed by protego.

4xx and endless redirects mean all is allowed; a server error, and whatever else went wrong on a host that was reached, that
nothing is. Where the host cannot be reached at all, its URLs get that reason, since they would get it anyway.
"""

from __future__ import annotations

import re
from collections import OrderedDict
from dataclasses import dataclass
from typing import Any

from curate.download.guard import Target
from curate.download.outcomes import Refused, matches

MAX_BYTES = 500 << 10  # RFC 9309, 2.5: at least 500 KiB are read
MOST_HOPS = 5  # RFC 9309, 2.3.1.2: at least five redirects are followed
LONGEST_DELAY_S = 30.0
_OWN_NAME = "clip-pipe"
_RULES_BYTES = 64 << 10  # of 500 KiB of wildcards every URL would cost 10 ms
_NOT_RULES = re.compile(r"[ \t]*(#|sitemap[ \t]*:)", re.IGNORECASE)
_UNREACHED = frozenset({
    "dns", "refused", "timeout.connect", "tls", "forbidden_address", "host_down",
})  # fmt: skip
_KEPT = 2_000
_KEPT_S = 4 * 3600.0
_FAILURE_KEPT_S = 300.0
_PASSING_KEPT_S = 1.0


@dataclass(slots=True)
class _Rules:
    until_s: float
    parsed: Any = None  # protego's, None: all is allowed
    names: tuple[str, ...] = ()  # whose groups count
    refused: Refused | None = None


class Robots:
    """Rules by origin, for one user agent token, and for the tool's own name where a group names it.

    The caller fetches the files and tells the time.
    """

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
        if all(rules.parsed.can_fetch(target.url, name) for name in rules.names):
            return None
        return Refused("robots", f"robots.txt of {target.authority} forbids {target.path}"[:200])

    def delay_s(self, target: Target) -> float:
        """The Crawl-delay that the origin asks of us, in seconds, at most 30; 0 where it asks none."""
        rules = self._kept[target.origin]
        asked = (rules.parsed.crawl_delay(name) for name in rules.names)
        return min(LONGEST_DELAY_S, max((float(delay_s or 0.0) for delay_s in asked), default=0.0))

    def learn(
        self, origin: str, found: bytes | Refused, now_s: float, *, reached: bool = False
    ) -> None:
        """What asking for an origin's robots.txt brought. ``reached``: the host answered, be it by a redirect."""
        self._kept[origin] = _rules(found, now_s, self._token, reached)
        self._kept.move_to_end(origin)
        while len(self._kept) > _KEPT:
            self._kept.popitem(last=False)


def _rules(found: bytes | Refused, now_s: float, token: str, reached: bool) -> _Rules:
    if isinstance(found, bytes):
        return _parsed(found, now_s, token)
    if matches(found.kind, "http.4xx") or found.kind == "redirect" or found.kind == "opt_out":
        return _Rules(now_s + _KEPT_S)
    kind = found.kind if found.kind in _UNREACHED and not reached else "robots"
    words = f"asking for robots.txt: {found}"[:200]
    kept_s = _PASSING_KEPT_S if found.passing else _FAILURE_KEPT_S
    return _Rules(now_s + kept_s, refused=Refused(kind, words, passing=found.passing))


def _parsed(found: bytes, now_s: float, token: str) -> _Rules:
    from protego import Protego

    lines = found.decode("utf-8-sig", "replace").splitlines()
    text = "\n".join(line for line in lines if not _NOT_RULES.match(line))
    if len(text) > _RULES_BYTES:
        text = text[:_RULES_BYTES].rpartition("\n")[0]
    if not text.strip():
        return _Rules(now_s + _KEPT_S)
    named = re.search(rf"^[ \t]*user-agent[ \t]*:[ \t]*{_OWN_NAME}\b", text, re.I | re.M)
    names = (token, _OWN_NAME) if named else (token,)
    return _Rules(now_s + _KEPT_S, Protego.parse(text), tuple(dict.fromkeys(names)))
