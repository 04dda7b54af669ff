"""Which sample stands at a position of the endless stream: a pure function of (seed, position).

Shards are permuted per epoch, and samples are shuffled inside a window of consecutive permuted
shards, so that a reader touches few files at a time while a batch still mixes many shards. Windows
share the shards evenly, so that the last one of an epoch is no smaller than the others. Nothing
depends on ranks, workers or what was read before, so a run may resume at any sample and with any
number of GPUs. Several shard sets are mixed in fixed shares per block of positions.

Random numbers come from Philox's raw 64-bit stream, the part of numpy whose values are promised
not to change between versions.
"""

from __future__ import annotations

import hashlib
import math
from collections import OrderedDict
from collections.abc import Sequence
from dataclasses import dataclass
from functools import lru_cache
from typing import Any

import numpy as np

WINDOW_SHARDS = 32  # near which number a window's shards are
MIXTURE_BLOCK = 4096  # shares are exact per block and rounded to 1/4096
_CACHED = 3


def generator(seed: int, purpose: str, *numbers: int) -> np.random.Generator:
    """The random stream for one purpose, e.g. ``generator(seed, "view.image", position)``."""
    return np.random.Generator(_philox(seed, purpose, *numbers))


def integer(seed: int, purpose: str, *numbers: int) -> int:
    """A random integer in [0, 2**63), for seeding other generators."""
    return int(_philox(seed, purpose, *numbers).random_raw()) >> 1


def permutation(count: int, seed: int, purpose: str, *numbers: int) -> np.ndarray:
    """A permutation of ``range(count)``, int64 of shape (count,)."""
    raw = _philox(seed, purpose, *numbers).random_raw(count)
    return np.argsort(raw, kind="stable")


def _philox(seed: int, purpose: str, *numbers: int) -> np.random.Philox:
    text = "\0".join([str(seed), purpose, *map(str, numbers)])
    key = hashlib.blake2b(text.encode(), digest_size=16).digest()
    return np.random.Philox(key=int.from_bytes(key, "little"))


class ShardOrder:
    """The endless order of one shard set. ``counts`` has the number of samples of each shard.

    Raises ValueError for a set without a sample.
    """

    def __init__(
        self, counts: Sequence[int], seed: int, window_shards: int = WINDOW_SHARDS
    ) -> None:
        self.counts = np.asarray(counts, np.int64)
        self.seed = seed
        self.window_shards = window_shards
        self.total = int(self.counts.sum())
        if not self.total:
            raise ValueError(
                "the shard set holds no sample. hint: its ledger says why all were refused"
            )
        self._first_samples = np.concatenate([[0], np.cumsum(self.counts)])
        windows = max(1, round(len(self.counts) / window_shards))
        # The place in an epoch's order of shards where each window begins, and the end.
        self._bounds = np.arange(windows + 1) * len(self.counts) // windows
        # Kept for speed alone; a mixture has one order per set, so each keeps its own.
        self._epochs: OrderedDict[int, tuple[np.ndarray, np.ndarray]] = OrderedDict()
        self._windows: OrderedDict[tuple[int, int], np.ndarray] = OrderedDict()

    def sample_at(self, position: int) -> int:
        """The sample (numbered through all shards, from 0) at a position of the endless stream."""
        epoch, window, offset = self._place(position)
        return int(self._window(epoch, window)[offset])

    def samples(self, start: int, stop: int) -> np.ndarray:
        """The samples at positions ``start`` to ``stop - 1``, int64 of shape (stop - start,)."""
        found = [np.zeros(0, np.int64)]
        while start < stop:
            epoch, window, offset = self._place(start)
            taken = self._window(epoch, window)[offset : offset + stop - start]
            found.append(taken)
            start += len(taken)
        return np.concatenate(found)

    def window_at(self, position: int) -> tuple[int, int]:
        """(epoch, window in it) of a position: while it is the same, the same shards are read."""
        return self._place(position)[:2]

    def window_samples(self, position: int) -> np.ndarray:
        """All samples of a position's window, int64, in their order."""
        return self._window(*self._place(position)[:2])

    def soon(self, position: int) -> np.ndarray:
        """One sample of each shard of this position's window, then of the next: what to fetch ahead.

        int64 of shape (shards,), in the order in which windows need them; shards without samples are
        not among them.
        """
        epoch, window, _ = self._place(position)
        following = (epoch, window + 1) if window + 2 < len(self._bounds) else (epoch + 1, 0)
        both = [self._shards(epoch, window), self._shards(*following)]
        shards = np.concatenate([both[0], both[1][~np.isin(both[1], both[0])]])
        return self._first_samples[shards[self.counts[shards] > 0]]

    def _place(self, position: int) -> tuple[int, int, int]:
        """(epoch, window in it, position in the window)."""
        epoch, inside = divmod(position, self.total)
        starts = self._epoch(epoch)[1]
        window = int(starts.searchsorted(inside, side="right")) - 1
        return epoch, window, inside - int(starts[window])

    def _epoch(self, epoch: int) -> tuple[np.ndarray, np.ndarray]:
        """The shards in this epoch's order, and the position inside it where each window begins."""
        if epoch not in self._epochs:
            shards = permutation(len(self.counts), self.seed, "order.shards", epoch)
            starts = np.concatenate([[0], np.cumsum(self.counts[shards])])
            _keep(self._epochs, epoch, (shards, starts[self._bounds[:-1]]))
        return self._epochs[epoch]

    def _shards(self, epoch: int, window: int) -> np.ndarray:
        return self._epoch(epoch)[0][self._bounds[window] : self._bounds[window + 1]]

    def _window(self, epoch: int, window: int) -> np.ndarray:
        """The samples of one window in their shuffled order."""
        if (epoch, window) not in self._windows:
            starts = self._first_samples
            shards = self._shards(epoch, window)
            samples = np.concatenate([np.arange(starts[s], starts[s + 1]) for s in shards])
            shuffled = samples[permutation(len(samples), self.seed, "order.samples", epoch, window)]
            _keep(self._windows, (epoch, window), shuffled)
        return self._windows[epoch, window]


def _keep(cache: OrderedDict[Any, Any], key: Any, value: Any) -> None:
    cache[key] = value
    if len(cache) > _CACHED:
        cache.popitem(last=False)


@dataclass(frozen=True)
class Mixture:
    """Which shard set feeds a position, and at which position of that set's own stream.

    Every block of ``MIXTURE_BLOCK`` positions holds the same number of samples of each set (its
    share by ``weights``, largest remainders first, at least one), in a shuffled order.
    """

    weights: tuple[float, ...]
    seed: int

    def at(self, position: int) -> tuple[int, int]:
        """(number of the shard set, position in its stream)."""
        if len(self.weights) == 1:
            return 0, position
        block, inside = divmod(position, MIXTURE_BLOCK)
        counts, sources, ranks = _mixture_block(self, block)
        source = int(sources[inside])
        return source, block * int(counts[source]) + int(ranks[inside])


def shares(weights: Sequence[float], block: int = MIXTURE_BLOCK) -> np.ndarray:
    """How many of ``block`` positions each set gets, int64, in total exactly ``block``.

    Raises ValueError for weights that are not all positive, or more sets than positions.
    """
    wanted = np.asarray(weights, np.float64)
    if len(wanted) > block or not np.all(np.isfinite(wanted)) or np.any(wanted <= 0):
        raise ValueError(
            f"shard set weights {list(weights)}. hint: weights are positive numbers; leave out a set that is not wanted"
        )
    exact = wanted / wanted.sum() * block
    counts = np.maximum(np.floor(exact).astype(np.int64), 1)
    while counts.sum() < block:
        counts[np.argmax(exact - counts)] += 1
    while counts.sum() > block:
        counts[np.argmax(counts)] -= 1
    return counts


@lru_cache(maxsize=16)
def _mixture_block(mixture: Mixture, block: int) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Per set its count; per position of the block its set and its rank among that set's samples."""
    counts = shares(mixture.weights)
    sources = np.repeat(np.arange(len(counts)), counts)
    sources = sources[permutation(MIXTURE_BLOCK, mixture.seed, "order.mixture", block)]
    ranks = np.zeros(MIXTURE_BLOCK, np.int64)
    for source, count in enumerate(counts):
        ranks[sources == source] = np.arange(count)
    return counts, sources, ranks


def repeats(sets: Sequence[tuple[str, int, float]], global_batch: int) -> list[str]:
    """A line for each set too small for such batches. ``sets`` has path, samples (0: not known) and weight."""
    whole = sum(weight for _, _, weight in sets)
    wanted = [math.ceil(global_batch * weight / whole) for _, _, weight in sets]
    return [
        f"{path}: {samples:,} samples, and of each global batch {taken:,} are drawn from it: a batch has pairs "
        "twice, and a contrastive loss takes the one for wrong beside the other. "
        "hint: a smaller global_batch, or more samples"
        for (path, samples, _), taken in zip(sets, wanted, strict=True)
        if 0 < samples < taken
    ]


def local_rows(samples_seen: int, global_batch: int, rank: int, world: int) -> range:
    """The positions that a rank reads for the global batch beginning at ``samples_seen``.

    Raises ValueError where the batch does not divide evenly: means of unequal local batches would
    not average to the global mean.
    """
    if global_batch % world:
        raise ValueError(
            f"global_batch = {global_batch} does not divide over {world} ranks. "
            f"hint: use a multiple of {world}, e.g. {max(1, round(global_batch / world)) * world}"
        )
    local = global_batch // world
    return range(samples_seen + rank * local, samples_seen + (rank + 1) * local)
