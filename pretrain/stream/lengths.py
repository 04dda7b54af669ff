"""Rows of a text view in groups of like length, so that one long caption does not make all others long.

Exact for towers in which no token sees those after it: what is left out is padding. Groups are made on
the host and have few sizes, so compiled blocks see few shapes and nothing waits for the device.

Legend: B rows, L text tokens.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple

import numpy as np
import torch
from torch import Tensor

_STEPS = 8  # a group's size is a multiple of this share of the batch


class Groups(NamedTuple):
    """How the rows of one text view are split, for the tower."""

    spans: tuple[tuple[int, int], ...]  # (length in tokens, rows) of each group, lengths rising
    order: Tensor  # int64 (B,): rows as the groups have them, one group after another
    places: Tensor  # int64 (B,): its inverse, where each row went

    def cut(self, ids_BL: Tensor) -> list[Tensor]:
        """The ids of each group, int64 (rows, length)."""
        parts = ids_BL.index_select(0, self.order).split([rows for _, rows in self.spans])
        return [part[:, :length] for part, (length, _) in zip(parts, self.spans, strict=True)]


def used_lengths(ids: Tensor) -> np.ndarray:
    """Tokens of each row up to the last that is not padding (0), int64 (B,). ``ids`` are int64 (B, L)."""
    return ((ids.numpy() != 0) * np.arange(1, ids.shape[1] + 1)).max(axis=1, initial=0)


def split(fits: np.ndarray, lengths: Sequence[int]) -> list[tuple[int, np.ndarray]]:
    """(length, its rows in order) of each group that has rows.

    ``fits`` (B,) is the number of the shortest of the rising ``lengths`` that holds a row's caption.
    A group takes whole eighths of the batch; what is left over goes with the next longer one, and
    the longest that is needed takes all that is left.
    """
    quantum = max(1, len(fits) // _STEPS)
    left = np.ones(len(fits), bool)
    groups: list[tuple[int, np.ndarray]] = []
    longest = int(fits.max(initial=0))
    for number in range(longest + 1):
        rows = np.flatnonzero(left & (fits <= number))
        if number < longest:
            rows = rows[: len(rows) // quantum * quantum]
        left[rows] = False
        if len(rows):
            groups.append((int(lengths[number]), rows))
    return groups


def grouped(
    fits: np.ndarray, lengths: Sequence[int], device: torch.device | str = "cpu"
) -> Groups | None:
    """The same with its tensors on their way to ``device``; None where all rows have the last length."""
    groups = split(fits, lengths)
    spans = tuple((length, len(rows)) for length, rows in groups)
    if len(spans) < 2 and (not spans or spans[0][0] == lengths[-1]):
        return None
    order = np.concatenate([rows for _, rows in groups])
    places = np.empty_like(order)
    places[order] = np.arange(len(order))
    both = torch.from_numpy(np.stack([order, places]))
    if torch.device(device).type == "cuda":
        both = both.pin_memory()  # from other memory the copy would be waited for
    both = both.to(device, non_blocking=True)
    return Groups(spans, both[0], both[1])
