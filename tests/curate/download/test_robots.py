"""robots.txt as RFC 9309 reads it: rules for us and for all, what an answer means, and how long it is kept."""

from __future__ import annotations

import time

import pytest

from curate.download import robots as module
from curate.download.guard import Target, clean_url
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
        (Refused("timeout.first_byte", ""), "robots"),
        (Refused("timeout.total", ""), "robots"),
        (Refused("connection", ""), "robots"),
        (Refused("protocol", ""), "robots"),
        (Refused("scheme", ""), "robots"),
        (Refused("host_down", ""), "host_down"),
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


def test_a_redirect_to_nowhere_is_no_word_on_the_host() -> None:
    made = Robots("clip-pipe")
    made.learn(PAGE.origin, Refused("forbidden_address", ""), 0.0, reached=True)
    refusal = made.verdict(PAGE)
    assert refusal is not None
    assert refusal.kind == "robots"


def test_a_resolver_that_does_not_answer_is_asked_again_soon() -> None:
    made = Robots("clip-pipe")
    made.learn(PAGE.origin, Refused("dns", "", passing=True), 0.0)
    assert made.knows(PAGE, 0.5)
    assert not made.knows(PAGE, 2.0)


def test_a_crawl_delay_is_kept_up_to_a_limit() -> None:
    assert robots(b"User-agent: *\nCrawl-delay: 3600\n").delay_s(PAGE) == 30.0


def test_the_tools_own_name_counts_beside_the_users_token() -> None:
    own = b"User-agent: clip-pipe\nDisallow: /private/\nCrawl-delay: 7\n"
    free = b"User-agent: mine\nAllow: /\nCrawl-delay: 1\n\n"
    assert robots(free + own, "mine").verdict(PAGE) is not None
    assert robots(free + own, "mine").delay_s(PAGE) == 7.0
    # For all others, but not for the user's token: the tool is not named.
    assert robots(free + b"User-agent: *\nDisallow: /\n", "mine").verdict(PAGE) is None


def cpu_s(rules: Robots, page: Target) -> float:
    """The least CPU time of some verdicts."""
    rules.verdict(page)  # the first compiles what it needs
    spent_s = []
    for _ in range(3):
        began_s = time.process_time()
        for _ in range(4):
            assert rules.verdict(page) is None
        spent_s.append(time.process_time() - began_s)
    return min(spent_s)


def test_a_huge_file_of_rules_costs_little_per_url(monkeypatch: pytest.MonkeyPatch) -> None:
    lines = "".join(f"Disallow: /*{number}*x\n" for number in range(24_000))
    text = f"# {'x' * 100_000}\nUser-agent: *\nDisallow: /private/\n{lines}".encode()
    rules = robots(text)
    with monkeypatch.context() as patch:
        patch.setattr(module, "_RULES_BYTES", len(text))
        every = robots(text)
    assert rules.verdict(PAGE) is not None  # a long comment takes no rule's place
    page = clean_url("https://example.com/some/long/path/to/a/picture-123.jpg")
    assert cpu_s(rules, page) < 0.5 * cpu_s(every, page)  # a sixth, as it is; both measured alike
