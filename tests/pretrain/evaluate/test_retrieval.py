"""Retrieval: ranks worked by hand with ties and several captions, and models that must score 0."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch

from pretrain.evaluate.retrieval import Retrieval, ranks
from tests.tiny import eval_sets
from tests.tiny.encoders import COLOURS, CollapsedEncoder, ColourEncoder, DivergedEncoder
from tests.tiny.pictures import shared_data


def colour_pairs(path: Path) -> str:
    lines = [
        f"{name}.png\t{text}" for name in COLOURS for text in (f"{name} square", f"all {name}")
    ]
    files = {f"{name}.png": eval_sets.square(name) for name in COLOURS}
    return eval_sets.tar(
        path, {**files, "captions.tsv": "\n".join(["filepath\tcaption", *lines]).encode()}
    )


def test_ranks_by_hand() -> None:
    # Cosines, pictures in rows; captions 0, 1 belong to picture 0, 2 to 1, 3, 4 to 2.
    cosines = torch.tensor(
        [[0.9, 0.2, 0.3, 0.1, 0.9], [0.9, 0.5, 0.4, 0.5, 0.3], [0.1, 0.5, 0.4, 0.6, 0.2]]
    )
    images, captions = torch.eye(3), cosines.T
    image_ranks, text_ranks = ranks(images, captions, torch.tensor([0, 0, 1, 2, 2]))
    # Picture 0: its best is .9 and a wrong one ties: 2. Picture 1: .4, beaten by .9 .5 .5: 4.
    # Picture 2: .6, beaten by none: 1; its other caption's .2 does not count.
    assert image_ranks.tolist() == [2, 4, 1]
    # Caption 0: .9, tied by picture 1: 2. Caption 1: .2, beaten twice: 3. Caption 2: .4, tied by
    # picture 2: 2. Caption 3: .6 wins: 1. Caption 4: .2, beaten twice: 3.
    assert text_ranks.tolist() == [2, 3, 2, 1, 3]


@pytest.mark.parametrize("tile", [1, 3, 7, 64])
def test_tiles_do_not_change_ranks(tile: int) -> None:
    generator = torch.Generator().manual_seed(0)
    images = torch.nn.functional.normalize(torch.randn(13, 6, generator=generator), dim=-1)
    captions = torch.nn.functional.normalize(torch.randn(29, 6, generator=generator), dim=-1)
    owner = torch.cat([torch.arange(13), torch.randint(0, 13, (16,), generator=generator)])
    found = ranks(images, captions, owner, tile)
    cosines = (images @ captions.T).tolist()
    for image, rank in enumerate(found[0].tolist()):
        best = max(cosines[image][c] for c in range(29) if owner[c] == image)
        assert rank == 1 + sum(cosines[image][c] >= best for c in range(29) if owner[c] != image)
    for caption, rank in enumerate(found[1].tolist()):
        own = int(owner[caption])
        assert rank == 1 + sum(
            cosines[i][caption] >= cosines[own][caption] for i in range(13) if i != own
        )


def test_perfect_on_colours_with_every_figure(tmp_path: Path) -> None:
    assert Retrieval(path=colour_pairs(tmp_path / "s.tar"), batch=3).run(ColourEncoder(), "cpu") == {
        "image_to_text_r1": 1.0, "image_to_text_r5": 1.0, "image_to_text_r10": 1.0,
        "text_to_image_r1": 1.0, "text_to_image_r5": 1.0,  # of 7 pictures R@10 says nothing
        "n_pictures": 7, "n_captions": 14, "n_bad": 0,
    }  # fmt: skip


@pytest.mark.parametrize("encoder", [CollapsedEncoder(), DivergedEncoder()])
def test_a_model_that_tells_nothing_apart_scores_zero(
    tmp_path: Path, encoder: ColourEncoder
) -> None:
    figures = Retrieval(path=colour_pairs(tmp_path / "s.tar")).run(encoder, "cpu")
    assert {value for key, value in figures.items() if not key.startswith("n_")} == {0.0}


def test_a_caption_that_two_pictures_share_is_a_tie(tmp_path: Path) -> None:
    files = {f"{i}.png": eval_sets.square(name) for i, name in enumerate(["red", "red", "blue"])}
    files |= {f"{i}.txt": name.encode() for i, name in enumerate(["red", "red", "blue"])}
    figures = Retrieval(path=eval_sets.tar(tmp_path / "s.tar", files)).run(ColourEncoder(), "cpu")
    assert figures["image_to_text_r1"] == figures["text_to_image_r1"] == pytest.approx(1 / 3)


def test_bad_pictures_take_their_captions_with_them(tmp_path: Path) -> None:
    files = {"0.png": eval_sets.BAD, "0.txt": b"green", "1.png": eval_sets.square("red"), "1.txt": b"red",
             "2.png": eval_sets.square("blue"), "2.txt": b"blue", "3.png": eval_sets.square("blue")}  # fmt: skip
    figures = Retrieval(path=eval_sets.tar(tmp_path / "s.tar", files)).run(ColourEncoder(), "cpu")
    assert figures == {
        "image_to_text_r1": 1.0,
        "text_to_image_r1": 1.0,
        "n_pictures": 2,
        "n_captions": 2,
        "n_bad": 2,
    }


def test_added_captions_count_when_asked_for(tmp_path: Path) -> None:
    files = {"0.png": eval_sets.square("red"), "0.txt": b"nothing", "0.json": b'{"captions": [{"text": "red"}]}',
             "1.png": eval_sets.square("blue"), "1.txt": b"blue"}  # fmt: skip
    path = eval_sets.tar(tmp_path / "s.tar", files)
    assert Retrieval(path=path).run(ColourEncoder(), "cpu")["image_to_text_r1"] == 0.5
    figures = Retrieval(path=path, all_captions=True).run(ColourEncoder(), "cpu")
    assert (figures["image_to_text_r1"], figures["n_captions"]) == (1.0, 3)


def test_a_wrong_batch_is_refused() -> None:
    with pytest.raises(ValueError, match=r"batch = 0\. hint: "):
        Retrieval(path="x", batch=0).check()


@pytest.mark.parametrize(
    ("file", "pictures", "captions"),
    [
        ("pairs-coco-mini-val.tar", 79, 395),
        ("webshard-cc12m-32.tar", 32, 32),
        ("pairs-flickr8k-dev.tar", 1000, 5000),
    ],
)
def test_real_sets_are_read_whole(file: str, pictures: int, captions: int) -> None:
    figures = Retrieval(path=str(shared_data(file))).run(ColourEncoder(), "cpu")
    assert (figures["n_pictures"], figures["n_captions"], figures["n_bad"]) == (
        pictures,
        captions,
        0,
    )
