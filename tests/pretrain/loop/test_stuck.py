"""A loss at the value of guessing for long stops the run with a hint; one that leaves it, or was never there, does not."""

from __future__ import annotations

import math
from dataclasses import dataclass
from pathlib import Path
from typing import ClassVar, Literal

import numpy as np
import pytest

from pretrain.loop import train
from pretrain.loop.job import TrainingStopped
from pretrain.loop.settings import Phase, ShardSource, TrainSettings
from pretrain.loop.stuck import Stuck, guessing
from pretrain.objective.base import Term
from pretrain.objective.infonce import InfoNCE
from pretrain.objective.sigmoid import Sigmoid
from pretrain.stream.view.base import View
from pretrain.stream.view.crop import Crop
from tests.tiny import scenes

BATCH = 16


@dataclass(frozen=True, kw_only=True)
class OtherWords(View):
    """A caption that some other picture has: what a join on the wrong column makes of shards."""

    tower: ClassVar[Literal["image", "text"]] = "text"
    name: str = "text"

    def __call__(self, sample: object, rng: np.random.Generator) -> str:
        return scenes.caption(int(rng.integers(512)))


def watched(steps: int = 10, warmup: int = 0, term: Term | None = None) -> Stuck:
    phase = Phase(samples=999_999, global_batch=BATCH, warmup_samples=warmup * BATCH)
    return Stuck(phase, [term or InfoNCE()], [1.0], steps)


def first_stop(stuck: Stuck, losses: list[float]) -> int | None:
    return next((step for step, loss in enumerate(losses) if stuck.fault(step, loss)), None)


def test_stops_after_so_many_steps_at_ln_n() -> None:
    stuck = watched()
    assert first_stop(stuck, [math.log(BATCH) * 1.009] * 30) == 10
    assert "for 10 steps the loss has been 2.773" in watched_message()
    assert "hint: do captions belong" in watched_message()


def watched_message() -> str:
    stuck = watched()
    return [stuck.fault(step, math.log(BATCH)) for step in range(11)][-1]


def test_goes_on_where_something_is_learned_or_the_warm_up_is_long() -> None:
    guess = math.log(BATCH)
    assert first_stop(watched(), [guess] * 9 + [guess * 0.98] + [guess] * 10) is None
    assert first_stop(watched(), [guess * 1.2] * 30) is None
    assert first_stop(watched(warmup=10), [guess] * 30) == 20
    assert first_stop(watched(steps=0), [guess] * 30) is None
    assert first_stop(watched(), [guess * 0.5] * 9 + [guess] * 30) == 19  # collapsed later


def test_a_term_that_does_not_know_its_guess_is_not_watched() -> None:
    assert first_stop(watched(term=Term()), [math.log(BATCH)] * 30) is None
    assert guessing([InfoNCE(), Term()], [1.0, 1.0], BATCH) is None
    assert guessing([InfoNCE(), Sigmoid()], [1.0, 1.0], 1) is None
    assert Sigmoid().loss_of_guessing(1) == 0
    assert guessing([InfoNCE(), InfoNCE()], [1.0, 0.5], BATCH) == pytest.approx(
        1.5 * math.log(BATCH)
    )


def test_sigmoids_guess_is_the_best_constant() -> None:
    """No constant logit does better than the chance 1/N."""
    logits = np.linspace(-8, 8, 10_001)
    losses = np.logaddexp(0, -logits) + (BATCH - 1) * np.logaddexp(0, logits)
    assert Sigmoid().loss_of_guessing(BATCH) == pytest.approx(losses.min(), rel=1e-6)


def test_a_run_on_shuffled_captions_stops(tmp_path: Path) -> None:
    scenes.write_shards(tmp_path / "shards", 40)
    scenes.write_model(tmp_path)
    settings = TrainSettings(
        model=str(tmp_path / "tiny_32.json"), out=str(tmp_path / "out"), precision="fp32", workers=0, stuck_steps=5,
        shards=(ShardSource(path=str(tmp_path / "shards")),), log_every_steps=1,
        phase=(Phase(samples=400 * BATCH, global_batch=BATCH, lr=1e-3, view=(Crop(), OtherWords())),),
    )  # fmt: skip
    with pytest.raises(TrainingStopped, match=r"nothing is learned. hint: do captions belong"):
        train.run(settings, seed=0)
    step = (tmp_path / "out" / "metrics.jsonl").read_text().count("\n")
    assert 5 < step < 200
