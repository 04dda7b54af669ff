"""Term, Features, Comm: what an objective is given, and the one place where ranks exchange features.

A term is a mean over this rank's rows of something that may look at all gathered features. Gathering
has a gradient (its backward sums over ranks), so the average that DDP takes of the ranks' gradients
is exactly the gradient of the full batch, for every term (`docs/design.md`, law 6).

Legend: B local rows, N all ranks' rows, D embedding.
"""

from __future__ import annotations

import inspect
from dataclasses import dataclass
from typing import Any, ClassVar, Literal

import torch
import torch.distributed as dist
from torch import Tensor, nn

Metrics = dict[str, Tensor]


class Features(dict[str, Tensor]):
    """Feature name ("<view>:pooled") -> rows (B, D), not unit norm, in the precision of the towers."""

    def __missing__(self, name: str) -> Tensor:
        raise KeyError(
            f"no feature {name!r}; there are {sorted(self)}. hint: add a view of that name to the phase"
        )


@dataclass(frozen=True)
class Dims:
    """What a term may size its parameters by. ``logit_scale`` is that of the weights started from."""

    embed_dim: int
    logit_scale: float


class Comm:
    """One process: gathering is the identity. Makes every term testable without torch.distributed."""

    rank: int = 0
    world: int = 1

    def gather(self, rows_BD: Tensor) -> Tensor:
        """All ranks' rows in rank order, (N, D), with gradient. Every rank must have the same B."""
        return rows_BD

    def row_offset(self, rows: int) -> int:
        """The number, among all ranks' rows, of this rank's first one."""
        return self.rank * rows


class DistributedComm(Comm):
    """Gathers over a torch.distributed process group (the default one where none is given)."""

    def __init__(self, group: Any = None) -> None:
        self.group = group
        self.rank = dist.get_rank(group)
        self.world = dist.get_world_size(group)

    def gather(self, rows_BD: Tensor) -> Tensor:
        return _Gather.apply(rows_BD, self)


class _Gather(torch.autograd.Function):
    """all_gather forward; backward sums the ranks' gradients and hands each rank its own rows."""

    @staticmethod
    def forward(ctx: Any, rows_BD: Tensor, comm: DistributedComm) -> Tensor:
        ctx.comm = comm
        ctx.rows = len(rows_BD)
        parts = [torch.empty_like(rows_BD) for _ in range(comm.world)]
        dist.all_gather(parts, rows_BD.contiguous(), group=comm.group)
        return torch.cat(parts)

    @staticmethod
    def backward(ctx: Any, gradient_ND: Tensor) -> tuple[Tensor, None]:
        summed_ND = gradient_ND.clone(memory_format=torch.contiguous_format)
        dist.all_reduce(summed_ND, group=ctx.comm.group)
        first = ctx.comm.row_offset(ctx.rows)
        return summed_ND[first : first + ctx.rows], None


class Term(nn.Module):
    """Base of every objective. Options are keyword-only ``__init__`` parameters with literal defaults.

    A term keeps each option under its own name, so that a checkpoint can say what it was made with.
    Learned scalars and heads are its parameters; they stand outside the DDP-wrapped towers and the
    loop averages their gradients. Queues and the like are its buffers.
    """

    kind: ClassVar[Literal["batch", "sample"]]
    needs: ClassVar[frozenset[str]]

    def setup(self, dims: Dims) -> None:
        """Make heads, scales and queues. Called once, before the optimizer is built."""

    def forward(self, features: Features, comm: Comm, step: int) -> tuple[Tensor, Metrics]:
        """(mean over this rank's rows, scalar; figures to log, detached scalars)."""
        raise NotImplementedError

    def after_step(self) -> None:
        """Called after every optimizer step; e.g. to clamp a scale."""

    def logit_scale(self) -> Tensor | None:
        """The scale of this term's logits, exponentiated; None where it has none."""
        return None

    def options(self) -> dict[str, Any]:
        """Every option by name, as this term was made with."""
        return {name: getattr(self, name) for name in inspect.signature(type(self)).parameters}


def full_precision(rows: Tensor) -> Tensor:
    """float32, or float64 unchanged: logits at a scale of 100 need more than bf16's 8 bits."""
    return rows if rows.dtype == torch.float64 else rows.float()


def no_autocast(rows: Tensor) -> torch.autocast:
    """The context in which logits and losses are computed, whatever the towers run in."""
    return torch.autocast(rows.device.type, enabled=False)
