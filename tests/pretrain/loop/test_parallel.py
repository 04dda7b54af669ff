"""FSDP2 on two ranks trains as DDP does, and what either saves the other goes on from; blocks keep their gradient."""

from __future__ import annotations

import copy
from pathlib import Path
from typing import Any

import pytest
import torch
import torch.distributed.fsdp  # once, before ranks are forked
from torch import Tensor

from pretrain.loop import optim, parallel
from pretrain.loop.ema import Ema
from pretrain.loop.gradients import Gradients
from pretrain.loop.settings import Phase
from pretrain.loop.world import Poll, World
from pretrain.model.encoder import import_open_clip
from pretrain.model.tweak.freeze import Freeze
from tests.pretrain.loop.test_gradients import (
    ALONE,
    ROWS,
    TOWERS_OF,
    batch_of,
    encoder_of,
    model_file,
    terms_of,
)
from tests.tiny import rank_groups

PHASE = Phase(samples=1, global_batch=ROWS, lr=1e-3, grad_clip_norm=0.5)


class Run:
    """Some steps of training, in float64 so that only mistakes differ."""

    def __init__(
        self, world: World, folder: Path, how: str, *, micro: int = 0, freeze: bool = False
    ) -> None:
        self.world, self.step = world, 0
        self.split = how != "fsdp"  # sharded blocks are called equally often by all ranks
        self.encoder = encoder_of(folder).double()
        if freeze:
            Freeze(tower="image").apply(self.encoder)
        self.model = parallel.wrap(self.encoder, world, how)
        self.terms = terms_of(("infonce",))
        modules = [term.double() for _, term in self.terms]
        self.optimizer = optim.adamw(PHASE, [self.encoder, *modules])
        self.ema = Ema(self.model, 0.5)
        self.gradients = Gradients(
            self.model, self.encoder, self.terms, TOWERS_OF, world, seed=1, micro_batch=micro
        )
        self.norms: list[float] = []

    def go(self, steps: int) -> Run:
        local = ROWS // self.world.size
        for _ in range(steps):
            first = self.world.rank * local
            self.gradients(batch_of(local, first, split=self.split), first, self.step)
            of_terms = [p for _, term in self.terms for p in term.parameters()]
            self.world.average_gradients(of_terms)
            every = [*self.encoder.parameters(), *of_terms]
            self.norms.append(float(optim.grad_norm(every)))
            optim.clip_gradients(every, PHASE.grad_clip_norm)
            self.norms.append(float(optim.grad_norm(every)))
            self.optimizer.step()
            self.optimizer.zero_grad()
            self.step += 1
            self.ema.update(self.step)
        return self

    def saved(self) -> dict[str, Any]:
        state = {
            "weights": parallel.full_state(self.model),
            "optimizer": parallel.optimizer_state(self.model, self.optimizer),
            "ema": self.ema.state_dict(),
            "terms": [term.state_dict() for _, term in self.terms],
            "step": self.step,
            "norms": self.norms,
        }
        return copy.deepcopy(state)  # on the CPU it shares memory with the run, which goes on

    def load(self, saved: dict[str, Any]) -> Run:
        saved = copy.deepcopy(saved)
        parallel.load_full_state(self.model, saved["weights"])
        parallel.load_optimizer_state(self.model, self.optimizer, saved["optimizer"])
        self.ema.load_state_dict(saved["ema"])
        for (_, term), state in zip(self.terms, saved["terms"], strict=True):
            term.load_state_dict(state)
        self.step = saved["step"]
        return self


def work(world: World, folder: Path) -> dict[str, Any]:
    found: dict[str, Any] = {"polls": polled(world)}
    if world.size == 3:
        straight = Run(world, folder, "ddp")
        half = straight.go(2).saved()
        found["straight"] = straight.go(2).saved()
        found["resumed"] = Run(world, folder, "ddp").load(half).go(2).saved()
        return found
    for how in ("ddp", "fsdp") if world.size > 1 else ("alone",):
        for micro in (0, 4):
            found[how, micro] = Run(world, folder, how, micro=micro).go(4).saved()
    if world.size == 1:
        return found
    sharded = Run(world, folder, "fsdp")
    held = sum(parallel.local(p).numel() for p in sharded.encoder.parameters())
    found["share"] = held / sum(p.numel() for p in sharded.encoder.parameters())
    frozen = Run(world, folder, "fsdp", freeze=True).go(2)
    found["frozen"] = frozen.saved()["weights"]
    found["apart"] = [isinstance(b, torch.distributed.fsdp.FSDPModule) for b in frozen.encoder.blocks()]  # fmt: skip
    # The first rank's file is what every rank reads.
    middle = [sharded.go(2).saved()]
    torch.distributed.broadcast_object_list(middle)
    found["middle"] = middle[0]
    found["on as ddp"] = Run(world, folder, "ddp").load(middle[0]).go(2).saved()
    found["on as fsdp"] = Run(world, folder, "fsdp").load(middle[0]).go(2).saved()
    return found


def polled(world: World) -> list[list[bool]]:
    """The last rank sets the first flag at the second step, and leaves it set; the first rank the second flag."""
    poll, answers = Poll(world), []
    for step in range(5):
        answers.append(poll.ask(step >= 1 and world.rank == world.size - 1, step == 2 and world.is_first))  # fmt: skip
    poll.end()
    return answers


@pytest.fixture(scope="module")
def found(tmp_path_factory: pytest.TempPathFactory) -> dict[int, list[Any]]:
    folder = tmp_path_factory.mktemp("parallel")
    model_file(folder)
    import_open_clip()  # once, before ranks are forked
    return rank_groups.run(work, (1, 2, 3), folder)


def alike(one: dict[str, Any], other: dict[str, Any]) -> None:
    """Weights, averages, scalars and both moments, to rounding; as a checkpoint has them."""
    near: dict[str, Any] = {"rtol": 1e-9, "atol": 1e-11}
    torch.testing.assert_close(other["weights"], one["weights"], **near)
    torch.testing.assert_close(other["ema"], one["ema"], **near)
    torch.testing.assert_close(other["terms"], one["terms"], **near)
    torch.testing.assert_close(other["norms"], one["norms"], rtol=1e-6, atol=1e-9)
    assert other["optimizer"]["param_groups"] == one["optimizer"]["param_groups"]
    torch.testing.assert_close(other["optimizer"]["state"], one["optimizer"]["state"], **near)


@pytest.mark.parametrize("micro", [0, 4])
def test_sharded_replicated_and_alone_are_one_run(found: dict[int, list[Any]], micro: int) -> None:
    alone = found[1][0]["alone", micro]
    assert max(alone["norms"][1::2]) == pytest.approx(PHASE.grad_clip_norm, rel=1e-4)
    for how in ("ddp", "fsdp"):
        alike(alone, found[2][0][how, micro])
    assert found[2][1]["fsdp", micro]["weights"] == {}
    assert found[2][0]["share"] == pytest.approx(0.5, abs=0.02)


def test_what_was_saved_sharded_goes_on_in_any_way(
    found: dict[int, list[Any]], tmp_path: Path
) -> None:
    model_file(tmp_path)
    middle = found[2][0]["middle"]
    whole = {**found[2][0]["fsdp", 0], "norms": found[2][0]["fsdp", 0]["norms"][4:]}
    for how in ("on as ddp", "on as fsdp"):
        alike(whole, found[2][0][how])
    alike(whole, Run(ALONE, tmp_path, "ddp").load(middle).go(2).saved())
    assert torch.equal(
        found[2][0]["on as fsdp"]["weights"]["visual.proj"], whole["weights"]["visual.proj"]
    )


def test_three_ranks_resume_to_the_last_bit(found: dict[int, list[Any]]) -> None:
    for rank in found[3]:
        for name, rows in rank["straight"]["weights"].items():
            assert torch.equal(rank["resumed"]["weights"][name], rows), name


def test_a_frozen_tower_is_sharded_and_stays(found: dict[int, list[Any]], tmp_path: Path) -> None:
    start = encoder_of(tmp_path).double().clip.state_dict()
    for name, rows in found[2][0]["frozen"].items():
        assert torch.equal(rows, start[name]) == name.startswith("visual."), name
    assert found[2][0]["apart"] == [True] * 4


def test_all_ranks_hear_of_a_flag_at_the_same_step(found: dict[int, list[Any]]) -> None:
    assert found[1][0]["polls"] == [
        [False, False], [True, False], [True, True], [True, False], [True, False],
    ]  # fmt: skip
    one, other = (rank["polls"] for rank in found[2])
    assert one == other == found[3][0]["polls"]
    assert one == [
        [False, False], [False, False], [True, False], [False, True], [True, False],
    ]  # fmt: skip


def test_which_towers_are_sharded(tmp_path: Path) -> None:
    encoder = encoder_of(tmp_path)
    two = World(0, 2, torch.device("cpu"))
    assert not parallel.shards(encoder, two, "auto")
    assert parallel.shards(encoder, two, "fsdp")
    assert not parallel.shards(encoder, ALONE, "fsdp")
    with torch.device("meta"):
        large = torch.nn.Linear(40_000, 30_000)
    assert parallel.shards(large, two, "auto")
    assert not parallel.shards(large, two, "ddp")


def test_weights_of_another_model_are_refused(tmp_path: Path) -> None:
    encoder = encoder_of(tmp_path)
    weights = parallel.full_state(encoder)
    parallel.load_full_state(encoder, {**weights, "logit_scale": torch.tensor(1.0)})
    for wrong in (
        {**weights, "x": torch.zeros(1)},
        {n: rows for n, rows in weights.items() if n != "visual.proj"},
        {**weights, "visual.proj": torch.zeros(1)},
    ):
        with pytest.raises(RuntimeError, match="weights of another model"):
            parallel.load_full_state(encoder, wrong)


def grads(encoder: Any, micro: int = 0) -> dict[str, Tensor]:
    encoder.zero_grad()
    step = Gradients(
        encoder, encoder, terms_of(("infonce",)), TOWERS_OF, ALONE, seed=1, micro_batch=micro
    )
    step(batch_of(dtype=torch.float32), 0, 0)
    return {n: p.grad.clone() for n, p in encoder.clip.named_parameters() if p.grad is not None}


@pytest.mark.parametrize("micro", [0, 6])
def test_recomputed_blocks_give_the_same_bits_and_keep_less(tmp_path: Path, micro: int) -> None:
    encoder = encoder_of(tmp_path)
    names = list(encoder.state_dict())
    plain = grads(encoder, micro)
    calls: list[int] = []
    block = encoder.blocks()[0]
    own = block.forward

    def counted(*args: Any, **kwargs: Any) -> Any:
        calls.append(1)
        return own(*args, **kwargs)

    block.forward = counted  # type: ignore[method-assign]
    parallel.prepare_blocks(encoder, compiled=False, checkpointing=True)
    again = grads(encoder, micro)
    assert len(calls) == (2 if not micro else 3 * ROWS // micro)
    assert all(torch.equal(again[name], plain[name]) for name in plain)
    assert list(encoder.state_dict()) == names
    parallel.prepare_blocks(encoder, compiled=False, checkpointing=False)
    calls.clear()
    grads(encoder)
    assert len(calls) == 1


@pytest.mark.slow
@pytest.mark.parametrize("checkpointing", [False, True])
def test_compiled_blocks_share_code_and_equal_eager_ones(
    tmp_path: Path, checkpointing: bool
) -> None:
    torch._dynamo.reset()
    encoder = encoder_of(tmp_path)
    plain = grads(encoder, 6)
    torch._dynamo.utils.counters.clear()
    parallel.prepare_blocks(encoder, compiled=True, checkpointing=checkpointing)
    again = grads(encoder, 6)
    for name, rows in plain.items():
        torch.testing.assert_close(again[name], rows, rtol=1e-3, atol=1e-5)
    # Two towers with and without gradient; each has two blocks. Texts come in groups of few sizes.
    spans = {span for first in range(0, ROWS, 6) for span in batch_of(6, first).text_spans("text")}
    assert len(spans) > 2
    made = torch._dynamo.utils.counters["stats"]["unique_graphs"]
    assert made <= 4 + 4 * len(spans), made
    grads(encoder, 6)
    assert torch._dynamo.utils.counters["stats"]["unique_graphs"] == made
