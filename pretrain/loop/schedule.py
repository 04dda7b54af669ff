"""Learning rate by samples: linear warm-up, then half a cosine to ``lr_end``.

SGDR, arXiv 1608.03983, equation 5, one cycle; counted in samples of the phase and not in steps, so
that it does not depend on the batch size.
"""

from __future__ import annotations

import math

from pretrain.loop.settings import Phase


def lr_at(phase: Phase, samples: int) -> float:
    """The learning rate of the step that ends with ``samples`` of this phase seen.

    It reaches ``phase.lr`` at the end of warm-up and ``phase.lr_end`` at the end of the phase.
    """
    if samples < phase.warmup_samples:
        return phase.lr * samples / phase.warmup_samples
    rest = max(phase.samples - phase.warmup_samples, 1)
    done = min((samples - phase.warmup_samples) / rest, 1.0)
    return phase.lr_end + (phase.lr - phase.lr_end) * (1 + math.cos(math.pi * done)) / 2
