"""Contrastive losses by tiles of rows: exact values and gradients, a tile of logits at a time.

Softmax: Inf-CL, arXiv 2410.17243; sigmoid: SigLIP, arXiv 2303.15343, section 3.2. Plain PyTorch,
memory O(tile * N + N * D). They differ from the papers in this:

- A tile has whole rows of logits, so a row's log-sum-exp needs no running maximum. That of a column is
  joined over tiles and ranks, so one pass serves both directions of the softmax: half the products and
  half the exchange of one problem for pictures and one for texts. Its backward computes each tile anew.
- The sigmoid's gradients are made while a tile is there, and saved in place of the logits. Blocks of
  texts go round a ring of ranks, each followed by its gradient; both travel while logits are computed.

The gradient of the scale needs no product of its own: sum_ij G_ij z_ij = sum_i x_i . dL/dx_i.

Legend: B local rows, R rows of a tile, K visiting and N all ranks' keys, D embedding.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any, NamedTuple

import torch
from torch import Tensor
from torch.autograd.function import once_differentiable
from torch.nn.functional import softplus

from pretrain.objective.base import Arrival, Comm, no_autocast

# Logits held at once where `tile` is 0: some caches full on a CPU, enough work for a kernel on a GPU.
_AUTOMATIC = {"cpu": 1 << 21, "cuda": 1 << 26}
_LEAST_ROWS = 64
_NEVER_LINEAR = 80.0  # softplus is exact up to here, in float32 and float64


def softmax_pairs(
    queries_BD: Tensor, keys_BD: Tensor, scale: Tensor, comm: Comm, tile: int = 0
) -> tuple[Tensor, Tensor]:
    """Symmetric softmax loss of pairs (i, i) of unit-norm rows, mean over this rank's rows.

    Returns (loss, whether each local query's own key is strictly its nearest (B,)). ``scale`` is positive.
    ``tile`` is the number of rows whose logits against all keys are held at once; 0 chooses.
    """
    keys_ND = comm.gather(keys_BD)
    return _Softmax.apply(queries_BD, keys_ND, scale, comm, tile, torch.is_grad_enabled())


def sigmoid_pairs(
    queries_BD: Tensor,
    keys_BD: Tensor,
    scale: Tensor,
    bias: Tensor,
    comm: Comm,
    tile: int = 0,
    ring: bool = True,
) -> tuple[Tensor, Tensor]:
    """Sum over all keys of the sigmoid loss, pairs (i, i) positive, mean over this rank's rows.

    Returns as ``softmax_pairs``. Keys are passed round a ring of ranks, or gathered where not ``ring``.
    """
    if not ring:
        keys_BD = comm.gather(keys_BD)
    return _Sigmoid.apply(
        queries_BD, keys_BD, scale, bias, comm, tile, ring, torch.is_grad_enabled()
    )


class _Rows(NamedTuple):
    """A stretch of the local rows and room for its logits."""

    rows: slice
    logits_RK: Tensor
    spare_RK: Tensor
    positives: Tensor | None  # the view of logits that holds their own keys, once these are filled


def _tiles(
    queries_BD: Tensor, keys_KD: Tensor, tile: int, first_key: int | None
) -> Iterator[_Rows]:
    """Cut the local rows. The row r has its own key at ``first_key`` + r, or none among these."""
    count, keys = len(queries_BD), len(keys_KD)
    size = tile or max(_AUTOMATIC.get(queries_BD.device.type, 1 << 21) // keys, _LEAST_ROWS)
    room = queries_BD.new_empty(2, min(size, count), keys)
    for start in range(0, count, size):
        rows = slice(start, min(start + size, count))
        length = rows.stop - start
        logits_RK = room[0, :length]
        positives = None
        if first_key is not None:
            at = first_key + start
            positives = logits_RK[:, at : at + length].diagonal()
        yield _Rows(rows, logits_RK, room[1, :length], positives)


def _fill(at: _Rows, queries_BD: Tensor, keys_KD: Tensor, scale: Tensor) -> None:
    torch.mm(queries_BD[at.rows] * scale, keys_KD.T, out=at.logits_RK)


def _set_apart(at: _Rows, positive_B: Tensor, other_B: Tensor) -> None:
    """Note each row's own logit and the greatest of the others so far; the logits stay as they are."""
    if at.positives is None:
        other_B[at.rows] = torch.maximum(other_B[at.rows], at.logits_RK.amax(1))
        return
    positive_B[at.rows] = at.positives
    at.positives.fill_(-torch.inf)
    other_B[at.rows] = at.logits_RK.amax(1)
    at.positives.copy_(positive_B[at.rows])


class _Gradients:
    """Sums over tiles of what the logits' gradients G make of rows and keys, up to a common factor."""

    def __init__(self, queries_BD: Tensor, keys_KD: Tensor | None = None) -> None:
        """``keys_KD`` are given where their gradient is wanted."""
        self.queries_BD = torch.zeros_like(queries_BD)
        self.keys_KD = None if keys_KD is None else torch.zeros_like(keys_KD)

    def add(self, at: _Rows, queries_BD: Tensor, keys_KD: Tensor) -> None:
        self.queries_BD[at.rows].addmm_(at.logits_RK, keys_KD)
        if self.keys_KD is not None:
            self.keys_KD.addmm_(at.logits_RK.T, queries_BD[at.rows])

    def result(
        self, queries_BD: Tensor, scale: Tensor, factor: Tensor | float
    ) -> tuple[Tensor, Tensor | None, Tensor]:
        """Gradients of the queries, the keys and the scale, the means of G times ``factor``."""
        factor = scale * factor / len(queries_BD)
        self.queries_BD.mul_(factor)
        if self.keys_KD is not None:
            self.keys_KD.mul_(factor)
        of_scale = torch.dot(queries_BD.flatten(), self.queries_BD.flatten()) / scale
        return self.queries_BD, self.keys_KD, of_scale.to(scale.dtype)


class _Softmax(torch.autograd.Function):
    """Forward keeps the log-sum-exps only, or, where all rows are one tile, the gradients at once."""

    @staticmethod
    def forward(
        ctx: Any,
        queries_BD: Tensor,
        keys_ND: Tensor,
        scale: Tensor,
        comm: Comm,
        tile: int,
        differentiable: bool,
    ) -> tuple[Tensor, Tensor]:
        first = comm.row_offset(len(queries_BD))
        row_B, positive_B, other_B = (queries_BD.new_empty(len(queries_BD)) for _ in range(3))
        column_N = keys_ND.new_full((len(keys_ND),), -torch.inf)
        for at in _tiles(queries_BD, keys_ND, tile, first):
            _fill(at, queries_BD, keys_ND, scale)
            _set_apart(at, positive_B, other_B)
            most_R = torch.maximum(positive_B[at.rows], other_B[at.rows])
            torch.sub(at.logits_RK, most_R[:, None], out=at.spare_RK)
            row_B[at.rows] = at.spare_RK.exp_().sum(1).log_().add_(most_R)
            most_N = at.logits_RK.amax(0)
            torch.sub(at.logits_RK, most_N, out=at.spare_RK)
            column_N = torch.logaddexp(column_N, at.spare_RK.exp_().sum(0).log_().add_(most_N))
        column_N = comm.logsumexp(column_N)
        ctx.first, ctx.tile, ctx.keys_too = first, tile, ctx.needs_input_grad[1]
        ctx.made = differentiable and at.rows.start == 0
        if ctx.made:
            sums = _Gradients(queries_BD, keys_ND if ctx.keys_too else None)
            _softmax_gradient(at, row_B, column_N)
            sums.add(at, queries_BD, keys_ND)
            ctx.save_for_backward(*sums.result(queries_BD, scale, 0.5))
        elif differentiable:
            ctx.save_for_backward(queries_BD, keys_ND, scale, row_B, column_N)
        right_B = positive_B > other_B
        ctx.mark_non_differentiable(right_B)
        own_B = column_N[first : first + len(queries_BD)]
        return ((row_B + own_B) / 2 - positive_B).mean(), right_B

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, upstream: Tensor, _: Tensor) -> tuple[Tensor | None, ...]:
        if ctx.made:
            return (*_times(upstream, *ctx.saved_tensors), None, None, None)
        queries_BD, keys_ND, scale, row_B, column_N = ctx.saved_tensors
        with no_autocast(queries_BD):
            sums = _Gradients(queries_BD, keys_ND if ctx.keys_too else None)
            for at in _tiles(queries_BD, keys_ND, ctx.tile, ctx.first):
                _fill(at, queries_BD, keys_ND, scale)
                _softmax_gradient(at, row_B, column_N)
                sums.add(at, queries_BD, keys_ND)
            return (*sums.result(queries_BD, scale, upstream / 2), None, None, None)


def _softmax_gradient(at: _Rows, row_B: Tensor, column_N: Tensor) -> None:
    """Turn logits into e^(z - row) + e^(z - column) - 2 delta."""
    assert at.positives is not None
    torch.sub(at.logits_RK, row_B[at.rows, None], out=at.spare_RK)
    at.logits_RK.sub_(column_N).exp_().add_(at.spare_RK.exp_())
    at.positives.sub_(2)


def _times(factor: Tensor, *gradients: Tensor | None) -> tuple[Tensor | None, ...]:
    return tuple(None if found is None else found * factor for found in gradients)


class _Sigmoid(torch.autograd.Function):
    """Forward makes the gradients; backward only multiplies them."""

    @staticmethod
    def forward(
        ctx: Any,
        queries_BD: Tensor,
        keys_KD: Tensor,
        scale: Tensor,
        bias: Tensor,
        comm: Comm,
        tile: int,
        ring: bool,
        differentiable: bool,
    ) -> tuple[Tensor, Tensor]:
        keys_too = differentiable and ctx.needs_input_grad[1]
        sums = _SigmoidSums(queries_BD, scale, bias, tile, differentiable)
        if ring:
            of_keys = _round_trip(sums, keys_KD, comm, keys_too)
        else:
            of_keys = sums.visit(keys_KD, comm.row_offset(len(queries_BD)), keys_too)
        if differentiable:
            ctx.save_for_backward(*sums.gradients(of_keys))
        right_B = sums.positive_B > sums.other_B
        ctx.mark_non_differentiable(right_B)
        return sums.loss / len(queries_BD), right_B

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, upstream: Tensor, _: Tensor) -> tuple[Tensor | None, ...]:
        return (*_times(upstream, *ctx.saved_tensors), None, None, None, None)


class _SigmoidSums:
    """What blocks of keys have added so far to the loss of the local rows, and to its gradients.

    The sign of a positive's logit is changed before the softplus, and that of its gradient after: exact
    also where the loss of a pair is a millionth of its logit.
    """

    def __init__(
        self, queries_BD: Tensor, scale: Tensor, bias: Tensor, tile: int, differentiable: bool
    ) -> None:
        self.queries_BD, self.scale, self.bias, self.tile = queries_BD, scale, bias, tile
        self.loss = queries_BD.new_zeros(())
        self.of_bias = queries_BD.new_zeros(())
        self.positive_B = queries_BD.new_empty(len(queries_BD))
        self.other_B = queries_BD.new_full((len(queries_BD),), -torch.inf)
        self.sums = _Gradients(queries_BD) if differentiable else None

    def visit(self, keys_KD: Tensor, first_key: int | None, keys_too: bool) -> Tensor | None:
        """Add a block of keys; returns its gradient, up to the common factor, where it is asked for."""
        if self.sums is not None:
            self.sums.keys_KD = torch.zeros_like(keys_KD) if keys_too else None
        for at in _tiles(self.queries_BD, keys_KD, self.tile, first_key):
            _fill(at, self.queries_BD, keys_KD, self.scale)
            at.logits_RK.add_(self.bias)
            _set_apart(at, self.positive_B, self.other_B)
            if at.positives is not None:
                at.positives.neg_()
            softplus(at.logits_RK, 1, _NEVER_LINEAR, out=at.spare_RK)  # type: ignore[call-arg]
            self.loss += at.spare_RK.sum()
            if self.sums is None:
                continue
            at.logits_RK.sigmoid_()
            if at.positives is not None:
                at.positives.neg_()
            self.of_bias += at.logits_RK.sum()
            self.sums.add(at, self.queries_BD, keys_KD)
        return None if self.sums is None else self.sums.keys_KD

    def gradients(self, of_keys: Tensor | None) -> tuple[Tensor | None, ...]:
        """Of the mean over local rows: queries, keys, scale, bias."""
        assert self.sums is not None
        self.sums.keys_KD = of_keys
        of_bias = (self.of_bias / len(self.queries_BD)).to(self.bias.dtype)
        return (*self.sums.result(self.queries_BD, self.scale, 1.0), of_bias)


def _round_trip(sums: _SigmoidSums, keys_BD: Tensor, comm: Comm, keys_too: bool) -> Tensor | None:
    """Every rank's keys visit, this rank's own first; returns the gradient of these, of all ranks' losses."""
    arriving: Arrival | None = None
    for hop in range(comm.world):
        coming = comm.ring(keys_BD, lane=0) if hop + 1 < comm.world else None
        found_BD = sums.visit(keys_BD, 0 if hop == 0 else None, keys_too)
        if found_BD is not None:
            if arriving is not None:
                found_BD += arriving()  # what the ranks before found for this block
            arriving = comm.ring(found_BD, lane=1)
        if coming is not None:
            keys_BD = coming()
    return None if arriving is None else arriving()
