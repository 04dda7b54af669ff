"""FLOPs against torch's own counter, parameters against the real models, and the table of published models."""

import pytest
import torch
from torch.utils.flop_counter import FlopCounterMode

from pretrain.loop import flops
from pretrain.loop.flops import of_config
from pretrain.model import encoder
from tests.tiny.scenes import TINY_MODEL

open_clip = encoder.import_open_clip()


def towers_of(name: str) -> flops.Towers:
    found = of_config(open_clip.get_model_config(name))
    assert found is not None
    return found


def made(name: str):
    with torch.device("meta"):
        return open_clip.create_model(name, device="meta", load_weights=False)


def counted(model, image_px: int, tokens: int, backward: bool = True) -> float:
    rows = 2
    with FlopCounterMode(display=False) as counter:
        features = model.encode_image(torch.zeros(rows, 3, image_px, image_px, device="meta"))
        words = model.encode_text(torch.zeros(rows, tokens, dtype=torch.long, device="meta"))
        if backward:
            (features.sum() + words.sum()).backward()
    return counter.get_total_flops() / rows


@pytest.mark.parametrize("name", ["vit_tiny_64", "ViT-B-32"])
def test_formula_is_within_two_percent_of_torchs_counter(name: str) -> None:
    towers = towers_of(name)
    model = made(name)
    args = towers.image.image_px, towers.text.tokens
    assert towers.train_flops() == pytest.approx(counted(model, *args), rel=0.02)
    forward = towers.image.forward_flops + towers.text.forward_flops
    assert forward == pytest.approx(counted(model, *args, backward=False), rel=0.02)
    assert towers.parameters == sum(p.numel() for p in model.parameters())


@pytest.mark.parametrize(
    ("name", "tweaks", "gflop"),
    [
        ("ViT-B-32", {}, 44.3),
        ("ViT-B-16", {}, 123.3),
        ("ViT-L-14", {}, 526),
        ("ViT-H-14", {}, 1145),
        ("ViT-B-16", {"patch_drop": {"fraction": 0.5}, "text_length": {"tokens": 32}}, 59.6),
        ("ViT-B-16", {"resolution": {"image_size": 112}, "text_length": {"tokens": 16}}, 29.6),
        ("ViT-L-14", {"patch_drop": {"fraction": 0.5}, "text_length": {"tokens": 32}}, 256),
        ("ViT-L-14", {"resolution": {"image_size": 112}, "text_length": {"tokens": 16}}, 127),
    ],
)
def test_published_shapes(name: str, tweaks: dict[str, dict[str, float]], gflop: float) -> None:
    towers = towers_of(name)
    for tweak, options in tweaks.items():
        towers = towers.tweaked(tweak, options)
    assert towers.train_flops() / 1e9 == pytest.approx(gflop, rel=0.01)


def test_frozen_towers_and_what_is_computed_again() -> None:
    towers = towers_of("ViT-B-16")
    frozen = towers.tweaked("freeze", {"tower": "image"})
    assert frozen.image.train_flops == towers.image.forward_flops
    assert frozen.text.train_flops == 3 * towers.text.forward_flops
    assert frozen.trained_parameters == towers.text.parameters
    plain = towers.train_flops()
    again = towers.executed_flops(accumulated=True)
    assert again / plain == pytest.approx(4 / 3, rel=0.01)
    assert towers.executed_flops(checkpointed=True) / plain == pytest.approx(4 / 3, rel=0.02)
    assert towers.executed_flops(2, 1) == 2 * towers.image.train_flops + towers.text.train_flops


def test_towers_that_are_not_open_clips_own_are_not_known() -> None:
    assert of_config(open_clip.get_model_config("ViT-B-16-SigLIP")) is None
    assert of_config(open_clip.get_model_config("RN50")) is None
    assert of_config(TINY_MODEL) is not None
    towers = towers_of("ViT-B-32")
    assert towers.tweaked("of_my_lab", {"size": 3}) == towers


def test_our_own_towers_do_a_little_less_of_it() -> None:
    """The last block finishes only the pooled token; MFU is told of the model as published."""
    towers = towers_of("ViT-B-32")
    clip = made("ViT-B-32")
    clip.logit_scale = torch.nn.Parameter(torch.zeros(()))  # its value is read
    config = open_clip.get_model_config("ViT-B-32")
    ours = encoder.DualEncoder(clip, "ViT-B-32", config, None).to("meta")
    share = counted(ours, 224, 77) / towers.train_flops()
    assert 0.90 < share < 1.0
