"""Scenes to pixels: textured shapes with shading and shadow on photographic-noise backgrounds.

A picture is a pure function of its description. About 256 px, JPEG. Backgrounds have muted colours
and 1/f noise, like out-of-focus ground; shapes keep at least a tenth of the short side, so that
they can be seen at 64 px.
"""

from __future__ import annotations

from dataclasses import dataclass
from functools import cache, lru_cache

import numpy as np

from pipelines.demo import lettering
from pipelines.demo.lettering import Lettering
from pipelines.demo.scene import Scene, Thing, dice

JPEG_QUALITY = 88
_SIZES_PX = ((256, 256), (256, 256), (288, 256), (256, 288), (320, 256))
_COLOUR_RGB = {
    "red": (205, 32, 38),
    "blue": (36, 72, 200),
    "green": (28, 150, 58),
    "yellow": (240, 212, 40),
    "purple": (130, 48, 165),
    "orange": (240, 130, 24),
    "white": (244, 244, 240),
    "black": (24, 24, 28),
}
_BACKGROUND_RGB = {
    "grass": (118, 136, 92),
    "sand": (190, 172, 138),
    "sky": (150, 172, 192),
    "wood": (146, 116, 90),
    "paper": (206, 202, 192),
    "concrete": (132, 132, 134),
}
_NOISE_STRENGTH = {
    "grass": 30.0,
    "sand": 16.0,
    "sky": 12.0,
    "wood": 20.0,
    "paper": 7.0,
    "concrete": 16.0,
}
_RADIUS_FRAC = {"small": 0.13, "medium": 0.2, "large": 0.27}
_CROWD_SCALE = {1: 1.0, 2: 0.72, 3: 0.56}
_PAIR_CENTRES = {
    "left of": ((0.28, 0.5), (0.72, 0.5)),
    "right of": ((0.72, 0.5), (0.28, 0.5)),
    "above": ((0.5, 0.28), (0.5, 0.72)),
    "below": ((0.5, 0.72), (0.5, 0.28)),
}
_PAIR_SCALE = 0.74
_NOISE_SIDE_PX = 1024
_SUBPIXEL_BITS = 4


@dataclass(frozen=True)
class Picture:
    """Everything a picture is made of. A poster shows its lettering and no things."""

    scene: Scene
    seed: int
    lettering: Lettering | None = None
    poster: bool = False


def jpeg(picture: Picture) -> bytes:
    """The picture as a JPEG file."""
    import cv2

    done, data = cv2.imencode(
        ".jpg",
        cv2.cvtColor(draw(picture), cv2.COLOR_RGB2BGR),
        [cv2.IMWRITE_JPEG_QUALITY, JPEG_QUALITY],
    )
    if not done:
        raise RuntimeError(
            f"cv2 could not encode the picture with seed {picture.seed}. hint: check the opencv install"
        )
    return data.tobytes()


def draw(picture: Picture) -> np.ndarray:
    """The picture as RGB uint8, shape (H, W, 3), 256 to 320 px a side."""
    rng = dice(picture.seed, "picture")
    width_px, height_px = _SIZES_PX[int(rng.integers(len(_SIZES_PX)))]
    image = _background(picture.scene.background, width_px, height_px, rng)
    if not picture.poster:
        for thing, centre, radius_px in _placed(picture.scene, width_px, height_px, rng):
            _draw_thing(image, thing, centre, radius_px, rng)
    image_HWC = np.clip(image, 0, 255).astype(np.uint8)
    if picture.lettering is not None:
        image_HWC = lettering.write(image_HWC, picture.lettering)
    return image_HWC


@lru_cache(maxsize=1)
def _noise_field() -> np.ndarray:
    """1/f noise, float32, shape (1024, 1024), unit variance: each picture cuts its window from it."""
    rng = np.random.default_rng(2023)
    side = _NOISE_SIDE_PX
    spectrum = np.fft.rfft2(rng.standard_normal((side, side)))
    frequency = np.hypot(np.fft.fftfreq(side)[:, None], np.fft.rfftfreq(side)[None, :])
    frequency[0, 0] = np.inf
    field = np.fft.irfft2(spectrum / (frequency + 1.5 / side), s=(side, side))
    return (field / field.std()).astype(np.float32)


def _noise_window(width_px: int, height_px: int, rng: np.random.Generator) -> np.ndarray:
    field = _noise_field()
    x, y = (int(rng.integers(_NOISE_SIDE_PX - extent)) for extent in (width_px, height_px))
    window = field[y : y + height_px, x : x + width_px]
    return window[:: 1 if rng.random() < 0.5 else -1, :: 1 if rng.random() < 0.5 else -1]


def _background(name: str, width_px: int, height_px: int, rng: np.random.Generator) -> np.ndarray:
    """Base colour, a slow gradient across, 1/f brightness noise and sensor grain. Float32 (H, W, 3)."""
    base = np.array(_BACKGROUND_RGB[name], np.float32) + rng.normal(0, 7, 3).astype(np.float32)
    slope_x, slope_y = rng.normal(0, 14, 2)
    ramp = (
        np.linspace(-slope_x, slope_x, width_px, dtype=np.float32)[None, :]
        + np.linspace(-slope_y, slope_y, height_px, dtype=np.float32)[:, None]
    )
    light = ramp + _noise_window(width_px, height_px, rng) * np.float32(_NOISE_STRENGTH[name])
    grain = rng.integers(-8, 9, (height_px, width_px), dtype=np.int8)
    return base + (light + grain)[:, :, None]


def _placed(
    scene: Scene, width_px: int, height_px: int, rng: np.random.Generator
) -> list[tuple[Thing, tuple[float, float], float]]:
    """Each single object with its centre and radius in pixels."""
    short_px = min(width_px, height_px)
    scale = _PAIR_SCALE if len(scene.things) > 1 else _CROWD_SCALE[scene.things[0].count]
    if len(scene.things) > 1:
        centres = list(_PAIR_CENTRES[scene.relation])
        things = list(scene.things)
    else:
        centres = _crowd_centres(scene.things[0].count, rng)
        things = [scene.things[0]] * len(centres)
    jitter = 0.08 if len(centres) == 1 else 0.03
    placed = []
    for thing, (x, y) in zip(things, centres, strict=True):
        radius_px = _RADIUS_FRAC[thing.size] * scale * short_px * float(rng.uniform(0.92, 1.08))
        dx, dy = rng.uniform(-jitter, jitter, 2) * short_px
        placed.append((thing, (x * width_px + float(dx), y * height_px + float(dy)), radius_px))
    return placed


def _crowd_centres(count: int, rng: np.random.Generator) -> list[tuple[float, float]]:
    """Where one, two or three equal objects stand: evenly round the middle, turned at random."""
    if count == 1:
        return [(0.5, 0.5)]
    turn = float(rng.uniform(0, 2 * np.pi))
    angles = [turn + 2 * np.pi * number / count for number in range(count)]
    return [
        (0.5 + 0.24 * float(np.cos(angle)), 0.5 + 0.24 * float(np.sin(angle))) for angle in angles
    ]


def _draw_thing(
    image: np.ndarray,
    thing: Thing,
    centre: tuple[float, float],
    radius_px: float,
    rng: np.random.Generator,
) -> None:
    """Blend one object and its shadow into ``image`` (float32 RGB), in its bounding box only."""
    import cv2

    tilt = float(rng.uniform(-0.2, 0.2))
    pad_px = int(radius_px * 1.6) + 6
    left, top = (round(at) - pad_px for at in centre)
    x0, y0 = max(left, 0), max(top, 0)
    x1, y1 = min(left + 2 * pad_px, image.shape[1]), min(top + 2 * pad_px, image.shape[0])
    if x1 <= x0 or y1 <= y0:
        return
    mask = _mask(thing.shape, 2 * pad_px, radius_px, tilt)
    shadow = cv2.blur(mask, (7, 7))
    shift = max(2, int(radius_px * 0.08))
    shadow = np.roll(shadow, (shift, shift), (0, 1))
    cut = (slice(y0 - top, y1 - top), slice(x0 - left, x1 - left))
    patch = image[y0:y1, x0:x1]
    patch *= 1 - np.float32(0.35 / 255) * shadow[cut][:, :, None]
    alpha = mask[cut][:, :, None].astype(np.float32) / 255
    patch += alpha * (_surface(thing, 2 * pad_px, radius_px, tilt, rng)[cut] - patch)


def _surface(
    thing: Thing, side_px: int, radius_px: float, tilt: float, rng: np.random.Generator
) -> np.ndarray:
    """Colour, texture and soft shading of an object. Float32 (side_px, side_px, 3)."""
    main = np.clip(
        np.array(_COLOUR_RGB[thing.colour], np.float32) + rng.normal(0, 6, 3), 0, 255
    ).astype(np.float32)
    # The second tone stays in the colour's family, so that a striped red thing is red.
    second = main * 0.52 if main.mean() > 90 else main + (255 - main) * 0.38
    at = np.arange(side_px, dtype=np.float32) - side_px / 2
    x = at[None, :] * np.float32(np.cos(tilt)) + at[:, None] * np.float32(np.sin(tilt))
    y = at[:, None] * np.float32(np.cos(tilt)) - at[None, :] * np.float32(np.sin(tilt))
    share = _texture_share(thing.texture, x, y, max(radius_px * 0.42, 7.0))
    shade = 1 - 0.12 * (x + y) / np.float32(2 * radius_px)
    return (main + share[:, :, None] * (second - main)) * shade[:, :, None]


def _texture_share(texture: str, x: np.ndarray, y: np.ndarray, period_px: float) -> np.ndarray:
    """How much of the second tone each pixel takes, in [0, 1]."""
    phase = np.float32(2 * np.pi / period_px)
    if texture == "striped":
        wave = np.sin((x + y) * phase * np.float32(0.7))
    elif texture == "checked":
        wave = np.sin(x * phase * np.float32(0.8)) * np.sin(y * phase * np.float32(0.8)) * 2
    elif texture == "dotted":
        wave = np.cos(x * phase) + np.cos(y * phase) - np.float32(0.75)
    else:
        return np.zeros_like(x)
    return np.clip(wave * 2 + 0.5, 0, 1)


def _mask(shape: str, side_px: int, radius_px: float, tilt: float) -> np.ndarray:
    """Coverage of a shape round the middle of a square. uint8 (side_px, side_px), anti-aliased."""
    import cv2

    mask = np.zeros((side_px, side_px), np.uint8)
    unit = 1 << _SUBPIXEL_BITS
    middle = int(side_px / 2 * unit)
    if shape in ("circle", "ring"):
        cv2.circle(
            mask, (middle, middle), int(radius_px * unit), 255, -1, cv2.LINE_AA, _SUBPIXEL_BITS
        )
        if shape == "ring":
            cv2.circle(
                mask,
                (middle, middle),
                int(radius_px * 0.55 * unit),
                0,
                -1,
                cv2.LINE_AA,
                _SUBPIXEL_BITS,
            )
        return mask
    outline = _outline(shape) * radius_px
    turn = np.array([[np.cos(tilt), np.sin(tilt)], [-np.sin(tilt), np.cos(tilt)]])
    points = np.round((outline @ turn + side_px / 2) * unit).astype(np.int32)
    cv2.fillPoly(mask, [points], 255, cv2.LINE_AA, _SUBPIXEL_BITS)
    return mask


@cache
def _outline(shape: str) -> np.ndarray:
    """Corners of a shape of radius about 1, y downwards. Float64 (corners, 2)."""
    if shape == "heart":
        t = np.linspace(0, 2 * np.pi, 48, endpoint=False)
        x = 16 * np.sin(t) ** 3
        y = -(13 * np.cos(t) - 5 * np.cos(2 * t) - 2 * np.cos(3 * t) - np.cos(4 * t))
        return np.stack([x, y], 1) / 15.5
    if shape == "star":
        angles = -np.pi / 2 + np.arange(10) * np.pi / 5
        reach = np.where(np.arange(10) % 2 == 0, 1.18, 0.48)
        return np.stack([np.cos(angles), np.sin(angles)], 1) * reach[:, None]
    arm, reach_1 = 0.34, 1.05
    corners = {
        "square": [(-0.88, -0.88), (0.88, -0.88), (0.88, 0.88), (-0.88, 0.88)],
        "triangle": [(0, -1.1), (1.08, 0.8), (-1.08, 0.8)],
        "diamond": [(0, -1.25), (0.78, 0), (0, 1.25), (-0.78, 0)],
        "cross": [
            (-arm, -reach_1), (arm, -reach_1), (arm, -arm), (reach_1, -arm), (reach_1, arm), (arm, arm),
            (arm, reach_1), (-arm, reach_1), (-arm, arm), (-reach_1, arm), (-reach_1, -arm), (-arm, -arm),
        ],
    }  # fmt: skip
    return np.array(corners[shape], np.float64)
