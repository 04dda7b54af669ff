"""Whether a site opted a picture out, by X-Robots-Tag read one directive at a time, or by TDM-Reservation.

Differs from img2dataset, which splits each header line at its first colon and so takes
``unavailable_after: 2030-01-01, noai`` for a line that speaks to a bot named ``unavailable_after``.
Directives are also told apart at semicolons, and at spaces where every word is a directive.
TDM-Reservation is the header of the TDM Reservation Protocol (W3C community group report, 2024).
"""

from __future__ import annotations

import difflib
import re
from collections.abc import Iterable

# Directives that carry a value after a colon; any other token before a colon names a bot.
_WITH_VALUE = frozenset(
    {"unavailable_after", "max-snippet", "max-image-preview", "max-video-preview"}
)
_WORDS = frozenset({
    "all", "index", "follow", "none", "noindex", "nofollow", "noarchive", "nocache", "nosnippet",
    "noimageindex", "noimageai", "noai", "notranslate", "noodp", "noydir", "indexifembedded",
    "nositelinkssearchbox", "nopagereadaloud",
})  # fmt: skip
_BOT = re.compile(r"\*|[a-z_][a-z0-9_./+-]*")  # the hour of a date is none
TDM = "tdm-reservation"
_OFTEN_SENT = (
    "noai", "noimageai", "noindex", "noimageindex", "nofollow", "noarchive", "nosnippet", "none", TDM,
)  # fmt: skip


def opted_out(lines: Iterable[str], token: str, disallowed: frozenset[str]) -> bool:
    """Whether any X-Robots-Tag line forbids use to all, or to the bot ``token``."""
    token = token.lower()
    return any(_line_forbids(line, token, disallowed) for line in lines)


def _line_forbids(line: str, token: str, disallowed: frozenset[str]) -> bool:
    bot = ""
    for item in re.split("[,;]", line.lower()):
        name, colon, rest = (part.strip() for part in item.partition(":"))
        if colon and name not in _WITH_VALUE:
            if name and name != token and not _BOT.fullmatch(name):
                continue  # the rest of a date: "06 nov 2033 08:49:37 gmt"
            bot, name = name, rest.partition(":")[0].strip()
        if bot in ("", "*", token) and _forbids(name, disallowed):
            return True
    return False


def _forbids(name: str, disallowed: frozenset[str]) -> bool:
    words = name.split()
    if len(words) < 2 or not all(word in _WORDS or word in disallowed for word in words):
        words = [name]
    # "none" stands for noindex, nofollow.
    return any(("noindex" if word == "none" else word) in disallowed for word in words)


def reserved(lines: Iterable[str], disallowed: frozenset[str]) -> bool:
    """Whether a TDM-Reservation line says 1, where ``tdm-reservation`` is among the disallowed directives."""
    values = (value.partition(";")[0] for line in lines for value in line.split(","))
    return TDM in disallowed and any(value.strip() == "1" for value in values)


def meant(word: str) -> str | None:
    """The directive that ``word`` is a slip of; None where it is one, or like none (any word may be disallowed)."""
    if word in _OFTEN_SENT:
        return None
    if word.startswith("tdm"):
        return TDM
    plain = word.replace("-", "").replace("_", "").replace(" ", "")
    near = difflib.get_close_matches(plain, _OFTEN_SENT, 1, 0.85)
    return near[0] if near else None
