import pytest
import torch

from pretrain.loop.job import Cursor, Job, TrainingStopped, phase_end
from pretrain.loop.settings import Phase, ShardSource, TrainSettings
from pretrain.loop.world import World
from pretrain.model.tweak.freeze import Freeze
from pretrain.objective.infonce import InfoNCE
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
        return Job(
            settings, world, seed=0, data_hash="", recipe_text="", resume=True, progress=None
        )

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
        match=r"train.phase.0: needs \['text:pooled'\], views give \['image:pooled'\]. hint:",
    ):
        make(Phase(samples=8, global_batch=8, view=(Crop(),))).enter(0)


def test_two_views_of_one_name_are_refused(make):
    views = (Crop(), Crop(flip=True), CaptionMix())
    with pytest.raises(ValueError, match=r"two views have one name. hint:"):
        make(Phase(samples=8, global_batch=8, view=views)).enter(0)


def test_weights_that_are_not_finite_are_not_saved(make):
    job = make(Phase(samples=8, global_batch=8))
    job.enter(0)
    with torch.no_grad():
        job.encoder.clip.text_projection[0, 0] = float("nan")
    with pytest.raises(TrainingStopped, match=r"not finite. hint: lower lr"):
        job.save()
