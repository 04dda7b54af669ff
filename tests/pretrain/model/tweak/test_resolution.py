"""Another size of pictures: positions resampled, the crop follows, open_clip reads the checkpoint."""

from typing import Any

import pytest
import torch

from pretrain.model import encoder as towers
from pretrain.model import positions
from pretrain.model.encoder import DualEncoder, build, from_config, load
from pretrain.model.tweak.resolution import Resolution
from pretrain.stream.view.crop import Crop
from tests.tiny import scenes


@pytest.fixture
def encoder(tmp_path) -> DualEncoder:
    torch.manual_seed(0)
    return build(scenes.write_model(tmp_path))


def pictures(size_px: int) -> torch.Tensor:
    return torch.randint(0, 256, (2, size_px, size_px, 3), dtype=torch.uint8)


def test_positions_and_everything_that_tells_the_size_follow(encoder):
    visual: Any = encoder.clip.visual
    table = visual.positional_embedding.detach().clone()
    Resolution(image_size=64).apply(encoder)
    torch.testing.assert_close(visual.positional_embedding, positions.resampled(table, 8))
    assert visual.positional_embedding.requires_grad
    assert (encoder.image_size, encoder.config["vision_cfg"]["image_size"]) == (64, 64)
    assert Crop().fit(encoder.image_size).size == 64
    assert encoder.encode_image(pictures(64)).shape == (2, 64)


def test_it_stays_when_the_phase_ends_and_does_nothing_twice(encoder):
    Resolution(image_size=64).apply(encoder)
    table = encoder.clip.visual.positional_embedding
    encoder.thaw()
    Resolution(image_size=64).apply(encoder)
    assert encoder.clip.visual.positional_embedding is table
    assert encoder.image_size == 64


def test_a_checkpoint_is_read_by_us_and_by_open_clip(encoder, tmp_path):
    Resolution(image_size=64).apply(encoder)
    path = str(tmp_path / "c.pt")
    torch.save({"model": encoder.described(), "state_dict": encoder.weights(10.0)}, path)
    images = pictures(64)
    reference = (images.permute(0, 3, 1, 2) - encoder.mean) / encoder.std
    name = encoder.name
    encoder.eval()
    with torch.no_grad():
        expected = encoder.encode_image(images)
        mine = load(path)
        assert mine.image_size == 64
        assert torch.equal(mine.encode_image(images), expected)
        # By the name of the small model and the size, and at the small size by resampling back.
        open_clip = towers.import_open_clip()
        theirs = open_clip.create_model(name, pretrained=path, force_image_size=64).eval()
        torch.testing.assert_close(theirs.encode_image(reference), expected, rtol=1e-4, atol=1e-5)
        assert open_clip.create_model(name, pretrained=path).visual.image_size == (32, 32)


def test_fixed_waves_are_made_anew_and_never_train():
    vision = {**scenes.TINY_MODEL["vision_cfg"], "pos_embed_type": "sin_cos_2d"}  # type: ignore[dict-item]
    encoder = from_config("resolution_waves", {**scenes.TINY_MODEL, "vision_cfg": vision})
    Resolution(image_size=64).apply(encoder)
    encoder.thaw()
    table = encoder.clip.visual.positional_embedding
    assert torch.equal(table, positions.sin_cos(8, 64))
    assert not table.requires_grad


def test_what_cannot_be_has_a_hint(encoder):
    with pytest.raises(ValueError, match=r"patch of 8 px. hint: image_size = 64"):
        Resolution(image_size=62).apply(encoder)
    with pytest.raises(ValueError, match=r"image_size = 0. hint:"):
        Resolution(image_size=0)
    vision = {"image_size": 32, "layers": [1, 1, 1, 1], "width": 8, "head_width": 32}
    resnet = from_config("resolution_resnet", {**scenes.TINY_MODEL, "vision_cfg": vision})
    with pytest.raises(ValueError, match=r"no vision transformer of open_clip's own. hint:"):
        Resolution(image_size=64).apply(resnet)
