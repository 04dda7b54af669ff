"""Whether a site opted a picture out, by X-Robots-Tag read one directive at a time, or by TDM-Reservation.

Differs from img2dataset, which splits each header line at its first colon and so takes
``unavailable_after: 2030-01-01, noai`` for a line that speaks to a bot named ``unavailable_after``.
TDM-Reservation is the header of the TDM Reservation Protocol (W3C community group report, 2024).
"""

from __future__ import annotations

from collections.abc import Iterable

# Directives that carry a value after a colon; any other word before a colon names a bot.
_WITH_VALUE = frozenset(
    {"unavailable_after", "max-snippet", "max-image-preview", "max-video-preview"}
)
TDM = "tdm-reservation"


def opted_out(lines: Iterable[str], token: str, disallowed: frozenset[str]) -> bool:
    """Whether any X-Robots-Tag line forbids use to all, or to the bot ``token``."""
    token = token.lower()
    return any(_line_forbids(line, token, disallowed) for line in lines)


def _line_forbids(line: str, token: str, disallowed: frozenset[str]) -> bool:
    bot = ""
    for item in line.lower().split(","):
        name, colon, rest = (part.strip() for part in item.partition(":"))
        if colon and name not in _WITH_VALUE:
            bot, name = name, rest.partition(":")[0].strip()
        if name == "none":  # stands for noindex, nofollow
            name = "noindex"
        if name in disallowed and bot in ("", "*", token):
            return True
    return False


def reserved(lines: Iterable[str], disallowed: frozenset[str]) -> bool:
    """Whether a TDM-Reservation line says 1, where ``tdm-reservation`` is among the disallowed directives."""
    return TDM in disallowed and any(line.strip() == "1" for line in lines)
