import numpy as np
import pytest
import torch

from pretrain.stream.batch import Sample
from pretrain.stream.device import Ragged
from pretrain.stream.draws import Draws
from pretrain.stream.rows import ListedRows, PixelRows, RaggedRows, rows_for, tokens_of
from pretrain.stream.view.caption_mix import CaptionMix
from pretrain.stream.view.crop import Crop
from tests.tiny import scenes


def sample(number: int = 0, size_px: int = 32) -> Sample:
    return Sample("key", scenes.picture(number, size_px), "words")


def test_each_view_has_its_way():
    crop = Crop(size=16)
    assert isinstance(rows_for(crop, 2, "worker"), PixelRows)
    assert isinstance(rows_for(crop, 2, "device"), RaggedRows)
    assert isinstance(rows_for(CaptionMix(), 2, "device"), ListedRows)


def test_ragged_rows_are_the_pixel_rows_to_be():
    crop = Crop(size=16, scale=(0.4, 1.0), flip=True)
    made = {}
    for augment in ("worker", "device"):
        rows = rows_for(crop, 6, augment)
        for row in range(6):
            rows.put(row, sample(row), Draws(0, "view.image", row))
        made[augment] = rows.close()
    ragged = made["device"]
    assert isinstance(ragged, Ragged)
    assert (ragged.to("cpu").int() - made["worker"].int()).abs().max() <= 1


def test_pictures_far_larger_than_the_crop_are_brought_down_before_they_travel():
    crop = Crop(size=8, scale=(1, 1), flip=True)
    rows = rows_for(crop, 1, "device")
    rows.put(0, sample(size_px=200), Draws(0, "view.image", 3))
    ragged = rows.close()
    assert len(ragged.pixels) == 64
    assert np.array_equal(ragged.to("cpu")[0], crop(sample(size_px=200), Draws(0, "view.image", 3)))


def test_arrays_are_stacked_and_words_stay_words():
    class Numbers:
        shape = None

        def __call__(self, sample, rng):
            return np.full(3, 7)

    rows = rows_for(Numbers(), 2, "worker")
    for row in range(2):
        rows.put(row, None, None)
    assert rows.close().tolist() == [[7] * 3] * 2


def ids(texts: list[str], length: int = 12) -> torch.Tensor:
    """Start (98), one id a letter where "!" is 0 as in open_clip, end (99)."""
    rows = [[98, *(ord(c) - 33 for c in text), 99] for text in texts]
    return torch.tensor([row + [0] * (length - len(row)) for row in rows])


@pytest.mark.parametrize(
    ("longest", "buckets", "length"),
    [(1, (4, 8), 4), (2, (4, 8), 4), (3, (4, 8), 8), (7, (4, 8), 12), (1, (), 12), (1, (20,), 12)],
)
def test_text_is_cut_to_the_smallest_bucket_that_holds_all_of_it(longest, buckets, length):
    words = {"text": ["a", "b" * longest]}
    texts = tokens_of(words, ids, buckets)
    found = texts.ids["text"]
    assert texts.lengths[-1] == length
    assert found.shape == (2, length)
    assert torch.equal(found, ids(words["text"])[:, :length])
    assert not ids(words["text"])[:, length:].any()
    assert found.is_contiguous()


def test_text_views_have_one_length():
    found = tokens_of({"one": ["a"], "two": ["abcdef"]}, ids, (4, 8))
    assert found.ids["one"].shape == found.ids["two"].shape == (1, 8)
    assert found.lengths == (4, 8)
    assert {name: fits.tolist() for name, fits in found.fits.items()} == {"one": [0], "two": [1]}


def test_the_shortest_length_of_each_row_is_known():
    words = {"text": ["a", "bb", "!!!", "cccccc", "d" * 10]}
    found = tokens_of(words, ids, (4, 8))
    assert found.lengths == (4, 8, 12)
    assert found.fits["text"].tolist() == [0, 0, 1, 1, 2]


def test_without_text_there_are_no_lengths_to_choose_from():
    found = tokens_of({}, ids, (4, 8))
    assert (found.ids, found.fits) == ({}, {})
