"""Rates and shares from a clock that is set by hand; bottlenecks by what the loaders' time went to."""

from __future__ import annotations

from types import SimpleNamespace

import numpy as np
import pytest
import torch

from pretrain.loop import flops, meter
from pretrain.loop.meter import Meter, Window
from pretrain.loop.world import World
from pretrain.stream.batch import Batch
from tests.tiny.scenes import TINY_MODEL

TOWERS = flops.of_config(TINY_MODEL)


def batch(rows: int = 4, length: int = 16, cost_s: float = 0.02) -> Batch:
    views = {
        "image": torch.zeros(rows, 32, 32, 3, dtype=torch.uint8),
        "text": torch.zeros(rows, length, dtype=torch.long),
    }
    return Batch(views, ["k"] * rows, torch.arange(rows), cost_s=cost_s)


def window(**change) -> Window:
    """16 cores, 4 ranks of 8 loaders on one machine; nobody waits."""
    usual = {
        "passed_s": 10.0, "waited_s": 0.0, "samples": 1000, "loader_cpu_s": 5.0, "flops": 1e15, "text_tokens": 16_000,
        "texts": 1000, "cores": 16, "workers": 8,
    }  # fmt: skip
    return Window(**{**usual, **change})


@pytest.fixture
def clock(monkeypatch: pytest.MonkeyPatch) -> SimpleNamespace:
    now = SimpleNamespace(s=100.0)
    monkeypatch.setattr(meter.time, "monotonic", lambda: now.s)
    return now


def test_rates_wait_and_arithmetic_of_a_window(clock: SimpleNamespace) -> None:
    assert TOWERS is not None
    world = World(0, 1, torch.device("cpu"))
    of = meter.arithmetic(TOWERS, {"image": "image", "text": "text"})
    watched = Meter(world, 1000, of, peak_flops=1e9, workers=2)
    for waited_s, length in ((1.0, 8), (0.0, 16)):
        clock.s += waited_s
        watched.batch_came(batch(length=length))
        clock.s += 2.0
        watched.step_done()
    found = watched.read(1008)
    short, long = (TOWERS.at(text_tokens=length).train_flops() for length in (8, 16))
    assert found["samples_per_s"] == pytest.approx(8 / 5)
    assert found["data_wait_frac"] == pytest.approx(1 / 5)
    assert found["mfu"] == pytest.approx(4 * (short + long) / 5 / 1e9, abs=1e-4)
    assert found["loader_cpu_ms"] == pytest.approx(1e3 * 0.04 / 8)
    assert found["text_tokens"] == 12
    assert set(found) <= meter.TIMED
    clock.s += 1.0
    watched.batch_came(batch())
    clock.s += 1.0
    assert watched.read(1012)["data_wait_frac"] == pytest.approx(0.5)  # a window of its own


@pytest.mark.parametrize(("micro", "short"), [(0, 18), (20, 18), (8, 19)])
def test_texts_count_at_the_lengths_they_go_through_the_tower(micro: int, short: int) -> None:
    """19 of 24 rows are short: 6 times 3; of the first 20 rows 7 times 2, and the 4 others; or all, by 8 rows."""
    assert TOWERS is not None
    came = batch(rows=24)
    fits = np.array([0, 0, 0, 1] * 5 + [0] * 4, np.uint16)
    came.lengths, came.fits = (6, 16), {"text": fits}
    of = meter.arithmetic(TOWERS, {"image": "image", "text": "text"}, micro)
    watched = Meter(World(0, 1, torch.device("cpu")), 0, of, micro_batch=micro)
    watched.batch_came(came)
    at = {length: TOWERS.at(text_tokens=length).text.train_flops for length in (6, 16)}
    assert of(came) == pytest.approx(
        TOWERS.image.train_flops + (short * at[6] + (24 - short) * at[16]) / 24
    )
    spent = short * 6 + (24 - short) * 16
    assert watched.read(24)["text_tokens"] == pytest.approx(spent / 24, abs=0.01)


def test_without_a_known_peak_there_is_no_mfu() -> None:
    assert meter.figures([window()], 1000, None)["mfu"] is None
    assert meter.peak(World(0, 1, torch.device("cpu")), "bf16") is None


def test_the_rank_that_waits_most_counts() -> None:
    ranks = [window(), window(waited_s=4.0)]
    found = meter.figures(ranks, 2000, 1e15)
    assert found["data_wait_frac"] == 0.4
    assert found["samples_per_s"] == 200
    assert found["mfu"] == pytest.approx(0.2)
    assert found["bottleneck"].endswith("(rank 1)")


@pytest.mark.parametrize(
    ("change", "words"),
    [
        ({}, "compute-bound"),
        ({"waited_s": 0.5}, "balanced"),
        # 4 ranks, each 36 CPU seconds of loading while 4 s of work: 36 cores would keep up.
        ({"waited_s": 6.0, "loader_cpu_s": 36.0}, "decode-bound: 36 cores needed, 16 present"),
        ({"waited_s": 6.0, "loader_cpu_s": 36.0, "cores": 64}, "decode-bound: train.workers = 9 needed, 4 set"),
        ({"waited_s": 6.0, "loader_cpu_s": 4.0}, "network/disk-bound: loaders compute 10% of the time"),
        ({"waited_s": 6.0, "loader_cpu_s": 4.0, "on_cpu": True}, "loading-bound: loaders and towers share 16 cores"),
        ({"waited_s": 6.0, "workers": 0}, "decode-bound: pictures are decoded between steps, set train.workers"),
    ],
)  # fmt: skip
def test_bottlenecks_by_name(change: dict[str, float], words: str) -> None:
    change = {"workers": 4, **change}
    assert meter.bottleneck([window(**change) for _ in range(4)]) == words


def test_machines_are_counted_apart() -> None:
    """Two machines of 16 cores each: what one needs is what its own ranks need."""
    ranks = [window(waited_s=5.0, loader_cpu_s=100.0, host=host) for host in (0, 0, 1, 1)]
    assert meter.bottleneck(ranks) == "decode-bound: 40 cores needed, 16 present"
