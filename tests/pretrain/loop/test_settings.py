import dataclasses

import pytest

from pretrain.loop.settings import Phase, ShardSource, Sidecar, TrainSettings, check

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
        ({"augment": "gpu"}, r'train.augment = \'gpu\'. hint: "worker" or "device"'),
        ({"parallel": "dp"}, r'train.parallel = \'dp\'. hint: "auto", "ddp" or "fsdp"'),
        ({"compile": "yes"}, r'train.compile = \'yes\'. hint: "auto", "on" or "off"'),
        ({"loggers": ("mlflow",)}, r"train.loggers = 'mlflow'. hint: any of tensorboard, wandb"),
        ({"text_buckets": (32, 16)}, r"train.text_buckets = \[32, 16\]. hint: lengths"),
        ({"text_buckets": (1, 16)}, r"train.text_buckets = \[1, 16\]. hint: lengths"),
        ({"ema_decay": 1.0}, r"train.ema_decay = 1.0. hint: from 0 \(none\) to just below 1"),
        ({"cache_gb": 0.0}, r"train.cache_gb = 0.0. hint: gigabytes"),
        ({"stuck_steps": -1}, r"train.stuck_steps = -1. hint: at least 0"),
        ({"keep_every_samples": -1}, r"train.keep_every_samples = -1. hint: at least 0"),
        (
            {"sidecar": (Sidecar(path="x", use="text"),)},
            r"train.sidecar.0.use = 'text'. hint: \"captions\"",
        ),
        ({"sidecar": (Sidecar(path="", use="keep"),)}, r"train.sidecar.0.path is empty. hint:"),
        ({"sidecar": (Sidecar(path="x", use="keep", missing="no"),)}, r"missing = 'no'. hint:"),
        (
            {"sidecar": (Sidecar(path="x", use="keep", name="n"),)},
            r"name = 'n' with use = 'keep'. hint:",
        ),
        (
            {"sidecar": (Sidecar(path="x", use="features"),) * 2},
            r"sidecar.1: two sidecars give features 'features'. hint:",
        ),
    ],
)
def test_impossible_settings_say_where(change, message):
    with pytest.raises(ValueError, match=message):
        check(dataclasses.replace(GOOD, **change))


@pytest.mark.parametrize(
    "change",
    [
        {"samples": 0},
        {"global_batch": 0},
        {"lr": -1.0},
        {"micro_batch": -1},
        {"beta2": 1.0},
        {"grad_clip_norm": -1.0},
    ],
)
def test_impossible_phases_say_which(change):
    wrong = dataclasses.replace(GOOD.phase[1], **change)
    with pytest.raises(ValueError, match=rf"train.phase.1.{next(iter(change))} = .* hint:"):
        check(dataclasses.replace(GOOD, phase=(GOOD.phase[0], wrong)))


@pytest.mark.parametrize(
    ("ranks", "batch", "micro", "message"),
    [
        (3, 16, 0, r"phase.1.global_batch = 16 does not divide over 3 ranks, .* e.g. 15 or 18$"),
        (2, 48, 7, r"phase.1.micro_batch = 7 does not divide the 24 rows that each of 2 ranks has. hint: e.g. 8$"),
        (1, 64, 33, r"phase.1.micro_batch = 33 does not divide the 64 rows .* hint: e.g. 32$"),
    ],
)  # fmt: skip
def test_batches_that_do_not_divide_say_what_would(ranks, batch, micro, message):
    wrong = dataclasses.replace(GOOD.phase[1], global_batch=batch, micro_batch=micro)
    settings = dataclasses.replace(
        GOOD, phase=(dataclasses.replace(wrong, global_batch=48, micro_batch=0), wrong)
    )
    check(settings)
    with pytest.raises(ValueError, match=message):
        check(settings, ranks)
    check(
        dataclasses.replace(
            GOOD, phase=(dataclasses.replace(wrong, global_batch=48, micro_batch=100),)
        ),
        3,
    )
