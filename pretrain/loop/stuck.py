"""Stops a run that learns nothing: a loss that stays where guessing is, for a long time.

Captions that don't belong to their pictures, or all alike, and towers whose features have collapsed
give the loss of guessing (ln N for the softmax) and keep it. A run that learns leaves it within some
hundred steps of its warm-up.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

from pretrain.loop.settings import Phase
from pretrain.objective.base import Term

if TYPE_CHECKING:
    from pretrain.loop.job import Job

_NEAR_FRAC = 0.01


class Stuck:
    """Watches the logged losses of one phase. ``after_steps`` 0 watches nothing."""

    def __init__(
        self, phase: Phase, terms: Sequence[Term], weights: Sequence[float], after_steps: int
    ) -> None:
        self.guess = guessing(terms, weights, phase.global_batch) if after_steps else None
        self.after_steps = max(after_steps, 2 * (phase.warmup_samples // phase.global_batch))
        self._since: int | None = None

    @classmethod
    def of(cls, job: Job, phase: Phase) -> Stuck:
        terms: list[Any] = list(job.terms)
        return cls(phase, terms, job.weights, job.settings.stuck_steps)

    def fault(self, step: int, loss: float) -> str:
        """Why the run should stop, with a hint; empty while it may go on. Equal on all ranks."""
        if self.guess is None or abs(loss - self.guess) > _NEAR_FRAC * abs(self.guess):
            self._since = None
            return ""
        self._since = step if self._since is None else self._since
        steps = step - self._since
        if steps < self.after_steps:
            return ""
        return (
            f"step {step}: for {steps:,} steps the loss has been {self.guess:.3f}, what guessing gives: nothing is learned. "
            "hint: do captions belong to their pictures, and differ? is lr far too high (features collapse) or a tower "
            "frozen that should learn? train.stuck_steps = 0 goes on all the same"
        )


def guessing(terms: Sequence[Term], weights: Sequence[float], global_batch: int) -> float | None:
    """The weighted loss of features that say nothing; None where a term does not know its own."""
    if global_batch < 2:
        return None
    parts = [term.loss_of_guessing(global_batch) for term in terms]
    if any(part is None for part in parts):
        return None
    return sum(weight * part for weight, part in zip(weights, parts, strict=True) if part)
