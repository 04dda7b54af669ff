"""Perceptual hash of a picture: the signs of its low frequencies, equal or nearly so for near copies.

The picture's greys are scaled to a small square, transformed by a DCT-II, and each of the lowest
frequencies becomes one bit: above the median of all of them or not (C. Zauner, "Implementation and
benchmarking of perceptual image hash functions", 2010; N. Krawetz, "Looks like it", 2011). Given the
same pixels the bits are those of imagehash 4.3's ``phash(hash_size=8)`` and ``(hash_size=16)``, but for
ties: a coefficient within 1e-6 of the median is not above it here, and a matter of rounding there. Only
the wanted coefficients are computed. A picture of one colour has no hash, as its bits would be noise.
So are some bits of smooth gradients and of flat or symmetric graphics: copies of these are found less
often, and never too often.
"""

from __future__ import annotations

import functools
from dataclasses import dataclass
from typing import ClassVar, Literal

import numpy as np
import pyarrow as pa

from curate.contract.columns import field
from curate.score.picture import decode
from curate.stage import KEEP, REASON, RowStage, decision, error

_USE = "score.phash"
_SCALE = 4  # side of the scaled picture over side of the block of coefficients
_FLAT_LEVELS = (
    4  # greys of 256 that a scaled picture must span; JPEG noise on one colour spans less
)
_TIE = 1e-6  # far above what the order of a sum changes, far below a step of one grey
Bits = Literal[64, 256]


@dataclass(frozen=True, kw_only=True)
class Phash(RowStage):
    """Writes ``phash``; null where the picture cannot be decoded (with a reason) or is of one colour.

    Options:
        bits: 256 tells products on white ground apart; 64 is a quarter of the room and does not: of
            what filter.near_duplicate refuses at its default radius among 400 products, 93.7 % are
            copies with 64 bits (radius 4), and 99.5 % with 256 (radius 26).
    """

    version: ClassVar[int] = 1

    bits: Bits = 256

    def reads(self) -> tuple[str, ...]:
        return ("image",)

    def writes(self) -> pa.Schema:
        return pa.schema([field("phash"), KEEP, REASON])

    def check(self) -> None:
        if self.bits not in (64, 256):
            raise ValueError(f"bits = {self.bits!r}. hint: 64 or 256")

    def process(self, batch: pa.Table, state: None) -> pa.Table:
        hashes: list[bytes | None] = []
        reasons: list[str | None] = []
        for value in batch["image"]:
            data, found, fault = value.as_py(), None, None
            if data is None:
                fault = "no_image"
            else:
                try:
                    found = phash(decode(data), self.bits)
                except ValueError:
                    fault = "decode"
            hashes.append(found)
            reasons.append(None if fault is None else error(_USE, fault))
        columns = [pa.array(hashes, pa.binary()), *decision(reasons)]
        return pa.table(columns, schema=self.writes())


def phash(pixels: np.ndarray, bits: Bits = 256) -> bytes | None:
    """The hash of RGB ``pixels``, uint8 of shape (height, width, 3): ``bits // 8`` bytes, or None.

    Bits run through the square block of coefficients row by row, the first bit highest in its byte.
    None where the scaled picture spans fewer than four greys.
    """
    from PIL import Image

    side = 8 if bits == 64 else 16
    picture = Image.fromarray(pixels).convert("L")
    small = picture.resize((side * _SCALE, side * _SCALE), Image.Resampling.LANCZOS)
    greys = np.asarray(small, np.float64)
    if greys.max() - greys.min() < _FLAT_LEVELS:
        return None
    basis = _basis(side)
    low = (basis @ greys @ basis.T).ravel()
    middle = np.partition(low, (low.size // 2 - 1, low.size // 2))
    median = (middle[low.size // 2 - 1] + middle[low.size // 2]) / 2
    return np.packbits(low - median > _TIE).tobytes()


def coarse(hashes: np.ndarray) -> np.ndarray:
    """The bits of the 8 by 8 lowest frequencies: uint8 (rows, 8 or 32) to uint64 of shape (rows,)."""
    block = hashes if hashes.shape[1] == 8 else hashes[:, 0:16:2]
    return np.ascontiguousarray(block).view(np.uint64).ravel()


@functools.cache
def _basis(side: int) -> np.ndarray:
    """The lowest ``side`` rows of the DCT-II, as scipy scales it: shape (side, side * _SCALE)."""
    points = side * _SCALE
    angles = np.pi * np.arange(side)[:, None] * (2 * np.arange(points) + 1) / (2 * points)
    return 2 * np.cos(angles)
