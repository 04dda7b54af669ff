"""View: one rendering of a sample for one tower.

A view is a frozen keyword-only dataclass in a file of its own; its fields are the recipe's
options. ``name`` is what objectives ask for: the view "image" gives the feature "image:pooled".
Two views of one tower need two names.
"""

from __future__ import annotations

from typing import ClassVar, Literal

import numpy as np

from pretrain.stream.batch import Sample


class View:
    """Base of every view. Subclasses are ``@dataclass(frozen=True, kw_only=True)`` with a ``name``."""

    tower: ClassVar[Literal["image", "text"]]

    @property
    def name(self) -> str:
        """A field of every subclass, with a default."""
        raise NotImplementedError

    @property
    def shape(self) -> tuple[int, ...] | None:
        """Of what a call gives, where it is known before: rows are then made in the batch itself."""
        return None

    def fit(self, image_size_px: int) -> View:
        """This view with every option left to the model filled in."""
        return self

    def __call__(self, sample: Sample, rng: np.random.Generator) -> np.ndarray | str:
        """Image: uint8 (side, side, 3), the same side for every sample. Text: the words.

        ``rng`` (``stream.draws.Draws``, or a real generator) is a function of (seed, position in the
        stream, this view's name), so the same position always gives the same view. Raises
        BadPicture for bytes that don't decode.
        """
        raise NotImplementedError

    def draw_into(self, row: np.ndarray, sample: Sample, rng: np.random.Generator) -> None:
        """What a call gives, written into one row of the batch. For views that know their shape."""
        row[...] = self(sample, rng)
