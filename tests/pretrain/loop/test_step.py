"""What a step does beside its gradient, and, where there is CUDA, that it never waits for the device."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable
from pathlib import Path
from typing import Any, ClassVar, Literal

import pytest
import torch
from torch import Tensor, nn

from pretrain.loop import optim
from pretrain.loop.job import Job
from pretrain.loop.schedule import lr_at
from pretrain.loop.settings import Phase, ShardSource, TrainSettings
from pretrain.loop.step import Step, brought
from pretrain.loop.world import World
from pretrain.model.encoder import build
from pretrain.objective.base import Comm, Dims, Features, Metrics, Term, full_precision
from pretrain.objective.infonce import InfoNCE
from pretrain.stream.batch import LocalBatches, loader
from tests.tiny import rank_groups, scenes

PHASE = Phase(samples=64, global_batch=8, lr=1e-3, warmup_samples=16)
BUCKETS = (10, 12)  # scenes' captions have 10 tokens, what was written anew 10 to 14
Make = Callable[..., Job]


@pytest.fixture(scope="module")
def make(tmp_path_factory: pytest.TempPathFactory) -> Make:
    folder = tmp_path_factory.mktemp("step")
    scenes.write_shards(folder / "shards", 16, rewrite_count=3)
    model = scenes.write_model(folder)

    def job(device: str = "cpu", phase: Phase = PHASE, **change: Any) -> Job:
        settings = TrainSettings(
            model=model, out=str(folder / f"out{device}"), phase=(phase,), workers=0,
            shards=(ShardSource(path=str(folder / "shards")),), **{"precision": "fp32", **change},
        )  # fmt: skip
        world = World(0, 1, torch.device(device))
        made = Job(settings, world, seed=0, data_hash="", recipe_text="", again=True, progress=None)
        made.enter(0)
        return made

    return job


def batches(job: Job, pin: bool = False) -> Any:
    return loader(job.stream, LocalBatches(0, 64, 8), 0, pin)


def weights(job: Job) -> dict[str, torch.Tensor]:
    return {name: rows.detach().clone() for name, rows in job.encoder.clip.state_dict().items()}


def test_a_step_moves_the_cursor_the_rate_and_the_weights(make: Make) -> None:
    job = make(ema_decay=0.5)
    step, before = Step(job, PHASE), weights(job)
    batch = next(iter(brought(batches(job), job.world.device)))
    loss, figures, lr = step(batch, logged=True)
    assert not loss.requires_grad
    assert (job.cursor.step, job.cursor.samples_seen, job.cursor.phase_samples) == (1, 8, 8)
    assert lr == lr_at(PHASE, 8) == job.optimizer.param_groups[0]["lr"]
    assert {"grad_norm_image", "grad_norm_text", "batch_accuracy"} <= figures.keys()
    assert all(p.grad is None for p in job.parameters())
    after = weights(job)
    assert all(not torch.equal(after[n], before[n]) for n in ("visual.proj", "text_projection"))
    assert job.ema is not None
    average = job.ema.state_dict()["visual.proj"]
    torch.testing.assert_close(average, before["visual.proj"].lerp(after["visual.proj"], 9 / 11))
    _, plain, _ = step(batch, logged=False)
    assert "grad_norm_image" not in plain


def test_micro_batches_and_recomputed_blocks_take_the_same_step(make: Make) -> None:
    ways = []
    for micro, recomputed in ((0, False), (2, False), (8, True)):
        phase = dataclasses.replace(PHASE, micro_batch=micro, grad_clip_norm=0.1)
        job = make(phase=phase, activation_checkpointing=recomputed, text_buckets=BUCKETS)
        step = Step(job, phase)
        came = list(brought(batches(job), job.world.device))
        assert all("text" in batch.groups for batch in came)
        losses = [float(step(batch, logged=False)[0]) for batch in came]
        ways.append(losses)
    assert ways[1] == pytest.approx(ways[0], rel=1e-4)
    assert ways[2] == ways[0]


def test_all_gradients_are_clipped_together_and_the_rate_is_the_phases(make: Make) -> None:
    phase = dataclasses.replace(PHASE, grad_clip_norm=0.01)
    job = make(phase=phase)
    job.cursor.samples_seen = 1000  # of a phase before
    norms: list[float] = []
    job.optimizer.step = lambda: norms.append(float(optim.grad_norm(job.parameters())))  # type: ignore[method-assign,assignment,return-value]
    with torch.no_grad():
        job.terms[0].log_scale.fill_(4.0)  # where the scale's gradient is large  # type: ignore[operator,union-attr]
    _, _, lr = Step(job, phase)(next(iter(batches(job))), logged=False)
    assert norms == [pytest.approx(0.01, rel=1e-3)]
    assert lr == lr_at(phase, 8) != lr_at(phase, 1008)


class Pictures(Term):
    """Over single pictures, with a head that draws and a weight that nothing uses; texts play no part."""

    kind: ClassVar[Literal["batch", "sample"]] = "sample"
    needs: frozenset[str] = frozenset({"image:tokens"})

    def setup(self, dims: Dims) -> None:
        self.head = nn.LazyLinear(3)
        self.head(torch.zeros(1, 64))
        self.unused = nn.Parameter(torch.ones(2, 2))

    def forward(self, features: Features, comm: Comm, step: int) -> tuple[Tensor, Metrics]:
        return self.head(nn.functional.dropout(features["image:tokens"], 0.2)).square().mean(), {}


class Teacher(Term):
    """Pictures follow texts, which are not moved by it: a trained tower that gets no gradient."""

    kind: ClassVar[Literal["batch", "sample"]] = "batch"
    needs: frozenset[str] = frozenset({"image:pooled", "text:pooled"})

    def forward(self, features: Features, comm: Comm, step: int) -> tuple[Tensor, Metrics]:
        gap = features["image:pooled"] - features["text:pooled"].detach()
        return full_precision(gap).square().mean(), {}


TERMS: tuple[tuple[type[Term], int], ...] = (
    (InfoNCE, 0),
    (Pictures, 2),
    (Teacher, 2),
)  # and micro batch


def stepped(world: World, folder: Path) -> dict[Any, dict[str, Tensor]]:
    """Weights of towers and terms after two steps of real jobs."""
    found: dict[Any, dict[str, Tensor]] = {}
    for made, micro in TERMS:
        term, name = made(), made.__name__
        term.options = dict  # type: ignore[method-assign]
        phase = dataclasses.replace(
            PHASE, eps=1e-3, micro_batch=micro, grad_clip_norm=0.5, objective=((1.0, term),)
        )
        settings = TrainSettings(
            model=str(folder / "tiny_32.json"), out=str(folder / f"{name}.{world.size}"), phase=(phase,),
            shards=(ShardSource(path=str(folder / "shards")),), workers=0, precision="fp32", ema_decay=0.5,
        )  # fmt: skip
        job = Job(settings, world, seed=0, data_hash="", recipe_text="", again=True, progress=None)
        job.enter(0)
        step = Step(job, phase)
        local = LocalBatches(0, 16, 8, world.rank, world.size)
        for batch in brought(loader(job.stream, local, 0, False), world.device):
            step(batch, logged=False)
        assert job.ema is not None
        state = {**job.encoder.clip.state_dict(), **job.terms.state_dict(), "ema": job.ema.state_dict()["visual.proj"]}  # fmt: skip
        found[name] = {n: rows.clone() for n, rows in state.items()}
    return found


def test_two_ranks_take_the_step_of_one(tmp_path: Path) -> None:
    """Also where trained parameters get no gradient, and where terms have weights without one."""
    scenes.write_shards(tmp_path / "shards", 16, rewrite_count=3)
    start = build(scenes.write_model(tmp_path)).clip.state_dict().keys()
    found = rank_groups.run(stepped, (1, 2), tmp_path)
    for case, alone in found[1][0].items():
        assert start < alone.keys()
        for rank in found[2]:
            torch.testing.assert_close(rank[case], alone, rtol=1e-4, atol=2e-6)


def test_batches_arrive_in_order_and_a_fatal_one_in_its_turn(make: Make) -> None:
    job = make()
    given = list(batches(job))
    given[2] = dataclasses.replace(given[2], views={}, fatal="damaged")
    came = list(brought(given, torch.device("cpu")))
    assert [batch.fatal for batch in came] == ["", "", "damaged"] + [""] * 5
    assert all(
        torch.equal(one.positions, two.positions) for one, two in zip(given, came, strict=True)
    )


@pytest.mark.gpu
@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device")
@pytest.mark.parametrize("micro", [0, 4])
@pytest.mark.parametrize("augment", ["worker", "device"])
def test_a_step_never_waits_for_the_device(make: Make, micro: int, augment: str) -> None:
    phase = dataclasses.replace(PHASE, micro_batch=micro, grad_clip_norm=1.0)
    options: dict[str, Any] = {"precision": "bf16", "compile": "off", "ema_decay": 0.9}
    job = make("cuda", phase, augment=augment, text_buckets=BUCKETS, **options)
    step = Step(job, phase)
    found = []
    try:
        for number, batch in enumerate(brought(batches(job, pin=True), job.world.device)):
            assert "text" in batch.groups
            # Allocation and lazy start-up may wait, so the first steps are free to.
            torch.cuda.set_sync_debug_mode("error" if number >= 2 else "default")
            found.append(step(batch, logged=False)[0])
    finally:
        torch.cuda.set_sync_debug_mode("default")
    assert len(found) == 8
    assert torch.stack(found).isfinite().all()


@pytest.mark.gpu
@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device")
def test_batches_copied_beside_the_step_are_whole(make: Make) -> None:
    job = make("cuda", text_buckets=BUCKETS)
    given = list(batches(job))
    came = list(brought([batch.pin_memory() for batch in given], torch.device("cuda")))
    for one, two in zip(given, came, strict=True):
        assert torch.equal(one.views["image"], two.views["image"].cpu())
        expected = one.to("cpu").groups["text"]
        assert torch.equal(two.groups["text"].order.cpu(), expected.order)
        assert torch.equal(two.groups["text"].places.cpu(), expected.places)
