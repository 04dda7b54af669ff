"""Term, Features, Comm: what an objective is given, and the one place where ranks exchange features.

A term is a mean over this rank's rows of something that may look at all ranks' features. Gathering
has a gradient (its backward sums over ranks), so the average that DDP takes of the ranks' gradients
is exactly the gradient of the full batch, for every term (`docs/design.md`, law 6). Terms that make their
own gradients (`tiles.py`) exchange through the same Comm.

Legend: B local rows, N all ranks' rows, D embedding.
"""

from __future__ import annotations

import inspect
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, ClassVar, Literal

import torch
import torch.distributed as dist
from torch import Tensor, nn

Metrics = dict[str, Tensor]
Arrival = Callable[[], Tensor]


class Features(dict[str, Tensor]):
    """Feature name -> rows, not unit norm, in the precision of the towers.

    "<view>:pooled" is (B, D), "<view>:tokens" (B, L, D), and "stored:<name>" what a sidecar holds.
    """

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
    """One process: every exchange is the identity. Makes each term testable without torch.distributed.

    All ranks call the same exchanges in the same order, with tensors of one shape: the loop gives
    every rank equally many rows.
    """

    rank: int = 0
    world: int = 1

    def gather(self, rows_BD: Tensor) -> Tensor:
        """All ranks' rows in rank order, (N, D), with gradient: its backward sums over ranks."""
        return rows_BD

    def ring(self, block: Tensor, lane: int = 0) -> Arrival:
        """Begin to pass a block to the next rank; what is returned waits for the one from the rank before.

        Without gradient. The block must not be written to before the wait. Blocks that are under way at
        the same time go by lanes (0 or 1).
        """
        return lambda: block

    def logsumexp(self, values: Tensor) -> Tensor:
        """Log of the ranks' summed exponentials, for each element. Without gradient."""
        return values

    def row_offset(self, rows: int) -> int:
        """The number, among all ranks' rows, of this rank's first one."""
        return self.rank * rows


class DistributedComm(Comm):
    """Exchanges over a torch.distributed process group (the default one where none is given)."""

    def __init__(self, group: Any = None) -> None:
        self.group = group
        self.rank = dist.get_rank(group)
        self.world = dist.get_world_size(group)
        # What only NCCL has: one tensor in, one out, and a sum of which each rank gets its rows.
        self.scatters = "nccl" in str(dist.get_backend(group))
        peers = dist.get_process_group_ranks(group)
        self.next = peers[(self.rank + 1) % self.world]
        self.previous = peers[(self.rank - 1) % self.world]

    def gather(self, rows_BD: Tensor) -> Tensor:
        return _Gather.apply(rows_BD, self)

    def ring(self, block: Tensor, lane: int = 0) -> Arrival:
        block = block.contiguous()
        arriving = torch.empty_like(block)
        transfers = dist.batch_isend_irecv(
            [
                dist.P2POp(dist.isend, block, self.next, self.group, tag=lane),
                dist.P2POp(dist.irecv, arriving, self.previous, self.group, tag=lane),
            ]
        )

        def wait() -> Tensor:
            for transfer in transfers:
                transfer.wait()
            return arriving

        return wait

    def logsumexp(self, values: Tensor) -> Tensor:
        most = values.clone()
        dist.all_reduce(most, op=dist.ReduceOp.MAX, group=self.group)
        summed = (values - most).exp_()
        dist.all_reduce(summed, group=self.group)
        return summed.log_().add_(most)


class _Gather(torch.autograd.Function):
    """all_gather forward; backward sums the ranks' gradients and hands each rank its own rows."""

    @staticmethod
    def forward(ctx: Any, rows_BD: Tensor, comm: DistributedComm) -> Tensor:
        ctx.comm = comm
        ctx.rows = len(rows_BD)
        rows_BD = rows_BD.contiguous()
        rows_ND = rows_BD.new_empty(comm.world * len(rows_BD), *rows_BD.shape[1:])
        if comm.scatters:
            dist.all_gather_into_tensor(rows_ND, rows_BD, group=comm.group)
        else:
            dist.all_gather(list(rows_ND.chunk(comm.world)), rows_BD, group=comm.group)
        return rows_ND

    @staticmethod
    def backward(ctx: Any, gradient_ND: Tensor) -> tuple[Tensor, None]:
        comm: DistributedComm = ctx.comm
        if comm.scatters:
            own_BD = gradient_ND.new_empty(ctx.rows, *gradient_ND.shape[1:])
            dist.reduce_scatter_tensor(own_BD, gradient_ND.contiguous(), group=comm.group)
            return own_BD, None
        summed_ND = gradient_ND.clone(memory_format=torch.contiguous_format)
        dist.all_reduce(summed_ND, group=comm.group)
        first = comm.row_offset(ctx.rows)
        return summed_ND[first : first + ctx.rows], None


class Term(nn.Module):
    """Base of every objective. Options are keyword-only ``__init__`` parameters with literal defaults.

    A term keeps each option under its own name, so that a checkpoint can say what it was made with.
    Learned scalars and heads are its parameters; they stand outside the DDP-wrapped towers and the
    loop averages their gradients. Queues and the like are its buffers. A rank's gradients may be part of
    another rank's loss: only their sum counts, and all ranks call backward with one factor.
    """

    kind: ClassVar[Literal["batch", "sample"]]
    needs: frozenset[str]  # names of features; of the class, or of one term as its options ask

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

    def loss_at_start(self, batch: int) -> float | None:
        """What it is for random features and fresh scalars, with ``batch`` rows of all ranks; None: not known."""
        return None

    def loss_of_guessing(self, batch: int) -> float | None:
        """Its value where features tell nothing and scalars have made the best of it; None: not known.

        A run that stays there learns nothing, and is stopped (``pretrain/loop/stuck.py``).
        """
        return None

    def options(self) -> dict[str, Any]:
        """Every option by name, as this term was made with."""
        return {name: getattr(self, name) for name in inspect.signature(type(self)).parameters}


def feature_name(view: str) -> str:
    """The feature that an option names: "text" is "text:pooled"; "stored:x" or "text:tokens" as they are."""
    return view if ":" in view else f"{view}:pooled"


def unit_rows(rows_BD: Tensor) -> Tensor:
    """Rows of unit norm, in full precision. Call it without autocast."""
    return nn.functional.normalize(full_precision(rows_BD), dim=-1)


def full_precision(rows: Tensor) -> Tensor:
    """float32, or float64 unchanged: logits at a scale of 100 need more than bf16's 8 bits."""
    return rows if rows.dtype == torch.float64 else rows.float()


def no_autocast(rows: Tensor) -> torch.autocast:
    """The context in which logits and losses are computed, whatever the towers run in."""
    return torch.autocast(rows.device.type, enabled=False)
