"""The sigmoid loss by hand, at its start, and for pairs that are learned; its options."""

import math

import pytest
import torch

from pretrain.objective.base import Comm, Dims, Features
from pretrain.objective.sigmoid import Sigmoid


def term(**options) -> Sigmoid:
    made = Sigmoid(**options)
    made.setup(Dims(embed_dim=8, logit_scale=50.0))
    return made


def features(images, texts) -> Features:
    return Features({"image:pooled": images, "text:pooled": texts})


def test_two_by_two_by_hand():
    images = torch.eye(2, dtype=torch.float64)
    texts = torch.tensor([[3.0, 0], [1, 1]], dtype=torch.float64)
    made = term(init_bias=-1.0).double()
    torch.nn.init.constant_(made.log_scale, math.log(2))
    h = math.sqrt(0.5)

    def softplus(x):
        return math.log1p(math.exp(x))

    pairs = softplus(-(2 - 1)) + softplus(-(2 * h - 1))
    strangers = softplus(2 * h - 1) + softplus(0 - 1)
    loss, metrics = made(features(images, texts), Comm(), 0)
    assert loss.item() == pytest.approx((pairs + strangers) / 2, abs=1e-12)
    assert float(metrics["batch_accuracy"]) == 1
    assert float(metrics["logit_bias"]) == -1
    assert float(made.logit_scale()) == pytest.approx(2)


def test_it_starts_as_in_the_paper_and_the_scale_is_not_clamped():
    made = term()
    assert float(made.log_scale.detach()) == pytest.approx(math.log(10))
    assert float(made.bias.detach()) == -10
    with torch.no_grad():
        made.log_scale.fill_(9.0)
    made.after_step()
    assert float(made.log_scale.detach()) == 9


def test_a_pair_that_is_learned_keeps_its_small_loss_and_gradient():
    """softplus(z) - z would lose both in float32 at z = 40."""
    rows = torch.eye(2).requires_grad_()
    made = term(init_scale=60.0, init_bias=-20.0)
    loss, _ = made(features(rows, torch.eye(2)), Comm(), 0)
    loss.backward()
    strangers = math.exp(-20.0)
    assert loss.item() == pytest.approx(math.exp(-40.0) + strangers, rel=1e-5)
    assert made.bias.grad is not None
    assert float(made.bias.grad) == pytest.approx(strangers - math.exp(-40.0), rel=1e-5)


def test_value_at_the_start_for_random_features():
    # methods section 4: L0 = 10 + (N - 1) e^(-10 + s^2 / 2D)
    images, texts = torch.randn(2, 2048, 512, generator=torch.Generator().manual_seed(0))
    made = Sigmoid(init_scale=14.3)
    made.setup(Dims(embed_dim=512, logit_scale=1.0))
    loss, _ = made(features(images, texts), Comm(), 0)
    expected = 10 + 2047 * math.exp(-10 + 14.3**2 / 1024)
    assert loss.item() == pytest.approx(expected, abs=0.01)
    assert made.loss_at_start(2048) == pytest.approx(expected, abs=1e-3)


def test_zero_takes_the_pretrained_scale():
    made = term(init_scale=0.0)
    assert float(made.logit_scale()) == pytest.approx(50)
    assert made.loss_at_start(8) is None


@pytest.mark.parametrize("options", [{"init_scale": -1.0}, {"tile": -2}, {"exchange": "shift"}])
def test_impossible_options_have_a_hint(options):
    with pytest.raises(ValueError, match="hint:"):
        Sigmoid(**options)
