import io

import numpy as np
import pytest
from PIL import Image

from pretrain.stream import picture
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


def photograph(height: int, width: int) -> np.ndarray:
    y, x = np.mgrid[:height, :width]
    waves = [np.sin(x / 11 + n) * 60 + np.cos(y / (8 + n)) * 60 + 128 for n in range(3)]
    noise = np.random.default_rng(1).normal(0, 10, (height, width, 3))
    return np.clip(np.stack(waves, 2) + noise, 0, 255).astype(np.uint8)


@pytest.mark.parametrize(("height", "width", "size"), [(256, 300, 224), (90, 70, 64), (50, 60, 96)])
@pytest.mark.parametrize(("aspect", "least_db"), [((1.0, 1.0), 60), ((0.8, 1.25), 50)])
def test_pixels_are_pillows_bicubic_to_a_level_or_two(height, width, size, aspect, least_db):
    # Pillow's newer releases go down first where that is cheaper, and round in between.
    view = Crop(size=size, scale=(0.6, 1.0), aspect=aspect)
    pixels = photograph(height, width)
    for position in range(4):
        cut, mirrored = view.cut(sample(pixels), generator(3, "v", position))
        wanted = np.asarray(Image.fromarray(cut).resize((size, size), Image.Resampling.BICUBIC))
        found = view(sample(pixels), generator(3, "v", position))
        difference = np.abs(found.astype(int) - wanted)
        assert not mirrored
        assert difference.max() <= (2 if aspect == (1.0, 1.0) else 5)
        assert 10 * np.log10(255**2 / max((difference**2).mean(), 1e-9)) > least_db


def test_a_mirrored_crop_is_the_same_crop_mirrored():
    picture_of = sample(photograph(60, 80))
    plain, mirroring = Crop(size=24), Crop(size=24, flip=True)
    seen = set()
    for position in range(12):
        one = plain(picture_of, generator(0, "v", position))
        two = mirroring(picture_of, generator(0, "v", position))
        seen.add(np.array_equal(one, two))
        assert np.array_equal(one, two) or np.array_equal(one[:, ::-1], two)
    assert seen == {True, False}


def test_large_jpegs_are_decoded_smaller_only_as_far_as_the_crop_allows(monkeypatch):
    stream = io.BytesIO()
    coarse = Image.fromarray(photograph(26, 40))
    coarse.resize((400, 260), Image.Resampling.BICUBIC).save(stream, "JPEG", quality=95)
    asked = []
    real = picture.decode_rgb
    monkeypatch.setattr(
        "pretrain.stream.batch.decode_rgb",
        lambda data, shrink: asked.append(shrink) or real(data, shrink),
    )
    for size in (32, 64, 65, 130, 200, 260):
        small = Crop(size=size, scale=(1, 1))
        whole = Crop(size=size, scale=(1, 1), scaled_decode=False)
        one, two = (
            view(Sample("key", stream.getvalue(), ""), generator(0, "v", 1))
            for view in (small, whole)
        )
        assert np.abs(one.astype(int) - two).mean() < 6
    assert asked == [8, 1, 4, 1, 4, 1, 2, 1, 1, 1, 1, 1]


def test_two_views_of_one_sample_do_not_change_each_other():
    stream = io.BytesIO()
    Image.fromarray(photograph(256, 256)).save(stream, "JPEG")
    large, small = Crop(size=200), Crop(size=32, name="small")
    both = Sample("key", stream.getvalue(), "")
    small(both, generator(0, "v", 1))
    alone = large(Sample("key", stream.getvalue(), ""), generator(0, "v", 2))
    assert np.array_equal(large(both, generator(0, "v", 2)), alone)


def test_one_pixel_is_a_picture():
    assert (
        Crop(size=8)(sample(ramp(1, 1) + 9), generator(0, "v", 0)).tolist() == [[[9] * 3] * 8] * 8
    )
    assert Crop(size=8)(sample(ramp(1, 500)), generator(0, "v", 0)).shape == (8, 8, 3)


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
