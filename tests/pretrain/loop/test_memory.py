"""The formula for activations against what autograd really keeps, and what the options do."""

from __future__ import annotations

from typing import Any

import pytest
import torch

from pretrain.loop import flops, memory
from pretrain.model import encoder
from tests.tiny.scenes import TINY_MODEL

CONFIG = {
    "embed_dim": 64,
    "vision_cfg": {**TINY_MODEL["vision_cfg"], "layers": 4, "width": 128},
    "text_cfg": {**TINY_MODEL["text_cfg"], "layers": 4, "width": 128, "vocab_size": 1000},
}


def kept_bytes(model: encoder.DualEncoder, rows: int) -> int:
    """Bytes of distinct storages that backward needs, under bf16 autocast."""
    kept: dict[int, torch.Tensor] = {}

    def pack(saved: torch.Tensor) -> torch.Tensor:
        kept[saved.untyped_storage().data_ptr()] = saved
        return saved

    images = torch.zeros(rows, 32, 32, 3, dtype=torch.uint8)
    words = torch.randint(1, 900, (rows, 24))
    hooks = torch.autograd.graph.saved_tensors_hooks(pack, lambda saved: saved)
    with hooks, torch.autocast("cpu", torch.bfloat16):
        features = model.encode_image(images), model.encode_text(words)
    assert all(rows.requires_grad for rows in features)
    return sum(saved.untyped_storage().nbytes() for saved in kept.values())


def test_activations_are_what_autograd_keeps() -> None:
    model = encoder.from_config("tiny_for_memory", CONFIG)
    towers = flops.of_config(CONFIG)
    assert towers is not None
    measured = (kept_bytes(model, 24) - kept_bytes(model, 8)) / 16
    predicted = memory.of(towers, rows=1, local_batch=1, global_batch=1).row_bytes
    assert predicted == pytest.approx(measured, rel=0.25)


def taken(**change: Any) -> memory.Memory:
    towers = flops.of_config(encoder.import_open_clip().get_model_config("ViT-B-32"))
    assert towers is not None
    for tower in change.pop("freeze", ()):
        towers = towers.tweaked("freeze", {"tower": tower})
    usual = {"rows": 1024, "local_batch": 1024, "global_batch": 8192}
    return memory.of(towers, **{**usual, **change})


def test_state_is_what_is_kept_of_each_parameter() -> None:
    count = 151_277_313
    assert taken().state == pytest.approx((4 + 4 + 8 + 2) * count, rel=1e-6)
    assert taken(ema=True).state - taken().state == pytest.approx(4 * count)
    assert taken(shards=8).state == pytest.approx(taken().state / 8)
    assert taken(freeze=["image"]).state < taken().state - 10 * 80e6


def test_what_makes_a_run_smaller() -> None:
    assert taken(rows=256).activations == pytest.approx(taken().activations / 4)
    assert taken(checkpointed=True).activations < taken().activations / 4
    assert taken(freeze=["image"]).activations < 0.6 * taken().activations
    assert taken(bf16=False).activations > 1.9 * taken().activations


def test_most_rows_just_fit() -> None:
    rows = taken().most_rows(80e9)
    assert taken(rows=rows).total <= 80e9 < taken(rows=rows + 1).total
    assert taken().most_rows(1e9) == 0
