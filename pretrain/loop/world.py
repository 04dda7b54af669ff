"""The ranks of a run: who I am, on which device, and the few things all ranks must agree on.

Uses the process group that a launcher (torchrun, Ray Train) made, or makes one from RANK and
WORLD_SIZE: NCCL where there is CUDA, gloo elsewhere. Agreement goes over gloo on the CPU, so asking
"shall we stop?" at every step never waits for the GPU.
"""

from __future__ import annotations

import atexit
import os
import warnings
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor, nn

from pretrain.objective.base import Comm, DistributedComm


@dataclass(frozen=True)
class World:
    """This rank among ``size`` ranks. ``agreement`` is a group on the CPU; None with one rank."""

    rank: int
    size: int
    device: torch.device
    agreement: Any = None

    @property
    def is_first(self) -> bool:
        return self.rank == 0

    def comm(self) -> Comm:
        return DistributedComm() if self.size > 1 else Comm()

    def wrap(self, encoder: nn.Module) -> nn.Module:
        """The encoder behind DDP, or as it is with one rank or where nothing in it trains."""
        if self.size == 1 or not any(p.requires_grad for p in encoder.parameters()):
            return encoder
        ids = [self.device] if self.device.type == "cuda" else None
        with warnings.catch_warnings():
            # Newer torch has another word for it, which the oldest we support does not know.
            warnings.filterwarnings("ignore", "`broadcast_buffers`", FutureWarning)
            return nn.parallel.DistributedDataParallel(
                encoder, device_ids=ids, broadcast_buffers=False
            )

    def average_gradients(self, parameters: Iterable[nn.Parameter]) -> None:
        """Mean over ranks of gradients that stand outside DDP. A missing one counts as zero."""
        if self.size == 1:
            return
        for parameter in parameters:
            if parameter.grad is None:
                parameter.grad = torch.zeros_like(parameter)
            dist.all_reduce(parameter.grad)
            parameter.grad /= self.size

    def mean(self, figures: Sequence[Tensor]) -> list[float]:
        """Each scalar's mean over ranks. Waits for the device."""
        stacked = torch.stack(
            [figure.detach().to(self.device, torch.float64) for figure in figures]
        ).cpu()
        if self.size > 1:
            dist.all_reduce(stacked, group=self.agreement)
        return (stacked / self.size).tolist()

    def gather(self, thing: Any) -> list[Any]:
        """A small picklable thing of every rank, in rank order."""
        if self.size == 1:
            return [thing]
        things: list[Any] = [None] * self.size
        dist.all_gather_object(things, thing, group=self.agreement)
        return things

    def any(self, *flags: bool) -> list[bool]:
        """For each flag, whether it is set on any rank."""
        if self.size == 1:
            return list(flags)
        found = torch.tensor(flags, dtype=torch.int32)
        dist.all_reduce(found, op=dist.ReduceOp.MAX, group=self.agreement)
        return [bool(flag) for flag in found]


def join() -> World:
    """This process's place in the run. All ranks call it together.

    A process group made here stays until the process ends, and a second run in the same process
    uses it: one made anew at the same address can meet the store of the first, and hangs.
    """
    size = (
        dist.get_world_size() if dist.is_initialized() else int(os.environ.get("WORLD_SIZE", "1"))
    )
    device = torch.device("cpu")
    if torch.cuda.is_available():
        device = torch.device(
            "cuda", int(os.environ.get("LOCAL_RANK", "0")) % torch.cuda.device_count()
        )
        torch.cuda.set_device(device)
    if size == 1:
        return World(0, 1, device)
    if not dist.is_initialized():
        dist.init_process_group("nccl" if device.type == "cuda" else "gloo")
        atexit.register(_leave)
    return World(dist.get_rank(), size, device, dist.new_group(backend="gloo"))


def _leave() -> None:
    if dist.is_initialized():
        dist.destroy_process_group()
