"""Paraphrases: parse what the grammar writes, keep its facts, vary with the seed."""

from __future__ import annotations

from dataclasses import replace

import pytest

from pipelines.demo import grammar
from pipelines.demo.paraphrase import REFUSAL, paraphrase, parse
from pipelines.demo.scene import INVERSE, Scene, Thing, dice, raw_scene


def turned(scene: Scene) -> Scene:
    return replace(scene, things=scene.things[::-1], relation=INVERSE.get(scene.relation, ""))


@pytest.mark.parametrize(
    ("caption", "expected"),
    [
        ("red circle", Scene((Thing("circle", "red"),))),
        (
            "Two tiny STRIPED blue stars | PixDepot",
            Scene((Thing("star", "blue", "striped", "small", 2),)),
        ),
        ("cross, two, red, grass", Scene((Thing("cross", "red", count=2),), "", "grass")),
        (
            "a white ring to the left of an orange heart on a wood table",
            Scene((Thing("ring", "white"), Thing("heart", "orange")), "left of", "wood"),
        ),
        ("square with checks in black", Scene((Thing("square", "black", "checked"),))),
        ("IMG_2034.jpg", None),
        ("", None),
    ],
)
def test_parse(caption: str, expected: Scene | None):
    assert parse(caption) == expected


def test_parse_inverts_the_grammar():
    for index in range(500):
        said = grammar.leave_out(raw_scene(dice(0, "scene", index)), dice(0, "say", index))
        assert parse(grammar.body(said, dice(0, "body", index))) == said


def test_paraphrases_keep_all_facts_and_add_none():
    for index in range(500):
        caption = grammar.alt_text(raw_scene(dice(1, "scene", index)), dice(1, "alt", index))
        said = parse(caption)
        assert said is not None
        for seed in range(3):
            assert parse(paraphrase(caption, seed)) in (said, turned(said)), (
                caption,
                paraphrase(caption, seed),
            )


def test_paraphrases_are_new_sentences_and_vary_with_the_seed():
    caption = "two large striped red circles on grass"
    answers = {paraphrase(caption, seed) for seed in range(40)}
    assert len(answers) > 20
    assert caption not in {answer.lower().rstrip(".") for answer in answers}
    assert all(
        answer[0].isupper() and answer.endswith(".") and 3 <= len(answer.split()) <= 40
        for answer in answers
    )


def test_paraphrase_is_a_function_of_caption_and_seed():
    assert paraphrase("a red ring on sand", 5) == paraphrase("a red ring on sand", 5)
    assert paraphrase("a red ring on sand", -5) == paraphrase("a red ring on sand", -5)


def test_text_without_a_shape_is_refused():
    assert paraphrase("click here", 0) == REFUSAL
