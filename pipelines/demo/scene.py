"""Scenes of the demo world: coloured shapes with texture, size, count, relation and background.

A scene is words only; `render` turns it into pixels and `grammar` into alt-texts. The same two
classes hold a partial description (what an alt-text says of a scene): there an empty string means
"not said". Raw scenes are long-tailed (Zipf over shapes, over colours and over backgrounds, each
on its own), evaluation scenes are uniform.
"""

from __future__ import annotations

import zlib
from dataclasses import dataclass

import numpy as np

# In rank order: the first is the most frequent in raw scenes.
SHAPES = ("circle", "square", "triangle", "star", "heart", "cross", "ring", "diamond")
COLOURS = ("red", "blue", "green", "yellow", "purple", "orange", "white", "black")
BACKGROUNDS = ("grass", "sand", "sky", "wood", "paper", "concrete")
TEXTURES = ("plain", "striped", "dotted", "checked")
SIZES = ("small", "medium", "large")
RELATIONS = ("left of", "right of", "above", "below")
INVERSE = {"left of": "right of", "right of": "left of", "above": "below", "below": "above"}

ZIPF_EXPONENT = 1.0
_TEXTURE_SHARES = (0.61, 0.13, 0.13, 0.13)
_COUNT_SHARES = (0.76, 0.15, 0.09)
_PAIR_SHARE = 0.25
_COLOURS_PER_CLASS_SHAPE = 3


@dataclass(frozen=True)
class Thing:
    """One kind of object. ``count`` is 1 to 3; empty strings where a description leaves it open."""

    shape: str
    colour: str = ""
    texture: str = ""
    size: str = ""
    count: int = 1


@dataclass(frozen=True)
class Scene:
    """One or two things; with two, the first stands ``relation`` the second."""

    things: tuple[Thing, ...]
    relation: str = ""
    background: str = ""

    @property
    def label(self) -> str:
        """Colour and shape of the main thing: the zero-shot class name."""
        return f"{self.things[0].colour} {self.things[0].shape}"


def dice(seed: int, purpose: str, index: int = 0) -> np.random.Generator:
    """Randomness as a function of (seed, purpose, index) and of nothing else."""
    return np.random.default_rng([seed, zlib.crc32(purpose.encode()), index])


def pick(
    rng: np.random.Generator,
    options: tuple[str, ...],
    shares: np.ndarray | tuple[float, ...] | None = None,
) -> str:
    """One of ``options``; uniform without ``shares``, which need not add up to one exactly."""
    if shares is None:
        return options[int(rng.integers(len(options)))]
    edges = np.cumsum(shares)
    return options[int(np.searchsorted(edges, rng.random() * edges[-1], side="right"))]


def zipf(ranks: int, exponent: float = ZIPF_EXPONENT) -> np.ndarray:
    """Shares proportional to 1 / rank**exponent. Returns float64 of shape (ranks,), sum 1."""
    weights = 1.0 / np.arange(1, ranks + 1, dtype=np.float64) ** exponent
    return weights / weights.sum()


_SHAPE_SHARES = zipf(len(SHAPES))
_COLOUR_SHARES = zipf(len(COLOURS))
_BACKGROUND_SHARES = zipf(len(BACKGROUNDS))


def raw_scene(rng: np.random.Generator) -> Scene:
    """A scene as the raw pool has them: head concepts very frequent, tail concepts rare."""
    main = Thing(
        pick(rng, SHAPES, _SHAPE_SHARES),
        pick(rng, COLOURS, _COLOUR_SHARES),
        pick(rng, TEXTURES, _TEXTURE_SHARES),
        pick(rng, SIZES),
        1 + int(pick(rng, ("0", "1", "2"), _COUNT_SHARES)),
    )
    background = pick(rng, BACKGROUNDS, _BACKGROUND_SHARES)
    if main.count > 1 or rng.random() >= _PAIR_SHARE:
        return Scene((main,), "", background)
    other = Thing(
        pick(rng, SHAPES, _SHAPE_SHARES),
        pick(rng, COLOURS, _COLOUR_SHARES),
        pick(rng, TEXTURES, _TEXTURE_SHARES),
        pick(rng, SIZES),
    )
    return Scene((main, other), pick(rng, RELATIONS), background)


def uniform_scene(rng: np.random.Generator) -> Scene:
    """A scene for retrieval: every word equally likely, one or two things."""
    main = Thing(
        pick(rng, SHAPES),
        pick(rng, COLOURS),
        pick(rng, TEXTURES),
        pick(rng, SIZES),
        1 + int(rng.integers(3)),
    )
    background = pick(rng, BACKGROUNDS)
    if main.count > 1:
        return Scene((main,), "", background)
    other = Thing(pick(rng, SHAPES), pick(rng, COLOURS), pick(rng, TEXTURES), pick(rng, SIZES))
    return Scene((main, other), pick(rng, RELATIONS), background)


def class_scene(rng: np.random.Generator, shape: str, colour: str) -> Scene:
    """A clean scene for zero-shot: one plain thing of the class, medium or large."""
    thing = Thing(shape, colour, "plain", pick(rng, ("medium", "large")))
    return Scene((thing,), "", pick(rng, BACKGROUNDS))


def classes() -> tuple[tuple[str, str], ...]:
    """The 24 (colour, shape) classes of zero-shot: each shape and each colour equally often."""
    colours = len(COLOURS)
    return tuple(
        (COLOURS[(index + step * 3) % colours], shape)
        for index, shape in enumerate(SHAPES)
        for step in range(_COLOURS_PER_CLASS_SHAPE)
    )
