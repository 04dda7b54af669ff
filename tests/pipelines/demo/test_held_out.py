"""Evaluation sets: balanced, paired clean and attacked, distinct scenes, readable from disk."""

from __future__ import annotations

import hashlib
import io
from collections import Counter

import numpy as np

from curate.contract import tars
from pipelines.demo import held_out
from pipelines.demo.render import draw
from pipelines.demo.scene import classes
from pipelines.demo.world import build


def test_classes_are_balanced_and_attacks_name_another_class():
    found = list(held_out.class_pictures(0, per_class=3))
    labels = {f"{colour} {shape}" for colour, shape in classes()}
    assert Counter(item.label for item in found) == dict.fromkeys(labels, 3)
    for item in found:
        assert item.clean.lettering is None
        assert item.attacked.lettering is not None
        assert item.clean.scene.label == item.label
        assert " ".join(item.attacked.lettering.lines).lower() == item.wrong_label
        assert item.wrong_label in labels
        assert not set(item.wrong_label.split()) & set(item.label.split())


def test_attacked_pictures_differ_in_the_lettering_only():
    item = next(held_out.class_pictures(3))
    clean, attacked = draw(item.clean), draw(item.attacked)
    changed = (clean != attacked).any(axis=2)
    assert 0.01 < changed.mean() < 0.5
    rows = np.flatnonzero(changed.any(axis=1))
    assert rows.max() - rows.min() < 0.6 * len(clean)


def test_retrieval_scenes_are_distinct_with_two_captions_each():
    pairs = list(held_out.retrieval_pairs(0, 60))
    assert len({picture.scene for picture, _ in pairs}) == 60
    assert all(len(set(captions)) == held_out.CAPTIONS_PER_PICTURE for _, captions in pairs)


def test_no_evaluation_picture_is_in_the_raw_pool():
    raw = {asset.picture for asset in build(0, 500).assets.values()}
    assert not raw & {item.clean for item in held_out.class_pictures(0, 2)}
    assert not raw & {picture for picture, _ in held_out.retrieval_pairs(0, 50)}


def test_write_gives_folders_a_tar_and_equal_bytes(tmp_path):
    from PIL import Image

    digests = []
    for name in ("a", "b"):
        folder = tmp_path / name
        held_out.write(0, str(folder), per_class=1, pictures=5)
        files = sorted(path for path in folder.rglob("*") if path.is_file())
        digests.append(
            [
                (path.relative_to(folder).as_posix(), hashlib.sha256(path.read_bytes()).hexdigest())
                for path in files
            ]
        )
    assert digests[0] == digests[1]
    names = [name for name, _ in digests[0]]
    assert len(names) == 24 * 2 + 1
    assert "zero_shot/red circle/000.jpg" in names
    assert "zero_shot_attack/red circle/000.jpg" in names
    with open(tmp_path / "a" / "retrieval.tar", "rb") as file:
        members = {member.name: member.data for member in tars.walk(file, "retrieval.tar")}
    lines = members.pop("captions.tsv").decode().splitlines()
    assert lines[0] == "filepath\tcaption"
    assert Counter(line.split("\t")[0] for line in lines[1:]) == dict.fromkeys(members, 2)
    for data in members.values():
        Image.open(io.BytesIO(data)).load()
