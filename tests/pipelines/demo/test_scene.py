"""The scenes: randomness by (seed, purpose, index), long tail in raw, uniform in evaluation."""

from __future__ import annotations

from collections import Counter

import numpy as np
import pytest

from pipelines.demo import scene
from pipelines.demo.scene import (
    COLOURS,
    SHAPES,
    class_scene,
    classes,
    dice,
    raw_scene,
    uniform_scene,
)


def test_dice_depend_on_seed_purpose_and_index_only():
    first = dice(3, "scene", 7).random(4)
    dice(3, "scene", 8).random(100)
    assert np.array_equal(first, dice(3, "scene", 7).random(4))
    for other in (dice(4, "scene", 7), dice(3, "row", 7), dice(3, "scene", 8)):
        assert not np.array_equal(first, other.random(4))


def test_zipf_shares_are_one_over_rank():
    assert scene.zipf(4) == pytest.approx(np.array([12, 6, 4, 3]) / 25)


def test_pick_follows_its_shares():
    rng = dice(0, "pick")
    counts = Counter(scene.pick(rng, ("a", "b", "c"), (3.0, 1.0, 0.0)) for _ in range(4000))
    assert counts["c"] == 0
    assert counts["a"] / 4000 == pytest.approx(0.75, abs=0.03)  # 4 sigma


def test_raw_scenes_are_long_tailed_over_shapes_and_colours():
    things = [raw_scene(dice(0, "scene", index)).things[0] for index in range(4000)]
    for said, words in (([t.shape for t in things], SHAPES), ([t.colour for t in things], COLOURS)):
        counts = Counter(said)
        found = np.array([counts[word] / 4000 for word in words])
        assert found == pytest.approx(scene.zipf(len(words)), abs=0.04)
        assert counts[words[0]] > 5 * counts[words[-1]] > 0


def test_scenes_say_everything_and_relate_two_things_only():
    for index in range(300):
        for made in (raw_scene(dice(1, "raw", index)), uniform_scene(dice(1, "uniform", index))):
            assert made.background in scene.BACKGROUNDS
            assert (len(made.things) == 2) == (made.relation in scene.RELATIONS)
            assert all(t.colour and t.texture and t.size and 1 <= t.count <= 3 for t in made.things)


def test_uniform_scenes_are_uniform_over_shapes():
    counts = Counter(uniform_scene(dice(0, "u", index)).things[0].shape for index in range(2000))
    assert max(counts.values()) < 1.4 * min(counts.values())


def test_classes_hold_each_shape_and_colour_three_times():
    known = classes()
    assert len(set(known)) == len(known) == 24
    assert set(Counter(colour for colour, _ in known).values()) == {3}
    assert set(Counter(shape for _, shape in known).values()) == {3}


def test_class_scene_shows_its_class_and_nothing_else():
    made = class_scene(dice(0, "class"), "star", "blue")
    assert made.label == "blue star"
    assert len(made.things) == 1
    assert made.things[0].texture == "plain"
    assert made.things[0].count == 1
