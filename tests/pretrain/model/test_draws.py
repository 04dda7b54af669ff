"""Random integers by key and index: fixed values, no twins in a row, even, and the same for any split."""

import pytest
import torch

from pretrain.model.draws import row_keys, shuffled

POSITIONS = torch.arange(5_000)


def test_values_are_fixed_for_good():
    keys = row_keys(torch.tensor([0, 1, 2**40]), 7, "patches.image")
    assert shuffled(keys, 3).argsort(dim=1).tolist() == [[2, 1, 0], [1, 0, 2], [0, 1, 2]]
    assert keys.tolist() == [4576795145660092639, -6147175132501309182, -651322862847279623]


def test_every_part_of_the_key_counts():
    first = row_keys(POSITIONS, 1, "a")
    assert len(first.unique()) == len(POSITIONS)
    for other in (row_keys(POSITIONS, 2, "a"), row_keys(POSITIONS, 1, "b")):
        assert not (first == other).any()


def test_a_row_hangs_on_itself_alone():
    keys = row_keys(POSITIONS, 3, "x")
    whole = shuffled(keys, 50)
    assert torch.equal(torch.cat([shuffled(part, 50) for part in keys.split(999)]), whole)
    assert all(len(row.unique()) == 50 for row in whole[:100])


def test_every_place_comes_first_equally_often():
    first = shuffled(row_keys(POSITIONS, 4, "x"), 10).argmin(dim=1)
    counts = torch.bincount(first, minlength=10).double()
    expected = len(POSITIONS) / 10
    assert (
        (counts - expected).square() / expected
    ).sum() < 27.9  # chi square, 9 degrees, p = 0.001
    # and a neighbour's order says nothing of mine
    same = (first[1:] == first[:-1]).double().mean()
    assert abs(same - 0.1) < 0.02


def test_too_many_things_have_a_hint():
    with pytest.raises(ValueError, match="hint: at most 65536"):
        shuffled(torch.zeros(1, dtype=torch.int64), 65_537)
