"""Drop a random share of each picture's patches in training, before anything is computed of them.

FLIP, arXiv 2212.00794, section 3: floor((1 - r) P) patches stay, the class token always does, there are no mask
tokens, and evaluation sees whole pictures. Unmasked tuning is a later phase without this tweak. Here a
mask is a function of the run, the sample's place in the stream and the view alone, so the same sample
keeps the same patches on any number of ranks and in any micro batch.

Legend: B rows, P patches, K patches kept.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

from torch import Tensor

from pretrain.model.draws import shuffled
from pretrain.model.encoder import DualEncoder
from pretrain.model.tower import image_is_known
from pretrain.model.tweak.base import Tweak


@dataclass(frozen=True, kw_only=True)
class PatchDrop(Tweak):
    """Options: ``fraction`` of the patches is dropped, from 0 (none) to just below 1."""

    fraction: float = 0.5

    def __post_init__(self) -> None:
        if not 0 <= self.fraction < 1:
            raise ValueError(
                f"patch_drop: fraction = {self.fraction}. hint: a share from 0 to just below 1, e.g. 0.5"
            )

    def apply(self, encoder: DualEncoder) -> None:
        if "image" in encoder.frozen:
            raise ValueError(
                "patch_drop: the image tower is frozen in this phase. hint: take patch_drop or freeze out"
            )
        if not image_is_known(encoder.clip.visual):  # type: ignore[arg-type]
            raise ValueError(
                f"patch_drop: {encoder.name} has no vision transformer of open_clip's own. "
                "hint: use such a model, e.g. ViT-B-16"
            )
        encoder.keep_patches = self.kept if self.fraction else None

    def kept(self, keys_B: Tensor, patches: int) -> Tensor:
        """int64 (B, K): the patches that each row keeps, ascending. ``keys_B`` as of `draws.row_keys`."""
        # Rounded first, or 0.7 * 70 would keep 48.
        keep = max(1, math.floor(round((1 - self.fraction) * patches, 6)))
        drawn_BP = shuffled(keys_B, patches)
        return drawn_BP.topk(keep, dim=1, largest=False, sorted=False).indices.sort(dim=1).values
