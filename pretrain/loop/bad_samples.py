"""Names damage, and stops a run that has too many bad samples: of all it has seen, or of those it saw of late.

A share of the whole run alone would let a long run that was sound for a billion samples go on for millions
over damaged shards.
"""

from __future__ import annotations

import logging
import math
from collections import Counter, deque
from collections.abc import Sequence

from pretrain.loop.world import World
from pretrain.stream.tars import TarSet

ENOUGH_SAMPLES = 1_000  # before so many are seen, the share is taken of this number
LATELY_SAMPLES = 100_000  # the window's least width
LATELY_FRAC = 0.01  # of what was seen: its width in a long run
_SPREADS = 5  # a sound run with just fewer bad samples than allowed is not stopped by chance
_MARKS = 100  # a window
_NAMED_SHARDS = 10
_logger = logging.getLogger(__name__)


def named(readers: Sequence[TarSet]) -> list[str]:
    """A line for each damaged shard of these sets, for the first ten."""
    found = [line for reader in readers for line in reader.damage]
    more = len(found) - _NAMED_SHARDS
    return found[:_NAMED_SHARDS] + ([f"and {more} more damaged shards"] if more > 0 else [])


def refuse_lost(readers: Sequence[TarSet], max_frac: float) -> None:
    """Raise ValueError for a set that has lost more: what is never drawn shows in no count, the rest only late."""
    for reader in readers:
        if (lost := reader.lost_frac()) > max_frac:
            raise ValueError(
                f"{reader.path}: some {lost:.2%} of the samples are lost, more than max_bad_frac = {max_frac}: "
                f"{'; '.join(named([reader]))}. "
                "hint: repair or remove the damaged shards, or set train.max_bad_frac higher"
            )


class Replaced:
    """The bad samples of this rank since ranks last told each other, and one of each kind of all ranks."""

    def __init__(self) -> None:
        self.new: Counter[str] = Counter()
        self.examples: dict[
            str, str
        ] = {}  # of each kind the first; equal on all ranks after ``add_to``
        self._own: dict[str, str] = {}

    def count(self, bad: Sequence[tuple[str, str]]) -> None:
        for kind, example in bad:
            self.new[kind] += 1
            self._own.setdefault(kind, example)

    def add_to(self, total: dict[str, int], world: World) -> dict[str, int]:
        """``total`` and the new ones of all ranks, who call it together; the first rank warns of new kinds."""
        summed, told = Counter(total), dict(self.examples)
        for counts, examples in world.gather((self.new, self._own)):
            summed.update(counts)
            self.examples = {**examples, **self.examples}
        for kind in sorted(self.examples.keys() - told) if world.is_first else ():
            _logger.warning("bad sample (%s): %s", kind, self.examples[kind])
        self.new, self._own = Counter(), {}
        return dict(sorted(summed.items()))


class BadShare:
    """Watches counts that are equal on all ranks. ``marks`` are those of the checkpoint that is resumed from.

    So a run that is killed often is judged like one that is not. Where that window is too bad already, the
    shards may have been repaired: what comes after it must be too bad as well.
    """

    def __init__(
        self, max_frac: float, seen: int, bad: int, marks: Sequence[Sequence[int]] = ()
    ) -> None:
        self.max_frac = max_frac
        # The first is where the window begins.
        self.marks = deque((before, found) for before, found in marks or [(seen, bad)])
        self._doubt: tuple[int, int] | None = None
        if self._lately(seen, bad):
            self._doubt = seen, bad

    def saved(self) -> list[list[int]]:
        """The window, to be given back as ``marks``."""
        return [list(mark) for mark in self.marks]

    def fault(self, seen: int, bad: int) -> str:
        """Which share is too large, in words; empty while none is. ``seen`` and ``bad`` are of the whole run."""
        if bad > self.max_frac * max(seen, ENOUGH_SAMPLES):
            return f"{bad} of {seen} samples could not be used"
        width = _width(seen)
        if seen - self.marks[-1][0] >= width / _MARKS:
            self.marks.append((seen, bad))
        while len(self.marks) > 1 and self.marks[1][0] <= seen - width:
            self.marks.popleft()
        return self._lately(seen, bad)

    def _lately(self, seen: int, bad: int) -> str:
        if self._doubt:
            since, known = self._doubt
            if bad - known <= self.max_frac * max(seen - since, ENOUGH_SAMPLES):
                return ""
        begun, before = self.marks[0]
        allowed = self.max_frac * max(seen - begun, _width(seen))
        if bad - before > allowed + _SPREADS * math.sqrt(allowed):
            return f"{bad - before} of the last {seen - begun} samples could not be used"
        return ""


def _width(seen: int) -> int:
    """Of the window, in samples."""
    return max(LATELY_SAMPLES, int(LATELY_FRAC * seen))
