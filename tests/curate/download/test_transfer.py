"""One request: callbacks, the clock that stops while paused, and what libcurl's codes mean."""

from __future__ import annotations

import errno
import tracemalloc

import pycurl
import pytest

from curate.download.desk import Job, Memory
from curate.download.guard import Policy, Redirect, clean_url
from curate.download.outcomes import KINDS, Refused
from curate.download.transfer import _KINDS, Transfer


def transfer(budget_bytes: int = 1000, limit_bytes: int = 100, robots: bool = False) -> Transfer:
    made = Transfer(Policy(timeout_s=10.0), Memory(budget_bytes, 0))
    job = Job("key", 1, clean_url("http://192.0.2.1/"), limit_bytes)
    job.robots_of = "http://192.0.2.1" if robots else None
    made.begin(job, 100.0)
    return made


def answer(made: Transfer, *lines: str) -> int | None:
    return [made._header(f"{line}\r\n".encode()) for line in (*lines, "")][-1]


def kind(result: object) -> str:
    assert isinstance(result, Refused)
    return result.kind


def test_a_body_is_what_was_written() -> None:
    made = transfer()
    assert answer(made, "HTTP/1.1 200 OK", "Content-Length: 6") is None
    assert (made._write(b"abc"), made._write(b"def")) == (None, None)
    assert made._header(b"X-Trailer: y\r\n") is None
    assert made.result(0, "") == b"abcdef"
    assert (made.length, made.size_bytes) == (6, 6)
    made.drop()
    assert made._memory.in_flight_bytes == 0
    made.close()


def test_a_handle_forgets_its_last_request() -> None:
    made = transfer()
    answer(made, "HTTP/1.1 404 Not Found")
    assert kind(made.result(0, "")) == "http.404"
    made.begin(Job("other", 2, clean_url("http://192.0.2.1/b"), 100), 200.0)
    answer(made, "HTTP/1.1 200 OK")
    made._write(b"fine")
    assert made.result(0, "") == b"fine"


def test_only_the_last_block_of_headers_counts() -> None:
    made = transfer()
    assert answer(made, "HTTP/1.1 103 Early Hints", "Content-Length: 9999999999") is None
    assert answer(made, "HTTP/2 200", "Content-Length: 1") is None
    assert made.length == 1


def test_unwanted_bodies_are_read_if_short_and_broken_off_if_long() -> None:
    short, long, endless = transfer(), transfer(), transfer()
    assert answer(short, "HTTP/1.1 302 Found", "Location: /x", "Content-Length: 500") is None
    assert short._write(b"x" * 500) is None
    assert short.result(0, "") == Redirect("/x")
    assert answer(long, "HTTP/1.1 404 No", "Content-Length: 5000000") == -1
    assert answer(endless, "HTTP/1.1 404 No", "Transfer-Encoding: chunked") is None
    assert [made for made, _ in short._memory.draining] == [short]
    assert [endless._write(b"x" * 60_000) for _ in range(2)] == [None, -1]
    for made in (long, endless):
        assert kind(made.result(pycurl.E_WRITE_ERROR, "")) == "http.404"
        assert made.size_bytes == 0


def test_the_cap_refuses_a_picture_and_cuts_a_robots_txt() -> None:
    picture, robots = transfer(), transfer(robots=True)
    for made in (picture, robots):
        answer(made, "HTTP/1.1 200 OK", "X-Robots-Tag: noai")
        assert made._write(b"x" * 100) is None
        assert made._write(b"y") == -1
    assert kind(picture.result(pycurl.E_WRITE_ERROR, "")) == "too_large.bytes"
    assert robots.result(pycurl.E_WRITE_ERROR, "") == b"x" * 100


def test_the_clock_stops_while_paused(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("curate.download.transfer.time.monotonic", lambda: 104.0)
    made = transfer(budget_bytes=10)
    answer(made, "HTTP/1.1 200 OK")
    assert made._write(b"x" * 11) == pycurl.WRITEFUNC_PAUSE
    assert made in made._memory.paused
    assert made.spent_s(150.0) == 4.0
    assert isinstance(made.overdue(150.0), float)
    with pytest.raises(pycurl.error):
        made.resume(150.0)  # the handle runs in no multi handle here
    assert made.spent_s(151.0) == 5.0
    assert kind(made.overdue(156.0)) == "timeout.total"


def test_time_spent_on_earlier_hops_counts() -> None:
    made = transfer()
    made.job.spent_s = 9.0
    assert made.first_look_s(100.0) == 101.0
    assert isinstance(made.overdue(100.5), float)
    assert kind(made.overdue(101.0)) == "timeout.connect"


@pytest.mark.parametrize(
    ("code", "words", "expected"),
    [
        (pycurl.E_COULDNT_RESOLVE_HOST, "", "dns"),
        (pycurl.E_SSL_CONNECT_ERROR, "wrong version number", "tls"),
        (pycurl.E_SSL_CONNECT_ERROR, "OpenSSL: SSL_ERROR_SYSCALL in connection", "connection"),
        (pycurl.E_PEER_FAILED_VERIFICATION, "", "tls"),
        (pycurl.E_RECV_ERROR, "", "connection"),
        (92, "", "connection"),
        (pycurl.E_UNSUPPORTED_PROTOCOL, "", "protocol"),
        (pycurl.E_OPERATION_TIMEDOUT, "", "timeout.connect"),
        (pycurl.E_COULDNT_CONNECT, "", "connection"),  # no errno: nobody said "refused"
        (pycurl.E_OUT_OF_MEMORY, "", "other"),
    ],
)
def test_codes_have_a_kind(code: int, words: str, expected: str) -> None:
    assert kind(transfer().result(code, words)) == expected


def test_every_kind_is_on_the_list() -> None:
    assert set(_KINDS.values()) <= set(KINDS)


def test_a_body_of_unknown_length_that_nobody_wants_is_not_waited_for() -> None:
    made = transfer()
    assert answer(made, "HTTP/1.1 302 Found", "Location: /x") == -1
    assert made.result(pycurl.E_WRITE_ERROR, "") == Redirect("/x")
    none = transfer()
    assert answer(none, "HTTP/1.1 204 No Content") is None  # there is none


def test_the_rest_of_an_unwanted_body_has_a_short_limit(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("curate.download.transfer.time.monotonic", lambda: 101.0)
    made = transfer()
    answer(made, "HTTP/1.1 302 Found", "Location: /x", "Content-Length: 500")
    assert made.overdue(101.5) == 102.0
    assert made.overdue(102.0) == Redirect("/x")
    late = transfer()
    answer(late, "HTTP/1.1 302 Found", "Location: /x", "Content-Length: 500")
    assert late.overdue(110.0) == Redirect("/x")  # also at the end of all its time


def test_a_body_in_tiny_pieces_costs_what_it_weighs() -> None:
    made = transfer(budget_bytes=1 << 20, limit_bytes=1 << 20)
    answer(made, "HTTP/1.1 200 OK")
    tracemalloc.start()
    for number in range(50_000):
        made._write(b"%02d" % (number % 100))
    _, peak_bytes = tracemalloc.get_traced_memory()
    tracemalloc.stop()
    assert peak_bytes < 500_000
    whole = made.result(0, "")
    assert isinstance(whole, bytes)
    assert (len(whole), whole[-4:]) == (100_000, b"9899")


def test_no_file_for_a_socket_is_no_fault_of_the_site(monkeypatch: pytest.MonkeyPatch) -> None:
    def no_socket(*_: object) -> None:
        raise OSError(errno.EMFILE, "too many open files")

    monkeypatch.setattr("curate.download.transfer.socket.socket", no_socket)
    made = transfer()
    address = type("Address", (), {"addr": ("192.0.2.1", 80), "family": 2, "socktype": 1})
    address.protocol = 6  # type: ignore[attr-defined]
    monkeypatch.setattr("curate.download.transfer.forbidden", lambda ip: False)
    assert made._open_socket(0, address) == pycurl.SOCKET_BAD
    assert made.is_short_of_files
    found = made.result(pycurl.E_COULDNT_CONNECT, "")
    assert isinstance(found, Refused)
    assert found.passing
