import time
from types import SimpleNamespace

import pytest
import torch

from pretrain.loop import checkpoint, parallel
from pretrain.loop.bad_samples import BadShare
from pretrain.loop.job import Cursor, Job, TrainingStopped, phase_end
from pretrain.loop.settings import Phase, ShardSource, TrainSettings
from pretrain.loop.world import World
from pretrain.model.tweak.freeze import Freeze
from pretrain.model.tweak.resolution import Resolution
from pretrain.objective.infonce import InfoNCE
from pretrain.objective.sigmoid import Sigmoid
from pretrain.stream.view.caption_mix import CaptionMix
from pretrain.stream.view.crop import Crop
from tests.tiny import scenes


@pytest.fixture
def make(tmp_path):
    scenes.write_shards(tmp_path / "shards", 8)
    model = scenes.write_model(tmp_path)

    def job(*phases: Phase) -> Job:
        settings = TrainSettings(
            model=model,
            out=str(tmp_path / "out"),
            shards=(ShardSource(path=str(tmp_path / "shards")),),
            phase=phases,
        )
        world = World(0, 1, torch.device("cpu"))
        return Job(settings, world, seed=0, data_hash="", recipe_text="", again=True, progress=None)

    return job


def test_phases_end_on_whole_batches():
    assert phase_end(Cursor(), Phase(samples=10, global_batch=4)) == 12
    assert (
        phase_end(Cursor(samples_seen=20, phase_samples=4), Phase(samples=12, global_batch=4)) == 28
    )


def test_a_term_goes_on_in_the_next_phase_and_settings_stay_as_given(make):
    given = InfoNCE(init_temperature=0.1)
    job = make(
        Phase(samples=8, global_batch=8, objective=((1.0, given),)),
        Phase(samples=8, global_batch=8, objective=((0.5, InfoNCE(init_temperature=0.1)),)),
    )
    job.enter(0)
    assert float(job.logit_scale()) == pytest.approx(10)
    with torch.no_grad():
        job.terms[0].log_scale.fill_(3.0)
    job.enter(1)
    assert job.terms[0].log_scale.item() == 3.0
    assert job.weights == [0.5]
    assert given.log_scale.item() == 0.0


def test_tweaks_hold_for_their_phase_only(make):
    job = make(
        Phase(samples=8, global_batch=8, tweak=(Freeze(tower="image"),)),
        Phase(samples=8, global_batch=8),
    )
    job.enter(0)
    trained = sum(len(group["params"]) for group in job.optimizer.param_groups)
    job.enter(1)
    assert sum(len(group["params"]) for group in job.optimizer.param_groups) > trained
    assert not job.encoder.frozen


def test_views_that_do_not_serve_the_objective_are_refused(make):
    with pytest.raises(
        ValueError,
        match=r"train.phase.0: needs \['text:pooled'\], views and sidecars give \['image:pooled', 'image:tokens'\]. hint:",
    ):
        make(Phase(samples=8, global_batch=8, view=(Crop(),))).enter(0)


def test_two_views_of_one_name_are_refused(make):
    views = (Crop(), Crop(flip=True), CaptionMix())
    with pytest.raises(ValueError, match=r"two views have one name. hint:"):
        make(Phase(samples=8, global_batch=8, view=views)).enter(0)


class Whole(InfoNCE):
    """A term that looks at tokens, too."""

    def __init__(self, **options) -> None:
        super().__init__(**options)
        self.needs |= {"text:tokens", "image:tokens"}


def test_texts_are_split_by_length_unless_blocks_are_sharded_or_tokens_wanted(make, monkeypatch):
    job = make(Phase(samples=8, global_batch=8))
    job.enter(0)
    assert job.stream.split
    assert job.stream.buckets
    job = make(Phase(samples=8, global_batch=8, objective=((1.0, Whole()),)))
    job.enter(0)
    assert job.stream.buckets == ()
    monkeypatch.setattr(parallel, "is_sharded", lambda model: True)
    job = make(Phase(samples=8, global_batch=8))
    job.enter(0)
    assert not job.stream.split


def test_each_phase_has_masks_of_its_own(make):
    job = make(Phase(samples=8, global_batch=8), Phase(samples=8, global_batch=8))
    keys = [job.enter(number) and job.encoder.draw_key for number in (0, 1, 0)]
    assert keys[0] == keys[2] != keys[1]


def test_sharded_towers_keep_their_name_and_scale_in_the_next_phase(make, monkeypatch):
    job = make(
        Phase(samples=8, global_batch=8, tweak=(Resolution(image_size=48),)),
        Phase(samples=8, global_batch=8),
    )
    job.enter(0)
    before = job.encoder
    before.pretrained_logit_scale = 33.0
    before.mean.add_(1)
    monkeypatch.setattr(parallel, "is_sharded", lambda model: True)
    job.enter(1)
    assert job.encoder is not before
    assert (job.encoder.name, job.encoder.image_size) == (before.name, 48)
    assert job.encoder.pretrained_logit_scale == 33
    assert torch.equal(job.encoder.mean, before.mean)


def test_the_pretrained_scale_is_there_after_a_resume_for_terms_that_start_later(make):
    phases = [
        Phase(samples=8, global_batch=8, objective=((1.0, term),))
        for term in (Sigmoid(), InfoNCE(init_temperature=0.0))
    ]
    job = make(*phases)
    job.encoder.pretrained_logit_scale = 33.0
    job.enter(0)
    job.cursor.samples_seen = job.cursor.phase_samples = 8
    job.save()
    again = make(*phases)
    again.enter(0)
    again.enter(1)
    assert float(again.logit_scale()) == pytest.approx(33)


def test_a_longer_phase_ends_later_and_a_shorter_one_now():
    cursor = Cursor(samples_seen=48, phase_samples=48)
    assert phase_end(cursor, Phase(samples=48, global_batch=20)) == 48
    assert phase_end(cursor, Phase(samples=50, global_batch=20)) == 68
    assert phase_end(cursor, Phase(samples=16, global_batch=20)) == 48


def test_what_is_saved_is_the_state_of_the_step_though_training_goes_on(make):
    job = make(Phase(samples=8, global_batch=8))
    job.enter(0)
    job.cursor.samples_seen = 8
    before = job.encoder.clip.text_projection.detach().clone()
    path = job.save(wait=False)
    with torch.no_grad():
        job.encoder.clip.text_projection += 1
    job.writer.wait()
    saved = checkpoint.read(path)
    assert torch.equal(saved["state_dict"]["text_projection"], before)
    assert saved["state_dict"]["logit_scale"].exp().item() == pytest.approx(1 / 0.07)
    assert job.save() == path  # of the same point there is one


def test_a_checkpoint_is_asked_for_once_by_the_clock(make):
    job = make(Phase(samples=8, global_batch=8))
    assert not job.is_due()
    job.saved_at_s -= 3600
    assert job.is_due()
    assert not job.is_due()


def test_weights_that_are_not_finite_are_not_saved(make):
    job = make(Phase(samples=8, global_batch=8))
    job.enter(0)
    with torch.no_grad():
        job.encoder.clip.text_projection[0, 0] = float("nan")
    with pytest.raises(TrainingStopped, match=r"weights are not finite.*hint: in this order"):
        job.save()


def test_a_fault_of_the_writer_asks_for_a_checkpoint_before_the_clock_does():
    """So that it is raised at the next step, not minutes later."""
    settings = SimpleNamespace(checkpoint_minutes=10)
    for first, failed in ((True, True), (True, False), (False, True)):
        job = SimpleNamespace(
            settings=settings, saved_at_s=time.monotonic(), world=SimpleNamespace(is_first=first),
            writer=SimpleNamespace(failed=failed),
        )  # fmt: skip
        assert Job.is_due(job) is (first and failed)


def test_the_window_of_bad_samples_is_kept(make):
    job = make(Phase(samples=8, global_batch=8))
    job.enter(0)
    job.cursor.samples_seen, job.cursor.bad = 10**6, {"damaged": 7}
    job.bad_share = BadShare(0.01, 10**6 - 5_000, 3)
    assert not job.bad_share.fault(10**6, 7)
    job.save()
    assert make(Phase(samples=8, global_batch=8)).bad_share.saved() == [[995_000, 3], [10**6, 7]]
