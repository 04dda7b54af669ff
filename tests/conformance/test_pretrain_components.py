"""Every term, view and tweak found keeps its contract; all terms' parity between ranks in one start of ranks."""

from __future__ import annotations

import io
import json
import typing
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor

from pipelines import components
from pipelines.components import Component
from pretrain.loop.world import World
from pretrain.model import encoder as towers
from pretrain.objective.base import Comm, Dims, Features, Term
from tests.tiny import rank_groups, scenes

# Before any process group is there: its functions of torch.distributed.nn keep the one they meet.
OPEN_CLIP = towers.import_open_clip()
TERMS = components.found("objective")
DIM, ROWS, SIZES = 8, 6, (2, 3)
NEAR: dict[str, Any] = {"rtol": 1e-10, "atol": 1e-14}


@pytest.fixture(scope="module", autouse=True)
def one_thread() -> Iterator[None]:
    """Two that wait for each other are slow on a busy machine, and models are tiny."""
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(before)


def variants(use: str) -> Iterator[dict[str, Any]]:
    """Ways to compute one thing: every choice of an option that has named choices, and a small tile."""
    yield {}
    for option in components.describe("objective", use).options:
        if typing.get_origin(option.annotation) is typing.Literal:
            yield from ({option.name: choice} for choice in typing.get_args(option.annotation))
        elif option.name == "tile":
            yield {"tile": 2}


WAYS = [(use, options) for use in TERMS for options in variants(use)]


def term_of(use: str, dim: int = DIM, dtype: torch.dtype = torch.float64, **options: Any) -> Term:
    term: Term = components.build("objective", Component(use, options))
    torch.manual_seed(0)
    term.setup(Dims(embed_dim=dim, logit_scale=14.3))
    return term.to(dtype)


def features_of(
    term: Term, dtype: torch.dtype = torch.float64, rows: int = ROWS, dim: int = DIM
) -> dict[str, Tensor]:
    """Random rows for each feature the term needs: "<view>:pooled", or "stored:<name>"."""
    generator = torch.Generator().manual_seed(1)
    assert all(n.endswith(":pooled") or n.startswith("stored:") for n in term.needs), (
        "extend this for token features"
    )
    return {
        need: torch.randn(rows, dim, generator=generator, dtype=torch.float64).to(dtype)
        for need in sorted(term.needs)
    }


def gradients(term: Term, whole: dict[str, Tensor], comm: Comm) -> dict[str, Tensor]:
    """Loss, and the gradient of this rank's rows and of every parameter."""
    share = ROWS // comm.world
    features = {
        name: rows[comm.rank * share : (comm.rank + 1) * share].clone().requires_grad_()
        for name, rows in whole.items()
    }
    loss, _ = term(Features(features), comm, 0)
    term.zero_grad()
    loss.backward()
    found = {name: rows.grad for name, rows in (*features.items(), *term.named_parameters())}
    assert all(gradient is not None for gradient in found.values())
    return {"loss": loss.detach(), **{n: g for n, g in found.items() if g is not None}}


@pytest.mark.parametrize("use", TERMS)
def test_gradients_reach_every_feature_and_parameter(use: str) -> None:
    term = term_of(use)
    found = gradients(term, features_of(term), Comm())
    assert found["loss"].shape == ()
    assert all(found[name].abs().sum() > 0 for name in term.needs)
    _, metrics = term(Features(features_of(term)), Comm(), 0)
    assert not any(figure.requires_grad or figure.ndim for figure in metrics.values())


@pytest.mark.parametrize("use", TERMS)
def test_finite_in_bf16_with_duplicates_and_alone_at_a_scale_of_100(use: str) -> None:
    for rows, scale in ((ROWS, 14.3), (ROWS, 100.0), (1, 100.0)):
        term = term_of(use, dtype=torch.float32)
        for name, parameter in term.named_parameters():
            if name == "log_scale":
                torch.nn.init.constant_(parameter, float(np.log(scale)))
        given = features_of(term, torch.bfloat16, rows)
        again = {n: torch.cat([v, v[:1]]) if rows > 1 else v for n, v in given.items()}
        features = {name: value.requires_grad_() for name, value in again.items()}
        with torch.autocast("cpu", torch.bfloat16):
            loss, _ = term(Features(features), Comm(), 0)
        loss.backward()
        found = [*(value.grad for value in features.values()), loss]
        assert all(value is not None and value.isfinite().all() for value in found)


@pytest.mark.parametrize("use", TERMS)
def test_permuting_the_batch_changes_nothing(use: str) -> None:
    term = term_of(use)
    features = features_of(term)
    order = torch.tensor([3, 0, 5, 1, 4, 2])
    first, _ = term(Features(features), Comm(), 0)
    second, _ = term(Features({name: rows[order] for name, rows in features.items()}), Comm(), 0)
    torch.testing.assert_close(first, second, rtol=1e-12, atol=1e-12)


@pytest.mark.parametrize("use", TERMS)
def test_gradients_are_those_of_finite_steps(use: str) -> None:
    term = term_of(use)
    names = sorted(term.needs)

    def loss_of(*rows: Tensor) -> Tensor:
        return term(Features(dict(zip(names, rows, strict=True))), Comm(), 0)[0]

    given = features_of(term, rows=4)
    torch.autograd.gradcheck(loss_of, [given[name].requires_grad_() for name in names])
    found = gradients(term, features_of(term), Comm())
    for name, parameter in term.named_parameters():
        ends = []
        for move in (1e-5, -2e-5):
            with torch.no_grad():
                parameter.view(-1)[0] += move
                ends.append(term(Features(features_of(term)), Comm(), 0)[0])
        assert float(ends[0] - ends[1]) / 2e-5 == pytest.approx(
            float(found[name].view(-1)[0]), rel=1e-6, abs=1e-9
        )
        with torch.no_grad():
            parameter.view(-1)[0] += 1e-5


@pytest.mark.parametrize(
    "use", [u for u in TERMS if any(o.name == "tile" for o in components.describe("objective", u).options)]
)  # fmt: skip
def test_tiles_change_nothing(use: str) -> None:
    rows = 15
    whole = term_of(use, tile=rows)
    features = {n: v.requires_grad_() for n, v in features_of(whole, rows=rows).items()}
    wanted = [*features.values(), *whole.parameters()]
    loss, metrics = whole(Features(features), Comm(), 0)
    expected = torch.autograd.grad(loss, wanted)
    for tile in (0, 1, 7, rows + 1):
        term = term_of(use, tile=tile)
        found, figures = term(Features(features), Comm(), 0)
        torch.testing.assert_close(found, loss, **NEAR)
        got = torch.autograd.grad(found, [*features.values(), *term.parameters()])
        torch.testing.assert_close(got, expected, **NEAR)
        assert figures == metrics


@pytest.mark.parametrize("use", TERMS)
def test_the_loss_at_the_start_is_as_predicted(use: str) -> None:
    rows, dim = 1024, 512
    term = term_of(use, dim, torch.float32)
    expected = term.loss_at_start(rows)
    if expected is None:
        pytest.skip(f"{use} predicts none")
    found, _ = term(Features(features_of(term, torch.float32, rows, dim)), Comm(), 0)
    assert float(found.detach()) == pytest.approx(expected, abs=0.06)


def on_a_rank(world: World, folder: Path) -> dict[str, dict[str, Tensor]]:
    """What this rank finds for every way of every term, and for open_clip's losses on the same rows."""
    found = {}
    for use, options in WAYS:
        term = term_of(use, **options)
        found[json.dumps([use, options])] = gradients(term, features_of(term), world.comm())
    for use, implementation in THEIRS:
        term = term_of(use)
        found[f"{use} {implementation}"] = gradients(
            OpenClip(term, implementation, world), features_of(term), world.comm()
        )
    return found


THEIRS = [("infonce", "local"), ("infonce", "global")] + [
    ("sigmoid", name) for name in ("bidir", "shift", "reduce", "gather")
]


class OpenClip(Term):
    """open_clip's loss in the place of a term, with that term's scalars."""

    def __init__(self, term: Term, implementation: str, world: World) -> None:
        super().__init__()
        losses, place = OPEN_CLIP.loss, {"rank": world.rank, "world_size": world.size}
        self.needs, self.log_scale = term.needs, term.log_scale
        if implementation in ("local", "global"):
            local = implementation == "local"
            self.loss = losses.ClipLoss(local_loss=local, gather_with_grad=True, **place)
        else:
            self.bias = term.bias
            self.loss = losses.SigLipLoss(dist_impl=implementation, **place)

    def forward(
        self, features: Features, comm: Comm, step: int
    ) -> tuple[Tensor, dict[str, Tensor]]:
        unit = [
            torch.nn.functional.normalize(features[name], dim=-1) for name in sorted(self.needs)
        ]
        scalars = [p if n == "bias" else p.exp() for n, p in self.named_parameters()]
        return self.loss(*unit, *scalars), {}


@pytest.fixture(scope="module")
def found(
    tmp_path_factory: pytest.TempPathFactory,
) -> dict[int, list[dict[str, dict[str, Tensor]]]]:
    return rank_groups.run(on_a_rank, SIZES, tmp_path_factory.mktemp("terms"))


def joined(of_ranks: list[dict[str, Tensor]], needs: frozenset[str]) -> dict[str, Tensor]:
    """As DDP averages: a rank's rows get gradient from every rank's loss, divided by the number of ranks."""
    return {
        name: torch.cat([rank[name] for rank in of_ranks]) / len(of_ranks)
        if name in needs
        else torch.stack([rank[name] for rank in of_ranks]).mean(0)
        for name in of_ranks[0]
    }


@pytest.mark.net
@pytest.mark.parametrize("size", SIZES)
@pytest.mark.parametrize(("use", "options"), WAYS)
def test_ranks_give_the_gradient_of_one(
    found: dict[int, list[Any]], size: int, use: str, options: dict[str, Any]
) -> None:
    """Loss, features and scalars; float64, relative 1e-10."""
    term = term_of(use)
    alone = gradients(term, features_of(term), Comm())
    of_ranks = [rank[json.dumps([use, options])] for rank in found[size]]
    torch.testing.assert_close(joined(of_ranks, term.needs), alone, **NEAR)


@pytest.mark.net
@pytest.mark.parametrize("size", SIZES)
@pytest.mark.parametrize(("use", "implementation"), THEIRS)
def test_ranks_give_what_open_clips_losses_give(
    found: dict[int, list[Any]], size: int, use: str, implementation: str
) -> None:
    term = term_of(use)
    ours, theirs = (
        joined([rank[name] for rank in found[size]], term.needs)
        for name in (json.dumps([use, {}]), f"{use} {implementation}")
    )
    torch.testing.assert_close(theirs, ours, **NEAR)


@pytest.mark.parametrize(
    ("use", "width"),
    [(use, 64) for use in TERMS]
    + [pytest.param(use, 128, marks=pytest.mark.slow) for use in TERMS],
)
def test_a_small_model_learns_64_pairs_by_heart(use: str, width: int) -> None:
    """Each picture is nearest to its own caption and each caption to its own picture, in under 300 steps."""
    pairs, learned, warmup = 64, 1e-3, 50
    torch.manual_seed(0)
    encoder = towers.from_config(f"by_heart_{width}", by_heart(width))
    term = term_of(use, encoder.embed_dim, torch.float32)
    views = {need.split(":")[0] for need in term.needs if not need.startswith("stored:")}
    of_tower: dict[str, towers.Tower] = {
        view: "text" if view.startswith("text") else "image" for view in views
    }
    rows = {"image": pictures(pairs), "text": tokens(pairs)}
    given = {view: rows[tower] for view, tower in of_tower.items()}
    stored = features_of(term, torch.float32, pairs, encoder.embed_dim)
    trained = [*encoder.parameters(), *term.parameters()]
    optimizer = torch.optim.AdamW(trained, lr=learned, betas=(0.9, 0.95), weight_decay=0.0)
    for step in range(300):
        optimizer.param_groups[0]["lr"] = learned * min(1.0, (step + 1) / warmup)
        pooled = encoder(given, of_tower)
        term(Features({**stored, **pooled}), Comm(), step)[0].backward()
        optimizer.step()
        optimizer.zero_grad()
        term.after_step()
        unit = [
            torch.nn.functional.normalize(pooled[f"{tower}:pooled"].detach(), dim=-1)
            for tower in ("image", "text")
        ]
        likeness = unit[0] @ unit[1].T
        own = torch.arange(pairs)
        if all((side.argmax(1) == own).all() for side in (likeness, likeness.T)):
            return
    pytest.fail(f"{use} has not learned {pairs} pairs in 300 steps")


def by_heart(width: int) -> dict[str, Any]:
    """A model of 0.2 million parameters (width 64) or a million (width 128)."""
    vision = {**scenes.TINY_MODEL["vision_cfg"], "width": width}
    text = {"context_length": 12, "vocab_size": 1200, "width": width, "heads": 2, "layers": 2}
    return {"embed_dim": 64, "vision_cfg": vision, "text_cfg": text}


def pictures(count: int) -> Tensor:
    from PIL import Image

    opened = [Image.open(io.BytesIO(scenes.picture(number))) for number in range(count)]
    return torch.from_numpy(np.stack([np.asarray(image) for image in opened]))


def tokens(count: int) -> Tensor:
    """Captions of scenes in a vocabulary of their own; the last id ends a text, and is its greatest."""
    captions = [scenes.caption(number).split() for number in range(count)]
    numbers = {word: n + 1 for n, word in enumerate(sorted({w for text in captions for w in text}))}
    found = torch.zeros(count, 12, dtype=torch.int64)
    for row, text in enumerate(captions):
        ids = [1198, *(numbers[word] for word in text), 1199]
        found[row, : len(ids)] = torch.tensor(ids)
    return found


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


TWEAK_OPTIONS = {"resolution": {"image_size": 64}, "text_length": {"tokens": 8}}


@pytest.mark.parametrize("use", components.found("tweak"))
def test_a_tweak_leaves_towers_that_run_and_a_phase_without_it_trains_all(
    use: str, tmp_path: Path
) -> None:
    from pretrain.model.encoder import build
    from tests.tiny import scenes

    torch.manual_seed(0)
    encoder = build(scenes.write_model(tmp_path))
    names = list(encoder.clip.state_dict())
    made = components.build("tweak", Component(use, TWEAK_OPTIONS.get(use, {})))
    made.apply(encoder)
    made.apply(encoder)  # as on resume, when the phases before are gone through again
    side = encoder.image_size
    views = {
        "image": torch.zeros(2, side, side, 3, dtype=torch.uint8),
        "text": encoder.tokenize(["a dog", "two"]),
    }
    features = encoder(views, {"image": "image", "text": "text"}, torch.arange(2))
    assert all(rows.isfinite().all() for rows in features.values())
    assert list(encoder.clip.state_dict()) == names, "a checkpoint would have other names"
    encoder.thaw()
    assert all(parameter.requires_grad for parameter in encoder.parameters())
    assert encoder.context_length == 24
    assert not encoder.frozen
