"""The demo's evaluation sets: zero-shot classes clean and attacked, and image-text retrieval.

    FOLDER/zero_shot/<colour shape>/000.jpg           one plain thing, no text, classes equally often
    FOLDER/zero_shot_attack/<colour shape>/000.jpg    the same pictures with a wrong class's name on them
    FOLDER/retrieval.tar                              pictures + captions.tsv (filepath, caption)

The attack is the typographic one of Goh et al. 2021 (Multimodal Neurons): clean and attacked
pictures differ in the lettering only, so the drop between the two is due to it. Scenes are uniform
over words and drawn apart from the raw pool's; raw data never shows these pictures.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

from curate.contract import storage, tars
from pipelines.demo import grammar, lettering
from pipelines.demo.render import Picture, jpeg
from pipelines.demo.scene import Scene, class_scene, classes, dice, uniform_scene

PICTURES_PER_CLASS = 20
RETRIEVAL_PICTURES = 300
CAPTIONS_PER_PICTURE = 2
_SEED_BITS = 1 << 40


@dataclass(frozen=True)
class ClassPicture:
    """One zero-shot picture, clean and attacked."""

    label: str
    wrong_label: str
    clean: Picture
    attacked: Picture


def class_pictures(seed: int, per_class: int = PICTURES_PER_CLASS) -> Iterator[ClassPicture]:
    """``per_class`` pictures of each of the 24 classes, class after class."""
    known = classes()
    for number, (colour, shape) in enumerate(known):
        wrong = [f"{c} {s}" for c, s in known if c != colour and s != shape]
        for index in range(per_class):
            rng = dice(seed, "zero-shot", number * 100_000 + index)
            clean = Picture(class_scene(rng, shape, colour), int(rng.integers(_SEED_BITS)))
            wrong_label = wrong[int(rng.integers(len(wrong)))]
            attacked = Picture(clean.scene, clean.seed, lettering.attack(wrong_label, rng))
            yield ClassPicture(f"{colour} {shape}", wrong_label, clean, attacked)


def retrieval_pairs(
    seed: int, pictures: int = RETRIEVAL_PICTURES
) -> Iterator[tuple[Picture, list[str]]]:
    """Pictures of different scenes, each with full captions in different words."""
    seen: set[Scene] = set()
    index = 0
    while len(seen) < pictures:
        rng = dice(seed, "retrieval", index)
        index += 1
        scene = uniform_scene(rng)
        if scene in seen:
            continue
        seen.add(scene)
        yield Picture(scene, int(rng.integers(_SEED_BITS))), _captions(scene, seed, index)


def _captions(scene: Scene, seed: int, index: int) -> list[str]:
    """CAPTIONS_PER_PICTURE different sentences."""
    found: dict[str, None] = {}
    tries = dice(seed, "retrieval captions", index)
    while len(found) < CAPTIONS_PER_PICTURE:
        found[grammar.full_text(scene, tries)] = None
    return list(found)


def write(
    seed: int, folder: str, per_class: int = PICTURES_PER_CLASS, pictures: int = RETRIEVAL_PICTURES
) -> None:
    """Write the three sets under ``folder``. The same arguments give the same bytes."""
    counts: dict[str, int] = {}
    for item in class_pictures(seed, per_class):
        number = counts.get(item.label, 0)
        counts[item.label] = number + 1
        for name, picture in (("zero_shot", item.clean), ("zero_shot_attack", item.attacked)):
            with storage.committed(
                storage.join(folder, name, item.label, f"{number:03d}.jpg")
            ) as file:
                file.write(jpeg(picture))
    _write_retrieval(seed, storage.join(folder, "retrieval.tar"), pictures)


def _write_retrieval(seed: int, path: str, pictures: int) -> None:
    lines = ["filepath\tcaption"]
    with storage.committed(path) as file:
        for number, (picture, captions) in enumerate(retrieval_pairs(seed, pictures)):
            name = f"{number:04d}.jpg"
            lines += [f"{name}\t{caption}" for caption in captions]
            file.write(tars.member(name, jpeg(picture)))
        file.write(tars.member("captions.tsv", ("\n".join(lines) + "\n").encode()))
        file.write(tars.END)
