"""Terms, views and towers of a phase brought together: what each term needs is made, and only that is trained.

A term that a phase has in common with the one before goes on with what it had learned.
"""

from __future__ import annotations

import copy
from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import Any

import torch
from torch import nn

from pretrain.loop.settings import Phase, Sidecar
from pretrain.model.encoder import DualEncoder, Tower
from pretrain.objective.base import Dims, Term
from pretrain.objective.infonce import InfoNCE
from pretrain.stream.view.base import View
from pretrain.stream.view.caption_mix import CaptionMix
from pretrain.stream.view.crop import Crop


def terms_of(
    phase: Phase, dims: Dims, before: Iterable[Any] = ()
) -> tuple[list[float], list[Term]]:
    """Weights and terms of a phase, set up. Those of ``before`` that return keep their state.

    A term returns as one of its type over the same features, or else as one of its type; only where
    all its tensors have the shapes they had.
    """
    pairs = phase.objective or ((1.0, InfoNCE()),)
    terms: list[Term] = [copy.deepcopy(term) for _, term in pairs]
    for term in terms:
        term.setup(dims)
    old, new = list(before), list(terms)
    ways: tuple[Callable[[Term], Any], ...] = (lambda term: (type(term), term.needs), type)
    for way in ways:
        for term in list(new):
            same = next(
                (o for o in old if way(o) == way(term) and _shapes(o) == _shapes(term)), None
            )
            if same is not None:
                old.remove(same)
                new.remove(term)
                term.load_state_dict(same.state_dict())
    return [weight for weight, _ in pairs], terms


def _shapes(term: Term) -> dict[str, torch.Size]:
    return {name: rows.shape for name, rows in term.state_dict().items()}


def needs_of(terms: Iterable[Any]) -> frozenset[str]:
    return frozenset(need for term in terms for need in term.needs)


def views_of(
    where: str, phase: Phase, image_size: int, needs: frozenset[str], sidecars: Sequence[Sidecar]
) -> list[View]:
    """The views of a phase. Raises ValueError where they, or sidecars, don't give what terms need."""
    views = [view.fit(image_size) for view in phase.view or (Crop(), CaptionMix())]
    names = {view.name for view in views}
    given = {f"{name}:{kind}" for name in names for kind in ("pooled", "tokens")}
    given |= {
        f"stored:{beside.name or beside.column or beside.use}"
        for beside in sidecars
        if beside.use == "features"
    }
    missing = sorted(needs - given)
    if missing or len(names) < len(views):
        found = (
            f"needs {missing}, views and sidecars give {sorted(given)}"
            if missing
            else "two views have one name"
        )
        raise ValueError(
            f"{where}: {found}. hint: add a view of that name, or rename one with `name = ...`"
        )
    return views


def used_views(views: Iterable[View], needs: frozenset[str]) -> dict[str, Tower]:
    """View name -> tower, of the views that some term needs."""
    used = {need.split(":")[0] for need in needs}
    return {view.name: view.tower for view in views if view.name in used}


def still_idle(
    encoder: DualEncoder, towers_of: Mapping[str, Tower], needs: frozenset[str]
) -> list[str]:
    """Stop training what no needed feature depends on, until ``thaw``; returns names of these parameters.

    Else ranks would wait for gradients that never come, and weight decay would wear them away. Found
    by one row through the towers: it is the same on every rank, and where there is one.
    """
    trained = {n: p for n, p in encoder.clip.named_parameters() if p.requires_grad}
    reached = _reached(encoder, dict(towers_of), needs, list(trained.values()))
    idle = [name for name, got in zip(trained, reached, strict=True) if not got]
    for name in idle:
        trained[name].requires_grad_(False)
    return idle


def of_idle(names: Sequence[str]) -> str:
    return f"the objective does not use {len(names)} of the towers' parameters ({names[0]}, ...): they are not trained"


def _reached(
    encoder: DualEncoder,
    towers_of: dict[str, Tower],
    needs: frozenset[str],
    parameters: Sequence[nn.Parameter],
) -> list[bool]:
    """For each parameter, whether a needed feature depends on it."""
    size_px, device = encoder.image_size, encoder.mean.device
    pixels = torch.zeros(1, size_px, size_px, 3, dtype=torch.uint8, device=device)
    ids = torch.ones(1, encoder.context_length, dtype=torch.int64, device=device)
    before, encoder.wanted = encoder.wanted, needs
    encoder.eval()  # running means of batch norms stay as they are
    try:
        found = encoder(
            {name: pixels if of == "image" else ids for name, of in towers_of.items()}, towers_of
        )
    finally:
        encoder.wanted = before
        encoder.train()
    roots = [found[need].sum() for need in needs & found.keys() if found[need].requires_grad]
    if not roots or not parameters:
        return [False] * len(parameters)
    return [g is not None for g in torch.autograd.grad(roots, parameters, allow_unused=True)]
