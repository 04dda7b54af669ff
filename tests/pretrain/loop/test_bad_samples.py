"""A run that turns bad late is stopped soon; one that is as bad as allowed, throughout, is not."""

import json

import numpy as np

from pretrain.loop import bad_samples
from pretrain.loop.bad_samples import BadShare, Replaced


def samples_until_stopped(rate: float, seen: int, bad: int, most: int, each: int = 4_000) -> int:
    """How many more samples are seen, ``each`` between two lines of the log, at a rate of bad ones."""
    watch, draw, begun = BadShare(0.01, seen, bad), np.random.default_rng(0), seen
    while seen < begun + most:
        seen, bad = seen + each, bad + int(draw.binomial(each, rate))
        if watch.fault(seen, bad):
            break
    return seen - begun


def test_damage_after_a_million_good_samples_is_noticed_soon():
    assert samples_until_stopped(0.3, 1_000_000, 0, 10**6) <= 8_000
    assert samples_until_stopped(0.3, 10**9, 0, 10**7, 100_000) <= 500_000
    words = BadShare(0.01, 10**6, 5).fault(10**6 + 10_000, 5 + 3_000)
    assert words == "3000 of the last 10000 samples could not be used"


def test_a_share_just_below_the_limit_goes_on():
    assert samples_until_stopped(0.0095, 10**6, 9_500, 10**7) == 10**7


def test_the_window_moves_on():
    watch = BadShare(0.01, 10**6, 0)
    for number in range(1, 400):
        seen = 10**6 + 4_000 * number
        assert not watch.fault(seen, 8 * number), "0.2 % in every window"
    assert 100_000 <= seen - watch.marks[0][0] <= 110_000
    assert watch.fault(seen + 4_000, 8 * 400 + 1_200)


def test_the_whole_run_is_judged_too():
    watch = BadShare(0.01, 0, 0)
    assert not watch.fault(16, 10)
    assert watch.fault(32, 11) == "11 of 32 samples could not be used"
    assert BadShare(0.0, 0, 0).fault(10**7, 1)


class TwoRanks:
    """Each rank is told what the other has noted."""

    is_first = True

    def __init__(self, other: Replaced) -> None:
        self.other = other

    def gather(self, thing):
        return [thing, (self.other.new, self.other._own)]


def test_the_first_of_each_kind_is_warned_of_once_whichever_rank_met_it(caplog):
    own, other = Replaced(), Replaced()
    own.count([("json", "a"), ("json", "b")])
    other.count([("json", "c"), ("damaged", "d")])
    assert own.add_to({"json": 5}, TwoRanks(other)) == {"damaged": 1, "json": 8}
    assert own.examples == {"damaged": "d", "json": "a"}
    assert own.add_to({}, TwoRanks(other)) == {"damaged": 1, "json": 1}
    assert [r.message for r in caplog.records] == [
        "bad sample (damaged): d",
        "bad sample (json): a",
    ]


def test_ten_damaged_shards_are_named():
    class Damaged:
        damage = tuple(f"{n}.tar: cut" for n in range(7))

    found = bad_samples.named([Damaged(), Damaged()])
    assert found == [*Damaged.damage, *Damaged.damage[:3], "and 4 more damaged shards"]


def resumed(watch, seen, bad):
    """As a run that was killed and goes on from its checkpoint."""
    return BadShare(watch.max_frac, seen, bad, json.loads(json.dumps(watch.saved())))


def test_a_run_that_is_killed_often_is_stopped_like_one_that_is_not():
    stopped = []
    for is_killed in (False, True):
        seen, bad, steps = 10**6, 0, 0
        watch = BadShare(0.01, seen, bad)
        while seen < 2 * 10**6:
            seen, bad, steps = seen + 1_000, bad + 50, steps + 1  # 5 %
            if is_killed and steps % 7 == 0:  # with a checkpoint at most a line of the log behind
                watch = resumed(watch, seen, bad)
            if steps % 4 == 0 and watch.fault(seen, bad):
                break
        stopped.append(seen)
    assert stopped == [1_024_000, 1_024_000]


def test_a_window_that_was_too_bad_already_stops_no_run_whose_shards_were_repaired():
    watch = BadShare(0.01, 10**6, 0)
    assert watch.fault(1_010_000, 3_000)
    repaired = resumed(watch, 1_010_000, 3_000)
    assert not any(repaired.fault(1_010_000 + 64 * n, 3_000 + n // 20) for n in range(1_000))
    as_before = resumed(watch, 1_010_000, 3_000)
    assert not as_before.fault(1_010_064, 3_010)
    assert as_before.fault(1_010_128, 3_020)
