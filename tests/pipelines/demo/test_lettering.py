"""Lettering: what it says, that it stays inside the picture and is large enough to read."""

from __future__ import annotations

import numpy as np
import pytest

from pipelines.demo import lettering
from pipelines.demo.lettering import Lettering, write
from pipelines.demo.scene import Scene, Thing, dice

GREY = np.full((256, 288, 3), 128, np.uint8)
SCENE = Scene(
    (Thing("circle", "red", "plain", "large"), Thing("star", "blue", "plain", "small")),
    "left of",
    "sand",
)


def said(made: Lettering) -> str:
    return " ".join(made.lines).lower()


def test_parroting_names_the_main_thing():
    assert {said(lettering.parroting(SCENE, dice(0, "l", i))) for i in range(30)} == {"red circle"}
    three = Scene((Thing("cross", "blue", count=3),), "", "sand")
    assert said(lettering.parroting(three, dice(0, "l"))) == "three blue crosses"


def test_unrelated_names_no_shape_or_colour():
    texts = {said(lettering.unrelated(dice(0, "l", i))) for i in range(200)}
    assert len(texts) >= 10
    assert not any(
        word in text.split()
        for text in texts
        for word in ("circle", "square", "red", "blue", "star")
    )


def test_attack_names_the_wrong_class_in_one_case():
    for index in range(20):
        made = lettering.attack("green heart", dice(0, "l", index))
        assert said(made) == "green heart"
        assert made.place in ("top", "bottom")
        assert len({(line.isupper(), line.islower()) for line in made.lines}) == 1


@pytest.mark.parametrize("style", ["outline", "banner", "shadow"])
@pytest.mark.parametrize("place", ["top", "middle", "bottom"])
def test_letters_stay_inside_and_are_where_they_should_be(style: str, place: str):
    image = write(GREY, Lettering(("RED", "CIRCLE"), 0.15, style, place))
    assert image.shape == GREY.shape
    rows = np.flatnonzero((image != GREY).any(axis=(1, 2)))
    columns = np.flatnonzero((image != GREY).any(axis=(0, 2)))
    assert rows.min() > 0
    assert rows.max() < 255
    assert columns.min() > 0
    assert columns.max() < 287
    middle = (rows.min() + rows.max()) / 2 / 256
    low, high = {"top": (0.0, 0.4), "middle": (0.4, 0.6), "bottom": (0.6, 1.0)}[place]
    assert low < middle < high


def test_long_lines_are_set_smaller_and_not_cut():
    image = write(GREY, Lettering(("THREE YELLOW TRIANGLES",), 0.19))
    columns = np.flatnonzero((image != GREY).any(axis=(0, 2)))
    assert 0 < columns.min() < columns.max() < 287
    assert columns.max() - columns.min() > 0.75 * 288


def test_write_leaves_its_input_alone():
    before = GREY.copy()
    write(GREY, Lettering(("SALE",), 0.15))
    assert np.array_equal(GREY, before)
