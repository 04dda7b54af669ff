"""How many at once, with made-up time: growth, falls, host limits, pauses, order, and hosts that are down."""

from __future__ import annotations

import heapq
import random
import time
from collections import Counter

from hypothesis import given
from hypothesis import strategies as st

from curate.download.pace import Crowd, Hosts


def simulate(
    crowd: Crowd,
    *,
    for_s: float,
    latency_s: float = 0.1,
    most_per_s: float = float("inf"),
    hang_share: float = 0.0,
    hang_s: float = 10.0,
    error_above: int = 10_000,
    memory_at_once: int = 10_000,
    start_s: float = 0.0,
) -> list[int]:
    """A server with latency, a top rate, some hangs, and errors when crowded. The limit after each answer."""
    rng = random.Random(7)
    now_s, limits = start_s, []
    running: list[tuple[float, float, bool]] = []
    free_s = start_s
    while now_s < start_s + for_s:
        while len(running) < min(crowd.limit, memory_at_once):
            free_s = max(free_s, now_s) + 1 / most_per_s
            crowded = rng.random() > error_above / (len(running) + 1)
            hangs = rng.random() < hang_share
            took_s = hang_s if hangs else latency_s * rng.uniform(0.5, 1.5)
            heapq.heappush(running, (max(now_s + took_s, free_s), now_s, hangs or crowded))
        full = crowd.limit <= memory_at_once
        now_s, began_s, bad = heapq.heappop(running)
        crowd.note(overload=bad, full=full, took_s=now_s - began_s, now_s=now_s)
        limits.append(crowd.limit)
    return limits


def test_it_grows_while_answers_per_second_grow() -> None:
    assert simulate(Crowd(256), for_s=15)[-1] == 256


def test_it_stops_where_growth_stops() -> None:
    limits = simulate(Crowd(1024), for_s=60, most_per_s=400)  # 40 at once are enough
    assert 32 <= limits[-1] <= 128
    assert max(limits) <= 256


def test_a_server_without_latency_is_not_crowded() -> None:
    limits = simulate(Crowd(256), for_s=20, latency_s=0.002, most_per_s=1000)
    assert limits[-1] <= 40


def test_hangs_and_missing_pages_are_not_overload() -> None:
    limits = simulate(Crowd(256), for_s=60, hang_share=0.02)
    assert limits[-1] == 256
    assert min(limits) >= 16


def test_a_list_that_is_mostly_dead_does_not_bring_it_to_a_halt() -> None:
    limits = simulate(Crowd(128), for_s=60, hang_share=0.5, hang_s=1.0)
    assert min(limits) >= 8
    assert simulate(Crowd(512), for_s=60, hang_share=0.3)[-1] >= 200


def test_errors_of_overload_bring_it_down_and_it_does_not_run_into_them_for_ever() -> None:
    limits = simulate(Crowd(512), for_s=120, error_above=100)
    assert max(limits) > 100  # it tried
    late = limits[len(limits) // 2 :]
    assert sum(limit <= 150 for limit in late) > 0.8 * len(late)


def test_held_up_by_memory_it_never_rises() -> None:
    assert set(simulate(Crowd(256), for_s=30, memory_at_once=8)) == {32}


def test_it_finds_a_server_that_became_faster() -> None:
    crowd = Crowd(256)
    before = simulate(crowd, for_s=30, most_per_s=100)[-1]
    after = simulate(crowd, for_s=120, start_s=30)[-1]
    assert before < 64 < after


def test_the_limit_never_leaves_its_bounds() -> None:
    assert set(simulate(Crowd(1), for_s=5)) == {1}
    assert max(simulate(Crowd(20), for_s=20)) == 20


def taken(hosts: Hosts, now_s: float) -> list[int]:
    found = []
    while pair := hosts.pop(now_s):
        found.append(pair[1])
    return found


def test_order_is_that_of_submission_as_far_as_hosts_allow() -> None:
    hosts = Hosts(2)
    for seq, host in enumerate("aaaabab"):
        hosts.push(host, seq, seq, 0.0)
    assert len(hosts) == 7
    assert taken(hosts, 0.0) == [0, 1, 4, 6]
    assert not hosts.has_ready(0.0)
    hosts.done("a", 1.0)
    assert taken(hosts, 1.0) == [2]
    hosts.done("b", 1.0)
    hosts.done("a", 1.0)
    hosts.done("a", 1.0)
    assert taken(hosts, 1.0) == [3, 5]
    assert len(hosts) == 0


def test_starts_are_apart_and_pauses_hold() -> None:
    hosts = Hosts(16, per_s=2.0)
    for seq in range(4):
        hosts.push("a", seq, seq, 0.0)
    hosts.push("b", 9, 9, 0.0)
    assert taken(hosts, 0.0) == [0, 9]
    assert hosts.next_s() == 0.5
    assert taken(hosts, 0.4) == []
    assert taken(hosts, 0.5) == [1]
    hosts.pause("a", 7.0, 0.6)
    assert taken(hosts, 6.9) == []
    assert hosts.next_s() == 7.0
    assert taken(hosts, 7.0) == [2]
    hosts.pause("a", 30.0, 7.1)
    hosts.pause("a", 7.2, 7.2)  # asked for less in between: the longer one holds
    assert hosts.next_s() == 30.0
    hosts.resume("a", 7.2)
    assert taken(hosts, 7.3) == []  # two starts stay half a second apart
    assert taken(hosts, 7.5) == [3]


def test_a_crawl_delay_makes_a_host_slower_and_never_faster() -> None:
    hosts = Hosts(16, per_s=1.0)
    hosts.slow("a", 3.0)
    hosts.slow("b", 0.1)
    for seq in range(2):
        hosts.push("a", seq, seq, 0.0)
        hosts.push("b", seq + 10, seq + 10, 0.0)
    assert taken(hosts, 0.0) == [0, 10]
    assert taken(hosts, 1.0) == [11]
    assert taken(hosts, 3.0) == [1]


def test_a_drained_host_has_nothing_left() -> None:
    hosts = Hosts(1)
    for seq in range(3):
        hosts.push("a", seq, seq, 0.0)
    assert hosts.pop(0.0) == ("a", 0)
    assert hosts.drain("a", 0.0) == [1, 2]
    hosts.done("a", 0.0)
    assert hosts.drain("a", 0.0) == []
    assert (len(hosts), hosts.pop(1.0), hosts.next_s()) == (0, None, None)


def test_hosts_without_work_are_forgotten() -> None:
    hosts = Hosts(1, per_s=10)
    for seq in range(1000):
        hosts.push(str(seq), seq, seq, 0.0)
    assert len(taken(hosts, 0.0)) == 1000
    for seq in range(1000):
        hosts.done(str(seq), 0.01)
    assert hosts.pop(1.0) is None
    assert not hosts._hosts


def test_a_long_queue_of_one_host_costs_the_others_nothing() -> None:
    hosts = Hosts(4)
    for seq in range(100_000):
        hosts.push("big", seq, seq, 0.0)
    for seq in range(100_000, 101_000):
        hosts.push(str(seq), seq, seq, 0.0)
    began_s = time.process_time()
    assert len(taken(hosts, 0.0)) == 1004
    for _ in range(10_000):
        hosts.done("big", 1.0)
        assert hosts.pop(1.0) is not None
    assert time.process_time() - began_s < 2.0  # 0.05 here; walking the queue would take minutes


@given(
    st.lists(
        st.tuples(
            st.sampled_from("abc"), st.sampled_from(["push", "push", "pop", "done", "pause"])
        ),
        max_size=60,
    ),
    st.integers(1, 3),
)
def test_nothing_is_lost_or_given_twice(steps: list[tuple[str, str]], per_host: int) -> None:
    hosts = Hosts(per_host)
    active: Counter[str] = Counter()
    given_out: list[int] = []
    now_s = 0.0
    for seq, (host, step) in enumerate(steps):
        now_s += 1.0
        if step == "push":
            hosts.push(host, seq, (host, seq), now_s)
        elif step == "pause":
            hosts.pause(host, now_s + 2.5, now_s)
        elif step == "pop" and (pair := hosts.pop(now_s)):
            active[pair[0]] += 1
            given_out.append(pair[1][1])
            assert pair[0] == pair[1][0]
            assert active[pair[0]] <= per_host
        elif step == "done" and active[host]:
            active[host] -= 1
            hosts.done(host, now_s)
    while active.total() or len(hosts):
        now_s += 10.0
        for host in list(active.elements()):
            active[host] -= 1
            hosts.done(host, now_s)
        while pair := hosts.pop(now_s):
            active[pair[0]] += 1
            given_out.append(pair[1][1])
    pushed = [seq for seq, (_, step) in enumerate(steps) if step == "push"]
    assert sorted(given_out) == pushed


def shared(crowd: Crowd, *, per_s: float, latency_s: float, hang_share: float) -> float:
    """Good answers per second of a server that shares its capacity; hangs hold a slot for 10 s and no more."""
    rng = random.Random(2)
    now_s, step_s, good_ones = 0.0, 0.01, 0
    good: list[list[float]] = []  # work left, not before, begun
    hangs: list[float] = []
    while now_s < 120:
        now_s += step_s
        while len(good) + len(hangs) < crowd.limit:
            if rng.random() < hang_share:
                hangs.append(now_s)
            else:
                good.append([1.0, now_s + latency_s * rng.uniform(0.7, 1.3), now_s])
        done = per_s * step_s / max(1, len(good))
        for one in good:
            one[0] -= done
        ended = [one for one in good if one[0] <= 0 and now_s >= one[1]]
        good = [one for one in good if one[0] > 0 or now_s < one[1]]
        good_ones += len(ended)
        for *_, began_s in ended:
            crowd.note(overload=False, full=True, took_s=now_s - began_s, now_s=now_s)
        while hangs and now_s - hangs[0] >= 10.0:
            began_s = hangs.pop(0)
            crowd.note(overload=True, full=True, took_s=now_s - began_s, now_s=now_s)
    return good_ones / 120


def test_slots_that_hangs_hold_are_not_taken_for_load() -> None:
    assert shared(Crowd(256), per_s=100, latency_s=0.1, hang_share=0.02) > 90  # was 66
    assert shared(Crowd(256), per_s=100, latency_s=0.3, hang_share=0.05) > 90  # was 77


def test_it_climbs_where_all_is_dead_and_that_is_usual() -> None:
    limits = simulate(Crowd(128), for_s=120, hang_share=1.0, hang_s=2.0)
    assert limits[-1] >= 100


def test_quick_errors_of_dead_links_do_not_hold_it_down() -> None:
    limits = simulate(Crowd(256), for_s=60, hang_share=0.3, hang_s=0.02)
    assert limits[-1] >= 200


def test_errors_that_lowering_does_not_cure_become_the_usual_share() -> None:
    crowd = Crowd(128)
    simulate(crowd, for_s=6, hang_share=0.6, hang_s=0.1)
    assert crowd._fell is None
    assert 0.4 < crowd._usual < 0.8


def test_it_is_lowered_for_want_of_files() -> None:
    crowd = Crowd(256)
    crowd.lower(100)
    assert max(simulate(crowd, for_s=20)) == 100
    crowd.lower(2)
    assert (crowd.most, crowd.limit) == (8, 8)
