"""Which connection is dead, and for how long its host gets fresh ones. Transfers are stand-ins."""

from __future__ import annotations

from types import SimpleNamespace
from typing import Any

from curate.download.outcomes import Refused
from curate.download.streams import Streams

SILENT = Refused("timeout.first_byte", "")


def transfer(port: int, began_s: float, host: str = "a", multiplexes: bool = True) -> Any:
    forbidden: list[int] = []
    return SimpleNamespace(
        job=SimpleNamespace(host=host), port=port, began_s=began_s, runs=1,
        multiplexes=multiplexes, forbidden=forbidden, forbid_reuse=lambda: forbidden.append(1),
    )  # fmt: skip


def test_a_silent_connection_is_left_until_all_on_it_ended() -> None:
    streams = Streams()
    first, second, other = transfer(1, 10.0), transfer(1, 12.0), transfer(2, 12.0)
    active = [first, second, other]
    streams.ended(first, SILENT, active, 20.0)
    assert first.forbidden
    assert second.forbidden
    assert not other.forbidden
    assert streams.wants_fresh("a", active)
    assert not streams.wants_fresh("b", active)
    assert streams.wants_fresh("a", [second])
    second.runs = 2  # its handle is used for something else by now
    assert not streams.wants_fresh("a", [second])
    assert not streams.wants_fresh("a", [second])


def test_one_url_that_hangs_on_a_good_connection_is_no_sign() -> None:
    streams = Streams()
    hangs, good = transfer(1, 10.0), transfer(1, 12.0)
    streams.ended(good, b"body", [hangs, good], 13.0)
    streams.ended(hangs, SILENT, [hangs], 20.0)
    assert not streams.wants_fresh("a", [hangs])
    assert hangs.forbidden  # closed once nothing is on it


def test_an_answer_of_any_code_is_one_and_other_failures_say_nothing() -> None:
    streams = Streams()
    hangs = transfer(1, 10.0)
    streams.ended(transfer(1, 11.0), Refused("http.404", ""), [hangs], 12.0)
    streams.ended(hangs, SILENT, [hangs], 20.0)
    assert not streams.wants_fresh("a", [hangs])
    reset = transfer(1, 30.0)
    streams.ended(reset, Refused("connection", ""), [reset], 31.0)
    assert not reset.forbidden


def test_plain_connections_carry_one_request_and_are_left_to_libcurl() -> None:
    streams = Streams()
    plain = transfer(1, 10.0, multiplexes=False)
    streams.ended(plain, SILENT, [plain], 20.0)
    assert not streams.wants_fresh("a", [plain])
    for number in range(5000):
        streams.ended(transfer(number, 0.0), b"", [], 1.0)
    assert len(streams._heard_s) == 4096
