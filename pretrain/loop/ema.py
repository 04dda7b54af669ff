"""An exponential moving average of the towers' weights.

Polyak and Juditsky 1992; as in open_clip and timm: a <- d a + (1 - d) w after every step. Here d is
min(decay, (1 + step) / (10 + step)), so that a short run's average is not one of its random start.
The average is a function of weights and step alone, so a resumed run has the same bits.
"""

from __future__ import annotations

import torch
from torch import Tensor, nn

from pretrain.loop import parallel


class Ema:
    """Averages of every floating tensor of the towers, laid out over ranks as these are."""

    def __init__(self, model: nn.Module, decay: float) -> None:
        self.decay = decay
        self.averages: dict[str, Tensor] = {}
        self.follow(model)

    def follow(self, model: nn.Module) -> None:
        """From now on average ``model``: the towers in a new phase. What changed its shape begins anew.

        All ranks call it together.
        """
        before = {name: parallel.whole(rows) for name, rows in self.averages.items()}
        self.weights = {
            name: rows.detach()
            for name, rows in parallel.clip_of(model).state_dict().items()
            if rows.is_floating_point()
        }
        self.averages = {name: rows.clone() for name, rows in self.weights.items()}
        self._load({n: r for n, r in before.items() if self._has(n, r)})
        self._pairs = (
            [parallel.local(rows) for rows in self.averages.values()],
            [parallel.local(rows) for rows in self.weights.values()],
        )

    def update(self, step: int) -> None:
        """Take in the weights after optimizer step ``step`` (from 1). Does not wait for the device."""
        decay = min(self.decay, (1 + step) / (10 + step))
        with torch.no_grad():
            torch._foreach_lerp_(*self._pairs, 1 - decay)

    def state_dict(self) -> dict[str, Tensor]:
        """Averages by open_clip's names, whole and on the CPU; all ranks call it together.

        Where the towers are sharded, only the first rank gets them. Otherwise, and on the CPU, they
        share memory with the averages.
        """
        sharded = any(isinstance(rows, parallel.DTensor) for rows in self.averages.values())
        return dict(parallel.gathered(self.averages.items(), sharded))

    def load_state_dict(self, state: dict[str, Tensor]) -> None:
        """Take what ``state_dict`` gave, on any number of ranks. Raises ValueError for another model's."""
        wrong = sorted(set(state) ^ set(self.averages)) or [
            name for name, rows in state.items() if not self._has(name, rows)
        ]
        if wrong:
            raise ValueError(
                f"the averaged weights are of another model: {wrong[:5]}. hint: resume with the model they were made with"
            )
        self._load(state)

    def _has(self, name: str, rows: Tensor) -> bool:
        return name in self.averages and self.averages[name].shape == rows.shape

    def _load(self, state: dict[str, Tensor]) -> None:
        with torch.no_grad():
            for name, rows in state.items():
                own = self.averages[name]
                parallel.local(own).copy_(parallel.local(parallel.part_of(rows, own)))
