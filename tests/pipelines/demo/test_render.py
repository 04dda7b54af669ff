"""Pictures: a pure function of their description, with the right colours, visible at 64 px."""

from __future__ import annotations

import io

import numpy as np
import pytest

from pipelines.demo import lettering, render
from pipelines.demo.render import Picture, draw, jpeg
from pipelines.demo.scene import (
    BACKGROUNDS,
    COLOURS,
    SHAPES,
    TEXTURES,
    Scene,
    Thing,
    dice,
    raw_scene,
)


def single(
    shape: str = "circle",
    colour: str = "red",
    texture: str = "plain",
    size: str = "large",
    count: int = 1,
) -> Scene:
    return Scene((Thing(shape, colour, texture, size, count),), "", "concrete")


def things_mask(scene: Scene, seed: int) -> np.ndarray:
    """Where the things are: the picture against the same one without them."""
    with_things = draw(Picture(scene, seed)).astype(int)
    without = draw(Picture(scene, seed, poster=True)).astype(int)
    return np.abs(with_things - without).sum(axis=2) > 60


def test_same_description_same_bytes():
    for index in range(10):
        picture = Picture(raw_scene(dice(0, "scene", index)), index)
        assert jpeg(picture) == jpeg(picture)
    assert jpeg(Picture(single(), 1)) != jpeg(Picture(single(), 2))


def test_jpegs_are_rgb_of_about_256_px():
    from PIL import Image

    for index in range(20):
        with Image.open(
            io.BytesIO(jpeg(Picture(raw_scene(dice(0, "scene", index)), index)))
        ) as image:
            assert image.format == "JPEG"
            assert image.mode == "RGB"
            assert all(256 <= side <= 320 for side in image.size)


@pytest.mark.parametrize("colour", COLOURS)
def test_a_thing_has_its_colour(colour: str):
    scene = single("circle", colour)
    for seed in range(3):
        found = draw(Picture(scene, seed))[things_mask(scene, seed)].astype(float)
        distance = {
            name: np.abs(np.median(found, axis=0) - rgb).sum()
            for name, rgb in render._COLOUR_RGB.items()
        }
        assert min(distance, key=distance.__getitem__) == colour


@pytest.mark.parametrize("shape", SHAPES)
@pytest.mark.parametrize("texture", TEXTURES)
def test_every_shape_and_texture_shows_and_is_not_cut(shape: str, texture: str):
    scene = single(shape, "blue", texture)
    mask = things_mask(scene, 4)
    assert 0.03 < mask.mean() < 0.35
    border = np.concatenate([mask[0], mask[-1], mask[:, 0], mask[:, -1]])
    assert not border.any()


def test_textures_differ_in_their_second_tone():
    cv2 = pytest.importorskip("cv2")
    spread = {}
    for texture in TEXTURES:
        scene = single("square", "yellow", texture)
        inside = cv2.erode(things_mask(scene, 3).astype(np.uint8), np.ones((25, 25), np.uint8)) > 0
        spread[texture] = draw(Picture(scene, 3))[inside].std(axis=0).mean()
    assert all(spread[texture] > 3 * spread["plain"] for texture in TEXTURES[1:]), spread


def test_small_things_show_at_64_px():
    cv2 = pytest.importorskip("cv2")
    for count in (1, 2, 3):
        scene = single("cross", "black", "plain", "small", count)
        mask = things_mask(scene, 6).astype(np.float32)
        assert (cv2.resize(mask, (64, 64), interpolation=cv2.INTER_AREA) > 0.5).sum() >= 12 * count


@pytest.mark.parametrize("count", [1, 2, 3])
def test_as_many_things_as_said(count: int):
    cv2 = pytest.importorskip("cv2")
    for seed in range(4):
        mask = things_mask(single("circle", "red", "plain", "medium", count), seed).astype(np.uint8)
        opened = cv2.morphologyEx(mask, cv2.MORPH_OPEN, np.ones((7, 7), np.uint8))
        assert cv2.connectedComponents(opened)[0] - 1 == count


@pytest.mark.parametrize(
    ("relation", "axis", "sign"),
    [("left of", 1, -1), ("right of", 1, 1), ("above", 0, -1), ("below", 0, 1)],
)
def test_relations_hold_in_pixels(relation: str, axis: int, sign: int):
    scene = Scene(
        (Thing("circle", "red", "plain", "large"), Thing("circle", "blue", "plain", "large")),
        relation,
        "concrete",
    )
    image = draw(Picture(scene, 2)).astype(int)
    red = np.argwhere((image[..., 0] > 150) & (image[..., 2] < 90)).mean(axis=0)
    blue = np.argwhere((image[..., 2] > 150) & (image[..., 0] < 90)).mean(axis=0)
    assert sign * (red[axis] - blue[axis]) > 60


@pytest.mark.parametrize("background", BACKGROUNDS)
def test_backgrounds_are_noisy_and_muted(background: str):
    image = draw(
        Picture(Scene((Thing("circle", "red", "plain", "small"),), "", background), 1, poster=True)
    ).astype(float)
    assert image.std(axis=(0, 1)).min() > 4
    mean = image.mean(axis=(0, 1))
    assert mean.max() - mean.min() < 90


def test_a_poster_shows_its_lettering_only():
    scene = single()
    words = lettering.parroting(scene, dice(0, "l"))
    poster = draw(Picture(scene, 5, words, poster=True))
    bare = draw(Picture(scene, 5, poster=True))
    changed = (poster != bare).any(axis=2)
    assert 0.01 < changed.mean() < 0.5
