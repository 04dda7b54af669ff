import dataclasses

import pytest

from pretrain.loop.settings import Phase, ShardSource, TrainSettings, check

GOOD = TrainSettings(
    model="vit_tiny_64",
    out="out",
    shards=(ShardSource(path="shards"),),
    phase=(Phase(samples=10, global_batch=2), Phase(samples=10, global_batch=2)),
)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"phase": ()}, r"no phase or no shards. hint:"),
        ({"shards": ()}, r"no phase or no shards. hint:"),
        ({"precision": "fp8"}, r"train.precision = 'fp8'. hint: \"bf16\" or \"fp32\""),
        ({"workers": -1}, r"train.workers = -1. hint: at least 0"),
        ({"keep_checkpoints": 0}, r"train.keep_checkpoints = 0. hint: at least 1"),
        ({"max_bad_frac": 1.5}, r"train.max_bad_frac = 1.5. hint: a share"),
        ({"checkpoint_minutes": float("nan")}, r"train.checkpoint_minutes = nan. hint:"),
    ],
)
def test_impossible_settings_say_where(change, message):
    with pytest.raises(ValueError, match=message):
        check(dataclasses.replace(GOOD, **change))


@pytest.mark.parametrize(
    "change",
    [{"samples": 0}, {"global_batch": 0}, {"lr": -1.0}, {"beta2": 1.0}, {"grad_clip_norm": -1.0}],
)
def test_impossible_phases_say_which(change):
    wrong = dataclasses.replace(GOOD.phase[1], **change)
    with pytest.raises(ValueError, match=rf"train.phase.1.{next(iter(change))} = .* hint:"):
        check(dataclasses.replace(GOOD, phase=(GOOD.phase[0], wrong)))
