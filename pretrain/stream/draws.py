"""Draws: the random numbers of one view at one position, a hash of (seed, purpose, numbers) alone.

Making one of numpy's generators takes 10 us, a fortieth of a whole sample; eight numbers out of one
BLAKE2b digest take 1 us, and no version of a library can change them.
"""

from __future__ import annotations

import hashlib
import struct
from typing import Any

from pretrain.stream.order import generator

_EIGHT = struct.Struct("<8Q")


class Draws:
    """As much of ``numpy.random.Generator`` as views use; anything else comes from a real one."""

    def __init__(self, seed: int, purpose: str, *numbers: int) -> None:
        self._seed, self._purpose, self._numbers = seed, purpose, numbers
        self._block = 0
        self._left: list[int] = []

    def random(self) -> float:
        """Uniform in [0, 1), with 53 bits."""
        return (self._raw() >> 11) * 2.0**-53

    def uniform(self, low: float = 0.0, high: float = 1.0) -> float:
        return low + (high - low) * self.random()

    def integers(self, low: int, high: int | None = None) -> int:
        """One of ``low`` to ``high - 1``, or of 0 to ``low - 1``. The bias is below the span / 2**64."""
        low, high = (0, low) if high is None else (low, high)
        if high <= low:
            raise ValueError(f"integers({low}, {high}): the range is empty")
        return low + ((self._raw() * (high - low)) >> 64)

    def _raw(self) -> int:
        if not self._left:
            named = (self._seed, self._purpose, *self._numbers, "block", self._block)
            text = "\0".join(map(str, named))
            self._left = list(_EIGHT.unpack(hashlib.blake2b(text.encode()).digest()))
            self._block += 1
        return self._left.pop()

    def __getattr__(self, name: str) -> Any:
        if name.startswith("_"):
            raise AttributeError(name)
        if "_numpy" not in self.__dict__:
            self._numpy = generator(self._seed, self._purpose, *self._numbers)
        return getattr(self._numpy, name)
