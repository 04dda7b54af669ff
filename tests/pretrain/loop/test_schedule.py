import pytest

from pretrain.loop.schedule import lr_at
from pretrain.loop.settings import Phase

PHASE = Phase(samples=1000, global_batch=10, lr=2.0, lr_end=0.2, warmup_samples=200)


@pytest.mark.parametrize(
    ("samples", "expected"),
    [(10, 0.1), (100, 1.0), (200, 2.0), (600, 1.1), (1000, 0.2), (1010, 0.2)],
)
def test_warm_up_then_half_a_cosine(samples, expected):
    assert lr_at(PHASE, samples) == pytest.approx(expected)


def test_no_warm_up_and_warm_up_alone():
    assert lr_at(Phase(samples=100, global_batch=1, lr=1.0), 1) == pytest.approx(1.0, abs=1e-3)
    assert lr_at(Phase(samples=100, global_batch=1, lr=1.0, warmup_samples=200), 100) == 0.5


def test_it_never_rises_after_warm_up():
    rates = [lr_at(PHASE, samples) for samples in range(200, 1001, 10)]
    assert rates == sorted(rates, reverse=True)
