import math

import pytest
import torch

from pretrain.objective.base import Comm, Dims, Features
from pretrain.objective.infonce import InfoNCE


def term(**options) -> InfoNCE:
    made = InfoNCE(**options)
    made.setup(Dims(embed_dim=8, logit_scale=50.0))
    return made


def features(images, texts) -> Features:
    return Features({"image:pooled": images, "text:pooled": texts})


def test_three_by_three_by_hand():
    # Unit axes as pictures; texts 0 and 1 right, text 2 points half way between axes 1 and 2.
    images = torch.eye(3, dtype=torch.float64)
    texts = torch.tensor([[5.0, 0, 0], [0, 2, 0], [0, 3, 3]], dtype=torch.float64)
    made = term().double()
    torch.nn.init.constant_(made.log_scale, math.log(2))
    h = math.sqrt(0.5)  # cosine of picture 1 or 2 with text 2
    e = math.exp

    def ce(right, *others):
        return -math.log(e(2 * right) / (e(2 * right) + sum(e(2 * other) for other in others)))

    rows = (ce(1, 0, 0) + ce(1, 0, h) + ce(h, 0, 0)) / 3
    columns = (ce(1, 0, 0) + ce(1, 0, 0) + ce(h, 0, h)) / 3
    loss, metrics = made(features(images, texts), Comm(), 0)
    assert loss.item() == pytest.approx((rows + columns) / 2, abs=1e-12)
    assert float(metrics["batch_accuracy"]) == 1.0
    assert float(made.logit_scale()) == pytest.approx(2)


def test_value_at_the_start_for_random_features():
    # methods section 1: L0 = ln N + s^2 / (2 D)
    generator = torch.Generator().manual_seed(0)
    n, d = 2048, 512
    loss, _ = term()(features(*torch.randn(2, n, d, generator=generator)), Comm(), 0)
    assert loss.item() == pytest.approx(math.log(n) + (1 / 0.07) ** 2 / (2 * d), abs=0.03)


def test_the_order_of_the_batch_and_the_length_of_features_do_not_matter():
    images, texts = torch.randn(
        2, 16, 8, dtype=torch.float64, generator=torch.Generator().manual_seed(1)
    )
    made, order = term().double(), torch.randperm(16)
    loss, _ = made(features(images, texts), Comm(), 0)
    shuffled, _ = made(features(images[order] * 7, texts[order] / 3), Comm(), 0)
    assert loss.item() == pytest.approx(shuffled.item(), rel=1e-12)


def test_gradients_reach_both_towers_and_the_scale():
    images, texts = (
        torch.randn(2, 4, 8, generator=torch.Generator().manual_seed(2)).requires_grad_().unbind()
    )
    images.retain_grad()
    texts.retain_grad()
    made = term()
    made(features(images, texts), Comm(), 0)[0].backward()
    assert all(float(grad.norm()) > 0 for grad in (images.grad, texts.grad, made.log_scale.grad))


@pytest.mark.parametrize("rows", [1, 6])
def test_half_precision_duplicates_and_one_row_stay_finite_at_the_largest_scale(rows):
    images = torch.ones(rows, 8, dtype=torch.bfloat16, requires_grad=True)
    made = term(init_temperature=0.01)
    with torch.autocast("cpu", torch.bfloat16):
        loss, _ = made(features(images, images), Comm(), 0)
    loss.backward()
    assert loss.dtype == torch.float32
    assert loss.item() == pytest.approx(math.log(rows), abs=1e-4)
    assert images.grad.isfinite().all()


def test_logits_are_not_computed_in_half_precision():
    images, texts = torch.randn(2, 32, 8, generator=torch.Generator().manual_seed(3))
    made = term(init_temperature=0.01)
    plain, _ = made(features(images, texts), Comm(), 0)
    with torch.autocast("cpu", torch.bfloat16):
        under, _ = made(features(images, texts), Comm(), 0)
    assert under.item() == plain.item()


def test_the_scale_is_clamped_after_a_step():
    made = term(max_logit_scale=20.0)
    with torch.no_grad():
        made.log_scale.fill_(9.0)
    made.after_step()
    assert float(made.logit_scale()) == pytest.approx(20)
    with torch.no_grad():
        made.log_scale.fill_(-1.0)
    made.after_step()
    assert float(made.logit_scale()) == 1


def test_zero_takes_the_pretrained_scale():
    assert float(term(init_temperature=0.0).logit_scale()) == pytest.approx(50)
    assert term(init_temperature=0.0).options() == {
        "init_temperature": 0.0,
        "max_logit_scale": 100.0,
        "tile": 0,
        "image": "image",
        "text": "text",
    }
    assert term(init_temperature=0.0).loss_at_start(8) is None


def test_views_are_named_by_options():
    made = term(image="stored:teacher", text="text2")
    assert made.needs == {"stored:teacher", "text2:pooled"}
    rows = torch.eye(3)
    loss, _ = made(Features({"stored:teacher": rows, "text2:pooled": rows}), Comm(), 0)
    assert loss.item() < 1e-5


def test_equal_pictures_are_no_right_answers():
    rows = torch.ones(4, 8)
    loss, metrics = term()(features(rows, rows), Comm(), 0)
    assert float(metrics["batch_accuracy"]) == 0
    assert loss.item() == pytest.approx(InfoNCE().loss_of_guessing(4))


@pytest.mark.parametrize(
    "options", [{"init_temperature": -1.0}, {"max_logit_scale": 0.5}, {"tile": -1}]
)
def test_impossible_options_have_a_hint(options):
    with pytest.raises(ValueError, match="hint:"):
        InfoNCE(**options)
