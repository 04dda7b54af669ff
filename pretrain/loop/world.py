"""The ranks of a run: who I am, on which device, and the few things all ranks must agree on.

Uses the process group that a launcher (torchrun, Ray Train) made, or makes one from RANK and
WORLD_SIZE: NCCL where there is CUDA, gloo elsewhere. Agreement goes over gloo on the CPU, so asking
"shall we stop?" at every step never waits for the GPU, nor (`Poll`) for another rank.
"""

from __future__ import annotations

import atexit
import os
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from datetime import timedelta
from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor, nn

from pretrain.objective.base import Comm, DistributedComm

START_MINUTES = 10.0  # for all ranks to come; what they exchange later has torch's own limits


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

    def average_gradients(self, parameters: Iterable[nn.Parameter]) -> None:
        """Mean over ranks of gradients that stand outside DDP. A missing one becomes zero, with one rank too.

        One exchange for all parameters of a type. Does not wait for the device.
        """
        by_type: dict[torch.dtype, list[Tensor]] = {}
        for parameter in parameters:
            if parameter.requires_grad:
                if parameter.grad is None:
                    parameter.grad = torch.zeros_like(parameter)
                by_type.setdefault(parameter.grad.dtype, []).append(parameter.grad)
        for gradients in by_type.values() if self.size > 1 else ():
            joined = torch.cat([gradient.reshape(-1) for gradient in gradients])
            dist.all_reduce(joined)
            joined /= self.size
            parts = joined.split([gradient.numel() for gradient in gradients])
            torch._foreach_copy_(
                gradients, [part.view_as(g) for part, g in zip(parts, gradients, strict=True)]
            )

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


class Poll:
    """Asks every rank the same questions after each step, without waiting for the slowest.

    An answer is that of the step before, when several ranks are asked: they exchange their flags
    while they go on. So all act at the same step, one after the flag was set. A flag whose answer is
    under way is not set a second time. With one rank the answer is the present one.
    """

    def __init__(self, world: World) -> None:
        self.world = world
        self.under_way: tuple[Any, Tensor] | None = None
        self.own: tuple[bool, ...] = ()  # this rank's flags that are under way

    def ask(self, *flags: bool) -> list[bool]:
        """For each flag, whether it was set on any rank at the last call."""
        if self.world.size == 1:
            return list(flags)
        answer = self._answer(len(flags))
        before = self.own or (False,) * len(flags)
        self.own = tuple(flag and not old for flag, old in zip(flags, before, strict=True))
        asked = torch.tensor(self.own, dtype=torch.int32)
        sent = dist.all_reduce(
            asked, op=dist.ReduceOp.MAX, group=self.world.agreement, async_op=True
        )
        self.under_way = sent, asked
        return answer

    def end(self) -> None:
        """Wait for what is under way; called before ranks exchange anything else for good."""
        self._answer(0)

    def _answer(self, flags: int) -> list[bool]:
        if self.under_way is None:
            return [False] * flags
        sent, asked = self.under_way
        sent.wait()
        self.under_way = None
        return [bool(flag) for flag in asked.tolist()]


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
        _meet("nccl" if device.type == "cuda" else "gloo", size)
        atexit.register(_leave)
    return World(dist.get_rank(), size, device, dist.new_group(backend="gloo"))


def _meet(backend: str, size: int) -> None:
    """The process group, over a store at which all ranks must have come in time. Raises TimeoutError."""
    limit = timedelta(minutes=START_MINUTES)
    try:
        store, rank, size = next(dist.rendezvous("env://", timeout=limit))
        store.set_timeout(limit)
        dist.init_process_group(backend, store=store, rank=rank, world_size=size)
    except dist.DistStoreError as fault:
        raise TimeoutError(
            f"not all of {size} ranks came within {START_MINUTES:g} minutes ({fault}). "
            "hint: look at the other ranks' messages, and at MASTER_ADDR and MASTER_PORT"
        ) from fault


def _leave() -> None:
    if dist.is_initialized():
        dist.destroy_process_group()
