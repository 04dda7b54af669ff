"""Every term, view and tweak found keeps its contract; all terms' parity between ranks in one spawn."""

from __future__ import annotations

import os
import socket
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
import torch.multiprocessing as multiprocessing

from pipelines import components
from pipelines.components import Component
from pretrain.objective.base import Comm, Dims, DistributedComm, Features, Term

TERMS = components.found("objective")
DIM, ROWS = 8, 6


def term_of(use: str) -> Term:
    term = components.build("objective", Component(use)).double()
    torch.manual_seed(0)
    term.setup(Dims(embed_dim=DIM, logit_scale=14.3))
    return term.double()


def features_of(term: Term, dtype: torch.dtype = torch.float64) -> dict[str, torch.Tensor]:
    """Random rows for each pooled feature the term needs."""
    generator = torch.Generator().manual_seed(1)
    assert all(need.endswith(":pooled") for need in term.needs), "extend this for token features"
    return {
        need: torch.randn(ROWS, DIM, generator=generator, dtype=torch.float64).to(dtype)
        for need in sorted(term.needs)
    }


@pytest.mark.parametrize("use", TERMS)
def test_gradients_reach_every_feature_and_parameter(use: str) -> None:
    term = term_of(use)
    features = {name: rows.requires_grad_() for name, rows in features_of(term).items()}
    loss, metrics = term(Features(features), Comm(), 0)
    loss.backward()
    assert loss.shape == ()
    assert all(rows.grad is not None and rows.grad.abs().sum() > 0 for rows in features.values())
    assert all(parameter.grad is not None for parameter in term.parameters())
    assert not any(figure.requires_grad for figure in metrics.values())


@pytest.mark.parametrize("use", TERMS)
def test_finite_in_bf16_with_duplicates_and_alone(use: str) -> None:
    term = term_of(use).float()
    for rows in (ROWS, 1):
        features = {name: value[:rows] for name, value in features_of(term, torch.bfloat16).items()}
        features = {
            name: torch.cat([value, value[:1]]).requires_grad_() for name, value in features.items()
        }
        with torch.autocast("cpu", torch.bfloat16):
            loss, _ = term(Features(features), Comm(), 0)
        loss.backward()
        assert loss.isfinite()
        assert all(
            value.grad is not None and value.grad.isfinite().all() for value in features.values()
        )


@pytest.mark.parametrize("use", TERMS)
def test_permuting_the_batch_changes_nothing(use: str) -> None:
    term = term_of(use)
    features = features_of(term)
    order = torch.tensor([3, 0, 5, 1, 4, 2])
    first, _ = term(Features(features), Comm(), 0)
    second, _ = term(Features({name: rows[order] for name, rows in features.items()}), Comm(), 0)
    torch.testing.assert_close(first, second, rtol=1e-12, atol=1e-12)


def _rank(rank: int, world: int, port: int, folder: str) -> None:
    os.environ.update(MASTER_ADDR="127.0.0.1", MASTER_PORT=str(port))
    torch.set_num_threads(1)
    torch.distributed.init_process_group("gloo", rank=rank, world_size=world)
    results: dict[str, Any] = {}
    for use in TERMS:
        term = term_of(use)
        whole = features_of(term)
        share = ROWS // world
        features = {
            name: rows[rank * share : (rank + 1) * share].clone().requires_grad_()
            for name, rows in whole.items()
        }
        loss, _ = term(Features(features), DistributedComm(), 0)
        loss.backward()
        results[use] = (
            loss.detach(),
            {n: f.grad for n, f in features.items()},
            [p.grad for p in term.parameters()],
        )
    torch.save(results, os.path.join(folder, f"{rank}.pt"))
    torch.distributed.destroy_process_group()


def test_two_ranks_give_the_gradient_of_one(tmp_path: Path) -> None:
    """Average over ranks, as DDP takes it, against one process; float64, relative 1e-10."""
    world = 2
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    multiprocessing.spawn(_rank, (world, port, str(tmp_path)), nprocs=world)
    ranks = [torch.load(tmp_path / f"{rank}.pt") for rank in range(world)]
    for use in TERMS:
        term = term_of(use)
        features = {name: rows.requires_grad_() for name, rows in features_of(term).items()}
        loss, _ = term(Features(features), Comm(), 0)
        loss.backward()
        near = {"rtol": 1e-10, "atol": 1e-14}
        torch.testing.assert_close(
            sum(rank[use][0] for rank in ranks) / world, loss.detach(), **near
        )
        for name, rows in features.items():
            # A rank's rows get gradient from every rank's loss; DDP divides by the number of ranks.
            joined = torch.cat([rank[use][1][name] for rank in ranks]) / world
            torch.testing.assert_close(joined, rows.grad, **near)
        for number, parameter in enumerate(term.parameters()):
            mean = sum(rank[use][2][number] for rank in ranks) / world
            torch.testing.assert_close(mean, parameter.grad, **near)


@pytest.mark.parametrize("use", components.found("view"))
def test_a_view_is_a_function_of_sample_and_generator(use: str) -> None:
    from pretrain.stream.batch import Sample
    from tests.conformance.examples import picture

    view = components.build("view", Component(use)).fit(32)
    assert view.tower in ("image", "text")
    assert view.name
    sample = Sample(
        key="k",
        image=picture(1),
        caption="a dog",
        captions=("a dog", "one dog", "the dog"),
        record={},
    )
    seen = [view(sample, np.random.default_rng(5)) for _ in range(2)]
    if view.tower == "text":
        assert seen[0] == seen[1]
        assert seen[0] in sample.captions
    else:
        np.testing.assert_array_equal(seen[0], seen[1])
        assert seen[0].shape == (32, 32, 3)
        assert seen[0].dtype == np.uint8
