"""How the rows of one view become a batch: written in place, carried ragged, or words to ids.

In a loader process pictures are drawn straight into shared memory (``arena``), so that no byte of them
is copied again before it goes to the device.
"""

from __future__ import annotations

from collections.abc import Callable, Collection, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from torch import Tensor

from pretrain.stream import arena
from pretrain.stream.device import Ragged, resize_into
from pretrain.stream.encoded import Encoded
from pretrain.stream.lengths import used_lengths
from pretrain.stream.picture import baseline_size

_LARGEST_SHIPPED = 4  # times the size: larger crops are brought down before they travel


class PixelRows:
    """A view that knows its shape draws each row into the batch itself."""

    def __init__(self, view: Any, count: int) -> None:
        self.view = view
        self.rows = arena.empty((count, *view.shape))
        self.writable = self.rows.numpy()

    def put(self, row: int, sample: Any, rng: Any) -> None:
        self.view.draw_into(self.writable[row], sample, rng)

    def close(self) -> Tensor:
        return self.rows


class RaggedRows:
    """Crops as they were decoded; the device resizes them."""

    def __init__(self, view: Any, count: int) -> None:
        self.view = view
        self.crops: list[tuple[np.ndarray, bool]] = [(np.zeros((1, 1, 3), np.uint8), False)] * count

    def put(self, row: int, sample: Any, rng: Any) -> None:
        self._keep(row, self.view.cut(sample, rng))

    def _keep(self, row: int, crop: tuple[np.ndarray, bool]) -> None:
        pixels, mirrored = crop
        if max(pixels.shape[:2]) > _LARGEST_SHIPPED * self.view.size:
            small = np.empty(self.view.shape, np.uint8)
            resize_into(small, pixels, mirrored)
            pixels, mirrored = small, False
        self.crops[row] = pixels, mirrored

    def close(self) -> Ragged:
        return Ragged.of(self.crops, self.view.size, arena.empty)


class EncodedRows(RaggedRows):
    """JPEGs as they were read, where the device's decoder surely takes them; crops of all others.

    A picture that would be decoded smaller here, or is far larger than its crop may be, is one of the others.
    """

    def __init__(self, view: Any, count: int, by_cpu: Collection[int]) -> None:
        super().__init__(view, count)
        self.by_cpu = by_cpu
        self.jpegs: dict[int, tuple[bytes, tuple[int, ...]]] = {}

    def put(self, row: int, sample: Any, rng: Any) -> None:
        self.jpegs.pop(row, None)  # of a sample that another view could not use
        place = self.view.place(sample, rng)
        size, most_px = (place.width, place.height), (_LARGEST_SHIPPED * self.view.size) ** 2
        handed = row not in self.by_cpu and place.shrink == 1 and size[0] * size[1] <= most_px
        if not handed or baseline_size(sample.image) != size:
            self._keep(row, self.view.cut_at(place, sample))
            return
        left, top, right, bottom = place.inside(*size)
        crop = (left, top, bottom - top, right - left, int(place.mirrored))
        self.jpegs[row] = sample.image, (row, size[1], size[0], *crop)

    def close(self) -> Encoded:  # type: ignore[override]
        here = [row for row in range(len(self.crops)) if row not in self.jpegs]
        crops = [self.crops[row] for row in here]
        return Encoded.of([self.jpegs[row] for row in sorted(self.jpegs)], here, crops, self.view.size, arena.empty)  # fmt: skip


class ListedRows:
    """Anything else: words, or arrays of equal shape."""

    def __init__(self, view: Any, count: int) -> None:
        self.view = view
        self.rows: list[Any] = [None] * count

    def put(self, row: int, sample: Any, rng: Any) -> None:
        self.rows[row] = self.view(sample, rng)

    def close(self) -> Tensor | list[str]:
        """Words are returned as they are: they still have to become ids."""
        if isinstance(self.rows[0], str):
            return self.rows
        return torch.from_numpy(np.stack(self.rows))


Rows = PixelRows | RaggedRows | ListedRows


def rows_for(
    view: Any, count: int, augment: str, decode: str = "worker", by_cpu: Collection[int] = ()
) -> Rows:
    """Where ``count`` rows of a view are gathered. ``augment`` and ``decode`` are "worker" or "device".

    Rows of ``by_cpu`` are decoded here in any case.
    """
    if decode == "device" and hasattr(view, "place"):
        return EncodedRows(view, count, by_cpu)
    if augment == "device" and hasattr(view, "cut"):
        return RaggedRows(view, count)
    return ListedRows(view, count) if view.shape is None else PixelRows(view, count)


@dataclass(frozen=True)
class Texts:
    """The text views of a batch."""

    ids: dict[str, Tensor]  # int64 (B, L), of one length
    lengths: tuple[int, ...]  # buckets below L, rising, and L
    fits: dict[str, np.ndarray]  # uint16 (B,): the first of ``lengths`` that holds a row's caption


def tokens_of(
    words: dict[str, list[str]],
    tokenize: Callable[[list[str]], Tensor],
    buckets: Sequence[int],
) -> Texts:
    """Ids of each text view, all cut to the smallest bucket that holds every caption."""
    made = {name: tokenize(texts) for name, texts in words.items()}
    used = {name: used_lengths(ids) for name, ids in made.items()}
    full = max((ids.shape[1] for ids in made.values()), default=0)
    longest = max((int(of.max(initial=0)) for of in used.values()), default=0)
    length = min((bucket for bucket in buckets if longest <= bucket < full), default=full)
    lengths = (*sorted(bucket for bucket in buckets if bucket < length), length)
    return Texts(
        {name: ids[:, :length].contiguous() for name, ids in made.items()},
        lengths,
        {name: np.searchsorted(lengths, of).astype(np.uint16) for name, of in used.items()},
    )
