"""Alt-texts: true to the scene, varied, partial; junk without an entry; the entry list."""

from __future__ import annotations

import re

from pipelines.demo import grammar
from pipelines.demo.grammar import alt_text, entry_list, full_text, junk_text, noun_phrase
from pipelines.demo.scene import BACKGROUNDS, COLOURS, Scene, Thing, dice, raw_scene, uniform_scene

MANY = 1500


def matches(text: str, entries: list[str]) -> set[str]:
    """MetaCLIP's rule, the slow way (metaclip1/substr_matching.py): written apart from the code under test."""
    spaced = " " + re.sub(r"([,.;:?!`])", r" \1 ", text) + " "
    spaced = re.sub(r"[\t\n\r]", " ", spaced)
    return {entry for entry in entries if f" {entry} " in spaced}


def words(text: str) -> set[str]:
    return set(re.findall(r"[a-z]+", text.lower()))


def test_alt_texts_say_nothing_false():
    for index in range(MANY):
        scene = raw_scene(dice(0, "scene", index))
        said = words(alt_text(scene, dice(0, "alt", index)))
        true_colours = {thing.colour for thing in scene.things}
        true_forms = {
            form for thing in scene.things for form in (thing.shape, grammar.PLURALS[thing.shape])
        }
        assert said & set(COLOURS) <= true_colours
        assert said & set(BACKGROUNDS) <= {scene.background}
        assert said & {form for pair in grammar.PLURALS.items() for form in pair} <= true_forms
        assert said & true_forms, "every alt-text names a shape"
        counts = {word for count, word in grammar.COUNT_WORDS.items() if count > 1}
        assert said & counts <= {grammar.COUNT_WORDS[thing.count] for thing in scene.things}


def test_alt_texts_of_one_scene_vary_and_leave_facts_out():
    scene = Scene((Thing("star", "blue", "striped", "large"),), "", "sand")
    texts = [alt_text(scene, dice(0, "alt", index)) for index in range(200)]
    assert len(set(texts)) > 100
    for word, low, high in (("blue", 0.85, 0.99), ("sand", 0.3, 0.6)):
        assert low < sum(word in words(text) for text in texts) / 200 < high


def test_alt_texts_match_entries_but_for_title_case():
    entries = entry_list()
    texts = [
        alt_text(raw_scene(dice(2, "scene", index)), dice(2, "alt", index)) for index in range(MANY)
    ]
    without = [text for text in texts if not matches(text, entries)]
    assert len(without) < 0.03 * MANY
    assert all(text[0].isupper() for text in without), without[:5]


def test_junk_matches_no_entry():
    entries = entry_list()
    texts = [junk_text(dice(0, "junk", index)) for index in range(MANY)]
    assert [text for text in texts if matches(text, entries)] == []
    assert len(set(texts)) > MANY / 3


def test_full_text_holds_every_fact():
    for index in range(300):
        scene = uniform_scene(dice(0, "full", index))
        text = full_text(scene, dice(0, "text", index))
        for thing in scene.things:
            assert thing.colour in words(text)
            assert thing.texture == "plain" or words(text) & set(
                grammar.TEXTURE_WORDS[thing.texture]
            )
            assert thing.size == "medium" or words(text) & set(grammar.SIZE_WORDS[thing.size])
        assert scene.background in words(text)


def test_articles_and_plurals():
    rng = dice(0, "np")
    assert {noun_phrase(Thing("circle", "orange"), rng) for _ in range(5)} == {"an orange circle"}
    assert noun_phrase(Thing("cross", "red", count=2), rng) == "two red crosses"
    assert noun_phrase(Thing("circle", "orange"), rng, with_article=False) == "orange circle"


def test_entries_are_unique_and_can_match():
    entries = entry_list()
    assert len(entries) == len(set(entries)) > 300
    assert all(entry == entry.strip() and entry and "\n" not in entry for entry in entries)
    assert all(entry in matches(entry, [entry]) for entry in entries), "no dead entry"
