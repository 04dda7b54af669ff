"""Two ranks give the gradient of one: loss and every gradient, float64, 1e-10. One spawn for all checks."""

import itertools
import json
import os
import signal

import pytest
import torch
import torch.distributed as dist

from pretrain.loop import parallel, train, world
from pretrain.loop.settings import Phase, ShardSource, TrainSettings
from pretrain.model import encoder as towers
from pretrain.objective.base import Comm, Dims, Features, Term, full_precision
from pretrain.objective.infonce import InfoNCE
from pretrain.stream.batch import Sample
from pretrain.stream.tars import TarSet
from tests.tiny import ranks, scenes

ROWS = 8
VIEWS = {"image": "image", "text": "text"}


def one_step(here: world.World) -> dict[str, torch.Tensor]:
    """Loss and all gradients of one global batch of ROWS, in float64, as this world computes them."""
    torch.manual_seed(0)
    encoder = towers.from_config("tiny_32", scenes.TINY_MODEL).double()
    term = InfoNCE()
    term.setup(Dims(encoder.embed_dim, 1.0))
    term.double()
    images = torch.randint(
        0, 256, (ROWS, 32, 32, 3), dtype=torch.uint8, generator=torch.Generator().manual_seed(1)
    )
    tokens = encoder.tokenize([scenes.caption(n) for n in range(ROWS)])
    mine = slice(here.rank * ROWS // here.size, (here.rank + 1) * ROWS // here.size)
    model = parallel.wrap(encoder, here)
    features = Features(model({"image": images[mine], "text": tokens[mine]}, VIEWS))
    loss, _ = term(features, here.comm(), 0)
    loss.backward()
    here.average_gradients(term.parameters())
    gradients = {name: p.grad.clone() for name, p in encoder.named_parameters()}
    return {
        "loss": torch.tensor(here.mean([loss])[0]),
        "log_scale": term.log_scale.grad.clone(),
        **gradients,
    }


def settings(folder: str, out: str, model: str) -> TrainSettings:
    phase = Phase(samples=48, global_batch=16, lr=1e-3, warmup_samples=16)
    return TrainSettings(
        model=model, out=f"{folder}/{out}", shards=(ShardSource(path=f"{folder}/shards"),),
        precision="fp32", workers=0, log_every_steps=1, phase=(phase,),
    )  # fmt: skip


def rank_main(rank: int, folder: str, model: str) -> None:
    here = world.join()
    found = one_step(here)
    rows = torch.full((1, 2), float(rank + 1), requires_grad=True)
    gathered = here.comm().gather(rows)
    (gathered * torch.tensor([[1.0], [10.0]]) * (rank + 1)).sum().backward()
    checks = {
        "gathered": gathered.tolist(),
        "gather_grad": rows.grad.tolist(),
        "any": here.any(rank == 1, False),
        "mean": here.mean([torch.tensor(float(rank))]),
        "gather": here.gather({"rank": rank}),
    }
    # Both runs find the process group made, as under Ray Train.
    result = train.run(settings(folder, "two", model), seed=0)
    checks["samples_seen"] = result.samples_seen
    # Rank 1 alone is told to stop, while it reads its first batch; both must stop one step after that.
    read = TarSet.read

    def told_to_stop(self: TarSet, number: int) -> Sample:
        if rank == 1 and next(reads) == 4:
            os.kill(os.getpid(), signal.SIGTERM)
        return read(self, number)

    reads = itertools.count()
    TarSet.read = told_to_stop  # type: ignore[method-assign]
    stopped = train.run(settings(folder, "stopped", model), seed=0)
    checks["stopped"] = [stopped.interrupted, stopped.samples_seen]
    torch.save(found, f"{folder}/rank{rank}.pt")
    with open(f"{folder}/rank{rank}.json", "w") as file:
        json.dump(checks, file)


@pytest.fixture(scope="module")
def two_ranks(tmp_path_factory):
    """(folder, what each rank found)."""
    folder = tmp_path_factory.mktemp("ranks")

    def change(number, members):
        return [("png", b"broken"), *members[1:]] if number == 9 else members

    scenes.write_shards(folder / "shards", 40, change=change)
    model = scenes.write_model(folder)
    ranks.run(rank_main, 2, str(folder), model)
    found = [torch.load(folder / f"rank{rank}.pt", weights_only=True) for rank in range(2)]
    checks = [json.loads((folder / f"rank{rank}.json").read_text()) for rank in range(2)]
    return folder, model, found, checks


@pytest.mark.net
def test_two_ranks_give_the_loss_and_every_gradient_of_one(two_ranks):
    _, _, found, _ = two_ranks
    alone = one_step(world.World(0, 1, torch.device("cpu")))
    assert float(alone["log_scale"].abs()) > 0
    for rank in range(2):
        assert set(found[rank]) == set(alone)
        for name, expected in alone.items():
            error = float((found[rank][name] - expected).norm())
            assert error <= 1e-10 * max(float(expected.norm()), 1e-12), f"{name} on rank {rank}"


@pytest.mark.net
def test_gather_keeps_rank_order_and_sums_gradients_over_ranks(two_ranks):
    _, _, _, checks = two_ranks
    for rank in range(2):
        assert checks[rank]["gathered"] == [[1.0, 1.0], [2.0, 2.0]]
        assert checks[rank]["any"] == [True, False]
        assert checks[rank]["mean"] == [0.5]
        assert checks[rank]["gather"] == [{"rank": 0}, {"rank": 1}]
    assert checks[0]["gather_grad"] == [[3.0, 3.0]]  # weight 1, from ranks 1 and 2
    assert checks[1]["gather_grad"] == [[30.0, 30.0]]  # weight 10


@pytest.mark.net
def test_a_whole_run_on_two_ranks_is_the_run_on_one(two_ranks):
    folder, model, _, checks = two_ranks
    alone = train.run(settings(str(folder), "one", model), seed=0)
    lines = [
        [json.loads(line) for line in (folder / out / "metrics.jsonl").open()]
        for out in ("one", "two")
    ]
    assert checks[1]["samples_seen"] == alone.samples_seen == 48
    assert len(lines[0]) == len(lines[1]) == 3
    for one, two in zip(*lines, strict=True):
        assert two["loss"] == pytest.approx(one["loss"], rel=1e-5)
        assert two["grad_norm_image"] == pytest.approx(one["grad_norm_image"], rel=1e-4)
        assert two["bad_samples"] == one["bad_samples"]
    assert lines[0][-1]["bad_samples"] == 1


@pytest.mark.net
def test_a_signal_to_one_rank_stops_all_after_the_same_step_and_one_rank_goes_on(two_ranks):
    folder, model, _, checks = two_ranks
    assert [found["stopped"] for found in checks] == [[True, 32], [True, 32]]
    resumed = train.run(settings(str(folder), "stopped", model), seed=0, resume=True)
    assert resumed.samples_seen == 48
    one, two = (
        [json.loads(line)["loss"] for line in (folder / out / "metrics.jsonl").open()]
        for out in ("two", "stopped")
    )
    assert two == pytest.approx(one, rel=1e-5)


def test_one_process_needs_no_group():
    rows = torch.ones(3, 2)
    assert Comm().gather(rows) is rows
    assert Comm().row_offset(3) == 0
    assert not dist.is_initialized()


def test_a_missing_feature_says_which_there_are():
    with pytest.raises(
        KeyError, match=r"no feature 'image:tokens'; there are \['image:pooled'\]. hint:"
    ):
        Features({"image:pooled": torch.zeros(1)})["image:tokens"]


def test_full_precision_leaves_float64():
    assert full_precision(torch.zeros(1, dtype=torch.bfloat16)).dtype == torch.float32
    assert full_precision(torch.zeros(1, dtype=torch.float64)).dtype == torch.float64


def test_a_term_has_no_hidden_defaults():
    class Plain(Term):
        def __init__(self, *, factor: float = 2.0) -> None:
            super().__init__()
            self.factor = factor

    plain = Plain(factor=3.0)
    assert plain.options() == {"factor": 3.0}
    assert plain.logit_scale() is None
    plain.after_step()
    with pytest.raises(NotImplementedError):
        plain(Features(), Comm(), 0)
