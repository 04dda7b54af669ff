"""The average follows its formula, goes on bit for bit, and begins anew only where a shape changed."""

from __future__ import annotations

import pytest
import torch
from torch import nn

from pretrain.loop.ema import Ema


def moved(model: nn.Module, by: float) -> None:
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.add_(by)


def test_the_formula_and_its_quick_start() -> None:
    model = nn.Linear(1, 1, bias=False, dtype=torch.float64)
    nn.init.constant_(model.weight, 1.0)
    ema = Ema(model, 0.9)
    moved(model, 1.0)
    ema.update(1)
    assert float(ema.state_dict()["weight"]) == pytest.approx(2 / 11 * 1 + 9 / 11 * 2)
    before = float(ema.state_dict()["weight"])
    ema.update(1000)
    assert float(ema.state_dict()["weight"]) == pytest.approx(0.9 * before + 0.1 * 2)
    assert model.weight.item() == 2.0


def test_what_was_saved_goes_on_bit_for_bit_and_what_does_not_move_stays() -> None:
    torch.manual_seed(0)
    model = nn.Sequential(nn.Linear(5, 5), nn.BatchNorm1d(5))
    model[1].weight.requires_grad_(False)
    ema = Ema(model, 0.99)
    ema.update(1)
    kept = {name: rows.clone() for name, rows in ema.state_dict().items()}
    assert torch.equal(kept["1.weight"], model[1].weight)
    assert "1.num_batches_tracked" not in kept
    other = Ema(model, 0.99)
    other.load_state_dict(kept)
    for one in (ema, other):
        one.update(2)
    assert all(
        torch.equal(rows, other.state_dict()[name]) for name, rows in ema.state_dict().items()
    )


def test_another_model_is_refused() -> None:
    ema = Ema(nn.Linear(2, 2), 0.9)
    with pytest.raises(ValueError, match=r"another model: \['bias'\]. hint:"):
        ema.load_state_dict({"weight": torch.zeros(2, 2)})
    with pytest.raises(ValueError, match=r"another model: \['weight'\]. hint:"):
        ema.load_state_dict({"weight": torch.zeros(3, 2), "bias": torch.zeros(2)})


def test_a_new_phase_keeps_the_average_but_of_what_changed_its_shape() -> None:
    model = nn.Linear(2, 2)
    ema = Ema(model, 0.9)
    moved(model, 1.0)
    ema.update(5)
    bias = ema.state_dict()["bias"].clone()
    after = nn.Linear(3, 2)
    ema.follow(after)
    assert torch.equal(ema.state_dict()["bias"], bias)
    assert torch.equal(ema.state_dict()["weight"], after.weight)
    moved(after, 1.0)
    ema.update(6)
    assert not torch.equal(ema.state_dict()["bias"], bias)
