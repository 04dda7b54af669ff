"""Alt-texts of the demo world: what a web page says of a scene, junk, and the entry list.

A grammar and no corpus, so every word is known. An alt-text leaves facts out, in web-like wording
with unhelpful fragments; junk says nothing of the picture. The entry list is MetaCLIP-like
(arXiv 2309.16671): words and phrases one to a line, matched case-sensitively, most of them without
a match; unlike MetaCLIP's it holds no function words, so that junk matches nothing.
"""

from __future__ import annotations

from dataclasses import replace

import numpy as np

from pipelines.demo.scene import BACKGROUNDS, COLOURS, SHAPES, TEXTURES, Scene, Thing, pick

COUNT_WORDS = {1: "one", 2: "two", 3: "three"}
SIZE_WORDS = {
    "small": ("small", "little", "tiny"),
    "medium": ("medium",),
    "large": ("large", "big", "huge"),
}
TEXTURE_WORDS = {
    "plain": ("plain",),
    "striped": ("striped", "stripy"),
    "dotted": ("dotted", "spotted"),
    "checked": ("checked", "checkered"),
}
BACKGROUND_PHRASES = {
    "grass": ("on grass", "on the grass"),
    "sand": ("on sand", "in the sand"),
    "sky": ("in the sky", "against the sky"),
    "wood": ("on wood", "on a wood table"),
    "paper": ("on paper", "on a sheet of paper"),
    "concrete": ("on concrete", "on a concrete floor"),
}
RELATION_PHRASES = {
    "left of": ("left of", "to the left of"),
    "right of": ("right of", "to the right of"),
    "above": ("above", "over"),
    "below": ("below", "under"),
}
PLURALS = {shape: shape + ("es" if shape.endswith("s") else "s") for shape in SHAPES}

# {body} with articles, {bare} without, {Body} as a sentence starts.
_ALT_TEMPLATES = (
    ("{body}", 6.0),
    ("{bare}", 5.0),
    ("{Body}", 3.0),
    ("a photo of {body}", 3.0),
    ("picture of {body}", 2.0),
    ("image of {bare}", 1.0),
    ("{bare} stock photo", 2.0),
    ("{bare} - free image", 1.5),
    ("{bare} | {site}", 2.0),
    ("{bare} wallpaper HD", 1.0),
    ("free vector: {bare}", 1.0),
    ("buy {bare} online, free shipping", 1.0),
    ("{Body}. Click to enlarge", 1.5),
    ("{bare} by {user}", 1.5),
    ("look at {body} !!", 1.0),
    ("DSC_{number} {bare}", 0.7),
    ("{bare}, {number} x {number} px", 0.5),
    ("{tags}", 2.5),
    ("{Title}", 0.4),
)
_TEMPLATES = tuple(template for template, _ in _ALT_TEMPLATES)
_TEMPLATE_SHARES = tuple(share for _, share in _ALT_TEMPLATES)
_SITES = ("ShapeShop.com", "PixDepot", "Wallpaper World", "FreeClips.net", "Etsy", "Pinterest")
_USERS = ("@lena_k", "photobob", "Studio North", "M. Okafor", "user8812")
_JUNK = (
    "IMG_{number}.jpg",
    "DSC{number}",
    "click here",
    "click here to view full size",
    "untitled",
    "image",
    "photo",
    "logo",
    "spacer.gif",
    "Untitled-{small}",
    "thumbnail {small} of {number}",
    "default alt text",
    "Screenshot {number}-{small}",
    "{token}",
    "{token} {token}",
    "{token}_{number}.png",
    "read more",
    "Download",
    "advertisement",
    "null",
    "© {user}",
    "share this on {site}",
)
_SAY_TEXTURE, _SAY_SIZE, _SAY_COLOUR, _SAY_OTHER, _SAY_RELATION, _SAY_BACKGROUND = (
    0.7,
    0.6,
    0.92,
    0.8,
    0.8,
    0.45,
)
# Entries that no alt-text of this world holds: as in real lists, most entries match nothing.
_ELSEWHERE = """
dog cat horse bird car train bicycle airplane boat chair lamp guitar piano violin coffee bread
cheese apple banana river mountain forest beach island bridge castle church museum library hospital
airport doctor teacher farmer football tennis swimming winter summer autumn spring Monday Sunday
Paris London Berlin Tokyo Cairo Lima Nairobi oak maple rose tulip wolf tiger eagle salmon copper
silver gold cotton leather
"""
_ELSEWHERE_PHRASES = (
    "hot dog",
    "New York",
    "mountain bike",
    "coffee cup",
    "golden gate",
    "street art",
    "sports car",
)


def article(phrase: str) -> str:
    """``phrase`` with its indefinite article."""
    return ("an " if phrase[0] in "aeiou" else "a ") + phrase


def leave_out(scene: Scene, rng: np.random.Generator) -> Scene:
    """What a web author would say of the scene: a Scene with "" where a fact is left out."""
    things = [_said(thing, rng) for thing in scene.things]
    if len(things) > 1 and rng.random() >= _SAY_OTHER:
        things = things[:1]
    relation = scene.relation if len(things) > 1 and rng.random() < _SAY_RELATION else ""
    return Scene(
        tuple(things), relation, scene.background if rng.random() < _SAY_BACKGROUND else ""
    )


def _said(thing: Thing, rng: np.random.Generator) -> Thing:
    says = rng.random(3)
    return replace(
        thing,
        colour=thing.colour if says[0] < _SAY_COLOUR else "",
        texture=thing.texture if says[1] < _SAY_TEXTURE and thing.texture != "plain" else "",
        size=thing.size if says[2] < _SAY_SIZE and thing.size != "medium" else "",
    )


def noun_phrase(thing: Thing, rng: np.random.Generator, *, with_article: bool = True) -> str:
    """ "two large striped red circles", "a red circle": every said fact, in one of two orders."""
    size = pick(rng, SIZE_WORDS[thing.size]) if thing.size else ""
    texture = pick(rng, TEXTURE_WORDS[thing.texture]) if thing.texture else ""
    order = [size, texture, thing.colour] if rng.random() < 0.6 else [size, thing.colour, texture]
    noun = thing.shape if thing.count == 1 else PLURALS[thing.shape]
    phrase = " ".join(word for word in (*order, noun) if word)
    if thing.count > 1:
        return f"{COUNT_WORDS[thing.count]} {phrase}"
    return article(phrase) if with_article else phrase


def body(scene: Scene, rng: np.random.Generator, *, with_article: bool = True) -> str:
    """The things, their relation and the background, as far as said, without a frame around."""
    phrases = [noun_phrase(thing, rng, with_article=with_article) for thing in scene.things]
    if len(phrases) == 1:
        text = phrases[0]
    elif scene.relation:
        text = f"{phrases[0]} {pick(rng, RELATION_PHRASES[scene.relation])} {phrases[1]}"
    else:
        text = f"{phrases[0]} {pick(rng, ('and', 'with', 'next to'))} {phrases[1]}"
    return f"{text} {pick(rng, BACKGROUND_PHRASES[scene.background])}" if scene.background else text


def sentence_case(text: str) -> str:
    """``text`` with its first letter in upper case, the rest untouched."""
    return text[:1].upper() + text[1:]


def alt_text(scene: Scene, rng: np.random.Generator) -> str:
    """A web-like alt-text for the scene; two draws for one scene mostly differ."""
    said = leave_out(scene, rng)
    text, bare = body(said, rng), body(said, rng, with_article=False)
    return pick(rng, _TEMPLATES, _TEMPLATE_SHARES).format(
        body=text,
        bare=bare,
        Body=sentence_case(text),
        Title=bare.title(),
        tags=_tags(said, rng),
        **_fillers(rng),
    )


def full_text(scene: Scene, rng: np.random.Generator) -> str:
    """A plain sentence that leaves nothing out but "plain" and "medium"; for evaluation sets."""
    things = tuple(
        replace(
            thing,
            texture=thing.texture if thing.texture != "plain" else "",
            size=thing.size if thing.size != "medium" else "",
        )
        for thing in scene.things
    )
    return pick(rng, ("a photo of {}", "{}", "an image of {}")).format(
        body(replace(scene, things=things), rng)
    )


def junk_text(rng: np.random.Generator) -> str:
    """An alt-text that says nothing of the picture and holds no entry."""
    token = "".join(pick(rng, tuple("bcdfghjklmnpqrstvwxz0123456789")) for _ in range(9))
    return pick(rng, _JUNK).format(token=token, **_fillers(rng))


def entry_list() -> list[str]:
    """The demo's metadata: single words, plurals, colour-shape and texture-shape phrases, and more."""
    nouns = [form for shape in SHAPES for form in (shape, PLURALS[shape])]
    textures = [word for texture in TEXTURES[1:] for word in TEXTURE_WORDS[texture]]
    sizes = [word for words in SIZE_WORDS.values() for word in words]
    phrases = [f"{word} {noun}" for word in (*COLOURS, *textures) for noun in nouns]
    singles = [
        *nouns,
        *COLOURS,
        *textures,
        *sizes,
        "two",
        "three",
        *BACKGROUNDS,
        "wood table",
        "concrete floor",
    ]
    return list(dict.fromkeys([*singles, *phrases, *_ELSEWHERE.split(), *_ELSEWHERE_PHRASES]))


def _tags(scene: Scene, rng: np.random.Generator) -> str:
    """Comma-separated keywords, as shops write them; of the first thing only."""
    thing = scene.things[0]
    words = [
        thing.shape if thing.count == 1 else PLURALS[thing.shape],
        thing.colour,
        thing.texture,
        scene.background,
    ]
    if thing.count > 1:
        words.insert(1, COUNT_WORDS[thing.count])
    return ", ".join(word for word in words if word) + pick(
        rng, ("", ", art", ", design", ", print")
    )


def _fillers(rng: np.random.Generator) -> dict[str, str]:
    return {
        "site": pick(rng, _SITES),
        "user": pick(rng, _USERS),
        "number": str(rng.integers(100, 9999)),
        "small": str(rng.integers(1, 40)),
    }
