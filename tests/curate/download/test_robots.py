"""robots.txt as RFC 9309 reads it: rules for us and for all, what an answer means, and how long it is kept."""

from __future__ import annotations

import pytest

from curate.download.guard import clean_url
from curate.download.outcomes import Refused
from curate.download.robots import Robots

PAGE = clean_url("https://example.com/private/a.jpg")
TEXT = b"""
User-agent: *
Disallow: /private/
Crawl-delay: 2

User-agent: otherbot
Disallow: /
"""


def robots(found: bytes | Refused, token: str = "clip-pipe") -> Robots:
    made = Robots(token)
    made.learn(PAGE.origin, found, 0.0)
    return made


def test_the_file_lies_at_the_root_of_the_origin() -> None:
    assert Robots.url(PAGE).url == "https://example.com/robots.txt"
    assert Robots.url(clean_url("http://a.example:81/x?y")).url == "http://a.example:81/robots.txt"


def test_rules_are_followed() -> None:
    rules = robots(TEXT)
    refusal = rules.verdict(PAGE)
    assert refusal is not None
    assert refusal.kind == "robots"
    assert rules.verdict(clean_url("https://example.com/public.jpg")) is None
    assert rules.delay_s(PAGE) == 2.0
    other = robots(TEXT, "otherbot")
    assert other.verdict(clean_url("https://example.com/public.jpg")) is not None
    assert robots(b"User-agent: clip-pipe\nAllow: /\n\n" + TEXT).verdict(PAGE) is None


@pytest.mark.parametrize(
    ("found", "kind"),
    [
        (b"", None),
        (b"\xff\xfe\x00 not text", None),
        (b"<html>not found</html>", None),
        (Refused("http.404", ""), None),
        (Refused("http.401", ""), None),
        (Refused("redirect", ""), None),
        (Refused("http.503", ""), "robots"),
        (Refused("dns", ""), "dns"),
        (Refused("timeout.connect", ""), "timeout.connect"),
        (Refused("forbidden_address", ""), "forbidden_address"),
    ],
)
def test_what_an_answer_means(found: bytes | Refused, kind: str | None) -> None:
    refusal = robots(found).verdict(PAGE)
    assert (refusal and refusal.kind) == kind


def test_it_is_kept_for_hours_and_failures_for_minutes() -> None:
    good, bad = robots(TEXT), robots(Refused("http.500", ""))
    assert good.knows(PAGE, 3600.0)
    assert not good.knows(PAGE, 5 * 3600.0)
    assert bad.knows(PAGE, 200.0)
    assert not bad.knows(PAGE, 301.0)
    assert not good.knows(clean_url("http://example.com/"), 0.0)


def test_only_so_many_origins_are_kept() -> None:
    made = Robots("clip-pipe")
    for number in range(2500):
        made.learn(f"http://{number}.example", b"", 0.0)
    assert len(made._kept) == 2000
    assert made.knows(clean_url("http://2499.example/"), 1.0)
    assert not made.knows(clean_url("http://0.example/"), 1.0)
