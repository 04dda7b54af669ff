"""Whether a site opted a picture out by X-Robots-Tag, read one directive at a time.

Differs from img2dataset, which splits each header line at its first colon and so takes
``unavailable_after: 2030-01-01, noai`` for a line that speaks to a bot named ``unavailable_after``.
"""

from __future__ import annotations

from collections.abc import Iterable

# Directives that carry a value after a colon; any other word before a colon names a bot.
_WITH_VALUE = frozenset(
    {"unavailable_after", "max-snippet", "max-image-preview", "max-video-preview"}
)


def opted_out(lines: Iterable[str], token: str, disallowed: frozenset[str]) -> bool:
    """Whether any header line forbids use to all, or to the bot ``token``."""
    token = token.lower()
    return any(_line_forbids(line, token, disallowed) for line in lines)


def _line_forbids(line: str, token: str, disallowed: frozenset[str]) -> bool:
    bot = ""
    for item in line.lower().split(","):
        name, colon, rest = (part.strip() for part in item.partition(":"))
        if colon and name not in _WITH_VALUE:
            bot, name = name, rest.partition(":")[0].strip()
        if name in disallowed and bot in ("", "*", token):
            return True
    return False
