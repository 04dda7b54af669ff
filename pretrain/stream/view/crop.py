"""A random square crop, resized bicubically: CLIP's only augmentation.

CLIP, arXiv 2103.00020, section 2.4 ("a random square crop from resized images is the only data
augmentation"). Here the crop's area is drawn from ``scale`` and its aspect from ``aspect``, then it
is resized once; with ``scale = [1, 1]`` it is the largest square at a random place.
"""

from __future__ import annotations

import math
from dataclasses import dataclass, replace
from typing import ClassVar, Literal

import numpy as np

from pretrain.stream.batch import Sample
from pretrain.stream.view.base import View


@dataclass(frozen=True, kw_only=True)
class Crop(View):
    """Options: ``size`` 0 is the model's own; ``scale`` is of the largest crop's area."""

    tower: ClassVar[Literal["image", "text"]] = "image"
    name: str = "image"
    size: int = 0
    scale: tuple[float, float] = (0.9, 1.0)
    aspect: tuple[float, float] = (1.0, 1.0)  # width to height, before it is made square
    flip: bool = False  # mirrors half of the pictures; makes "left of" wrong

    def __post_init__(self) -> None:
        if not 0 < self.scale[0] <= self.scale[1] <= 1:
            raise ValueError(
                f"crop: scale = {list(self.scale)}. hint: two shares of the area with 0 < low <= high <= 1"
            )
        if not 0 < self.aspect[0] <= self.aspect[1]:
            raise ValueError(
                f"crop: aspect = {list(self.aspect)}. hint: two ratios with 0 < low <= high, e.g. [0.75, 1.33]"
            )
        if self.size < 0:
            raise ValueError(
                f"crop: size = {self.size}. hint: pixels, or 0 for the model's own size"
            )

    def fit(self, image_size_px: int) -> Crop:
        return self if self.size else replace(self, size=image_size_px)

    def __call__(self, sample: Sample, rng: np.random.Generator) -> np.ndarray:
        """uint8 (size, size, 3)."""
        from PIL import Image

        pixels = sample.pixels
        box = self._box(pixels.shape[1], pixels.shape[0], rng)
        picture = Image.fromarray(pixels).resize(
            (self.size, self.size), Image.Resampling.BICUBIC, box=box
        )
        rows = np.asarray(picture)
        mirrored = self.flip and rng.random() < 0.5
        return np.ascontiguousarray(rows[:, ::-1]) if mirrored else rows

    def _box(
        self, width: int, height: int, rng: np.random.Generator
    ) -> tuple[float, float, float, float]:
        """Left, top, right, bottom in pixels (fractions allowed), always inside the picture."""
        scale_frac = rng.uniform(*self.scale)
        aspect = math.exp(rng.uniform(math.log(self.aspect[0]), math.log(self.aspect[1])))
        # The largest box of this aspect that fits, then shrunk to the drawn share of its area.
        box_width = min(width, height * aspect) * math.sqrt(scale_frac)
        box_height = min(height, width / aspect) * math.sqrt(scale_frac)
        left = rng.random() * (width - box_width)
        top = rng.random() * (height - box_height)
        return left, top, min(left + box_width, width), min(top + box_height, height)
