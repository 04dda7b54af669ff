import os
import pickle
import weakref

import numpy as np
import pytest
import torch
from torch.utils.data import DataLoader, Dataset

from pretrain.stream import arena
from pretrain.stream.batch import Batch

SIDE = 512  # a row is 768 KiB: large enough for a slot


class Filled(Dataset):
    """Batches whose every byte is their number; row counts by number, so that slots are outgrown."""

    def __init__(self, rows) -> None:
        self.rows = rows

    def __len__(self) -> int:
        return len(self.rows)

    def __getitem__(self, number: int) -> Batch:
        pixels = arena.empty((self.rows[number], SIDE, SIDE, 3))
        pixels.fill_(number)
        return Batch({"image": pixels}, [], torch.arange(self.rows[number]))


def batches(rows, workers=2):
    return DataLoader(
        Filled(rows), batch_size=None, num_workers=workers, multiprocessing_context="fork"
    )


def image(batch) -> torch.Tensor:
    return batch.views["image"]


def test_memory_is_used_again_once_nothing_lies_in_it():
    places, seen = set(), []
    for batch in batches([1] * 40):
        places.add(image(batch).data_ptr())
        seen.append(int(image(batch).unique()))
    assert seen == list(range(40))
    assert len(places) <= 2 * arena._MOST_SLOTS


@pytest.mark.parametrize("hold", ["batch", "rows", "array"])
def test_what_somebody_holds_is_never_written_again(hold):
    keep = {
        "batch": lambda batch: batch,
        "rows": lambda batch: image(batch.rows(0, 1))[0, 3:5],
        "array": lambda batch: image(batch).numpy()[:, 1],
    }[hold]
    held = [keep(batch) for batch in batches([1] * 40)]
    found = [one.views["image"] if hold == "batch" else one for one in held]
    assert [np.unique(one).tolist() for one in found] == [[n] for n in range(40)]


def test_slots_are_outgrown_and_refilled():
    rows = [1, 2, 1, 5, 1, 3, 9, 1, 2, 7] * 3
    for number, batch in enumerate(batches(rows, workers=1)):
        assert image(batch).shape == (rows[number], SIDE, SIDE, 3)
        assert image(batch).unique().tolist() == [number]


def test_the_rank_lets_go_of_the_memory_of_loaders_that_have_ended():
    list(batches([1] * 4))
    before = {process for process, _ in arena._mapped}
    list(batches([1] * 4))
    assert before
    assert not before & {process for process, _ in arena._mapped}


def test_a_slot_is_sent_once_and_then_named(monkeypatch):
    monkeypatch.setattr(arena, "get_worker_info", lambda: True)
    monkeypatch.setattr(arena, "_slots", [])
    monkeypatch.setattr(arena, "_mapped", {})
    first = arena.lent(arena.empty((SIDE, SIDE, 3)))
    assert first.memory is not None
    back = first.tensor()
    assert not arena._slots[0].is_free
    gone = weakref.ref(back)
    del back
    assert gone() is None
    assert arena._slots[0].is_free
    second = arena.lent(arena.empty((SIDE, SIDE, 3)))
    assert (second.process, second.number, second.memory) == (os.getpid(), 0, None)
    assert pickle.loads(pickle.dumps(second)) == second


def test_without_a_free_slot_memory_is_fresh(monkeypatch):
    monkeypatch.setattr(arena, "get_worker_info", lambda: True)
    monkeypatch.setattr(arena, "_slots", [])
    held = [arena.empty((SIDE, SIDE, 3)) for _ in range(arena._MOST_SLOTS + 1)]
    assert len(arena._slots) == arena._MOST_SLOTS
    assert arena.lent(held[-1]) is None
    assert held[-1].is_shared()


def test_outside_of_a_loader_memory_is_plain():
    assert not arena.empty((SIDE, SIDE, 3)).is_shared()
    assert arena.lent(torch.zeros(4, dtype=torch.uint8)) is None
