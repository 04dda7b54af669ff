"""The gradient of one global step, in one pass or in micro batches, with the same result.

GradCache, arXiv 2101.06983: (a) the features of every micro batch without gradient; (b) terms over the
batch once, on all features of all ranks, which gives the gradient g of each feature; (c) each micro
batch again, with the gradient of sum <feature, g>. Here terms of any kind may be mixed: those over single
samples run in (c), each micro batch weighted by its rows. What layers draw for themselves is keyed by
the position of the micro batch's first row, so (a) and (c) see the same masks, and so does any number of
ranks with micro batches of the same size. `patch_drop` is keyed by the row and needs no such care. What a
term draws is keyed in the same way, those over the batch by the first row of the local batch.
"""

from __future__ import annotations

from collections.abc import Container, Sequence
from contextlib import AbstractContextManager, nullcontext
from typing import Any

import torch
from torch import Tensor, nn
from torch.distributed.fsdp import FSDPModule

from pretrain.loop.world import World
from pretrain.model.encoder import TOWERS, DualEncoder, Tower
from pretrain.objective.base import Features, Metrics, Term
from pretrain.stream.batch import Batch
from pretrain.stream.order import integer

Root = tuple[Tensor, Tensor | None]  # what backward begins at, and its gradient; None: 1


class Gradients:
    """Leaves the mean gradient over all ranks' rows in every parameter of the towers.

    Views that no term needs are not run; a needed feature that a term makes no use of has the gradient 0.
    ``model`` is the encoder as `parallel.wrap` gave it. Gradients of the terms' own parameters are this
    rank's: the caller averages them. ``micro_batch`` 0 is the whole local batch. Raises ValueError for
    towers that can't be accumulated exactly.
    """

    def __init__(
        self,
        model: nn.Module,
        encoder: DualEncoder,
        terms: Sequence[tuple[float, Term]],
        towers_of: dict[str, Tower],
        world: World,
        *,
        seed: int,
        bf16: bool = False,
        micro_batch: int = 0,
    ) -> None:
        self.model, self.encoder, self.world = model, encoder, world
        self.terms = list(terms)
        self.seed, self.bf16, self.micro_batch = seed, bf16, micro_batch
        self.comm = world.comm()
        self.needs = {kind: _needs(terms, kind) for kind in ("batch", "sample")}
        encoder.wanted = self.needs["batch"] | self.needs["sample"]
        used = {need.split(":")[0] for need in encoder.wanted}
        self.towers_of = {view: tower for view, tower in towers_of.items() if view in used}
        self.trained = {
            tower for tower in TOWERS if any(p.requires_grad for _, p in encoder.tower_parameters(tower))
        }  # fmt: skip
        # Views to run again with gradient: what a frozen tower gives is known after the first pass.
        self.again = {
            view
            for view, tower in self.towers_of.items()
            if tower in self.trained or any(need.split(":")[0] == view for need in self.needs["sample"])
        }  # fmt: skip
        normalised = self._batch_norm()
        if micro_batch and normalised:
            raise ValueError(
                f"micro_batch = {micro_batch}: {normalised} of {encoder.name} normalises over its batch, so that "
                "micro batches give another gradient. hint: micro_batch = 0, or a model without batch norm"
            )
        of_ddp = isinstance(model, nn.parallel.DistributedDataParallel)
        self.unsettled = of_ddp and world.size > 2 and not normalised

    def __call__(self, batch: Batch, first: int, step: int) -> tuple[Tensor, Metrics]:
        """Gradients of a local batch on the device, whose first row stands at position ``first``.

        Returns this rank's loss and the terms' figures, detached.
        """
        rows = len(batch.positions)
        if self.unsettled:
            self._settle(batch, first)
        if not self.micro_batch or self.micro_batch >= rows:
            features = self._features(self.model, batch, first)
            loss, figures = self._evaluate(features, ("batch", "sample"), first, step)
            _backward([(loss, None), *self._zeros(features, {})])
            return loss.detach(), figures
        starts = range(0, rows, self.micro_batch)
        parts = [(start, batch.rows(start, min(start + self.micro_batch, rows))) for start in starts]  # fmt: skip
        loss, figures, gradients = self._over_batch(parts, first, step)
        return self._over_parts(parts, first, step, gradients, loss, figures)

    def _over_batch(
        self, parts: Sequence[tuple[int, Batch]], first: int, step: int
    ) -> tuple[Tensor, Metrics, dict[str, Tensor]]:
        """Passes (a) and (b): loss and figures of the batch terms, and the gradient of each feature."""
        kept: dict[str, list[Tensor]] = {}
        if all(term.kind != "batch" for _, term in self.terms):
            return torch.zeros((), device=self.world.device), {}, {}
        # FSDP2's own hooks gather weights, so there the model is the encoder itself; DDP has no part in this.
        with torch.no_grad():
            for start, part in parts if self.needs["batch"] else ():
                found = self._features(self.encoder, part, first + start)
                for name in self.needs["batch"] & found.keys():
                    kept.setdefault(name, []).append(found[name])
        features = Features(
            {n: torch.cat(rows).requires_grad_(self._trains(n)) for n, rows in kept.items()}
        )
        loss, figures = self._evaluate(features, ("batch",), first, step)
        _backward([(loss, None)])
        gradients = {n: rows.grad for n, rows in features.items() if rows.grad is not None}
        return loss.detach(), figures, gradients

    def _over_parts(
        self,
        parts: Sequence[tuple[int, Batch]],
        first: int,
        step: int,
        gradients: dict[str, Tensor],
        loss: Tensor,
        figures: Metrics,
    ) -> tuple[Tensor, Metrics]:
        """Pass (c): the micro batches again, with the gradient of their features and the sample terms."""
        total = parts[-1][0] + len(parts[-1][1].positions)
        for start, part in parts if self.again else ():
            rows = len(part.positions)
            with self._synchronised(start + rows == total):
                found = self._features(self.model, part, first + start, self.again)
                roots: list[Root] = [
                    (found[n], g[start : start + rows]) for n, g in gradients.items()
                ]
                roots += self._zeros(found, gradients)
                if self.needs["sample"]:
                    own, reported = self._evaluate(found, ("sample",), first + start, step)
                    roots.append((own * (rows / total), None))
                    loss = loss + own.detach() * (rows / total)
                    for name, figure in reported.items():
                        figures[name] = figures.get(name, 0) + figure * (rows / total)
                _backward(roots)
        return loss, figures

    def _features(
        self, model: nn.Module, part: Batch, first: int, only: set[str] | None = None
    ) -> Features:
        """What the towers give for rows that begin at position ``first``, and what sidecars hold."""
        self._seed("towers", first)
        used = self.towers_of if only is None else only
        views = {n: rows for n, rows in part.views.items() if n in used}
        # One context a pass: weights that were cast without gradient must not be taken for those with.
        with torch.autocast(self.world.device.type, torch.bfloat16, enabled=self.bf16):
            found = model(views, self.towers_of, part.positions, part.groups)
        return Features({**found, **{f"stored:{name}": rows for name, rows in part.stored.items()}})

    def _evaluate(
        self, features: Features, kinds: Sequence[str], position: int, step: int
    ) -> tuple[Tensor, Metrics]:
        """The weighted sum of all terms of these kinds, and their figures; of several, each by its name.

        Each term draws by its number and the ``position`` of the first row.
        """
        parts: list[Tensor] = []
        figures: Metrics = {}
        for number, (weight, term) in enumerate(self.terms):
            if term.kind not in kinds:
                continue
            self._seed(f"terms.{number}", position)
            loss, reported = term(features, self.comm, step)
            parts.append(loss if weight == 1 else weight * loss)
            prefix = f"{type(term).__name__.lower()}.{number}." if len(self.terms) > 1 else ""
            figures |= {f"{prefix}{name}": figure for name, figure in reported.items()}
            if prefix:
                figures[f"{prefix}loss"] = loss.detach()
        return (parts[0] if len(parts) == 1 else torch.stack(parts).sum()), figures

    def _seed(self, purpose: str, position: int) -> None:
        seed = integer(self.seed, purpose, position)
        # Not torch.manual_seed: where CUDA has not begun, it notes the whole call stack each time.
        torch.default_generator.manual_seed(seed)
        if self.world.device.type == "cuda":
            torch.cuda.manual_seed(seed)

    def _zeros(self, features: Features, but: Container[str]) -> list[Root]:
        """Gradients of 0, so that no parameter behind a needed feature is without one, on any rank."""
        return [
            (rows, rows.new_zeros(()).expand_as(rows))
            for name, rows in features.items()
            if name in self.encoder.wanted and name not in but and rows.requires_grad
        ]

    def _trains(self, feature: str) -> bool:
        return self.towers_of.get(feature.split(":")[0]) in self.trained

    def _synchronised(self, last: bool) -> AbstractContextManager[Any]:
        """Ranks exchange gradients in the last backward only."""
        if isinstance(self.model, nn.parallel.DistributedDataParallel) and not last:
            return self.model.no_sync()
        if isinstance(self.model, FSDPModule):
            self.model.set_requires_gradient_sync(last)
        return nullcontext()

    def _batch_norm(self) -> str:
        """The first layer that normalises over its batch, by name; empty where there is none."""
        for name, module in self.encoder.named_modules():
            if isinstance(module, nn.modules.batchnorm._BatchNorm) and module.training:
                return name
        return ""

    def _settle(self, batch: Batch, first: int) -> None:
        """A pass that changes nothing, before the first of a phase, so that a resumed run has the same bits.

        DDP lays out its buckets anew after its first backward, and with more than two ranks the order
        in which a sum is rounded hangs on the layout.
        """
        self.unsettled = False
        part = batch.rows(0, self.micro_batch or len(batch.positions))
        found = self._features(self.model, part, first)
        roots = [rows for rows in found.values() if rows.requires_grad]
        torch.autograd.backward(roots, [torch.zeros_like(rows) for rows in roots])
        for parameter in self.encoder.parameters():
            parameter.grad = None


def _backward(roots: Sequence[Root]) -> None:
    """Of those that anything trained has a part in."""
    roots = [(rows, weight) for rows, weight in roots if rows.requires_grad]
    if roots:
        torch.autograd.backward([rows for rows, _ in roots], [weight for _, weight in roots])


def _needs(terms: Sequence[tuple[float, Term]], kind: str) -> frozenset[str]:
    return frozenset(need for _, term in terms if term.kind == kind for need in term.needs)
