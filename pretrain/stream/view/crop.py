"""A random square crop, resized bicubically: CLIP's only augmentation.

CLIP, arXiv 2103.00020, section 2.4 ("a random square crop from resized images is the only data
augmentation"). Here the crop's area is drawn from ``scale`` and its aspect from ``aspect``, then it
is resized once; with ``scale = [1, 1]`` it is the largest square at a random place. Boxes are whole
pixels, and the filter is Pillow's (a = -0.5, as wide as the picture shrinks, edges of the box
repeated by renormalising), computed by torch on bytes: within two levels of Pillow's for square
boxes; for others Pillow may go down before across, and differs by more at hard edges.
"""

from __future__ import annotations

import math
from dataclasses import dataclass, replace
from typing import ClassVar, Literal, NamedTuple

import numpy as np

from pretrain.stream.batch import Sample
from pretrain.stream.device import resize_into
from pretrain.stream.picture import SHRINKS
from pretrain.stream.view.base import View

Box = tuple[float, float, float, float]  # left, top, right, bottom in pixels, fractions allowed


class Place(NamedTuple):
    """Where a crop lies in a picture, before any of it is decoded."""

    width: int  # of the whole picture, in pixels, as its header says
    height: int
    box: Box
    shrink: int  # the picture may be decoded smaller by this
    mirrored: bool

    def inside(self, width: int, height: int) -> tuple[int, int, int, int]:
        """(left, top, right, bottom) in whole pixels, of the picture decoded to so many."""
        across, down = width / self.width, height / self.height
        left, right = _whole(self.box[0] * across, self.box[2] * across, width)
        top, bottom = _whole(self.box[1] * down, self.box[3] * down, height)
        return left, top, right, bottom


@dataclass(frozen=True, kw_only=True)
class Crop(View):
    """Options: ``size`` 0 is the model's own; ``scale`` is of the largest crop's area."""

    tower: ClassVar[Literal["image", "text"]] = "image"
    name: str = "image"
    size: int = 0
    scale: tuple[float, float] = (0.9, 1.0)
    aspect: tuple[float, float] = (1.0, 1.0)  # width to height, before it is made square
    flip: bool = False  # mirrors half of the pictures; makes "left of" wrong
    # JPEGs are decoded at a half, a quarter or an eighth where the crop still has `size` pixels then.
    scaled_decode: bool = True

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

    @property
    def shape(self) -> tuple[int, ...]:
        return (self.size, self.size, 3)

    def fit(self, image_size_px: int) -> Crop:
        return self if self.size else replace(self, size=image_size_px)

    def __call__(self, sample: Sample, rng: np.random.Generator) -> np.ndarray:
        """uint8 (size, size, 3)."""
        row = np.empty(self.shape, np.uint8)
        self.draw_into(row, sample, rng)
        return row

    def draw_into(self, row: np.ndarray, sample: Sample, rng: np.random.Generator) -> None:
        pixels, mirrored = self.cut(sample, rng)
        resize_into(row, pixels, mirrored)

    def cut(self, sample: Sample, rng: np.random.Generator) -> tuple[np.ndarray, bool]:
        """(the box's pixels, uint8 (height, width, 3), not yet resized; whether to mirror them)."""
        return self.cut_at(self.place(sample, rng), sample)

    def place(self, sample: Sample, rng: np.random.Generator) -> Place:
        """All that is drawn for a sample."""
        width, height = sample.size_px
        box = self._box(width, height, rng)
        mirrored = self.flip and rng.random() < 0.5
        return Place(width, height, box, self._shrink(box), mirrored)

    def cut_at(self, place: Place, sample: Sample) -> tuple[np.ndarray, bool]:
        """What ``cut`` gives, at a place that was drawn before."""
        pixels = sample.decoded(place.shrink)
        # The decoder may have made fewer pixels than the header says there are.
        left, top, right, bottom = place.inside(pixels.shape[1], pixels.shape[0])
        return pixels[top:bottom, left:right], place.mirrored

    def _shrink(self, box: Box) -> int:
        """The largest factor by which the picture may be smaller while no side of the box is enlarged."""
        if not self.scaled_decode:
            return 1
        spare = min(box[2] - box[0], box[3] - box[1]) / max(self.size, 1)
        return next((shrink for shrink in SHRINKS if spare >= shrink), 1)

    def _box(self, width: int, height: int, rng: np.random.Generator) -> Box:
        """A box of the drawn area and aspect, always inside the picture."""
        scale_frac = rng.uniform(*self.scale)
        aspect = math.exp(rng.uniform(math.log(self.aspect[0]), math.log(self.aspect[1])))
        # The largest box of this aspect that fits, then shrunk to the drawn share of its area.
        box_width = min(width, height * aspect) * math.sqrt(scale_frac)
        box_height = min(height, width / aspect) * math.sqrt(scale_frac)
        left = rng.random() * (width - box_width)
        top = rng.random() * (height - box_height)
        return left, top, min(left + box_width, width), min(top + box_height, height)


def _whole(low: float, high: float, length: int) -> tuple[int, int]:
    """Whole pixels of about the same length, at least one, inside [0, length]."""
    span = min(max(round(high - low), 1), length)
    start = min(max(round(low), 0), length - span)
    return start, start + span
