"""filter.domain_list: whole labels only, every way to write a host, lists of URLs in clear and as sha256."""

from __future__ import annotations

import gzip
import hashlib
from pathlib import Path

import pyarrow as pa
import pytest
from hypothesis import given
from hypothesis import strategies as st

from curate.filter.domain_list import DomainList, hosts_of, normal_host
from curate.stage import StageError

BLOCKED, NOT_ALLOWED, OPTED_OUT = (
    "domain_list.blocked",
    "domain_list.not_allowed",
    "opt_out.url",
)


def lists(folder: Path, **texts: str) -> dict[str, str]:
    """Options that name a file for each text."""
    paths = {name: folder / f"{name}.txt" for name in texts}
    for name, text in texts.items():
        paths[name].write_text(text)
    return {name: str(path) for name, path in paths.items()}


def reasons(stage: DomainList, urls: list[str | None]) -> list[str | None]:
    stage.check()
    done = stage.process(pa.table({"url": pa.array(urls, pa.string())}), stage.open())
    assert done.schema == stage.writes()
    assert done["keep"].to_pylist() == [reason is None for reason in done["reason"].to_pylist()]
    return done["reason"].to_pylist()


def test_a_domain_covers_what_is_below_it_and_nothing_that_only_ends_alike(tmp_path: Path) -> None:
    stage = DomainList(**lists(tmp_path, block="# shops\nexample.com\n\n*.wild.org  # and below\n"))
    urls = {
        "http://example.com/a.jpg": BLOCKED,
        "https://img.cdn.Example.COM/a.jpg": BLOCKED,
        "https://notexample.com/a.jpg": None,
        "https://example.com.evil.net/a.jpg": None,
        "https://other.net/example.com/a.jpg": None,
        "https://other.net/?u=http://example.com/": None,
        "https://wild.org/": BLOCKED,
        "https://a.wild.org/": BLOCKED,
        "https://com/": None,
    }
    assert reasons(stage, list(urls)) == list(urls.values())


@pytest.mark.parametrize(
    "url",
    [
        "HTTP://EXAMPLE.com:8080/x",
        "http://user:p@ss@example.com/x",
        "http://example.com./x",
        "//example.com/x",
        "http://example.com?x",
        "http://example.com#x",
        "http:\\\\example.com\\x",
        " https://example.com/x",
        "http://ex%61mple.com/x",
    ],
)
def test_every_way_to_write_a_host(tmp_path: Path, url: str) -> None:
    assert reasons(DomainList(**lists(tmp_path, block="example.com")), [url]) == [BLOCKED]


def test_international_names_and_addresses(tmp_path: Path) -> None:
    stage = DomainList(
        **lists(tmp_path, block="BÜCHER.example\n10.0.0.1\n0.0.2\n[2001:DB8:0::1]\n")
    )
    urls = {
        "http://bücher.example/": BLOCKED,
        "http://img.xn--bcher-kva.example/": BLOCKED,
        "http://bucher.example/": None,
        "http://10.0.0.1:80/": BLOCKED,
        "http://10.0.0.2/": None,
        "http://[2001:db8::1]:80/x": BLOCKED,
        "http://[2001:db8::2]/x": None,
        "http://10.1/": BLOCKED,
        "http://0xa.0.1/": BLOCKED,
        "http://167772161/": BLOCKED,
        "http://012.0.0.1:80/": BLOCKED,
        "http://１０.0.0.1/": BLOCKED,
        "http://[::ffff:10.0.0.1]/": BLOCKED,
        "http://[::ffff:a00:1]/": BLOCKED,
        "http://10.0.0.256/": None,
        "http://4294967296/": None,
        "http://09.1/": None,
        "http://x.10.1/": None,
    }
    assert reasons(stage, list(urls)) == list(urls.values())


def test_only_what_is_allowed_and_not_blocked_stays(tmp_path: Path) -> None:
    stage = DomainList(**lists(tmp_path, allow="museum.org\n", block="shop.museum.org\n"))
    urls = {
        "http://museum.org/1": None,
        "http://www.museum.org/1": None,
        "http://a.shop.museum.org/1": BLOCKED,
        "http://other.org/1": NOT_ALLOWED,
        "shard-00000.tar/0001": NOT_ALLOWED,
        None: NOT_ALLOWED,
    }
    assert reasons(stage, list(urls)) == list(urls.values())


def test_urls_that_were_opted_out_in_clear_or_by_their_digest(tmp_path: Path) -> None:
    hidden = "http://host/gehört.jpg"
    text = f"# asked for in 2024\nhttp://host/a.jpg#x\n{hashlib.sha256(hidden.encode()).hexdigest().upper()}\n"
    stage = DomainList(**lists(tmp_path, urls=text))
    found = reasons(stage, ["http://host/a.jpg#x", "http://host/a.jpg", hidden, None])
    assert found == [OPTED_OUT, None, OPTED_OUT, None]
    assert reasons(DomainList(**lists(tmp_path, urls="# none\n")), ["http://host/a"]) == [None]


def test_packed_lists_and_a_byte_order_mark(tmp_path: Path) -> None:
    path = tmp_path / "list.txt.gz"
    path.write_bytes(gzip.compress("\ufeffexample.com\r\nb.org\r\n".encode()))
    stage = DomainList(block=str(path))
    assert reasons(stage, ["http://example.com/", "http://b.org/"]) == [BLOCKED, BLOCKED]


def test_which_list_is_which_is_part_of_the_identity(tmp_path: Path) -> None:
    path = str(tmp_path / "list.txt")
    stages = [DomainList(block=path), DomainList(allow=path), DomainList(urls=path)]
    assert {stage.inputs() for stage in stages} == {(path,)}
    assert len({stage.identity() for stage in stages}) == 3


@pytest.mark.parametrize(
    ("text", "found"),
    [
        ("a.org\nhttp://example.com/x\n", "line 2: 'http://example.com/x' is no domain"),
        ("two words\n", "line 1"),
        ("exa*mple.com", "line 1"),
        ("*example.com", "line 1"),
        ("example.com:8080", "line 1"),
        ("||ads.com^", "line 1"),
        ("a.org\nexample,com", "line 2"),
        ("a..org", "line 1"),
        ("0.0.0.0 ads.com", "line 1"),
        ("[2001:db8::1]:80", "line 1"),
    ],
)
def test_a_line_that_is_no_domain_is_named(tmp_path: Path, text: str, found: str) -> None:
    stage = DomainList(**lists(tmp_path, block=text))
    with pytest.raises(ValueError, match=rf"{found}.*hint: one domain a line"):
        stage.check()
    with pytest.raises(StageError, match="is no domain"):
        stage.open()


@pytest.mark.parametrize("option", ["block", "allow", "urls"])
def test_lists_that_cannot_be_read_are_named(tmp_path: Path, option: str) -> None:
    cut, odd, noise = (tmp_path / f"{name}.txt.gz" for name in ("cut", "odd", "noise"))
    packed = gzip.compress(b"".join(b"a%d.org\n" % n for n in range(9000)))
    cut.write_bytes(packed[:-100])
    odd.write_bytes(b"a.org\n")
    noise.write_bytes(packed[:200] + bytes(50) + packed[250:])
    for path in (cut, odd, noise, tmp_path):
        stage = DomainList(**{option: str(path)})
        with pytest.raises(ValueError, match=rf"{path.name}: can't be read: .*\. hint: ") as fault:
            stage.check()
        assert type(fault.value) is ValueError
        with pytest.raises(StageError, match="can't be read"):
            stage.open()


def test_lists_that_are_not_there(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match=r"no list at all\. hint"):
        DomainList().check()
    with pytest.raises(ValueError, match=r"no such list\. hint"):
        DomainList(block=str(tmp_path / "none.txt")).check()


@given(st.lists(st.from_regex(r"[a-z0-9]{1,3}", fullmatch=True), min_size=1, max_size=5))
def test_hosts_are_found_whatever_surrounds_them(labels: list[str]) -> None:
    host = normal_host(".".join(labels))
    urls = [f"https://u:p@{host.upper()}:443/p@q?r=//x", f"//{host}./", f"ftp://{host}"]
    assert hosts_of(pa.array(urls)).to_pylist() == [host] * 3


def test_a_host_that_no_resolver_takes_is_still_a_host() -> None:
    assert normal_host("a..b") == "a..b"
    assert normal_host("ü" * 100 + ".de").startswith("ü")
