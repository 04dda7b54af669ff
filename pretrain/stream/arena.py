"""Shared memory in which pictures travel from a loader process to its rank, used again and again.

Fresh shared memory costs a page fault for each 4 KiB, an eighth of all that a picture costs. So a loader
process keeps what it made: a slot is sent once, then named by number, and is free again when the last
tensor in the rank that lies in it is gone. Where no slot is free, memory is fresh, as without this.
"""

from __future__ import annotations

import math
import os
import weakref
from contextlib import suppress
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor
from torch.utils.data import get_worker_info

_MOST_SLOTS = 8  # what a loader makes ahead, what the rank has in use, and one in the making
_SPARE = 1.25  # ragged pictures take more room at times; what is never written takes none
_LEAST_BYTES = 1 << 18  # smaller ones are cheaper to send as they are


@dataclass
class _Slot:
    memory: Tensor  # uint8 (room + 1,), shared; the last byte is 1 while the slot is lent
    is_sent: bool = False

    @property
    def is_free(self) -> bool:
        return not int(self.memory[-1])


_slots: list[_Slot] = []  # of this process, if it is a loader's
_mapped: dict[tuple[int, int], Tensor] = {}  # of this process, if it is a rank: others' slots


@dataclass(frozen=True)
class Lent:
    """What goes through the loader's pipe for a tensor that lies in a slot."""

    process: int
    number: int
    shape: tuple[int, ...]
    memory: Tensor | None  # the first time

    def tensor(self) -> Tensor:
        """uint8 of ``shape`` in the slot, which is free again once this and all that share it are gone."""
        place = self.process, self.number
        if self.memory is not None:
            for other in [other for other in _mapped if not _runs(other[0])]:
                del _mapped[other]
            _mapped[place] = self.memory
        memory = _mapped[place].numpy()
        rows = memory[: math.prod(self.shape)].reshape(self.shape)
        weakref.finalize(rows, _give_back, memory).atexit = False
        return torch.from_numpy(rows)


def empty(shape: tuple[int, ...]) -> Tensor:
    """An uninitialised uint8 tensor; in a loader process, in memory that the rank sees too."""
    size = math.prod(shape)
    if get_worker_info() is None:
        return torch.empty(shape, dtype=torch.uint8)
    if size < _LEAST_BYTES:
        return _shared(size).view(shape)
    free = [number for number, slot in enumerate(_slots) if slot.is_free]
    fits = next((number for number in free if len(_slots[number].memory) > size), None)
    if fits is None and len(_slots) < _MOST_SLOTS:
        fits = len(_slots)
        _slots.append(_Slot(_shared(int(size * _SPARE) + 1)))
    elif fits is None and free:
        fits = free[0]
        _slots[fits] = _Slot(_shared(int(size * _SPARE) + 1))
    if fits is None:
        return _shared(size).view(shape)
    memory = _slots[fits].memory
    memory[-1] = 1
    return memory[:size].view(shape)


def lent(rows: Tensor) -> Lent | None:
    """How to send a tensor that ``empty`` made in this process; None if it lies in no slot."""
    for number, slot in enumerate(_slots):
        if slot.memory.data_ptr() == rows.data_ptr():
            first = None if slot.is_sent else slot.memory
            slot.is_sent = True
            return Lent(os.getpid(), number, tuple(rows.shape), first)
    return None


def _shared(size: int) -> Tensor:
    storage = torch.UntypedStorage._new_shared(size, device="cpu")
    return torch.empty(0, dtype=torch.uint8).set_(storage)


def _give_back(memory: np.ndarray) -> None:
    memory[-1] = 0


def _runs(process: int) -> bool:
    with suppress(ProcessLookupError, PermissionError):
        os.kill(process, 0)
        return True
    return False
