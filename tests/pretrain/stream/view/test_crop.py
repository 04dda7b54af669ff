import io

import numpy as np
import pytest
from PIL import Image

from pretrain.stream.batch import Sample
from pretrain.stream.order import generator
from pretrain.stream.view.crop import Crop


def sample(pixels: np.ndarray) -> Sample:
    stream = io.BytesIO()
    Image.fromarray(pixels).save(stream, "PNG")
    return Sample("key", stream.getvalue(), "")


def ramp(height: int, width: int) -> np.ndarray:
    """Red grows to the right, green downwards."""
    pixels = np.zeros((height, width, 3), np.uint8)
    pixels[:, :, 0] = np.arange(width)
    pixels[:, :, 1] = np.arange(height)[:, None]
    return pixels


def test_the_size_is_the_models_unless_given():
    assert Crop().fit(32).size == 32
    assert Crop(size=48).fit(32).size == 48


def test_a_full_crop_of_a_square_is_the_picture():
    pixels = ramp(20, 20)
    assert np.array_equal(Crop(size=20, scale=(1, 1))(sample(pixels), generator(0, "v", 0)), pixels)


def test_crops_are_square_inside_the_picture_and_everywhere():
    view = Crop(size=16, scale=(0.2, 1.0), aspect=(0.75, 1.33))
    picture = sample(ramp(60, 200))
    means = []
    for position in range(60):
        crop = view(picture, generator(0, "view.image", position))
        assert crop.shape == (16, 16, 3)
        means.append(crop[:, :, 0].mean())
    assert min(means) < 40
    assert max(means) > 160


def test_the_share_of_the_area_is_within_scale():
    view = Crop(size=8, scale=(0.3, 0.5))
    for position in range(50):
        left, top, right, bottom = view._box(100, 60, generator(1, "v", position))
        area = (right - left) * (bottom - top)
        assert 0.3 - 1e-6 <= area / 60**2 <= 0.5 + 1e-6
        assert abs((right - left) - (bottom - top)) < 1e-6
        assert left >= 0
        assert right <= 100
        assert top >= 0
        assert bottom <= 60


def test_flip_mirrors_about_half():
    view = Crop(size=20, scale=(1, 1), flip=True)
    picture = sample(ramp(20, 20))
    mirrored = [view(picture, generator(0, "v", n))[0, 0, 0] > 10 for n in range(200)]
    assert 70 < sum(mirrored) < 130


def test_the_same_position_gives_the_same_crop():
    view, picture = Crop(size=16, scale=(0.2, 1.0)), sample(ramp(50, 50))
    one, two = (view(picture, generator(0, "view.image", 7)) for _ in range(2))
    assert np.array_equal(one, two)


@pytest.mark.parametrize(
    "options", [{"scale": (0, 1)}, {"scale": (0.9, 0.5)}, {"aspect": (2, 1)}, {"size": -1}]
)
def test_impossible_options_have_a_hint(options):
    with pytest.raises(ValueError, match="hint:"):
        Crop(**options)
