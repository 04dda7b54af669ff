"""Hosts that are down, hosts that ask for less, and how both come back; time is made up."""

from __future__ import annotations

import pytest

from curate.download.health import Advice, Healths, Throttles
from curate.download.outcomes import Refused


def test_a_host_that_fails_in_a_row_is_left_alone_then_tried_once() -> None:
    healths = Healths()
    assert [healths.failed("a", 0.0) for _ in range(30)] == [False] * 29 + [True]
    assert healths.is_down("a", 29.9)
    assert not healths.is_down("a", 30.0)
    assert not healths.is_down("b", 0.0)
    assert healths.is_trial("a")
    assert not healths.is_trial("a")
    assert not healths.is_down("a", 31.0)  # what comes in waits for the trial's end
    assert healths.failed("a", 40.0)
    assert healths.is_down("a", 69.0)
    assert healths.is_trial("a")
    assert healths.answered("a", 71.0)
    assert not healths.is_down("a", 71.0)


def test_one_answer_in_between_clears_a_host() -> None:
    healths = Healths()
    for _ in range(10):
        assert not any(healths.failed("a", 0.0) for _ in range(29))
        assert not healths.answered("a", 71.0)
    assert not healths.is_trial("a")


def test_only_so_many_hosts_are_remembered() -> None:
    healths = Healths()
    for number in range(12_000):
        healths.failed(str(number), 0.0)
    assert len(healths._kept) == 10_000


@pytest.mark.parametrize(
    "kind", ["dns", "refused", "timeout.first_byte", "timeout.total", "http.429", "http.503"]
)
def test_what_brings_nothing_is_a_failure_in_a_row(kind: str) -> None:
    healths = Healths()
    refusal = Refused(kind, "")
    assert not any(healths.learn("a", refusal, 0.0, 0.0).is_down for _ in range(29))
    assert healths.learn("a", refusal, 0.0, 0.0).is_down


@pytest.mark.parametrize("refusal", [None, Refused("http.404", ""), Refused("http.500", "")])
def test_any_other_answer_ends_the_row(refusal: Refused | None) -> None:
    healths = Healths()
    for _ in range(29):
        healths.learn("a", Refused("timeout.total", ""), 0.0, 0.0)
    healths.learn("a", refusal, 0.0, 0.0)
    assert not healths.learn("a", Refused("timeout.total", ""), 0.0, 0.0).is_down


def test_a_fault_of_ours_says_nothing_of_the_host() -> None:
    healths = Healths()
    for _ in range(100):
        assert healths.learn("a", Refused("dns", "", passing=True), 0.0, 0.0) == Advice()


def test_a_long_retry_after_puts_the_host_down_for_that_time() -> None:
    healths = Healths()
    assert healths.learn("a", Refused("http.429", "", 120.0), 0.0, 0.0) == Advice(is_down=True)
    assert not healths.learn("a", None, 0.0, 1.0).trial_is_over  # it was under way
    assert healths.is_down("a", 119.0)
    assert not healths.is_down("a", 120.0)
    assert healths.is_trial("a")
    assert healths.learn("a", None, 120.0, 121.0).trial_is_over
    assert not healths.is_down("a", 121.0)
    healths.learn("a", Refused("http.503", "", 86_400.0), 0.0, 1000.0)
    assert healths.is_down("a", 1599.0)
    assert not healths.is_down("a", 1600.0)


def test_a_retry_after_counts_only_where_it_means_too_much() -> None:
    healths = Healths()
    assert healths.learn("a", Refused("http.404", "", 3600.0), 0.0, 0.0) == Advice()
    assert healths.learn("a", Refused("http.500", "", 7.0), 0.0, 0.0).pause_s == 7.0


def test_pauses_of_a_throttling_host_double_and_end_with_a_success() -> None:
    throttles = Throttles()
    now_s, found = 0.0, []
    for _ in range(8):
        pause_s = throttles.refused("a", now_s, now_s)
        assert pause_s is not None
        found.append(pause_s)
        assert throttles.refused("a", now_s - 0.1, now_s) is None  # ran at the same time
        throttles.answered("a", now_s - 0.1)
        now_s += pause_s
    assert found == [0.5, 1.0, 2.0, 4.0, 8.0, 16.0, 30.0, 30.0]
    throttles.answered("a", now_s)
    assert throttles.refused("a", now_s, now_s) == 0.5


def test_throttling_hosts_are_forgotten_in_time() -> None:
    throttles = Throttles()
    for number in range(12_000):
        throttles.refused(str(number), 0.0, 0.0)
    assert len(throttles._kept) == 10_000
