"""Pictures prepared as CLIP's evaluations do, features in order, bad ones counted by reason."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

from pretrain.evaluate import embed
from pretrain.evaluate.store import open_store
from tests.tiny import eval_sets
from tests.tiny.encoders import ColourEncoder


def test_short_side_is_resized_and_the_middle_kept() -> None:
    picture = np.zeros((20, 60, 3), np.uint8)
    picture[:, 20:40] = 255
    prepared = embed.prepare(picture, 10)
    assert prepared.shape == (10, 10, 3)
    assert prepared.dtype == np.uint8
    assert (prepared[:, 2:8] == 255).all()
    assert embed.prepare(picture.transpose(1, 0, 2), 10).shape == (10, 10, 3)


def test_an_unresized_picture_is_only_cropped() -> None:
    picture = np.random.default_rng(0).integers(0, 256, (8, 11, 3), np.uint8)
    # (11 - 8) / 2 = 1.5 rounds to 2, as torchvision's centre crop does
    assert (embed.prepare(picture, 8) == picture[:, 2:10]).all()


def test_resizing_is_pillows_antialiased_bicubic() -> None:
    picture = np.random.default_rng(0).integers(0, 256, (40, 40, 3), np.uint8)
    expected = np.asarray(Image.fromarray(picture).resize((8, 8), Image.Resampling.BICUBIC))
    assert (embed.prepare(picture, 8) == expected).all()


def test_a_strip_of_pixels_does_not_fill_the_memory() -> None:
    assert embed.prepare(np.full((1, 100_000, 3), 9, np.uint8), 224).shape == (224, 224, 3)


@pytest.mark.parametrize("batch", [1, 2, 100])
def test_features_are_in_order_and_bad_pictures_counted(tmp_path: Path, batch: int) -> None:
    square = eval_sets.square
    files = {
        "0.png": square("red"),
        "1.png": eval_sets.BAD,
        "2.png": square("blue"),
        "3.png": b"",
        "4.png": square("cyan"),
    }
    with open_store(eval_sets.tar(tmp_path / "s.tar", files)) as store:
        found = embed.embed_images(ColourEncoder(), store, list(files), "cpu", batch)
    assert found.positions == [0, 2, 4]
    half = 0.5**0.5
    assert torch.allclose(
        found.features_ND, torch.tensor([[1.0, 0, 0], [0, 0, 1], [0, half, half]]), atol=1e-6
    )
    assert found.bad == {"not_decodable": 2}


def test_bytes_that_are_not_as_indexed_are_one_bad_picture(tmp_path: Path) -> None:
    path = Path(
        eval_sets.tar(tmp_path / "s.tar", {"0.png": eval_sets.square("red"), "1.png": b"x" * 500})
    )
    with open_store(str(path)) as store:
        path.write_bytes(path.read_bytes().replace(b"x" * 500, b"y" * 500))
        assert embed.embed_images(ColourEncoder(), store, store.names, "cpu", 8).bad == {
            "damaged": 1
        }


def test_no_good_picture_at_all_ends_with_the_reasons(tmp_path: Path) -> None:
    path = eval_sets.tar(tmp_path / "s.tar", {"0.png": eval_sets.BAD})
    found = pytest.raises(ValueError, match=r"none of 1 pictures.*not_decodable.*hint: ")
    with open_store(path) as store, found:
        embed.embed_images(ColourEncoder(), store, store.names, "cpu", 8)


def test_texts_are_embedded_in_order_and_leave_no_graph() -> None:
    features = embed.embed_texts(ColourEncoder(), ["red", "a blue one", "red and green"], "cpu", 2)
    half = 0.5**0.5
    assert torch.allclose(features, torch.tensor([[1.0, 0, 0], [0, 0, 1], [half, half, 0]]))
    assert not features.requires_grad
