import dataclasses

import pytest

from pretrain.loop.schedule import lr_at
from pretrain.loop.settings import (
    Phase,
    ShardSource,
    Sidecar,
    TrainSettings,
    check,
    check_buckets,
    doubts,
)

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
        ({"decode": "gpu"}, r'train.decode = \'gpu\'. hint: "worker" or "device"'),
        (
            {"decode": "device"},
            r'decode = "device" with augment = "worker": .* hint: augment = "device"',
        ),
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


def of_phases(*phases, **change):
    return dataclasses.replace(GOOD, phase=phases, **change)


def highest_lr(phase):
    """Of all steps; the last batch is a whole one."""
    ends = range(phase.global_batch, phase.samples + phase.global_batch, phase.global_batch)
    return max(lr_at(phase, end) for end in ends)


@pytest.mark.parametrize(
    ("samples", "warmup", "told"),
    [
        (100, 99, ""), (100, 100, "is reached with the last step only"), (100, 101, "rises to"), (96, 100, "rises to"),
        (95, 100, "rises to"), (101, 104, "is reached with the last step only"), (102, 103, "rises to"), (8, 100, "rises to"),
    ],
)  # fmt: skip
def test_a_warmup_longer_than_its_phase_is_told_with_the_lr_it_gets_to(samples, warmup, told):
    phase = Phase(samples=samples, global_batch=4, warmup_samples=warmup, lr=0.5)
    found = doubts(of_phases(phase))
    assert len(found) == bool(told)
    if told:
        assert (
            f"train.phase.0: a warm-up of {warmup} samples in a phase of {samples}: lr " in found[0]
        )
        assert told in found[0]
        assert "hint: warmup_samples well below" in found[0]
        if "rises" in told:
            most = float(found[0].split("rises to ")[1].split(" ")[0])
            assert most == pytest.approx(highest_lr(phase), rel=0.005)
    check(of_phases(phase))


def test_a_phase_of_warmup_alone_is_no_doubt_where_another_follows():
    warm, rest = (Phase(samples=100, global_batch=4, warmup_samples=warmup) for warmup in (100, 0))
    assert doubts(of_phases(warm, rest)) == []
    assert doubts(of_phases(rest, warm))[0].startswith("train.phase.1: ")
    assert doubts(of_phases(dataclasses.replace(warm, lr=0.0))) == []


def test_a_warmup_a_hundred_times_its_phase_is_refused():
    fine = Phase(samples=100, global_batch=4, warmup_samples=10_000)
    check(of_phases(fine))
    wrong = dataclasses.replace(fine, warmup_samples=10_001)
    with pytest.raises(
        ValueError, match=r"train.phase.0.warmup_samples = 10,001 .* hint: .* or 0 for a trial"
    ):
        check(of_phases(wrong))
    check(of_phases(dataclasses.replace(wrong, lr=0.0)))


def test_buckets_no_caption_can_reach_are_refused_unless_they_are_the_default():
    wrong = dataclasses.replace(GOOD, text_buckets=(16, 78, 128))
    with pytest.raises(
        ValueError,
        match=r"train.text_buckets = \[16, 78, 128\]: 78 is more than the 77 tokens .* hint: \[16\]; ",
    ):
        check_buckets(wrong, 77)
    for buckets, context in (((16, 77), 77), ((), 77), (TrainSettings.text_buckets, 24)):
        check_buckets(dataclasses.replace(GOOD, text_buckets=buckets), context)
