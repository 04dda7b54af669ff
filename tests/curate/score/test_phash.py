"""phash: imagehash's bits, none for a flat picture, a reason for a broken one."""

from __future__ import annotations

import imagehash
import numpy as np
import pyarrow as pa
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image

from curate.score.phash import Bits, Phash, coarse, phash
from tests.tiny.pictures import encoded, quadrants, shared_data, tar_files


def smooth(seed: int, width_px: int, height_px: int) -> np.ndarray:
    """A picture with low and high frequencies, uint8 (height, width, 3)."""
    rng = np.random.default_rng(seed)
    small = Image.fromarray(rng.integers(0, 256, (7, 9, 3), dtype=np.uint8))
    pixels = np.asarray(small.resize((width_px, height_px), Image.Resampling.BICUBIC), np.int64)
    return np.clip(pixels + rng.integers(-12, 13, pixels.shape), 0, 255).astype(np.uint8)


def oracle(pixels: np.ndarray, bits: int) -> bytes:
    side = 8 if bits == 64 else 16
    return np.packbits(imagehash.phash(Image.fromarray(pixels), hash_size=side).hash).tobytes()


@settings(max_examples=60, deadline=None)
@given(
    st.integers(0, 2**32 - 1), st.integers(8, 150), st.integers(8, 150), st.sampled_from([64, 256])
)
def test_bits_are_those_of_imagehash(seed: int, width: int, height: int, bits: Bits) -> None:
    # From 8 px on: a picture two pixels wide is its own mirror's opposite, and ties are many.
    pixels = smooth(seed, width, height)
    assert phash(pixels, bits) == oracle(pixels, bits)


@pytest.mark.parametrize("bits", [64, 256])
def test_bits_of_photographs_are_those_of_imagehash(bits: Bits) -> None:
    from curate.score.picture import decode

    files = tar_files(shared_data("pairs-coco-mini-val.tar"))
    pictures = [decode(data) for name, data in files.items() if name.endswith(".jpg")]
    assert len(pictures) == 79
    assert [phash(pixels, bits) for pixels in pictures] == [oracle(p, bits) for p in pictures]


def test_a_tie_is_not_above_the_median() -> None:
    """A picture that is the same top and bottom has exact zeros, and their median is zero."""
    half = smooth(3, 64, 32)
    mirrored = np.concatenate([half, half[::-1]])
    assert phash(mirrored, 64) == phash(mirrored[::-1].copy(), 64)
    grid = np.unpackbits(np.frombuffer(phash(mirrored, 64) or b"", np.uint8)).reshape(8, 8)
    assert not grid[1::2].any()


@pytest.mark.parametrize("level", [0, 120, 255])
def test_a_picture_of_one_colour_has_no_hash(level: int) -> None:
    flat = np.full((60, 80, 3), level, np.uint8)
    done = Phash().process(
        pa.table({"image": [encoded(flat), encoded(flat, "JPEG", quality=30)]}), None
    )
    assert done["phash"].to_pylist() == [None, None]
    assert done["keep"].to_pylist() == [True, True]


def test_broken_and_missing_pictures_have_reasons() -> None:
    good = encoded(quadrants())
    batch = pa.table({"image": pa.array([good, good[:40], None, b"<html>"], pa.binary())})
    done = Phash(bits=64).process(batch, None)
    assert [value is None for value in done["phash"].to_pylist()] == [False, True, True, True]
    assert done["reason"].to_pylist() == [
        None,
        "error.score.phash.decode",
        "error.score.phash.no_image",
        "error.score.phash.decode",
    ]


def test_near_copies_are_near_and_other_pictures_far() -> None:
    def differ(left: bytes | None, right: bytes | None) -> int:
        assert left is not None
        assert right is not None
        return (int.from_bytes(left) ^ int.from_bytes(right)).bit_count()

    one, other = smooth(1, 240, 180), smooth(2, 240, 180)
    half = np.asarray(Image.fromarray(one).resize((120, 90)))
    assert differ(phash(one), phash(half)) <= 8
    assert differ(phash(one), phash(other)) > 60


def test_coarse_bits_are_the_lowest_frequencies() -> None:
    rows = np.zeros((2, 32), np.uint8)
    rows[0, 2], rows[1, 3], rows[1, 16] = (
        0b1000_0001,
        255,
        255,
    )  # row 1 left half; outside the block
    assert np.bitwise_count(coarse(rows)).tolist() == [2, 0]
    assert coarse(np.arange(16, dtype=np.uint8).reshape(2, 8)).shape == (2,)


def test_other_sizes_are_refused() -> None:
    with pytest.raises(ValueError, match="hint: 64 or 256"):
        Phash(bits=128).check()  # type: ignore[arg-type]
