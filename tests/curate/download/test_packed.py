"""Whole bodies wait for room and for the consumer, in order; none is lost and none counted twice."""

from __future__ import annotations

import gzip

from curate.download.desk import Job, Memory
from curate.download.guard import clean_url
from curate.download.outcomes import Refused
from curate.download.packed import Packed


def job(limit_bytes: int = 5000, robots_of: str | None = None) -> Job:
    made = Job("key", 1, clean_url("http://192.0.2.1/"), limit_bytes)
    made.robots_of = robots_of
    return made


def test_a_consumer_with_full_hands_gets_no_more() -> None:
    memory = Memory(1000, 0, most_bodies=2)
    packed = Packed(memory)
    for body in (b"a", b"bb", b"ccc"):
        packed.push(job(), body, "")
    assert memory.in_flight_bytes == 6
    for body in (b"a", b"bb"):
        found = packed.pop(alone=False)
        assert found is not None
        assert found[1] == body
        memory.hand_out(len(body))
    assert packed.pop(alone=True) is None
    assert not packed.wants_room  # new requests need not stop for it
    assert memory.in_flight_bytes == 3
    memory.give_back(1)
    found = packed.pop(alone=False)
    assert found is not None
    assert found[1] == b"ccc"
    assert (memory.in_flight_bytes, len(packed), packed.pop(alone=True)) == (0, 0, None)


def test_what_is_inflated_waits_for_room() -> None:
    memory = Memory(1000, 0)
    memory.hand_out(900)
    packed = Packed(memory)
    packed.push(job(), gzip.compress(b"x" * 800), "gzip")
    assert packed.pop(alone=True) is None
    assert packed.wants_room
    memory.give_back(900)
    found = packed.pop(alone=True)
    assert found is not None
    assert found[1] == b"x" * 800


def test_too_large_and_damaged_ones_end_as_refusals() -> None:
    packed = Packed(Memory(10_000, 0))
    packed.push(job(100), gzip.compress(b"x" * 101), "gzip")
    packed.push(job(100), b"nothing of that kind", "gzip")
    kinds = []
    while found := packed.pop(alone=True):
        assert isinstance(found[1], Refused)
        kinds.append(found[1].kind)
    assert kinds == ["too_large.bytes", "protocol"]


def test_a_packed_robots_txt_is_cut() -> None:
    packed = Packed(Memory(10_000, 0))
    packed.push(job(100, "http://192.0.2.1"), gzip.compress(b"x" * 101), "gzip")
    found = packed.pop(alone=False)
    assert found is not None
    assert found[1] == b"x" * 100


def test_forgotten_bodies_no_longer_count() -> None:
    memory = Memory(1000, 0)
    packed = Packed(memory)
    packed.push(job(), b"abc", "")
    packed.forget()
    assert (memory.in_flight_bytes, len(packed)) == (0, 0)
