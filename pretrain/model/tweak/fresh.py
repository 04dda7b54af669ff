"""One tower begins anew, with random weights, whatever the run was started from.

LiT, arXiv 2111.07991: a text tower learned from nothing against an image tower that is there and locked
(`freeze`). ``train.pretrained`` gives weights of both towers; in the first phase this takes one's away. It stays
in later phases; used in one of them, the tower would begin anew there.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

from pretrain.model.encoder import TOWERS, DualEncoder, from_config
from pretrain.model.tweak.base import Tweak


@dataclass(frozen=True, kw_only=True)
class Fresh(Tweak):
    """Options: ``tower`` is "text" or "image"."""

    tower: Literal["image", "text"] = "text"

    def __post_init__(self) -> None:
        if self.tower not in TOWERS:
            raise ValueError(f'fresh: tower = {self.tower!r}. hint: "text" or "image"')

    def apply(self, encoder: DualEncoder) -> None:
        """Random numbers come from torch's global generator, as for a model that begins without weights."""
        made = from_config(encoder.name, encoder.config)
        ours, theirs = encoder.clip.state_dict(), made.clip.state_dict()
        for name, rows in theirs.items():
            if name.startswith("visual.") == (self.tower == "image"):
                ours[name].copy_(rows)
        # A scale that was learned says nothing of a pair of towers one of which knows nothing.
        encoder.pretrained_logit_scale = made.pretrained_logit_scale
