"""Unit features, shares of ranks, and ties counted against the model."""

from __future__ import annotations

import torch

from pretrain.evaluate.base import TIE, not_below, share_at, unit


def test_unit_rows_have_length_one_and_zero_stays_zero() -> None:
    rows = unit(torch.tensor([[3.0, 4.0], [0.0, 0.0]], dtype=torch.bfloat16))
    assert rows.dtype == torch.float32
    assert torch.allclose(rows, torch.tensor([[0.6, 0.8], [0.0, 0.0]]))


def test_share_at_counts_ranks_up_to_k() -> None:
    ranks = torch.tensor([1, 2, 5, 6])
    assert [share_at(ranks, k) for k in (1, 5, 10)] == [0.25, 0.75, 1.0]


def test_better_equal_nearly_equal_and_nan_count_against() -> None:
    others = torch.tensor(
        [0.6, 0.5, 0.5 - TIE / 2, 0.5 - 2 * TIE, 0.4, torch.nan], dtype=torch.float64
    )
    assert not_below(others, torch.tensor(0.5, dtype=torch.float64)).tolist() == [
        True,
        True,
        True,
        False,
        False,
        True,
    ]
    assert not_below(torch.tensor([0.1]), torch.tensor(torch.nan)).tolist() == [True]
