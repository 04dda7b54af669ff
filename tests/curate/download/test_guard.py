"""What is refused before anything is asked, and how an answer's headers are judged. No network here."""

from __future__ import annotations

import contextlib
import gzip
import pickle
import zlib
from email.utils import formatdate
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from curate.download import guard
from curate.download.guard import (
    Accepted,
    Policy,
    Redirect,
    Refused,
    clean_url,
    forbidden,
    inflated,
    is_allowed_host,
    judge,
    next_target,
    retry_after_s,
    trusted_certificates,
)

POLICY = Policy(
    user_agent_token="clip-pipe",
    max_bytes=1000,
    disallowed_directives=frozenset({"noai", "noimageai", "tdm-reservation"}),
)


@pytest.mark.parametrize(
    ("url", "clean"),
    [
        ("http://Example.com", "http://example.com/"),
        (" https://example.com:443/a b.jpg\n", "https://example.com/a%20b.jpg"),
        ("http://example.com/ünï.jpg?q=ä b", "http://example.com/%C3%BCn%C3%AF.jpg?q=%C3%A4%20b"),
        ("http://bücher.example/x", "http://xn--bcher-kva.example/x"),
        ("http://example.com/100%.jpg", "http://example.com/100%25.jpg"),
        ("http://example.com/%41%zz#part", "http://example.com/%41%25zz"),
        ("http://example.com/a?b=%20&c", "http://example.com/a?b=%20&c"),
        ("http://example.com?", "http://example.com/"),
        ("http://EXAMPLE.com:8080/A", "http://example.com:8080/A"),
        ("http://a_b.example/x", "http://a_b.example/x"),
        ("http://faß.example/", "http://xn--fa-hia.example/"),
        ("http://BÜCHER.Example/", "http://xn--bcher-kva.example/"),
        ("http://１２７.0.0.1/", "http://127.0.0.1/"),
        ("http://☕.example/", "http://xn--53h.example/"),
        ("http://a_b.bücher.example/", "http://a_b.xn--bcher-kva.example/"),
        ("http://[::FFFF:7f00:1]/", "http://[::ffff:7f00:1]/"),
        ("http://[2001:db8::1]:81/x", "http://[2001:db8::1]:81/x"),
    ],
)
def test_urls_are_made_ascii(url: str, clean: str) -> None:
    assert clean_url(url).url == clean
    assert clean_url(clean).url == clean


@pytest.mark.parametrize(
    ("url", "kind"),
    [
        (None, "bad_url"),
        ("", "bad_url"),
        ("http://", "bad_url"),
        ("http://host:port/", "bad_url"),
        ("http://[::1/", "bad_url"),
        ("http://a..b/", "bad_url"),
        ("http://ü..b/", "bad_url"),
        (f"http://{'ü' * 60}.example/", "bad_url"),
        (f"http://{'a' * 64}.example/", "bad_url"),
        (f"http://{'abcdefgh.' * 30}example/", "bad_url"),
        ("http://example.com/" + "a" * (64 << 10), "bad_url"),
        ("http://example.com/" + "ü" * (20 << 10), "bad_url"),  # too long once encoded
        ("http://user:pass@example.com/", "bad_url"),
        ("http://example.com:99999/", "bad_url"),
        ("http://good.example\\@127.0.0.1/", "bad_url"),
        ("http://a%2f.example/", "bad_url"),
        ("http://[fe80::1%25eth0]/", "bad_url"),
        ("http://example.com/\ud800", "bad_url"),
        ("file:///etc/passwd", "scheme"),
        ("data:image/png;base64,AAAA", "scheme"),
        ("ftp://example.com/x", "scheme"),
        ("//example.com/x.jpg", "scheme"),
        ("example.com/x.jpg", "scheme"),
    ],
)
def test_what_is_no_web_address_is_refused(url: str | None, kind: str) -> None:
    with pytest.raises(Refused) as caught:
        clean_url(url)
    assert caught.value.kind == kind


@given(st.text(max_size=60).map(lambda text: "http://" + text))
def test_any_text_is_a_target_or_a_refusal(url: str) -> None:
    with contextlib.suppress(Refused):
        assert clean_url(url).url.isascii()


@pytest.mark.parametrize(
    ("address", "expected"),
    [
        ("8.8.8.8", False),
        ("2606:4700::1111", False),
        ("127.0.0.1", True),
        ("10.1.2.3", True),
        ("172.16.0.1", True),
        ("192.168.1.1", True),
        ("169.254.169.254", True),
        ("100.64.0.1", True),
        ("0.0.0.0", True),
        ("224.0.0.1", True),
        ("255.255.255.255", True),
        ("::1", True),
        ("::", True),
        ("fe80::1%eth0", True),
        ("fc00::1", True),
        ("ff02::1", True),
        ("::ffff:127.0.0.1", True),
        ("::ffff:8.8.8.8", False),
        ("64:ff9b::7f00:1", True),
        ("64:ff9b::808:808", False),
        ("2002:7f00:1::", True),
        ("2002:808:808::", False),
        ("2001:0:7f00:1::", True),  # Teredo
        ("2001:db8::1", True),
        ("3fff::1", True),
        ("3fff:1000::1", False),
        ("fec0::1", True),  # site-local
        ("64:ff9b:1::808:808", True),
        ("5f00::1", True),
        ("100::1", True),
        ("::8.8.8.8", True),
        ("192.88.99.1", True),
        ("192.0.0.9", True),
        ("198.18.0.1", True),
        ("203.0.113.9", True),
        ("240.0.0.1", True),
        ("168.63.129.16", True),
        ("172.32.0.1", False),
        ("100.128.0.1", False),
        ("192.0.1.1", False),
    ],
)
def test_only_public_addresses_are_free(address: str, expected: bool) -> None:
    assert forbidden(address) is expected


_URL = st.from_regex(
    r"https?://[a-zA-Z0-9.-]{1,12}(:[0-9]{1,5})?/[A-Za-z0-9%/:?=.#\[\] -]{0,20}", fullmatch=True
)


@given(_URL)
def test_the_short_way_for_clean_urls_ends_where_the_long_one_does(url: str) -> None:
    def parsed(pattern: object) -> object:
        with pytest.MonkeyPatch.context() as patch:
            patch.setattr(guard, "_CLEAN", pattern)
            try:
                return clean_url(url)
            except Refused as refusal:
                return refusal.kind

    never = guard.re.compile("(?!)")  # type: ignore[attr-defined]
    assert parsed(guard._CLEAN) == parsed(never)


def test_a_policy_goes_to_other_processes() -> None:
    assert pickle.loads(pickle.dumps(POLICY)) == POLICY


@pytest.mark.parametrize(
    ("names", "expected"),
    [
        ((), False),
        (("example.com",), True),
        (("example.com:8080",), True),
        (("example.com:80", "other.com"), False),
    ],
)
def test_hosts_are_named_with_or_without_port(names: tuple[str, ...], expected: bool) -> None:
    policy = Policy(allow_hosts=frozenset(names))
    assert is_allowed_host(clean_url("http://example.com:8080/x"), policy) is expected


@pytest.mark.parametrize(
    ("location", "expected"),
    [
        ("/b ü", "http://example.com/b%20%C3%BC"),
        ("c.jpg", "http://example.com/a/c.jpg"),
        ("//other.example/x", "http://other.example/x"),
        ("?q=1", "http://example.com/a/b?q=1"),
        ("file:///etc/passwd", "scheme"),
        ("http://[1/", "bad_url"),
        ("javascript:x", "scheme"),
        ("/" + "a" * (64 << 10), "bad_url"),
    ],
)
def test_redirects_lead_where_a_browser_would_go_or_nowhere(location: str, expected: str) -> None:
    try:
        found = next_target(clean_url("http://example.com/a/b"), location).url
    except Refused as refusal:
        found = refusal.kind
    assert found == expected


@pytest.mark.parametrize(
    ("status", "headers", "expected"),
    [
        (200, {}, Accepted(None, "")),
        (200, {"content-length": [" 12 "]}, Accepted(12, "")),
        (200, {"content-length": ["12", "12"]}, Accepted(12, "")),
        (200, {"content-length": ["12", "13"]}, "protocol"),
        (200, {"content-length": ["-5"]}, "protocol"),
        (200, {"content-length": ["5x"]}, "protocol"),
        (200, {"content-length": ["1000"]}, Accepted(1000, "")),
        (200, {"content-length": ["1001"]}, "too_large.bytes"),
        (200, {"content-length": ["9" * 50]}, "too_large.bytes"),
        (200, {"content-length": ["9"], "transfer-encoding": ["chunked"]}, Accepted(None, "")),
        (200, {"content-encoding": ["GZIP"]}, Accepted(None, "gzip")),
        (200, {"content-encoding": ["identity"]}, Accepted(None, "")),
        (200, {"content-encoding": ["br"]}, "protocol"),
        (200, {"content-encoding": ["gzip", "gzip"]}, "protocol"),
        (200, {"x-robots-tag": ["noarchive", "noai"]}, "opt_out"),
        (200, {"x-robots-tag": ["otherbot: noai"]}, Accepted(None, "")),
        (200, {"x-robots-tag": ["clip-pipe: noai"]}, "opt_out"),
        (200, {"tdm-reservation": ["1"]}, "opt_out"),
        (200, {"tdm-reservation": ["0"]}, Accepted(None, "")),
        (203, {"content-length": [" 12 "]}, Accepted(12, "")),
        (206, {}, "http.206"),
        (302, {"location": ["/x"]}, Redirect("/x")),
        (302, {"location": ["/x"], "x-robots-tag": ["noai"]}, "opt_out"),
        (404, {"x-robots-tag": ["noai"]}, "http.404"),
        (302, {"location": [" "]}, "redirect"),
        (308, {}, "redirect"),
        (304, {}, "http.304"),
        (404, {"content-length": ["-1"]}, "http.404"),
    ],
)
def test_answers_are_judged_by_their_headers(
    status: int, headers: dict[str, list[str]], expected: object
) -> None:
    try:
        found: object = judge(status, "", headers, POLICY)
    except Refused as refusal:
        found = refusal.kind
    assert found == expected


@pytest.mark.parametrize(
    ("text", "expected"),
    [("7", 7.0), (" 0 ", 0.0), ("", None), ("soon", None), ("-3", None), ("²", None)],
)
def test_retry_after_in_seconds(text: str, expected: float | None) -> None:
    assert retry_after_s(text) == expected


def test_retry_after_as_a_date() -> None:
    assert retry_after_s(formatdate(1_000_020, usegmt=True), now_s=1_000_000) == 20
    assert retry_after_s(formatdate(999_000, usegmt=True), now_s=1_000_000) == 0


@given(st.binary(max_size=3000), st.sampled_from(["gzip", "deflate", "raw"]))
def test_bodies_are_inflated_up_to_the_limit(data: bytes, way: str) -> None:
    wbits = {"gzip": 31, "deflate": 15, "raw": -15}[way]
    packer = zlib.compressobj(wbits=wbits)
    body = packer.compress(data) + packer.flush()
    coding = "gzip" if way == "gzip" else "deflate"
    assert inflated(body, coding, len(data)) == data
    if data:
        assert inflated(body, coding, len(data) - 1) is None


def test_a_bomb_is_not_unpacked_past_the_limit() -> None:
    assert inflated(gzip.compress(b"\0" * (64 << 20)), "gzip", 1 << 20) is None


@pytest.mark.parametrize(
    ("body", "kind"),
    [
        (b"hello", "protocol"),
        (gzip.compress(b"hello", mtime=0)[:-4], "connection"),
        (b"", "connection"),
    ],
)
def test_damaged_codings_have_a_kind(body: bytes, kind: str) -> None:
    with pytest.raises(Refused) as caught:
        inflated(body, "gzip", 100)
    assert caught.value.kind == kind


def test_certificates_come_from_the_environment_first(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("SSL_CERT_FILE", str(tmp_path / "own.pem"))
    assert trusted_certificates() == (str(tmp_path / "own.pem"), None)
    monkeypatch.delenv("SSL_CERT_FILE")
    file, folder = trusted_certificates()
    assert Path(file or folder or "").exists()


@given(st.lists(st.binary(max_size=500), min_size=1, max_size=6), st.integers(0, 3))
def test_a_gzip_body_may_have_several_members(parts: list[bytes], zeros: int) -> None:
    body = b"".join(map(gzip.compress, parts))
    whole = b"".join(parts)
    assert inflated(body + b"\0" * zeros, "gzip", len(whole)) == whole
    if whole:
        assert inflated(body, "gzip", len(whole) - 1) is None


def test_members_without_end_and_across_pieces() -> None:
    big = bytes(range(256)) * 1000
    body = gzip.compress(big, 0) * 3  # no piece of the input ends where a member does
    assert inflated(body, "gzip", 1 << 20) == big * 3
    with pytest.raises(Refused) as caught:
        inflated(gzip.compress(b"") * 100_000, "gzip", 1 << 20)
    assert caught.value.kind == "protocol"


def test_a_cut_body_counts_as_far_as_it_goes() -> None:
    rules = b"Disallow: /private/\n" * 10_000
    packed = gzip.compress(rules)
    assert inflated(packed, "gzip", 1000, cut=True) == rules[:1000]
    found = inflated(packed[: len(packed) // 2], "gzip", 1 << 20, cut=True)
    assert found
    assert rules.startswith(found)
