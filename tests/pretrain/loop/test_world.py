"""One rank; several are in test_parallel.py and test_gradients.py, where they are started once."""

import pytest
import torch
import torch.distributed as dist
from torch import nn

from pretrain.loop.world import Poll, World, join

ALONE = World(0, 1, torch.device("cpu"))


def test_alone_everything_is_the_identity():
    layer = nn.Linear(2, 2)
    assert ALONE.mean([torch.tensor(2.0), torch.tensor(4)]) == [2.0, 4.0]
    assert ALONE.gather({"a": 1}) == [{"a": 1}]
    assert ALONE.any(True, False) == [True, False]
    assert Poll(ALONE).ask(True, False) == [True, False]
    ALONE.average_gradients(layer.parameters())
    assert layer.weight.grad is not None  # as of several ranks
    assert not layer.weight.grad.any()
    assert ALONE.comm().world == 1


def test_a_launcher_of_one_makes_no_group(monkeypatch):
    monkeypatch.setenv("WORLD_SIZE", "1")
    world = join()
    assert (world.rank, world.size, world.is_first) == (0, 1, True)
    assert not dist.is_initialized()


@pytest.mark.gpu
@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device")
def test_the_device_is_the_local_ranks(monkeypatch):
    monkeypatch.setenv("LOCAL_RANK", "0")
    assert join().device == torch.device("cuda", 0)
