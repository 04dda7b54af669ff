import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from pretrain.stream.order import (
    MIXTURE_BLOCK,
    Mixture,
    ShardOrder,
    generator,
    local_rows,
    repeats,
    shares,
)

GOLDEN_ORDER = [6, 1, 2, 4, 0, 3, 7, 8, 5, 9]
GOLDEN_RAW = 9401183033241334559
counts = st.lists(st.integers(0, 9), min_size=1, max_size=12).filter(lambda found: sum(found) > 0)


@given(counts, st.integers(0, 5), st.integers(1, 5), st.integers(0, 3))
@settings(max_examples=60, deadline=None)
def test_every_epoch_is_a_permutation(found, seed, window, epoch):
    order = ShardOrder(tuple(found), seed, window)
    start = epoch * order.total
    assert sorted(order.samples(start, start + order.total)) == list(range(order.total))


@given(counts, st.integers(0, 5), st.integers(0, 40), st.integers(0, 25))
@settings(max_examples=60, deadline=None)
def test_any_slice_is_the_same_as_one_by_one(found, seed, start, length):
    order = ShardOrder(tuple(found), seed, 3)
    one_by_one = [order.sample_at(position) for position in range(start, start + length)]
    assert order.samples(start, start + length).tolist() == one_by_one


@given(st.integers(0, 200), st.sampled_from([1, 2, 3, 4, 6, 12]))
@settings(max_examples=40, deadline=None)
def test_the_ranks_together_read_the_global_batch_whatever_their_number(samples_seen, world):
    rows = [row for rank in range(world) for row in local_rows(samples_seen, 12, rank, world)]
    assert rows == list(range(samples_seen, samples_seen + 12))


def test_epochs_and_seeds_differ():
    order = ShardOrder((50, 50), 0)
    assert order.samples(0, 100).tolist() != order.samples(100, 200).tolist()
    assert order.samples(0, 100).tolist() != ShardOrder((50, 50), 1).samples(0, 100).tolist()


def test_a_window_keeps_reading_local_and_still_mixes_shards():
    order = ShardOrder((100,) * 20, 0, window_shards=4)
    shards = order.samples(0, 400) // 100
    assert len(set(shards)) == 4  # the first 400 samples come from one window of four shards
    assert len(set(shards[:40])) == 4


@pytest.mark.parametrize("batch", [64, 256])
def test_batches_draw_from_many_shards(batch):
    # A reader's buffer of today (5,000 samples, 8 workers) draws from 3 of 200 shards.
    order = ShardOrder((1000,) * 200, 0)
    shards = order.samples(0, 200_000) // 1000
    drawn = [len(set(shards[first : first + batch])) for first in range(0, 200_000 - batch, batch)]
    assert min(drawn) >= 15
    assert np.mean(drawn) > (25 if batch == 64 else 30)


@given(st.integers(1, 300))
def test_windows_share_the_shards_evenly(shards):
    order = ShardOrder((1,) * shards, 0)
    windows = [order.window_at(position)[1] for position in range(shards)]
    sizes = np.bincount(windows)
    assert sizes.sum() == shards
    assert sizes.max() - sizes.min() <= 1
    assert sizes.max() < 48


@given(counts, st.integers(0, 5), st.integers(0, 60))
@settings(max_examples=60, deadline=None)
def test_what_comes_soon_is_of_this_window_and_the_next(found, seed, position):
    order = ShardOrder(found, seed, window_shards=3)
    starts = np.cumsum([0, *found])

    def shards_of(samples):
        return list(dict.fromkeys((np.searchsorted(starts, samples, side="right") - 1).tolist()))

    def positions_of(window):
        span = range(max(0, position - order.total), position + 2 * order.total)
        return [p for p in span if order.window_at(p) == window]

    soon = shards_of(order.soon(position))
    here = positions_of(order.window_at(position))
    after = order.window_at(here[-1] + 1)
    expected = shards_of(order.samples(here[0], here[-1] + 1))
    following = shards_of([order.sample_at(p) for p in positions_of(after)])
    assert set(soon[: len(expected)]) == set(expected)
    assert set(soon) <= set(expected) | set(following)
    assert len(set(soon)) == len(soon)


@pytest.mark.parametrize("workers", [0, 1, 4])
def test_fewer_shards_than_workers_are_read_whole(workers):
    order = ShardOrder((40,), 0)
    rows = [row for rank in range(2) for row in local_rows(0, 40, rank, 2)]
    pieces = np.array_split(rows, max(workers, 1))
    read = [order.samples(int(piece[0]), int(piece[-1]) + 1) for piece in pieces]
    assert sorted(np.concatenate(read).tolist()) == list(range(40))


def test_values_never_change_between_versions():
    # A run is resumed by another version of numpy or of this file: these are part of the contract.
    assert ShardOrder((3, 4, 3), 7).samples(0, 10).tolist() == GOLDEN_ORDER
    assert generator(7, "view.image", 3).bit_generator.random_raw() == GOLDEN_RAW


def test_uneven_ranks_are_refused_with_the_nearest_batch():
    with pytest.raises(
        ValueError, match=r"global_batch = 10 does not divide over 4 ranks. hint: .* 4, e.g. 8"
    ):
        local_rows(0, 10, 0, 4)


def test_no_sample_at_all_is_refused():
    with pytest.raises(ValueError, match="holds no sample"):
        ShardOrder((0, 0), 0)


def test_mixture_draws_by_weight_and_every_stream_in_order():
    mixture = Mixture((3.0, 1.0), 0)
    drawn = [mixture.at(position) for position in range(2 * MIXTURE_BLOCK)]
    for source, share in ((0, 0.75), (1, 0.25)):
        inside = [position for found, position in drawn if found == source]
        assert inside == list(range(int(2 * MIXTURE_BLOCK * share)))
    first_hundred = [source for source, _ in drawn[:100]]
    assert 0.1 < np.mean(first_hundred) < 0.4  # mixed throughout, not one after the other


@given(st.lists(st.floats(1e-6, 1e6), min_size=1, max_size=9))
@settings(max_examples=60, deadline=None)
def test_shares_are_complete_and_leave_nobody_out(weights):
    found = shares(weights)
    assert found.sum() == MIXTURE_BLOCK
    assert found.min() >= 1


@pytest.mark.parametrize("weights", [[1.0, 0.0], [1.0, -1.0], [float("nan"), 1.0]])
def test_impossible_weights_are_refused(weights):
    with pytest.raises(ValueError, match="weights are positive"):
        shares(weights)


def test_a_set_too_small_for_a_batch_says_so():
    sets = [("a", 64, 1.0), ("b", 63, 3.0), ("unknown", 0, 1.0)]
    assert repeats(sets, 100) == []
    (told,) = repeats(sets, 106)
    assert told.startswith("b: 63 samples, and of each global batch 64 are drawn from it: ")
    assert "hint: " in told
    assert repeats([("a", 8, 2.0)], 8) == []
    assert len(repeats([("a", 8, 2.0)], 9)) == 1
