"""Freeze one tower: eval mode and no gradients, so its bytes don't change.

LiT, arXiv 2111.07991: the image tower locked, the text tower trained.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

from pretrain.model.encoder import TOWERS, DualEncoder
from pretrain.model.tweak.base import Tweak


@dataclass(frozen=True, kw_only=True)
class Freeze(Tweak):
    """Options: ``tower`` is "image" or "text"."""

    tower: Literal["image", "text"] = "image"

    def __post_init__(self) -> None:
        if self.tower not in TOWERS:
            raise ValueError(f'freeze: tower = {self.tower!r}. hint: "image" or "text"')

    def apply(self, encoder: DualEncoder) -> None:
        if self.tower == "image" and encoder.keep_patches is not None:
            raise ValueError(
                "freeze: the image tower's patches are dropped in this phase. hint: take patch_drop out; "
                "a frozen tower gains nothing by it"
            )
        encoder.frozen.add(self.tower)
        for _, parameter in encoder.tower_parameters(self.tower):
            parameter.requires_grad_(False)
        encoder.train()
