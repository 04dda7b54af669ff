"""What is said when a loss is not finite: the first such step though none waited, its batch, what to try, where to go on."""

import dataclasses
import json
from types import SimpleNamespace

import pytest
import torch

from pretrain.loop import checkpoint, unfinite
from pretrain.loop.settings import Phase, ShardSource, Sidecar, TrainSettings
from pretrain.loop.unfinite import Recent
from pretrain.loop.world import World

NAN = float("nan")
SETTINGS = TrainSettings(
    model="m", out="", shards=(ShardSource(path="s"),), log_every_steps=10,
    phase=(Phase(samples=800, global_batch=8, lr=1e-3, warmup_samples=80),),
)  # fmt: skip


def recent(losses: list[float], every: int = 10, first_step: int = 1) -> Recent:
    made = Recent(8, every)
    for step, loss in enumerate(losses, start=first_step):
        made.add(step, torch.tensor(loss), 1e-3, [f"key{step}.{row}" for row in range(8)])
    return made


def job(out, losses: list[float], **change):
    settings = dataclasses.replace(SETTINGS, out=str(out), **change)
    cursor = SimpleNamespace(step=len(losses), samples_seen=8 * len(losses), phase=0)
    return SimpleNamespace(
        settings=settings, cursor=cursor, world=World(0, 1, torch.device("cpu")), recent=recent(losses),
        writer=SimpleNamespace(settle=lambda: None),
    )  # fmt: skip


def test_the_first_step_its_batch_and_what_to_try_in_order(tmp_path):
    stopped = job(tmp_path, [1.0, 2.0, NAN, NAN, NAN])
    stopped.recent.line = {"step": 1, "logit_scale": 14.2}
    said = unfinite.told(stopped, "the loss is")
    assert said.startswith(
        "step 5: the loss is not finite, first at step 3, in the batch of samples 16 to 23 of the run "
        f"(lr 0.001; logit scale 14.2 at step 1; keys of the batch in {tmp_path}/not_finite.json). hint: "
    )
    tried = ("odd in that batch", "lower phase.0.lr", "warmup_samples (80 now)", 'precision = "fp32"',
             "grad_clip_norm", "max_logit_scale", "There is no checkpoint yet")  # fmt: skip
    places = [said.index(words) for words in tried]
    assert places == sorted(places)
    found = json.loads((tmp_path / "not_finite.json").read_text())
    assert found["keys"] == [f"key3.{row}" for row in range(8)]
    assert found["keys_before"] == [f"key2.{row}" for row in range(8)]
    assert found["positions"] == [16, 23]


def test_what_is_set_already_is_not_advised_and_stored_features_are_doubted(tmp_path):
    told = Phase(samples=800, global_batch=8, grad_clip_norm=1.0)
    sidecar = (Sidecar(path="x", use="features"),)
    said = unfinite.told(
        job(tmp_path, [NAN], precision="fp32", phase=(told,), sidecar=sidecar), "the loss is"
    )
    assert "fp32" not in said
    assert "grad_clip_norm" not in said
    assert "a sidecar's feature that is not finite" in said


def test_the_last_good_checkpoint_is_named_and_how_to_go_on_otherwise(tmp_path):
    cursor = {"samples_seen": 8, "step": 1, "phase": 0, "phase_samples": 8, "bad": {}}
    path = checkpoint.save(str(tmp_path), {"cursor": cursor, "state_dict": {}}, 2)
    said = unfinite.told(job(tmp_path, [1.0, NAN]), "the loss is")
    assert f"The last good checkpoint is {path or ''}" in said
    assert "samples-000000000008.pt; --resume alone comes to the same step: add" in said
    assert "--allow-change with what you change, e.g. phase.0.lr" in said


def test_one_that_is_being_written_is_waited_for(tmp_path):
    made = job(tmp_path, [1.0, NAN])
    path = f"{checkpoint.folder(str(tmp_path))}/samples-000000000016.pt"
    made.writer.settle = lambda: checkpoint.write(path, {})
    assert f"The last good checkpoint is {path};" in unfinite.told(made, "the loss is")


def test_weights_that_broke_at_a_finite_loss_are_those_of_the_last_step(tmp_path):
    said = unfinite.told(job(tmp_path, [1.0, 1.0]), "the weights are")
    assert said.startswith("step 2: the weights are not finite, in the batch of samples 8 to 15 ")


def test_a_folder_that_can_not_be_written_changes_nothing_else(tmp_path):
    (tmp_path / "file").touch()
    said = unfinite.told(job(tmp_path / "file", [1.0, NAN]), "the loss is")
    assert "samples 8 to 15 of the run (lr 0.001). hint:" in said


def test_keys_are_kept_within_bounds_and_then_the_first_is_not_sure(monkeypatch):
    monkeypatch.setattr(unfinite, "_MOST_KEYS", 24)
    kept = recent([1.0, NAN, NAN, NAN, NAN], every=1000)
    assert (kept.first(), kept.knows(3)) == (3, False)
    kept = recent([1.0, 1.0, 1.0, NAN, NAN], every=1000)
    assert (kept.first(), kept.knows(4)) == (4, True)
    begun = recent([NAN], first_step=401)  # the first step of a resumed run
    assert (begun.first(), begun.knows(401)) == (401, True)


@pytest.mark.parametrize("losses", [[1.0, 2.0], []])
def test_finite_losses_are_none(losses):
    assert recent(losses).first() == 0
