"""One gradient for 1, 2, 3 ranks and 1, 2, 4 micro batches; random layers see equal masks in both passes."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any, ClassVar, Literal

import numpy as np
import pytest
import torch
from torch import Tensor, nn

from pipelines import components
from pipelines.components import Component
from pretrain.loop import parallel
from pretrain.loop.gradients import Gradients
from pretrain.loop.world import World
from pretrain.model import encoder as towers
from pretrain.model.tweak.freeze import Freeze
from pretrain.model.tweak.patch_drop import PatchDrop
from pretrain.objective.base import Comm, Dims, Features, Metrics, Term, full_precision
from pretrain.stream.batch import Batch
from tests.tiny import rank_groups

ROWS, VOCABULARY = 24, 60
SIZES, PARTS = (1, 2, 3), (1, 2, 4)
OBJECTIVES = components.found("objective")
TOWERS_OF: dict[str, towers.Tower] = {"image": "image", "other": "image", "text": "text"}
ALONE = World(0, 1, torch.device("cpu"))


class Agree(Term):
    """A term over single samples, with a head of its own: two views of a picture, and what is stored."""

    kind: ClassVar[Literal["batch", "sample"]] = "sample"
    needs: frozenset[str] = frozenset({"image:pooled", "other:pooled", "stored:teacher"})

    drop = 0.0

    def setup(self, dims: Dims) -> None:
        self.head = nn.Linear(dims.embed_dim, 3)

    def forward(self, features: Features, comm: Comm, step: int) -> tuple[Tensor, Metrics]:
        between = full_precision(features["image:pooled"] - features["other:pooled"])
        between = nn.functional.dropout(between, self.drop)
        loss = (self.head(between) - features["stored:teacher"]).square().mean()
        return loss, {"seen": loss.detach()}


def model_file(folder: Path) -> str:
    """A real open_clip model of some 30,000 parameters."""
    vision = {"image_size": 16, "layers": 2, "width": 32, "head_width": 16, "patch_size": 4}
    text = {"context_length": 8, "vocab_size": VOCABULARY, "width": 32, "heads": 2, "layers": 2}
    path = folder / "mini.json"
    if not path.exists():
        path.write_text(json.dumps({"embed_dim": 16, "vision_cfg": vision, "text_cfg": text}))
    return str(path)


def encoder_of(folder: Path) -> towers.DualEncoder:
    torch.manual_seed(5)
    encoder = towers.build(model_file(folder))
    encoder.draw_key = 77
    return encoder


def batch_of(
    rows: int = ROWS, first: int = 0, dtype: torch.dtype = torch.float64, *, split: bool = True
) -> Batch:
    """The rows of the stream from position 0, of which a rank takes its own; ``split`` by text length."""
    draw = torch.Generator().manual_seed(3)
    images = torch.randint(0, 256, (2, ROWS, 16, 16, 3), generator=draw, dtype=torch.uint8)
    text = torch.randint(1, VOCABULARY - 1, (ROWS, 8), generator=draw)
    used = torch.tensor([3, 8, 4, 3, 6, 3, 5, 3, 3, 4, 3, 7] + 4 * [3, 5, 3])  # fmt: skip
    text[torch.arange(8) >= used[:, None]] = 0
    text[torch.arange(ROWS), used - 1] = VOCABULARY - 1
    teacher = torch.randn(ROWS, 3, generator=draw, dtype=torch.float64).to(dtype)
    views = {"image": images[0], "other": images[1], "text": text}
    whole = Batch(views, [""] * ROWS, torch.arange(ROWS), {"teacher": teacher})
    if split:
        whole.lengths, whole.fits = (3, 5, 8), {"text": np.searchsorted((3, 5, 8), used.numpy())}
    return whole.rows(first, first + rows)


def terms_of(uses: tuple[str, ...]) -> list[tuple[float, Term]]:
    made: list[Term] = [components.build("objective", Component(use)) for use in uses]
    torch.manual_seed(6)
    for term in (*made, extra := Agree()):
        term.setup(Dims(16, 14.0))
    return [(1.0, term) for term in made] + [(0.5, extra)]


def gradient(
    world: World,
    encoder: towers.DualEncoder,
    uses: tuple[str, ...],
    micro: int,
    *,
    split: bool = True,
    drop: float = 0.0,
) -> dict[str, Tensor]:
    """Loss, and every parameter's gradient by name, of the global batch on this rank."""
    terms = terms_of(uses)
    terms[-1][1].drop = drop  # type: ignore[assignment]
    for _, term in terms:
        term.double()
    model = parallel.wrap(encoder, world, "ddp")
    step = Gradients(model, encoder, terms, TOWERS_OF, world, seed=1, micro_batch=micro)
    local = ROWS // world.size
    first = world.rank * local
    loss, figures = step(batch_of(local, first, split=split), first, 0)
    world.average_gradients(p for _, term in terms for p in term.parameters())
    found = {"loss": torch.tensor(world.mean([loss])[0], dtype=torch.float64)}
    found["figure"] = torch.tensor(world.mean([figures[f"agree.{len(uses)}.seen"]]))
    for name, parameter in encoder.clip.named_parameters():
        if parameter.grad is not None:
            found[name] = parameter.grad.clone()
            parameter.grad = None
    for number, (_, term) in enumerate(terms):
        for name, parameter in term.named_parameters():
            assert parameter.grad is not None
            found[f"term.{number}.{name}"] = parameter.grad.clone()
    return found


def every_way(world: World, folder: Path) -> dict[Any, dict[str, Tensor]]:
    """The gradient of each objective by number of micro batches, FLIP's masks on; and with dropout."""
    encoder = encoder_of(folder).double()
    found: dict[Any, dict[str, Tensor]] = {}
    encoder.thaw()
    PatchDrop(fraction=0.5).apply(encoder)
    for parts in PARTS:
        for use in OBJECTIVES:
            micro = ROWS // world.size // parts if parts > 1 else 0
            found[use, parts] = gradient(world, encoder, (use,), micro)
    found["unsplit"] = gradient(world, encoder, ("infonce",), 0, split=False)
    for micro in (4, 8):
        found["drawing term", micro] = gradient(world, encoder, ("infonce",), micro, drop=0.4)
    encoder.thaw()
    encoder.clip.visual.patch_dropout = Dropout()  # type: ignore[union-attr]
    found["dropout"] = gradient(world, encoder, ("infonce",), 4)
    return found


class Dropout(nn.Module):
    """A layer that draws from torch's own generator."""

    def forward(self, x: Tensor) -> Tensor:
        return nn.functional.dropout(x, 0.4)


@pytest.fixture(scope="module")
def found(tmp_path_factory: pytest.TempPathFactory) -> dict[int, list[Any]]:
    folder = tmp_path_factory.mktemp("gradients")
    model_file(folder)
    towers.import_open_clip()  # once, before ranks are forked
    return rank_groups.run(every_way, SIZES, folder)


def alike(one: dict[str, Tensor], other: dict[str, Tensor], near: float) -> None:
    assert one.keys() == other.keys()
    for name, expected in one.items():
        scale = max(float(expected.abs().max()), 1e-12)
        assert float((other[name] - expected).abs().max()) <= near * scale, name


@pytest.mark.parametrize("use", OBJECTIVES)
def test_ranks_and_micro_batches_give_one_gradient(found: dict[int, list[Any]], use: str) -> None:
    expected = found[1][0][use, 1]
    assert len(expected) > 30
    assert all(rows.abs().max() > 0 for rows in expected.values())
    for size in SIZES:
        for parts in PARTS:
            for rank in found[size]:
                alike(expected, rank[use, parts], 1e-10)


def test_rows_split_by_length_give_the_gradient_of_rows_of_one_length(
    found: dict[int, list[Any]],
) -> None:
    """Two ranks' groups differ, in number too."""
    ours = [batch_of(ROWS // 2, first).groups.get("text") for first in (0, ROWS // 2)]
    assert [len(groups.spans) for groups in ours if groups] == [3, 2]
    for size in SIZES:
        for rank in found[size]:
            alike(rank["unsplit"], rank["infonce", 1], 1e-12)


def test_layers_that_draw_draw_alike_on_any_number_of_ranks(found: dict[int, list[Any]]) -> None:
    expected = found[1][0]["dropout"]
    assert any((expected[n] - found[1][0]["infonce", 1][n]).abs().max() > 1e-6 for n in expected)
    for size in SIZES:
        for rank in found[size]:
            alike(expected, rank["dropout"], 1e-10)


def test_terms_that_draw_draw_alike_where_micro_batches_are_alike(
    found: dict[int, list[Any]],
) -> None:
    """Three ranks of 8 rows are micro batches of 8 rows, in one pass."""
    for micro, sizes in ((4, SIZES), (8, (1, 3))):
        expected = found[1][0]["drawing term", micro]
        assert (expected["loss"] - found[1][0]["infonce", 1]["loss"]).abs() > 1e-6
        for size in sizes:
            for rank in found[size]:
                alike(expected, rank["drawing term", micro], 1e-10)


class Together(Term):
    """A term over the batch that draws; with ``needs`` or, over its own weight alone, without."""

    kind: ClassVar[Literal["batch", "sample"]] = "batch"
    needs: frozenset[str] = frozenset()

    def setup(self, dims: Dims) -> None:
        self.weight = nn.Parameter(torch.ones(5))

    def forward(self, features: Features, comm: Comm, step: int) -> tuple[Tensor, Metrics]:
        loss = nn.functional.dropout(self.weight, 0.5).sum()
        for need in sorted(self.needs):
            loss = loss + nn.functional.dropout(features[need], 0.5).square().mean()
        return loss, {}


@pytest.mark.parametrize("needs", [(), ("text:pooled",)])
def test_terms_over_the_batch_draw_alike_in_micro_batches(
    tmp_path: Path, needs: tuple[str, ...]
) -> None:
    ways = []
    for micro in (0, 6):
        encoder, together = encoder_of(tmp_path).double(), Together()
        together.needs = frozenset(needs)
        together.setup(Dims(16, 14.0))
        (_, agree), terms = terms_of(())[0], [(1.0, together.double())]
        terms = [(1.0, agree.double()), *terms]
        step = Gradients(encoder, encoder, terms, TOWERS_OF, ALONE, seed=1, micro_batch=micro)
        loss, _ = step(batch_of(), 0, 0)
        assert together.weight.grad is not None
        grads = {n: p.grad for n, p in encoder.clip.named_parameters() if p.grad is not None}
        ways.append({"loss": loss, "weight": together.weight.grad, **grads})
        assert ("text_projection" in grads) == bool(needs)  # a view that nothing needs is not run
    torch.testing.assert_close(ways[1], ways[0], rtol=1e-9, atol=1e-12)


def test_both_passes_see_the_same_masks(tmp_path: Path) -> None:
    """With other masks in the second pass the gradient would be none of any loss: compare with finite steps."""
    encoder = encoder_of(tmp_path).double()
    encoder.clip.visual.patch_dropout = Dropout()  # type: ignore[union-attr]
    found = gradient(ALONE, encoder, ("infonce",), 6)
    weight = encoder.clip.visual.proj
    ends = []
    for move in (1e-5, -1e-5):
        with torch.no_grad():
            weight[0, 0] += move  # type: ignore[index,operator]
        ends.append(gradient(ALONE, encoder, ("infonce",), 6)["loss"])
        with torch.no_grad():
            weight[0, 0] -= move  # type: ignore[index,operator]
    assert float(ends[0] - ends[1]) / 2e-5 == pytest.approx(
        float(found["visual.proj"][0, 0]), rel=1e-5
    )


def test_a_frozen_tower_is_run_once_and_gets_no_gradient(tmp_path: Path) -> None:
    encoder = encoder_of(tmp_path).double()
    Freeze(tower="image").apply(encoder)
    calls: list[int] = []
    encoder.clip.visual.ln_pre.register_forward_hook(lambda *_: calls.append(1))  # type: ignore[union-attr]
    terms = [(1.0, t) for _, t in terms_of(("infonce",))[:1]]
    step = Gradients(
        encoder, encoder, terms, {"image": "image", "text": "text"}, ALONE, seed=1, micro_batch=6
    )
    batch = batch_of()
    del batch.views["other"]
    step(batch, 0, 0)
    assert len(calls) == ROWS // 6
    grads = {n: p.grad for n, p in encoder.clip.named_parameters()}
    assert all((grads[n] is None) == n.startswith("visual.") for n in grads)


def test_in_half_precision_weights_get_gradients_in_both_ways(tmp_path: Path) -> None:
    ways = []
    for micro in (0, 6):
        encoder = encoder_of(tmp_path)
        terms = terms_of(("infonce",))
        step = Gradients(
            encoder, encoder, terms, TOWERS_OF, ALONE, seed=1, bf16=True, micro_batch=micro
        )
        step(batch_of(dtype=torch.float32), 0, 0)
        ways.append({n: p.grad for n, p in encoder.clip.named_parameters() if p.grad is not None})
    assert ways[0].keys() == ways[1].keys()
    whole, parts = (torch.cat([way[name].flatten() for name in ways[0]]) for way in ways)
    assert float((parts - whole).norm() / whole.norm()) < 0.03


def test_batch_norm_is_refused_with_micro_batches(tmp_path: Path) -> None:
    encoder = encoder_of(tmp_path)
    encoder.clip.visual.ln_pre = nn.BatchNorm1d(32)  # type: ignore[union-attr]
    Gradients(encoder, encoder, terms_of(()), TOWERS_OF, ALONE, seed=1)
    with pytest.raises(ValueError, match=r"micro_batch = 6: clip.visual.ln_pre of mini.* hint:"):
        Gradients(encoder, encoder, terms_of(()), TOWERS_OF, ALONE, seed=1, micro_batch=6)
