"""What a plan says of time, memory and loaders, and that it is the formulas' arithmetic."""

from __future__ import annotations

import dataclasses
import json
import math
import re
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

from pipelines import training_plan
from pipelines.components import Component
from pipelines.errors import RecipeError
from pretrain.loop.settings import Phase, TrainSettings
from tests.tiny.scenes import TINY_MODEL

ROOT = Path(__file__).resolve().parent.parent.parent


def settings(*phases: Phase, **change: Any) -> TrainSettings:
    """ViT-B/32 from a file, so that nothing hangs on what is installed."""
    return TrainSettings(
        **{"model": "ViT-B-32", "out": "out", "workers": 8, "phase": phases or (phase(),), **change}
    )


def phase(**change: Any) -> Phase:
    return Phase(**{"samples": 12_800_000_000, "global_batch": 32_768, "micro_batch": 1024, **change})  # fmt: skip


def test_without_a_gpu_arithmetic_only() -> None:
    words = training_plan.words(settings(phase(micro_batch=0)))
    assert "model     151.3 M parameters" in words
    assert "44.1 GFLOP a pair (224 px, 50 + 77 tokens), 5.6e+20 FLOP" in words
    assert "33.5 where captions fit 32" in words
    assert "--gpu h200 --gpus 8" in words


def test_time_is_arithmetic_over_a_share_of_the_peak() -> None:
    words = training_plan.words(settings(phase(micro_batch=0)), "a100", 8)
    rate = 312e12 * 8 * 0.40 / 44.1e9
    assert float(re.search(r"([\d,]+) samples/s", words)[1].replace(",", "")) == pytest.approx(rate, rel=0.01)  # type: ignore[index]  # fmt: skip
    days = 12.8e9 / rate / 86_400
    assert f"about {days:.1f} days ({days * 0.8:.1f} days to {days * 1.6:.0f} days)" in words
    assert "8 x A100, 312 TFLOP/s each and 80 GB by its data sheet (79.1 GiB for PyTorch); time at 40% of that" in words  # fmt: skip
    cores = rate * 0.7e-3
    assert f"{cores / 8:.1f} cores a GPU at 0.7 ms a sample of 256 px, {math.ceil(cores)} in all" in words  # fmt: skip


def test_loaders_have_less_to_do_the_more_the_device_does() -> None:
    for change, each in (({"augment": "device"}, 0.5), ({"augment": "device", "decode": "device"}, 0.1)):  # fmt: skip
        words = training_plan.words(settings(phase(micro_batch=0), **change), "a100", 8)
        assert f"cores a GPU at {each} ms a sample of 256 px" in words


def test_memory_is_in_the_units_of_the_driver_and_the_sheet_s_word_beside_it() -> None:
    words = training_plan.words(settings(), "h200", 8)
    assert "141 GB by its data sheet (139.7 GiB for PyTorch)" in words
    assert re.search(r"memory [\d.]+ GiB of 139.7 GiB \(state [\d.]+ GiB, activations [\d.]+ GiB\)", words)  # fmt: skip
    assert not re.search(r"\d GB of|150 GB", words)


def test_buckets_beyond_the_context_are_refused_by_the_plan_too() -> None:
    with pytest.raises(RecipeError, match=r"train.text_buckets: .*more than the 77 tokens"):
        training_plan.words(settings(text_buckets=(16, 128)))


def test_what_does_not_fit_is_answered_with_what_does() -> None:
    words = training_plan.words(settings(phase(micro_batch=0)), "h100", 8)
    hint = re.search(r"does not fit. hint: micro_batch = (\d+), or activation_checkpointing", words)
    assert hint is not None
    fitting = phase(micro_batch=int(hint[1]))
    words = training_plan.words(settings(fitting), "h100", 8)
    assert ": fits" in words
    assert "accumulation included" in words
    assert f"local batch 4,096, micro batch {int(hint[1]):,}" in words
    assert ": fits" in training_plan.words(
        settings(phase(micro_batch=0), activation_checkpointing=True), "h200", 8
    )


def test_tweaks_change_the_arithmetic_and_a_resolution_stays() -> None:
    first = phase(
        tweak=(Component("resolution", {"image_size": 112}), Component("patch_drop", {"fraction": 0.5}),
               Component("text_length", {"tokens": 16}))
    )  # fmt: skip
    words = training_plan.words(settings(first, phase(), model="ViT-B-16", text_buckets=()))
    assert "(112 px, 25 + 16 tokens)" in words
    assert "(112 px, 50 + 77 tokens)" in words


def test_the_whole_is_the_sum_of_its_phases() -> None:
    long, short = phase(micro_batch=0), phase(micro_batch=0, samples=6_400_000_000)

    def days(*phases: Phase) -> list[float]:
        words = training_plan.words(settings(*phases), "a100", 8)
        return [float(found) for found in re.findall(r"about ([\d.]+) days \(", words)]

    for phases in ((long, short), (short, long)):
        *each, whole = days(*phases)
        assert len(each) == 2
        assert whole == pytest.approx(sum(each), abs=0.2)
    assert len(days(long)) == 1


def test_views_of_a_tower_are_counted() -> None:
    two = (Component("crop"), Component("crop", {"name": "other"}), Component("caption_mix"))
    one = training_plan.words(settings(phase(micro_batch=0), text_buckets=()))
    more = training_plan.words(settings(phase(micro_batch=0, view=two), text_buckets=()))
    pair, pairs = (float(re.search(r"([\d.]+) GFLOP", text)[1]) for text in (one, more))  # type: ignore[index]
    assert pairs / pair == pytest.approx(1.6, abs=0.02)


@pytest.mark.parametrize(
    ("gpu", "count", "where"),
    [("h300", 1, "--gpu"), ("h100", 7, "train.phase.0.global_batch")],
)
def test_what_can_t_be_planned_says_where(gpu: str, count: int, where: str) -> None:
    with pytest.raises(RecipeError) as fault:
        training_plan.words(settings(), gpu, count)
    assert str(fault.value).startswith(where)
    assert "hint: " in str(fault.value)


def test_a_model_of_ones_own_and_one_that_formulas_don_t_know(tmp_path: Path) -> None:
    own = tmp_path / "mine.json"
    own.write_text(json.dumps(TINY_MODEL))
    assert "GFLOP a pair (32 px, 17 + 24 tokens)" in training_plan.words(settings(model=str(own)))
    foreign = {**TINY_MODEL, "vision_cfg": {"timm_model_name": "resnet50", "image_size": 224}}
    own.write_text(json.dumps(foreign))
    assert "is not known" in training_plan.words(settings(model=str(own)), "h200", 1)
    assert training_plan.config_of("no_such_model") is None


def test_fewer_loaders_than_needed_are_answered_with_how_many() -> None:
    few = dataclasses.replace(settings(), workers=1)
    assert re.search(r"train.workers = 1: hint: at least \d+", training_plan.words(few, "h200", 8))


def test_no_torch_is_imported() -> None:
    code = (
        "import sys\nfrom pipelines import training_plan\nfrom pretrain.loop.settings import *\n"
        "training_plan.words(TrainSettings(model='vit_tiny_64', out='o', phase=(Phase(samples=8, global_batch=8),)), 'h200')\n"
        "print(sorted({'torch', 'open_clip'} & set(sys.modules)))"
    )
    done = subprocess.run(
        [sys.executable, "-c", code], cwd=ROOT, check=True, timeout=200, capture_output=True
    )
    assert done.stdout == b"[]\n"
