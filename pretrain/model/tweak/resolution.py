"""Another size of pictures from this phase on: the patches' position embeddings follow.

CLIPA, arXiv 2305.07017: most of the training on small pictures, then a little on full ones. Learned positions are
resampled bicubically, fixed sin-cos ones made anew. Unlike other tweaks it stays in later phases.
The model's configuration follows, so open_clip reads the checkpoint at the new size.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import torch
from torch import nn

from pretrain.model import positions
from pretrain.model.encoder import DualEncoder
from pretrain.model.tower import image_is_known
from pretrain.model.tweak.base import Tweak

_TABLE = "positional_embedding"


@dataclass(frozen=True, kw_only=True)
class Resolution(Tweak):
    """Options: ``image_size`` in pixels a side, a multiple of the model's patch."""

    image_size: int

    def __post_init__(self) -> None:
        if self.image_size < 1:
            raise ValueError(f"resolution: image_size = {self.image_size}. hint: pixels a side")

    def apply(self, encoder: DualEncoder) -> None:
        visual: Any = encoder.clip.visual
        if not image_is_known(visual):
            raise ValueError(
                f"resolution: {encoder.name} has no vision transformer of open_clip's own. "
                "hint: choose the model of that size instead"
            )
        patch_px = visual.patch_size[0]
        side, rest_px = divmod(self.image_size, patch_px)
        if rest_px:
            near = max(1, round(self.image_size / patch_px)) * patch_px
            raise ValueError(
                f"resolution: image_size = {self.image_size} is no multiple of {encoder.name}'s patch of "
                f"{patch_px} px. hint: image_size = {near}"
            )
        if side != visual.grid_size[0]:
            _resize_table(encoder, visual, side)
        visual.grid_size, visual.image_size = (side, side), (self.image_size, self.image_size)
        if isinstance(getattr(visual, "preprocess_cfg", None), dict):
            visual.preprocess_cfg["size"] = visual.image_size
        encoder.image_size = self.image_size
        encoder.config["vision_cfg"]["image_size"] = self.image_size


def _resize_table(encoder: DualEncoder, visual: Any, side: int) -> None:
    table: nn.Parameter = visual.positional_embedding
    with torch.no_grad():
        if f"visual.{_TABLE}" in encoder.fixed:
            made = positions.sin_cos(side, table.shape[1]).to(table)
        else:
            made = positions.resampled(table, side)
    visual.positional_embedding = nn.Parameter(made, requires_grad=table.requires_grad)
