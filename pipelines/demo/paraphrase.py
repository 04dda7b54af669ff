"""Paraphrases by grammar: reads an alt-text of the demo world and says the same in a new sentence.

It stands in for the user's language model behind the demo's chat endpoint (LaCLIP, arXiv
2305.20088, uses LLaMA). No model: it parses the words it knows, adds no fact and loses none, and
for a text that it can't parse it answers as chat models do, with an apology.
"""

from __future__ import annotations

import re
from collections.abc import Callable
from dataclasses import replace

import numpy as np

from pipelines.demo.grammar import (
    BACKGROUND_PHRASES,
    COUNT_WORDS,
    PLURALS,
    RELATION_PHRASES,
    SIZE_WORDS,
    TEXTURE_WORDS,
    article,
    body,
    sentence_case,
)
from pipelines.demo.scene import BACKGROUNDS, COLOURS, INVERSE, SHAPES, Scene, Thing, dice, pick

REFUSAL = "I'm sorry, but I can't tell what the picture shows from this text."

_FRAMES = (
    "A photograph showing {}.",
    "The image shows {}.",
    "There is {} in this picture.",
    "In the picture we see {}.",
    "A view of {}.",
    "Pictured here: {}.",
    "This picture shows us {}.",
    "Here you can look at {}.",
    "What can be seen is {}.",
    "The photographer caught {}.",
)
_SHAPE_OF = {form: shape for shape in SHAPES for form in (shape, PLURALS[shape])}
_SIZE_OF = {word: size for size, words in SIZE_WORDS.items() for word in words}
_TEXTURE_OF = {word: texture for texture, words in TEXTURE_WORDS.items() for word in words}
_TEXTURE_OF_NOUN = {"stripes": "striped", "dots": "dotted", "checks": "checked", "pattern": "plain"}
_COUNT_OF = {word: count for count, word in COUNT_WORDS.items()}
_TEXTURE_AFTER = {
    "striped": "with stripes",
    "dotted": "with dots",
    "checked": "with checks",
    "plain": "without a pattern",
}
_RELATION_AFTER_THING = re.compile(
    "|".join(
        sorted(
            (re.escape(phrase) for phrases in RELATION_PHRASES.values() for phrase in phrases),
            key=len,
            reverse=True,
        )
    )
)
_RELATION_OF = {
    phrase: relation for relation, phrases in RELATION_PHRASES.items() for phrase in phrases
}


def parse(caption: str) -> Scene | None:
    """What the caption says, "" where it says nothing; None where it names no shape."""
    words = re.findall(r"[a-z]+", caption.lower())
    things: list[Thing] = []
    said: dict[str, str] = {}
    ends: list[int] = []
    for position, word in enumerate(words):
        if word in _SHAPE_OF:
            count = _COUNT_OF.get(said.pop("count", ""), 1)
            things.append(Thing(_SHAPE_OF[word], count=count, **said))
            ends.append(position)
            said = {}
        elif things and (
            word in _TEXTURE_OF_NOUN or (word in COLOURS and words[position - 1] == "in")
        ):
            things[-1] = _complete(things[-1], _noted(word, {}))
        else:
            _noted(word, said)
    if not things:
        return None
    things = things[:2]
    things[-1] = _complete(things[-1], said)
    relation = _relation(words[ends[0] + 1 : ends[1]]) if len(things) > 1 else ""
    background = next((word for word in words if word in BACKGROUNDS), "")
    return Scene(tuple(things), relation, background)


def _noted(word: str, said: dict[str, str]) -> dict[str, str]:
    """``said`` with this word's fact in it, if it has one."""
    if word in COLOURS:
        said["colour"] = word
    elif word in _SIZE_OF:
        said["size"] = _SIZE_OF[word]
    elif word in _TEXTURE_OF or word in _TEXTURE_OF_NOUN:
        said["texture"] = _TEXTURE_OF.get(word) or _TEXTURE_OF_NOUN[word]
    elif word in _COUNT_OF:
        said["count"] = word
    return said


def _complete(thing: Thing, said: dict[str, str]) -> Thing:
    """Modifiers after a shape ("circle, red, striped", "circle in red") fill what is still open."""
    count = _COUNT_OF.get(said.get("count", ""), thing.count) if thing.count == 1 else thing.count
    return replace(
        thing,
        count=count,
        colour=thing.colour or said.get("colour", ""),
        texture=thing.texture or said.get("texture", ""),
        size=thing.size or said.get("size", ""),
    )


def _relation(words_between: list[str]) -> str:
    found = _RELATION_AFTER_THING.search(" ".join(words_between))
    return _RELATION_OF[found.group()] if found else ""


def paraphrase(caption: str, seed: int) -> str:
    """A sentence with the facts of ``caption`` in other words; REFUSAL where it has none.

    A pure function of its two arguments.
    """
    said = parse(caption)
    if said is None:
        return REFUSAL
    rng = dice(abs(seed), "paraphrase:" + caption)
    makers: tuple[Callable[[Scene, np.random.Generator], str], ...] = (
        body,
        _background_first,
        _turned,
        _modifiers_after,
    )
    maker = makers[int(rng.integers(len(makers)))]
    return sentence_case(pick(rng, _FRAMES).format(maker(said, rng)))


def _background_first(said: Scene, rng: np.random.Generator) -> str:
    """ "on grass, a red circle"."""
    things = body(replace(said, background=""), rng)
    if not said.background:
        return things
    return (
        f"{things}, {pick(rng, ('set', 'placed'))} {pick(rng, BACKGROUND_PHRASES[said.background])}"
    )


def _turned(said: Scene, rng: np.random.Generator) -> str:
    """A left of B becomes B right of A: the same fact from the other side."""
    if len(said.things) < 2:
        return _modifiers_after(said, rng)
    return body(
        replace(said, things=said.things[::-1], relation=INVERSE.get(said.relation, "")), rng
    )


def _modifiers_after(said: Scene, rng: np.random.Generator) -> str:
    """ "a large circle in red with stripes"."""
    phrases = [_phrase_with_modifiers_after(thing, rng) for thing in said.things]
    joint = pick(rng, RELATION_PHRASES[said.relation]) if said.relation else "and"
    text = f" {joint} ".join(phrases)
    return f"{text} {pick(rng, BACKGROUND_PHRASES[said.background])}" if said.background else text


def _phrase_with_modifiers_after(thing: Thing, rng: np.random.Generator) -> str:
    size = pick(rng, SIZE_WORDS[thing.size]) if thing.size else ""
    noun = PLURALS[thing.shape] if thing.count > 1 else thing.shape
    head = " ".join(word for word in (size, noun) if word)
    head = f"{COUNT_WORDS[thing.count]} {head}" if thing.count > 1 else article(head)
    colour = f" in {thing.colour}" if thing.colour else ""
    return head + colour + (f" {_TEXTURE_AFTER[thing.texture]}" if thing.texture else "")
