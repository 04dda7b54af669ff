"""Tiles against the formula under autograd: any shapes and tiles, frozen sides, scales that overflow an exponential."""

from __future__ import annotations

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor
from torch.nn.functional import cross_entropy, logsigmoid, normalize

from pretrain.objective import tiles
from pretrain.objective.base import Comm
from pretrain.objective.tiles import sigmoid_pairs, softmax_pairs

NEAR = {"rtol": 1e-10, "atol": 1e-13}


def drawn(rows: int, dim: int, seed: int, dtype: torch.dtype = torch.float64) -> list[Tensor]:
    generator = torch.Generator().manual_seed(seed)
    sides = torch.randn(2, rows, dim, generator=generator, dtype=torch.float64)
    return [side.to(dtype).requires_grad_() for side in normalize(sides, dim=-1).unbind()]


def plain_softmax(x: Tensor, t: Tensor, scale: Tensor) -> Tensor:
    labels, logits = torch.arange(len(x)), scale * x @ t.T
    return (cross_entropy(logits, labels) + cross_entropy(logits.T, labels)) / 2


def plain_sigmoid(x: Tensor, t: Tensor, scale: Tensor, bias: Tensor) -> Tensor:
    signs = 2 * torch.eye(len(x), dtype=x.dtype) - 1
    return -logsigmoid(signs * (scale * x @ t.T + bias)).sum() / len(x)


def scalar(value: float) -> Tensor:
    return torch.tensor(value, dtype=torch.float64, requires_grad=True)


@settings(deadline=None, max_examples=15)
@given(
    rows=st.integers(1, 20), dim=st.integers(2, 9), tile=st.integers(0, 22), seed=st.integers(0, 99),
    scale=st.sampled_from([1.0, 14.3, 100.0]), bias=st.sampled_from([-10.0, 3.0]),
)  # fmt: skip
def test_value_and_gradients_are_those_of_the_formula(
    rows: int, dim: int, tile: int, seed: int, scale: float, bias: float
) -> None:
    x, t = drawn(rows, dim, seed)
    s, b = scalar(scale), scalar(bias)
    for ours, plain, wanted in (
        (softmax_pairs(x, t, s, Comm(), tile)[0], plain_softmax(x, t, s), [x, t, s]),
        (sigmoid_pairs(x, t, s, b, Comm(), tile)[0], plain_sigmoid(x, t, s, b), [x, t, s, b]),
    ):
        torch.testing.assert_close(ours, plain, **NEAR)
        # Not with a factor of 1: what is saved must be multiplied by what comes from above.
        found, expected = (torch.autograd.grad(3 * loss, wanted) for loss in (ours, plain))
        torch.testing.assert_close(found, expected, **NEAR)


def pairs(kind: str, x: Tensor, t: Tensor, tile: int) -> tuple[Tensor, Tensor]:
    scale = torch.tensor(100.0, dtype=x.dtype, requires_grad=True)
    if kind == "softmax":
        return softmax_pairs(x, t, scale, Comm(), tile)
    bias = torch.tensor(-10.0, dtype=x.dtype, requires_grad=True)
    return sigmoid_pairs(x, t, scale, bias, Comm(), tile)


KINDS = ("softmax", "sigmoid")


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("tile", [0, 3])
def test_backward_may_be_called_twice_and_a_side_may_be_frozen(kind: str, tile: int) -> None:
    x, t = drawn(7, 4, 0)
    loss, right = pairs(kind, x, t, tile)
    first = torch.autograd.grad(loss, [x, t], retain_graph=True)
    torch.testing.assert_close(torch.autograd.grad(loss, [x, t]), first, rtol=0, atol=0)
    assert right.dtype == torch.bool
    for frozen, side in ((0, 1), (1, 0)):
        given_sides = [x, t]
        given_sides[frozen] = given_sides[frozen].detach()
        loss, _ = pairs(kind, *given_sides, tile)
        torch.testing.assert_close(
            torch.autograd.grad(loss, given_sides[side])[0], first[side], **NEAR
        )
    with torch.no_grad():
        assert not pairs(kind, x, t, tile)[0].requires_grad


@pytest.mark.parametrize("kind", KINDS)
def test_opposite_features_at_a_scale_of_100_stay_finite_in_float32(kind: str) -> None:
    """Own logits of -100 among others of +100: an exponential of either is none in float32."""
    x = torch.tensor([[1.0, 0], [-1, 0], [1, 0], [-1, 0]], requires_grad=True)
    loss, right = pairs(kind, x, -x.detach(), 3)
    loss.backward()
    expected = {"softmax": 200 + torch.log(torch.tensor(2.0)), "sigmoid": 110 + 2 * 90.0}[kind]
    assert float(loss.detach()) == pytest.approx(float(expected), rel=1e-5)
    assert x.grad is not None
    assert x.grad.isfinite().all()
    assert not right.any()


def test_right_means_strictly_nearest() -> None:
    x = torch.eye(3, dtype=torch.float64)
    t = torch.eye(3, dtype=torch.float64)
    t[2] = t[1]
    for kind in KINDS:
        assert pairs(kind, x, t, 2)[1].tolist() == [True, False, False]


def test_automatic_tiles_bound_the_logits_held(monkeypatch: pytest.MonkeyPatch) -> None:
    made: list[int] = []
    cut = tiles._tiles

    def noted(*given_cut: object) -> object:
        for at in cut(*given_cut):  # type: ignore[arg-type]
            made.append(at.logits_RK.numel())
            yield at

    monkeypatch.setattr(tiles, "_tiles", noted)
    monkeypatch.setattr(tiles, "_AUTOMATIC", {"cpu": 70 * 100})
    x, t = drawn(100, 3, 1, torch.float32)
    for kind in KINDS:
        pairs(kind, x, t, 0)[0].backward()
    assert set(made) == {70 * 100, 30 * 100}
    assert made.count(70 * 100) == 3  # the softmax computes each tile anew in its backward


def test_half_precision_around_it_does_not_reach_its_backward() -> None:
    grads = []
    for under in (False, True):
        x, t = drawn(9, 8, 2, torch.float32)
        loss, _ = pairs("softmax", x, t, 4)
        with torch.autocast("cpu", torch.bfloat16, enabled=under):
            loss.backward()
        grads.append(x.grad)
    assert torch.equal(*grads)
