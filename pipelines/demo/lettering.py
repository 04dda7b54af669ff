"""Words written into demo pictures: parroting the caption, unrelated, or naming a wrong class.

Parrot lettering repeats the scene's words (Parrot Captions, arXiv 2312.14232), so that a model can
learn to read instead of to see; a wrong class's name is the typographic attack of the evaluation.
Both are written with the same fonts and sizes. A line is 10 to 19 % of the picture's height,
large enough to read at 64 px.
"""

from __future__ import annotations

import os
from dataclasses import dataclass
from functools import lru_cache
from importlib.util import find_spec
from typing import Any

import numpy as np

from pipelines.demo.grammar import COUNT_WORDS, PLURALS
from pipelines.demo.scene import Scene, pick

_FONTS = (
    "DejaVuSans-Bold.ttf",
    "DejaVuSans.ttf",
    "DejaVuSerif-Bold.ttf",
    "DejaVuSansMono-Bold.ttf",
)
_STYLES = ("outline", "banner", "shadow")
_PLACES = ("top", "middle", "bottom")
_CASES = ("upper", "upper", "title", "lower")
_LINE_HEIGHT_FRAC = (0.1, 0.19)
_WIDTH_LIMIT_FRAC = 0.92
_UNRELATED = (
    ("SALE",),
    ("50% OFF", "TODAY ONLY"),
    ("BREAKING NEWS",),
    ("SUBSCRIBE",),
    ("© PixDepot",),
    ("WELCOME", "HOME"),
    ("Happy", "Birthday"),
    ("LIVE",),
    ("Chapter 7",),
    ("NEW ARRIVAL",),
    ("www.freeclips.net",),
    ("Keep calm", "and carry on"),
    ("OPEN", "Mon - Fri"),
    ("Volume II",),
    ("SAMPLE",),
    ("14.07.2016",),
)
_INK = {
    "white": (255, 255, 255),
    "black": (0, 0, 0),
    "yellow": (255, 235, 60),
    "red": (200, 20, 20),
}


@dataclass(frozen=True)
class Lettering:
    """Lines of text and how they are set. ``line_height_frac`` is a share of the picture's height."""

    lines: tuple[str, ...]
    line_height_frac: float
    style: str = "outline"
    place: str = "bottom"
    font: str = _FONTS[0]
    ink: str = "white"


def parroting(scene: Scene, rng: np.random.Generator) -> Lettering:
    """The main thing's words: "RED CIRCLE", on one line or two, with the count where there is one."""
    thing = scene.things[0]
    noun = thing.shape if thing.count == 1 else PLURALS[thing.shape]
    first = thing.colour if thing.count == 1 else f"{COUNT_WORDS[thing.count]} {thing.colour}"
    return _set((first, noun) if rng.random() < 0.5 else (f"{first} {noun}",), rng)


def unrelated(rng: np.random.Generator) -> Lettering:
    """Words that have nothing to do with the scene: shop banners, watermarks, dates."""
    return _set(_UNRELATED[int(rng.integers(len(_UNRELATED)))], rng, recase=False)


def attack(wrong_label: str, rng: np.random.Generator) -> Lettering:
    """The name of a wrong class, set like parroting text but never in the middle.

    The thing stays in sight, so that a wrong answer comes from reading and not from hiding.
    """
    lines = tuple(wrong_label.split()) if rng.random() < 0.5 else (wrong_label,)
    return _set(lines, rng, places=("top", "bottom"))


def _set(
    lines: tuple[str, ...],
    rng: np.random.Generator,
    *,
    recase: bool = True,
    places: tuple[str, ...] = _PLACES,
) -> Lettering:
    if recase:
        case = pick(rng, _CASES)
        lines = tuple(getattr(line, case)() for line in lines)
    low, high = _LINE_HEIGHT_FRAC
    height_frac = low + (high - low) * float(rng.random())
    return Lettering(
        lines,
        height_frac,
        pick(rng, _STYLES),
        pick(rng, places),
        pick(rng, _FONTS),
        pick(rng, tuple(_INK)),
    )


def write(image_HWC: np.ndarray, lettering: Lettering) -> np.ndarray:
    """A copy of the RGB uint8 picture with the lettering on it."""
    from PIL import Image, ImageDraw

    image = Image.fromarray(image_HWC)
    draw = ImageDraw.Draw(image)
    font = _fitting_font(lettering, image.width, image.height)
    line_height_px = int(font.size * 1.25)
    y = _top_px(lettering, image.height, line_height_px)
    for line in lettering.lines:
        width_px = font.getlength(line)
        x = (image.width - width_px) / 2
        _line(draw, (x, y), line, font, lettering, line_height_px, width_px)
        y += line_height_px
    return np.asarray(image)


def _line(
    draw: Any,
    corner: tuple[float, float],
    line: str,
    font: Any,
    lettering: Lettering,
    height_px: int,
    width_px: float,
) -> None:
    x, y = corner
    ink = _INK[lettering.ink]
    contrast = (0, 0, 0) if sum(ink) > 330 else (255, 255, 255)
    if lettering.style == "banner":
        draw.rectangle((x - 6, y, x + width_px + 6, y + height_px), fill=contrast)
        draw.text((x, y), line, font=font, fill=ink)
    elif lettering.style == "shadow":
        draw.text(
            (x + 2, y + 2), line, font=font, fill=contrast, stroke_width=1, stroke_fill=contrast
        )
        draw.text((x, y), line, font=font, fill=ink)
    else:
        draw.text((x, y), line, font=font, fill=ink, stroke_width=2, stroke_fill=contrast)


def _top_px(lettering: Lettering, height_px: int, line_height_px: int) -> float:
    block_px = line_height_px * len(lettering.lines)
    margin_px = 0.03 * height_px
    return {
        "top": margin_px,
        "middle": (height_px - block_px) / 2,
        "bottom": height_px - block_px - margin_px,
    }[lettering.place]


def _fitting_font(lettering: Lettering, width_px: int, height_px: int) -> Any:
    """The wanted size, or the largest that keeps the longest line inside the picture."""
    size_px = max(8, round(lettering.line_height_frac * height_px))
    font = _font(lettering.font, size_px)
    longest_px = max(font.getlength(line) for line in lettering.lines)
    limit_px = _WIDTH_LIMIT_FRAC * width_px
    if longest_px <= limit_px:
        return font
    return _font(lettering.font, max(8, int(size_px * limit_px / longest_px)))


@lru_cache(maxsize=256)
def _font(name: str, size_px: int) -> Any:
    """A DejaVu face from matplotlib's data folder: it comes with the report's plots, on any machine."""
    from PIL import ImageFont

    spec = find_spec("matplotlib")
    if spec is None or spec.origin is None:
        raise RuntimeError(
            "matplotlib is not installed and its fonts letter the demo pictures. hint: install clip-pipe's dependencies"
        )
    path = os.path.join(os.path.dirname(spec.origin), "mpl-data", "fonts", "ttf", name)
    return ImageFont.truetype(path, size_px)
